"""Augmentation and resizing, configured as lists and run by albumentations, with boxes and masks."""

import inspect
import os
import random
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmengine.registry import TRANSFORMS

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # importing it would ask the network for its newest version
import albumentations as A

from visionattn.utils.building import build, did_you_mean

from . import transforms as _own  # noqa: F401  (registered by importing)
from .objects import Objects

__all__ = ["IGNORED", "DetectionPipeline", "Pipeline", "SegmentationPipeline"]

IGNORED = 255  # the value of mask pixels that are neither learnt nor counted


class Pipeline:
    """A chain of transforms from an RGB image to a `(3, H, W)` uint8 tensor.

    Args:
        transforms: One dict a transform: `type` is its name in mmengine's registry `TRANSFORMS`, in
            `visionattn.data.transforms` or in albumentations, the rest its arguments; `OneOf` and the like take their
            `transforms` the same way. Transforms of one's own are classes of albumentations' kind in that registry.

    Raises:
        ValueError: If a transform or an argument is unknown or out of range.
    """

    def __init__(self, transforms: Sequence[dict[str, Any]]) -> None:
        self._prepare(transforms)

    def __call__(self, image: np.ndarray, seed: int | None = None, name: str = "a picture") -> torch.Tensor:
        """Transforms one picture.

        Args:
            image: `(H, W, 3)` uint8, RGB.
            seed: The only source of randomness for this picture; without it Python's own generator draws one.
            name: What to call the picture in messages.

        Returns:
            `(3, H, W)` uint8.

        Raises:
            ValueError: If a transform fails, or gives anything but a uint8 picture of three channels.
        """
        return _tensor(self._run(seed, name, image=image)["image"])

    def _prepare(
        self, transforms: Sequence[dict[str, Any]], defaults: dict[str, Any] | None = None, **arguments: Any
    ) -> None:
        if not isinstance(transforms, (list, tuple)) or not all(isinstance(t, dict) for t in transforms):
            raise ValueError(
                f"a pipeline must be a list of dicts, each with the type of a transform, got {transforms!r}"
            )
        self.names = [str(transform.get("type")) for transform in transforms]
        self.transforms = [_build(transform, defaults or {}) for transform in transforms]
        self.arguments = arguments
        self.compose = self._compose(self.transforms)

    def _compose(self, transforms: Sequence[A.BasicTransform | A.BaseCompose]) -> A.Compose:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of boxes that no transform moves: an empty chain is fine
            return A.Compose(list(transforms), **self.arguments)

    def _run(self, seed: int | None, name: str, **targets: np.ndarray) -> dict[str, Any]:
        seed = random.getrandbits(64) if seed is None else seed
        try:
            result = _apply(self.compose, seed, targets)
            problem = _problem(result)
        except Exception as error:  # transforms may raise anything
            raise self._fault(f"fails: {error}", seed, name, targets) from error
        if problem:
            raise self._fault(problem, seed, name, targets)
        return result

    def _fault(self, problem: str, seed: int, name: str, targets: dict[str, np.ndarray]) -> ValueError:
        """An error that names the first transform with invalid output, found by rerunning the chain."""
        for count, kind in enumerate(self.names, 1):
            try:
                found = _problem(_apply(self._compose(self.transforms[:count]), seed, targets))
            except Exception as error:
                found = f"fails: {error}"
            if found:
                height, width = targets["image"].shape[:2]
                return ValueError(f"transform {count} of the pipeline, {kind}, {found} ({name}, {width}x{height})")
        return ValueError(f"the pipeline {problem} ({name})")


class DetectionPipeline(Pipeline):
    """A chain that transforms boxes and instance masks with the image, and makes samples for detectors.

    Boxes are cut at the edges. What has no area (`min_width`, `min_height` below a hundredth of a pixel) or, with
    masks, no pixel left is dropped and counted; crowds are dropped without a word.

    Args:
        transforms: As for `Pipeline`.
        original: Whether samples also hold the original annotations, for evaluation.
        box_params: Arguments of `albumentations.BboxParams` that say which boxes stay: `min_area`, `min_visibility`,
            `min_width`, `min_height`, `max_accept_ratio`.

    Raises:
        ValueError: If a transform or an argument is unknown or out of range.
    """

    def __init__(
        self,
        transforms: Sequence[dict[str, Any]],
        original: bool = False,
        box_params: dict[str, Any] | None = None,
    ) -> None:
        box_params = {"min_width": 0.01, "min_height": 0.01, **(box_params or {})}
        try:
            params = A.BboxParams(format="pascal_voc", clip=True, filter_invalid_bboxes=True, **box_params)
        except (TypeError, ValueError) as error:
            raise ValueError(f"wrong box_params {box_params}: {error}") from error
        self._prepare(transforms, bbox_params=params)
        self.original = original

    def __call__(  # type: ignore[override]
        self, image: np.ndarray, objects: Objects, image_id: int, seed: int | None = None, name: str = "a picture"
    ) -> dict[str, Any]:
        """Transforms one picture and its objects.

        Args:
            image: `(H, W, 3)` uint8, RGB.
            objects: What is in it, as annotated.
            image_id: Number of the picture in its data set.
            seed: As for `Pipeline`.
            name: As for `Pipeline`.

        Returns:
            A sample: `inputs`, `(3, h, w)` uint8, and `data_samples` with `image_id`, `size`, `boxes`, `labels`,
            `masks` if known, `dropped` (how many objects left the picture) and with `original` also that.

        Raises:
            ValueError: As for `Pipeline`.
        """
        learnt = objects[~objects.iscrowd]
        # A fifth column tells which objects are left.
        targets = {"bboxes": np.column_stack([learnt.boxes.astype(np.float64), np.arange(len(learnt))])}
        if learnt.masks is not None and len(learnt):
            targets["masks"] = learnt.masks.view(np.uint8)
        result = self._run(seed, name, image=image, **targets)
        inputs = _tensor(result["image"])
        boxes, kept = result["bboxes"][:, :4], result["bboxes"][:, 4:].astype(np.int64).reshape(-1)
        masks = None
        if learnt.masks is not None:
            masks = result["masks"][kept].astype(bool) if len(kept) else np.zeros((0, *inputs.shape[1:]), bool)
            visible = masks.any(axis=(1, 2))
            boxes, kept, masks = boxes[visible], kept[visible], masks[visible]
        # Boxes were scaled to 0..1 and back: rounding may have put an edge beyond the picture's.
        known = Objects(boxes, learnt.labels[kept], masks).clipped(*inputs.shape[1:]).tensors()
        sample: dict[str, Any] = {
            "image_id": image_id,
            "size": tuple(inputs.shape[1:]),
            "dropped": len(learnt) - len(kept),
            **{name: known[name] for name in ("boxes", "labels", "masks") if name in known},
        }
        if self.original:
            sample["original"] = {"size": image.shape[:2], **objects.tensors()}
        return {"inputs": inputs, "data_samples": sample}


