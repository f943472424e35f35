"""What all detection data sets share: checks, counts of what cannot be used, and samples."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.logging import print_log
from torch.utils.data import Dataset

from .images import read_annotated_image
from .objects import Objects
from .pipeline import DetectionPipeline
from .serialized_list import SerializedList

__all__ = ["AnnotatedPicture", "DetectionImages"]


@dataclass(frozen=True)
class AnnotatedPicture:
    """One picture of a detection data set.

    Args:
        path: The file.
        image_id: Its number.
        size: Height and width that the annotations refer to; none if not told.
        objects: What is in it, as annotated, without masks.
        names: What to call each object in messages, such as `annotation 17`.
        outlines: The form of each object as the data set stores it; none without masks.
    """

    path: Path
    image_id: int
    size: tuple[int, int] | None
    objects: Objects
    names: Sequence[str]
    outlines: Sequence[Any] | None = None


class DetectionImages(Dataset):
    """Pictures with boxes and, where `draw_masks` is given by a subclass, instance masks.

    Boxes are cut at the edges of their pictures; those without area inside are left out of training, and the log says
    how many. Samples for evaluation hold all annotations as they are.

    Args:
        pictures: The pictures.
        classes: Names of the classes.
        pipeline: Transforms as `visionattn.data.Pipeline` takes them.
        source: Where the annotations come from, for messages.
        test_mode: Whether samples also hold the original annotations, for evaluation.
        drop_empty: Whether to leave out pictures in which there is nothing to learn.
        box_params: Which boxes stay after the transforms, see `visionattn.data.DetectionPipeline`.

    Raises:
        FileNotFoundError: If a picture is missing.
        ValueError: If there are no pictures.
    """

    def __init__(
        self,
        pictures: Iterable[AnnotatedPicture],
        classes: Sequence[str],
        pipeline: Sequence[dict[str, Any]],
        source: str,
        test_mode: bool = False,
        drop_empty: bool = False,
        box_params: dict[str, Any] | None = None,
    ) -> None:
        self.metainfo = {"classes": tuple(classes)}
        self.pipeline = DetectionPipeline(pipeline, original=test_mode, box_params=box_params)
        pictures = list(pictures)
        _check_files(pictures, source)
        usable = _count_unusable(pictures, source)
        if drop_empty:
            kept = [picture for picture, count in zip(pictures, usable, strict=True) if count]
            if len(kept) < len(pictures):
                print_log(f"{source}: {len(pictures) - len(kept)} pictures without objects left out", "current")
            pictures = kept
        if not pictures:
            raise ValueError(f"{type(self).__name__}: no images in {source}")
        self.pictures = SerializedList(pictures)

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> dict[str, Any]:
        picture = self.pictures[int(index)]
        image = read_annotated_image(picture.path, picture.size)
        objects = picture.objects
        if picture.outlines is not None:
            objects = replace(objects, masks=self.draw_masks(picture, *image.shape[:2]))
        return self.pipeline(image, objects, picture.image_id, getattr(index, "seed", None))

    def draw_masks(self, picture: AnnotatedPicture, height: int, width: int) -> np.ndarray:
        """The masks of a picture's objects, `(N, H, W)` bool, from their outlines."""
        raise NotImplementedError(f"{type(self).__name__} has no masks")


def _check_files(pictures: Sequence[AnnotatedPicture], source: str) -> None:
    """Looks once into each folder, so that a missing picture does not end a run after hours."""
    there = {
        folder: set(os.listdir(folder)) if folder.is_dir() else set() for folder in {p.path.parent for p in pictures}
    }
    for picture in pictures:
        if picture.path.name not in there[picture.path.parent]:
            named = f"; {picture.names[0]} needs it" if picture.names else ""
            raise FileNotFoundError(f"{source}: no image at {picture.path} (image {picture.image_id}{named})")


def _count_unusable(pictures: Sequence[AnnotatedPicture], source: str) -> list[int]:
    """How many objects of each picture can be learnt; logs how many boxes are cut or left out."""
    usable, cut, lost = [], 0, []
    for picture in pictures:
        objects = picture.objects
        inside = objects.clipped(*picture.size) if picture.size else objects
        empty = ((inside.boxes[:, 2:] - inside.boxes[:, :2]) <= 0).any(axis=1) & ~objects.iscrowd
        cut += int(((inside.boxes != objects.boxes).any(axis=1) & ~empty & ~objects.iscrowd).sum())
        lost += [picture.names[number] for number in np.flatnonzero(empty)]
        usable.append(int((~empty & ~objects.iscrowd).sum()))
    if cut:
        print_log(f"{source}: {cut} boxes cut at the edges of their pictures", "current")
    if lost:
        print_log(f"{source}: {len(lost)} boxes without area in their pictures dropped (first: {lost[0]})", "current")
    return usable
