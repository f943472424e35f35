"""Augmentation and resizing, written as configs and run by albumentations; boxes and masks stay in step."""

import difflib
import inspect
import os
import random
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # importing it would ask the network for its newest version
import albumentations as A

from . import transforms as own
from .objects import Objects

__all__ = ["IGNORED", "DetectionPipeline", "Pipeline", "SegmentationPipeline"]

IGNORED = 255  # the value of mask pixels that are neither learnt nor counted


class Pipeline:
    """A chain of albumentations transforms: an RGB picture in, a `(3, H, W)` uint8 tensor out.

    Args:
        transforms: One dict a transform: `type` is its name in albumentations or `visionattn.data.transforms`, the
            rest its arguments; `OneOf` and the like take their `transforms` the same way.

    Raises:
        ValueError: If a transform or an argument is unknown or out of range.
    """

    def __init__(self, transforms: Sequence[dict[str, Any]]) -> None:
        self.compose = A.Compose([_build(transform) for transform in transforms])

    def __call__(self, image: np.ndarray, seed: int | None = None) -> torch.Tensor:
        """Transforms one picture.

        Args:
            image: `(H, W, 3)` uint8, RGB.
            seed: The only source of randomness for this picture; without it the chain's own generator goes on.

        Returns:
            `(3, H, W)` uint8.
        """
        return _tensor(self._run(seed, image=image)["image"])

    def _run(self, seed: int | None, **targets: np.ndarray) -> dict[str, Any]:
        if seed is not None:
            # One generator for the whole chain: albumentations' own seeding starts every transform alike, and a crop
            # would then tell whether the picture is flipped.
            self.compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
        return self.compose(**targets)


class DetectionPipeline(Pipeline):
    """A chain that moves boxes and instance masks along with the picture, and makes samples of detectors.

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
        built = [_build(transform) for transform in transforms]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of boxes that no transform moves: an empty chain is fine
            self.compose = A.Compose(built, bbox_params=params)
        self.original = original

    def __call__(self, image: np.ndarray, objects: Objects, image_id: int, seed: int | None = None) -> dict[str, Any]:
        """Transforms one picture and its objects.

        Args:
            image: `(H, W, 3)` uint8, RGB.
            objects: What is in it, as annotated.
            image_id: Number of the picture in its data set.
            seed: As for `Pipeline`.

        Returns:
            A sample: `inputs`, `(3, h, w)` uint8, and `data_samples` with `image_id`, `size`, `boxes`, `labels`,
            `masks` if known, `dropped` (how many objects left the picture) and with `original` also that.
        """
        learnt = objects[~objects.iscrowd]
        # A fifth column tells which objects are left.
        targets = {"bboxes": np.column_stack([learnt.boxes.astype(np.float64), np.arange(len(learnt))])}
        if learnt.masks is not None and len(learnt):
            targets["masks"] = learnt.masks.view(np.uint8)
        result = self._run(seed, image=image, **targets)
        inputs = _tensor(result["image"])
        boxes, kept = result["bboxes"][:, :4], result["bboxes"][:, 4:].astype(np.int64).reshape(-1)
        masks = None
        if learnt.masks is not None:
            masks = result["masks"][kept].astype(bool) if len(kept) else np.zeros((0, *inputs.shape[1:]), bool)
            visible = masks.any(axis=(1, 2))
            boxes, kept, masks = boxes[visible], kept[visible], masks[visible]
        # Boxes were scaled to 0..1 and back: rounding may have put an edge beyond the picture's.
        known = Objects(boxes, learnt.labels[kept], masks).clipped(*inputs.shape[1:]).tensors()
        sample = {
            "image_id": image_id,
            "size": tuple(inputs.shape[1:]),
            "dropped": len(learnt) - len(kept),
            **{name: known[name] for name in ("boxes", "labels", "masks") if name in known},
        }
        if self.original:
            sample["original"] = {"size": image.shape[:2], **objects.tensors()}
        return {"inputs": inputs, "data_samples": sample}


class SegmentationPipeline(Pipeline):
    """A chain that moves a mask of class numbers along with the picture, and makes samples of segmentors.

    What transforms add around the picture is ignored unless they say otherwise (`fill_mask`).

    Args:
        transforms: As for `Pipeline`.
        original: Whether samples also hold the original mask, for evaluation.

    Raises:
        ValueError: If a transform or an argument is unknown or out of range.
    """

    def __init__(self, transforms: Sequence[dict[str, Any]], original: bool = False) -> None:
        self.compose = A.Compose([_build(transform, {"fill_mask": IGNORED}) for transform in transforms])
        self.original = original

    def __call__(self, image: np.ndarray, mask: np.ndarray, image_id: int, seed: int | None = None) -> dict[str, Any]:
        """Transforms one picture and its mask.

        Args:
            image: `(H, W, 3)` uint8, RGB.
            mask: `(H, W)` uint8, class numbers.
            image_id: Number of the picture in its data set.
            seed: As for `Pipeline`.

        Returns:
            A sample: `inputs`, `(3, h, w)` uint8, and `data_samples` with `image_id`, `size`, `mask` and with
            `original` also `original_mask`.
        """
        result = self._run(seed, image=image, mask=mask)
        inputs = _tensor(result["image"])
        sample = {
            "image_id": image_id,
            "size": tuple(inputs.shape[1:]),
            "mask": torch.from_numpy(result["mask"].astype(np.int64)),
        }
        if self.original:
            sample["original_mask"] = torch.from_numpy(mask)
        return {"inputs": inputs, "data_samples": sample}


def _tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


_KNOWN = {
    name: value for name, value in vars(A).items() if isinstance(value, type) and not name.startswith(("_", "Base"))
} | {name: getattr(own, name) for name in own.__all__}


def _build(config: dict[str, Any], defaults: dict[str, Any] | None = None) -> A.BasicTransform | A.BaseCompose:
    arguments = dict(config)
    name = arguments.pop("type", None)
    if name not in _KNOWN:
        close = difflib.get_close_matches(str(name), _KNOWN)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise ValueError(
            f"a transform's type must be the name of one of albumentations' transforms or {' or '.join(own.__all__)}, "
            f"got {name!r}{hint}"
        )
    if "transforms" in arguments:
        arguments["transforms"] = [_build(inner, defaults) for inner in arguments["transforms"]]
    cls = _KNOWN[name]
    taken = inspect.signature(cls).parameters
    for key, value in (defaults or {}).items():
        if key in taken and taken[key].default is not None:
            arguments.setdefault(key, value)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # albumentations only warns of arguments it does not know
        try:
            return cls(**arguments)
        except (TypeError, ValueError, UserWarning) as error:
            raise ValueError(f"cannot build transform {name}({arguments}): {error}") from error
