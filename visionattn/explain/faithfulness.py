"""Whether what a map marks is what the network uses: pixels taken away, or put back, in the order of the map.

RISE: Randomized Input Sampling for Explanation of Black-box Models (BMVC 2018, arXiv 1806.07421).

Official code: https://github.com/eclique/RISE (MIT), evaluation.py.

Differs from the official code in: any number of steps of equal size; stronger blur where insertion starts; a map on a
coarser grid is enlarged bilinearly, and of pixels with one value the order is that of the rows.
"""

from collections.abc import Callable

import torch
from torch import nn
from torchvision.transforms.functional import gaussian_blur

from visionattn.utils.arguments import check_choice, check_positive

from ._target import Target, class_of_each, is_score
from .maps import upsample

__all__ = ["deletion_insertion"]


@torch.no_grad()
def deletion_insertion(
    model: nn.Module,
    x: torch.Tensor,
    maps: torch.Tensor,
    target: Target = None,
    *,
    steps: int = 20,
    deleted: str | torch.Tensor = "mean",
    start: str | torch.Tensor = "blur",
) -> dict[str, torch.Tensor]:
    """What happens to a class's probability when pixels go, the highest first, and when they come back.

    Args:
        model: The network, in evaluation mode.
        x: Images `(B, C, H, W)`.
        maps: Any size `(B, h, w)`.
        target: A class, one for each image, none for the predicted one, or a function of the output that gives a number
            for each image, which is taken as it is.
        steps: In how many equal parts the pixels go.
        deleted: What takes the place of deleted pixels: `mean` of the image, `blur`, `zero` or images.
        start: From what insertion starts, likewise.

    Returns:
        `deletion` and `insertion`, the areas under the curves `(B,)`, small and large for a good map; and
        `deletion_curve` and `insertion_curve` `(B, steps + 1)`.

    Raises:
        ValueError: If an argument does not fit.
    """
    check_positive(steps=steps)
    if maps.ndim != 3 or len(maps) != len(x):
        raise ValueError(f"maps must be (B, h, w) for {len(x)} images, got {tuple(maps.shape)}")
    size = x.shape[-2:]
    large = maps if maps.shape[1:] == size else upsample(maps, size)
    order = large.flatten(1).argsort(dim=1, descending=True, stable=True)
    rank = torch.zeros_like(order).scatter_(1, order, torch.arange(order.shape[1], device=x.device).expand_as(order))
    rank = rank.view(len(x), 1, *size)
    score = _score(model, x, target)
    gone, blurred = (_baseline(kind, x, name) for kind, name in ((deleted, "deleted"), (start, "start")))
    curves: dict[str, list[torch.Tensor]] = {"deletion": [], "insertion": []}
    for step in range(steps + 1):
        first = rank < round(step * order.shape[1] / steps)
        curves["deletion"].append(score(torch.where(first, gone, x)))
        curves["insertion"].append(score(torch.where(first, x, blurred)))
    result = {}
    for name, points in curves.items():
        curve = torch.stack(points, 1)
        result[name] = torch.trapezoid(curve, dim=1) / steps
        result[f"{name}_curve"] = curve
    return result


def _score(model: nn.Module, x: torch.Tensor, target: Target) -> Callable[[torch.Tensor], torch.Tensor]:
    if is_score(target):
        return lambda images: target(model(images))
    logits = model(x)
    classes = logits.argmax(1) if target is None else target
    chosen = class_of_each(classes, len(x), logits.shape[1], logits.device)
    return lambda images: model(images).softmax(1).gather(1, chosen[:, None])[:, 0]


def _baseline(kind: str | torch.Tensor, x: torch.Tensor, name: str) -> torch.Tensor:
    if isinstance(kind, torch.Tensor):
        if kind.shape[-2:] != x.shape[-2:]:
            raise ValueError(f"{name} must have the size of the images, {tuple(x.shape)}, got {tuple(kind.shape)}")
        return kind.expand_as(x)
    check_choice(name, kind, ("mean", "blur", "zero"))
    if kind == "zero":
        return torch.zeros_like(x)
    return x.mean((2, 3), keepdim=True).expand_as(x) if kind == "mean" else _blurred(x)


def _blurred(x: torch.Tensor) -> torch.Tensor:
    """By a Gaussian with a deviation of a tenth of the shorter side; RISE's, 5 pixels of 224, leaves shapes."""
    sigma = max(min(x.shape[-2:]) / 10, 0.5)
    side = 2 * min(round(2 * sigma), (min(x.shape[-2:]) - 1) // 2) + 1
    return gaussian_blur(x, [side, side], [sigma, sigma])
