"""A trained network, ready to predict: preprocessing, outputs and class names."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image

from visionattn.visualization.colours import Colour

__all__ = ["Network", "Sample", "from_module", "from_task"]

Sample = dict[str, Any]
_MOST_PIXELS = 1 << 25  # of an enlarged picture


@dataclass(frozen=True)
class Network:
    """A trained network, ready to predict.

    Args:
        task: `classification`, `detection` or `segmentation`.
        classes: A name for each of its outputs.
        prepare: Turns a picture `(H, W, 3)` uint8 RGB and its name into a sample: `inputs`, `(3, h, w)`, the picture's
            `size`, and what else `predict` needs.
        predict: Turns samples whose inputs have one size into a prediction each: probabilities `(classes,)`; a dict of
            `boxes`, `labels`, `scores` and perhaps `masks`; or class numbers `(H, W)`.
        colours: Colours of the classes of pixels, if its data set has some.
        class_ids: Category ids of the classes in its data set, if it has some.
        module: The network itself: a task of `visionattn.tasks`, or a classifier of timm's.
        mean: What is taken off each channel, for pixels in 0..1.
        std: What each channel is divided by then.
        input_size: Height and width that the network was trained for, if that is known.
        batch: Of a classifier, turns samples whose inputs have one size into what the network itself takes.
    """

    task: str
    classes: tuple[str, ...]
    prepare: Callable[[np.ndarray, str], Sample]
    predict: Callable[[list[Sample]], Sequence[Any]]
    colours: Sequence[Colour] | None = None
    class_ids: Sequence[int] | None = None
    module: Any = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    input_size: tuple[int, int] | None = None
    batch: Callable[[list[Sample]], torch.Tensor] | None = None

    @property
    def classifier(self) -> Any:
        """The module of a classifier that computes logits: the network, or the task if it has its own head."""
        plain = hasattr(self.module, "data_preprocessor") and self.module.head is None
        return self.module.backbone if plain else self.module

    def normalise(self, sample: Sample) -> torch.Tensor:
        """A sample's `inputs`, normalised for the network, `(1, 3, h, w)`, without padding."""
        inputs = sample["inputs"]
        if not hasattr(self.module, "data_preprocessor"):  # `prepare` has done so
            return inputs[None]
        batch = self.module.data_preprocessor({"inputs": [inputs], "data_samples": [sample["data_samples"]]})
        return batch["inputs"][..., : inputs.shape[-2], : inputs.shape[-1]]


def from_module(model: Any, device: torch.device, classes: Sequence[str] | None) -> Network:
    """A timm classifier, whose configuration defines the preprocessing.

    Args:
        model: The network; its `pretrained_cfg` has the size, mean and standard deviation.
        device: Where to compute.
        classes: Names of the classes; without it those of its configuration, of ImageNet for weights of it, or numbers.

    Raises:
        ValueError: If it takes pictures of other than three channels.
    """
    model = model.eval().to(device)
    settings = timm.data.resolve_model_data_config(model)
    channels = settings["input_size"][0]
    if channels != 3:
        raise ValueError(f"{type(model).__name__} takes pictures of {channels} channels; prediction gives it 3 (RGB)")
    transform = timm.data.create_transform(**settings)
    shorter = None
    if settings["crop_mode"] == "center":
        shorter = math.ceil(max(settings["input_size"][1:]) / settings["crop_pct"])

    def prepare(image: np.ndarray, name: str) -> Sample:
        inputs = transform(Image.fromarray(_trimmed(image, name, shorter)))
        return {"inputs": inputs, "size": image.shape[:2]}

    def batch(samples: list[Sample]) -> torch.Tensor:
        return torch.stack([sample["inputs"] for sample in samples]).to(device)

    def predict(samples: list[Sample]) -> Sequence[Any]:
        return list(model(batch(samples)).float().softmax(-1))

    names = classes or model.pretrained_cfg.get("label_names") or _imagenet_names(model)
    return Network(
        "classification",
        _class_names(names, model.num_classes),
        prepare,
        predict,
        module=model,
        mean=tuple(settings["mean"]),
        std=tuple(settings["std"]),
        input_size=tuple(settings["input_size"][1:]),
        batch=batch,
    )