class SegmentationPipeline(Pipeline):
    """A chain that transforms a mask of class indices with the image, and makes samples for segmentors.

    What transforms add around the picture is ignored unless they say otherwise (`fill_mask`).

    Args:
        transforms: As for `Pipeline`.
        original: Whether samples also hold the original mask, for evaluation.

    Raises:
        ValueError: If a transform or an argument is unknown or out of range.
    """

    def __init__(self, transforms: Sequence[dict[str, Any]], original: bool = False) -> None:
        self._prepare(transforms, {"fill_mask": IGNORED})
        self.original = original

    def __call__(  # type: ignore[override]
        self, image: np.ndarray, mask: np.ndarray, image_id: int, seed: int | None = None, name: str = "a picture"
    ) -> dict[str, Any]:
        """Transforms one picture and its mask.

        Args:
            image: `(H, W, 3)` uint8, RGB.
            mask: `(H, W)` uint8, class numbers.
            image_id: Number of the picture in its data set.
            seed: As for `Pipeline`.
            name: As for `Pipeline`.

        Returns:
            A sample: `inputs`, `(3, h, w)` uint8, and `data_samples` with `image_id`, `size`, `mask` and with
            `original` also `original_mask`.

        Raises:
            ValueError: As for `Pipeline`.
        """
        result = self._run(seed, name, image=image, mask=mask)
        inputs = _tensor(result["image"])
        sample = {
            "image_id": image_id,
            "size": tuple(inputs.shape[1:]),
            "mask": torch.from_numpy(result["mask"].astype(np.int64)),
        }
        if self.original:
            sample["original_mask"] = torch.from_numpy(mask)
        return {"inputs": inputs, "data_samples": sample}


def _apply(compose: A.Compose, seed: int, targets: dict[str, np.ndarray]) -> dict[str, Any]:
    # One generator for the whole chain: albumentations' own seeding starts every transform alike, and a crop would
    # then tell whether the picture is flipped.
    compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
    return compose(**targets)


def _problem(result: dict[str, Any]) -> str:
    """The problem with a chain's output, or nothing if it is valid."""
    image = result["image"]
    if isinstance(image, torch.Tensor):
        return "gives a tensor; pipelines make tensors themselves, so leave it out"
    if not isinstance(image, np.ndarray) or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        shape = f"shape {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        return f"gives a picture of {shape}; expected (height, width, 3)"
    if image.dtype != np.uint8:
        return f"gives {image.dtype}; expected uint8, for normalising belongs to data_preprocessor"
    for kind in ("mask", "masks"):
        masks = np.asarray(result.get(kind, ()))
        if masks.size and (masks.shape[-2:] != image.shape[:2] or masks.dtype.kind not in "ui"):
            return f"gives {kind} of shape {masks.shape} and {masks.dtype} with a picture of shape {image.shape}"
    return ""


def _tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


_ALBUMENTATIONS = {
    name: value for name, value in vars(A).items() if isinstance(value, type) and not name.startswith(("_", "Base"))
}


def _build(config: dict[str, Any], defaults: dict[str, Any]) -> A.BasicTransform | A.BaseCompose:
    known = _ALBUMENTATIONS | TRANSFORMS.module_dict
    kind = config.get("type")
    if kind not in known:
        own = sorted(key for key, value in TRANSFORMS.module_dict.items() if isinstance(value, type))
        raise ValueError(
            f"a transform's type must be the name of one of albumentations' transforms or {' or '.join(own)}, "
            f"got {kind!r}{did_you_mean(str(kind), known)}"
        )
    arguments = dict(config)
    if "transforms" in arguments:
        arguments["transforms"] = [_build(inner, defaults) for inner in arguments["transforms"]]
    taken = inspect.signature(known[kind]).parameters
    for key, value in defaults.items():
        if key in taken and taken[key].default is not None:
            arguments.setdefault(key, value)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # albumentations only warns of arguments it does not know
        try:
            return build(known, arguments, "transform")
        except UserWarning as error:
            raise ValueError(f"cannot build transform {kind}({arguments}): {error}") from error
