"""A picture and a network, of whatever task, made ready to be explained by `visionattn.explain`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from visionattn.explain import BoxScores, RegionScores, as_seen

from .network import Network, Sample
from .pictures import Picture

__all__ = ["Subject", "subject", "whole_network"]


@dataclass(frozen=True)
class Subject:
    """What is explained.

    Args:
        network: Gives a score for each class, `(B, C, H, W) -> (B, classes)`.
        x: The picture as the network gets it, `(1, C, H, W)`.
        seen: The same as a picture, `(H, W, 3)` uint8.
        target: Number of the class.
        title: What was predicted.
        outline: The box, left, top, right, bottom, or the region `(H, W)` bool in `seen`; none of a classifier.
    """

    network: nn.Module
    x: torch.Tensor
    seen: np.ndarray
    target: int
    title: str
    outline: np.ndarray | None = None


def subject(
    network: Network,
    picture: Picture,
    *,
    target: int | None = None,
    box: int = 0,
    region: Sequence[int] | None = None,
) -> Subject:
    """Predicts, and chooses what of the prediction is explained.

    Args:
        network: For any task.
        picture: The picture.
        target: Number of the class; by default the predicted one: of a detector that of the box, of a segmentor the
            one with the most pixels, a first class called `background` left out.
        box: Detection: which object, of those of the class, counted from the best (0).
        region: Segmentation: top, left, bottom, right in pixels of the network's input; only pixels inside count.

    Raises:
        ValueError: If there is no such class, object or region.
    """
    if target is not None and not 0 <= target < len(network.classes):
        raise ValueError(f"target must lie in 0..{len(network.classes) - 1}, got {target}")
    sample = network.prepare(picture.read(), picture.name)
    x = _input(network, sample)
    seen = as_seen(x[0], network.mean, network.std)
    with torch.no_grad():
        if network.task == "detection":
            return _detection(network, x, seen, picture.name, target, box)
        if network.task == "segmentation":
            return _segmentation(network, x, seen, picture.name, target, region)
        scores = network.classifier(x)[0].float().softmax(-1)
    chosen = int(scores.argmax()) if target is None else target
    title = f"{network.classes[chosen]} {100 * scores[chosen]:.1f} %"
    return Subject(network.classifier, x, seen, chosen, title)


def whole_network(network: Network) -> tuple[nn.Module, torch.Tensor]:
    """The network as a `Subject` has it, of the whole of a black picture: for what does not depend on the picture."""
    x = _input(network, network.prepare(np.zeros((256, 256, 3), np.uint8), "a black picture"))
    height, width = x.shape[-2:]
    if network.task == "detection":
        return BoxScores(network.module, (0, 0, width, height)), x
    if network.task == "segmentation":
        return RegionScores(network.module, torch.ones(height, width, dtype=torch.bool)), x
    return network.classifier, x


def _input(network: Network, sample: Sample) -> torch.Tensor:
    if network.batch is not None:
        return network.batch([sample])
    from visionattn.tasks._features import pad_to_multiple

    return pad_to_multiple(network.normalise(sample), network.module.divisor)


def _detection(network: Network, x: torch.Tensor, seen: np.ndarray, name: str, target: int | None, box: int) -> Subject:
    preds: dict[str, Any] = network.module(x, [{"size": tuple(x.shape[-2:])}], mode="predict")[0]["preds"]
    order = preds["scores"].argsort(descending=True)
    if target is not None:
        order = order[preds["labels"][order] == target]
    if not 0 <= box < len(order):
        what = "objects were" if target is None else f"objects of the class {network.classes[target]} were"
        raise ValueError(f"{len(order)} {what} found in {name}, so there is no object {box}")
    at = order[box]
    label, edges = int(preds["labels"][at]), preds["boxes"][at]
    title = f"object {box}: {network.classes[label]}, score {preds['scores'][at]:.2f}"
    return Subject(BoxScores(network.module, edges), x, seen, label, title, edges.cpu().numpy())


def _segmentation(
    network: Network, x: torch.Tensor, seen: np.ndarray, name: str, target: int | None, region: Sequence[int] | None
) -> Subject:
    classes = network.module(x)[0].argmax(0)
    if target is None:
        counts = classes.flatten().bincount(minlength=len(network.classes))
        counts[: int(network.classes[0] == "background")] = 0
        target = int(counts.argmax())
    mask = classes == target
    if region is not None:
        top, left, bottom, right = region
        inside = torch.zeros_like(mask)
        inside[max(top, 0) : bottom, max(left, 0) : right] = True
        mask = mask & inside
    if not mask.any():
        where = "" if region is None else f" inside {','.join(map(str, region))}"
        raise ValueError(f"no pixel of {name} is of the class {network.classes[target]}{where}: choose another target")
    title = f"{network.classes[target]}, {100 * mask.float().mean():.1f} % of the pixels"
    return Subject(RegionScores(network.module, mask), x, seen, target, title, mask.cpu().numpy())
