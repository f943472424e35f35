"""Prediction on images from any source, for all tasks."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .loading import load_network
from .network import Sample
from .pictures import Picture, list_pictures
from .results import Classification, Detection, Prediction, Segmentation

__all__ = ["OnError", "Predictor"]

OnError = Callable[[str, Exception], None]


class Predictor:
    """A trained network that takes images of any kind and size.

    `network` has its task, the names of its classes and how it prepares a picture.

    Args:
        model: A published checkpoint by name (`va_resnet10n_cbam.digits`), file, `hf-hub:ORG/NAME` or
            `local-dir:FOLDER`; the name of a network of timm's; a config, its path or its packaged name; or a
            classifier of timm's as a module.
        checkpoint: Weights for a config, or in place of the published ones for a named network: a file or a name.
        device: Where to compute.
        classes: Names of the classes; without it those that the checkpoint knows, or else numbers.
        topk: Classification: how many classes to report.
        score: Detection: objects with lower scores are left out, in [0, 1].

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If there is no such network or device, the weights are damaged or do not fit, or a number is out of
            range.
    """

    def __init__(
        self,
        model: Any,
        checkpoint: str | Path | None = None,
        *,
        device: str | torch.device = "cpu",
        classes: Sequence[str] | None = None,
        topk: int = 5,
        score: float = 0.5,
    ) -> None:
        if topk < 1:
            raise ValueError(f"topk must be at least 1, got {topk}")
        if not 0 <= score <= 1:
            raise ValueError(f"score must lie in 0..1, got {score}")
        self.network = load_network(model, checkpoint, device, classes)
        self.topk = topk
        self.score = score

    def __call__(self, inputs: Any, batch_size: int = 1, on_error: OnError | None = None) -> Iterator[Prediction]:
        """Predicts on images in order; yields each result as soon as it is ready.

        Pictures of one batch that are prepared to different sizes go through the network one after the other, never
        padded: a result does not depend on the other pictures.

        Args:
            inputs: A path of a picture, a video (each frame is a picture) or a folder, which is searched through; an
                `http://` or `https://` address; `-` for standard input; `bytes` or an open binary file with an encoded
                picture; a PIL picture; a uint8 array `(H, W, 3)` in RGB or `(H, W)` in grey; or an iterable of these.
            batch_size: Most pictures a forward pass.
            on_error: Called with the name of a picture that can't be read or predicted, and the reason; the others go
                on. Without it the first one ends the iteration.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If a picture can't be read or predicted, or `batch_size` is below 1.
            TypeError: If an input is of another kind.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        return self._run(iter(list_pictures(inputs)), batch_size, on_error)

    def _run(self, pictures: Iterator[Picture], batch_size: int, on_error: OnError | None) -> Iterator[Prediction]:
        while batch := list(islice(pictures, batch_size)):
            prepared = [done for picture in batch if (done := _guarded(self._prepare, picture, on_error))]
            for _, group in groupby(prepared, key=lambda pair: pair[1]["inputs"].shape):
                yield from self._predict(list(group), on_error)

    def _prepare(self, picture: Picture) -> tuple[Picture, Sample]:
        return picture, self.network.prepare(picture.read(), picture.name)

    def _predict(self, prepared: list[tuple[Picture, Sample]], on_error: OnError | None) -> Iterator[Prediction]:
        """Predicts for samples of one size."""
        try:
            with torch.inference_mode():
                outputs = self.network.predict([sample for _, sample in prepared])
        except (RuntimeError, ValueError) as error:
            if len(prepared) > 1:  # the others of the batch may do
                for one in prepared:
                    yield from self._predict([one], on_error)
                return
            name = prepared[0][0].name
            fault = ValueError(f"cannot predict {name}: {str(error).splitlines()[0]}")
            if on_error is None:
                raise fault from error
            on_error(name, fault)
            return
        for (picture, sample), output in zip(prepared, outputs, strict=True):
            if result := _guarded(partial(self._describe, sample=sample, output=output), picture, on_error):
                yield result

    def _describe(self, picture: Picture, sample: Sample, output: Any) -> Prediction:
        classes = self.network.classes
        if self.network.task == "segmentation":
            return Segmentation(picture, output.cpu().numpy(), classes, self.network.colours)
        numbers = output if self.network.task == "classification" else output["scores"]
        if not bool(torch.isfinite(numbers).all()):
            raise ValueError(f"cannot predict {picture.name}: the network's scores are not finite")
        if self.network.task == "classification":
            scores, order = (values[: self.topk].tolist() for values in output.sort(descending=True))
            return Classification(picture, tuple(classes[n] for n in order), tuple(scores), tuple(order))
        kept = output["scores"] >= self.score
        found: dict[str, np.ndarray] = {name: value[kept].cpu().numpy() for name, value in output.items()}
        boxes, labels, scores = (found[name] for name in ("boxes", "labels", "scores"))
        return Detection(picture, boxes, labels, scores, found.get("masks"), classes, sample["size"])


def _guarded(action: Callable[[Picture], Any], picture: Picture, on_error: OnError | None) -> Any:
    """The result of an action on an image; nothing if it fails and there is a handler for failures."""
    try:
        return action(picture)
    except (OSError, ValueError, RuntimeError) as error:
        if on_error is None:
            raise
        on_error(picture.name, error)
        return None