def from_task(task: Any, transforms: Sequence[dict[str, Any]], meta: Mapping[str, Any]) -> Network:
    """A task in evaluation mode.

    Args:
        task: Of `visionattn.tasks`, where it computes.
        transforms: Its test pipeline, one dict a transform.
        meta: Of its data set: `classes`, `palette` and `class_ids`, as far as known.
    """
    from visionattn.data.pipeline import Pipeline

    pipeline = Pipeline(transforms)
    shorter = max((int(np.max(t["max_size"])) for t in transforms if t["type"] == "SmallestMaxSize"), default=None)

    def prepare(image: np.ndarray, name: str) -> Sample:
        size = image.shape[:2]
        inputs = pipeline(_trimmed(image, name, shorter) if task.kind == "classification" else image, name=name)
        sample = {"size": tuple(inputs.shape[1:]), "original": {"size": size}, "original_size": size}
        return {"inputs": inputs, "size": size, "data_samples": sample}

    def processed(samples: list[Sample]) -> Any:
        parts = {name: [sample[name] for sample in samples] for name in ("inputs", "data_samples")}
        return task.data_preprocessor(parts)

    def batch(samples: list[Sample]) -> torch.Tensor:
        inputs: torch.Tensor = processed(samples)["inputs"]
        return inputs

    def predict(samples: list[Sample]) -> Sequence[Any]:
        if task.kind == "classification":
            return list(task(batch(samples)).float().softmax(-1))
        return [result["preds"] for result in task(**processed(samples), mode="predict")]

    names = _class_names(meta.get("classes"), task.num_classes)
    ids = meta.get("class_ids")
    ids = ids if ids is not None and len(ids) == len(names) else None
    mean, std = _scaling(task.data_preprocessor)
    return Network(
        task.kind,
        names,
        prepare,
        predict,
        _colours(meta.get("palette"), len(names)),
        ids,
        module=task,
        batch=batch if task.kind == "classification" else None,
        mean=mean,
        std=std,
        input_size=tuple((meta.get("input") or {}).get("input_size", ())[1:]) or None,
    )


def _scaling(preprocessor: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the channels for pixels in 0..1."""
    if not hasattr(preprocessor, "mean"):  # mmengine's without them
        return (0.0,) * 3, (1 / 255,) * 3
    mean, std = ((values.flatten() / 255).tolist() for values in (preprocessor.mean, preprocessor.std))
    return tuple(mean), tuple(std)


def _trimmed(image: np.ndarray, name: str, shorter: int | None) -> np.ndarray:
    """Crops the middle of an image too long and narrow to resize its shorter side within memory."""
    height, width = image.shape[:2]
    if shorter is None:
        return image
    room = max(_MOST_PIXELS * min(height, width) // shorter**2, min(height, width))
    if max(height, width) <= room:
        return image
    top, left = max(height - room, 0) // 2, max(width - room, 0) // 2
    image = image[top : top + room, left : left + room]
    warnings.warn(
        f"{name} is {width}x{height} pixels, too narrow to be enlarged as a whole: the class is that of the "
        f"{image.shape[1]}x{image.shape[0]} pixels in its middle",
        stacklevel=1,
    )
    return image


def _class_names(names: Sequence[str] | None, count: int) -> tuple[str, ...]:
    """A name for each output; numbers if there are none."""
    names = tuple(map(str, names or ()))
    if names and len(names) != count:
        warnings.warn(
            f"the network has {count} outputs, but there are {len(names)} class names: outputs without a name are "
            "shown as numbers",
            stacklevel=1,
        )
    return (*names[:count], *map(str, range(len(names), count)))


def _imagenet_names(model: Any) -> Sequence[str] | None:
    """The class names of a network with ImageNet weights; timm's tags state which set of classes."""
    tag = model.pretrained_cfg.get("tag") or ""
    subset = timm.data.infer_imagenet_subset(model)
    if subset is None or not any(f"in{count}" in tag for count in ("1k", "12k", "21k", "22k")):
        return None
    return list(timm.data.ImageNetInfo(subset).label_descriptions())


def _colours(palette: Any, count: int) -> list[Colour] | None:
    if palette is None or len(palette) < count:
        return None
    return [(int(red), int(green), int(blue)) for red, green, blue in palette[:count]]
