"""The base of all detection data sets: checks, counts of unusable objects, and samples."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.logging import print_log

from .base import PictureDataset
from .files import check_files, drop_unreadable, relative_name, select_names
from .images import read_annotated_image, read_image
from .objects import Objects
from .pipeline import DetectionPipeline
from .serialized_list import SerializedList

__all__ = ["AnnotatedPicture", "DetectionImages"]


@dataclass(frozen=True)
class AnnotatedPicture:
    """One picture of a detection data set.

    Args:
        path: The file.
        image_id: Its number or name.
        size: Height and width that the annotations refer to; none if not told.
        objects: What is in it, as annotated, without masks.
        names: What to call each object in messages, such as `annotation 17`.
        outlines: The form of each object as the data set stores it; none without masks.
    """

    path: Path
    image_id: int | str
    size: tuple[int, int] | None
    objects: Objects
    names: Sequence[str]
    outlines: Sequence[Any] | None = None


class DetectionImages(PictureDataset):
    """Pictures with boxes and, where `draw_masks` is given by a subclass, instance masks.

    Boxes are cut at the edges of their pictures; those without area inside are left out of training, and the log says
    how many. Samples for evaluation hold all annotations as they are.

    Args:
        pictures: The pictures.
        classes: Names of the classes.
        pipeline: Transforms as `visionattn.data.Pipeline` takes them.
        source: Where the annotations come from, for messages.
        root: Folder from which the names in `names_file` start.
        test_mode: Whether samples also hold the original annotations, for evaluation.
        drop_empty: Whether to leave out pictures in which there is nothing to learn.
        names_file: Text file with the pictures to use, one path below `root` a line; all without it.
        skip_unreadable: The largest share of pictures that may be unreadable; they are named in the log and left out.
            By default the first one is an error when its turn comes.
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
        root: Path,
        test_mode: bool = False,
        drop_empty: bool = False,
        names_file: str | Path | None = None,
        skip_unreadable: float = 0.0,
        box_params: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(classes, source)
        self.root = root
        self.pipeline = DetectionPipeline(pipeline, original=test_mode, box_params=box_params)
        chosen = select_names(pictures, names_file, lambda p: relative_name(p.path, root), source)
        chosen = _with_files(chosen, source)
        found = len(chosen)
        chosen = drop_unreadable(chosen, lambda p: read_image(p.path), skip_unreadable, source, lambda p: str(p.path))
        self.skipped = found - len(chosen)
        usable = _count_unusable(chosen, source)
        if drop_empty:
            kept = [picture for picture, count in zip(chosen, usable, strict=True) if count]
            if len(kept) < len(chosen):
                print_log(f"{source}: {len(chosen) - len(kept)} pictures without objects left out", "current")
            chosen = kept
        if not chosen:
            raise ValueError(f"{type(self).__name__}: no images{' with objects' if drop_empty else ''} in {source}")
        self.occurring = set(np.concatenate([picture.objects.labels for picture in chosen]).tolist())
        self.numbers: np.ndarray | None = None  # where `use_classes` has moved the classes
        self.pictures = SerializedList(chosen)

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> dict[str, Any]:
        picture = self.pictures[int(index)]
        image = self.read(picture)
        objects = self.objects_of(picture, *image.shape[:2])
        if picture.outlines is not None:
            objects = replace(objects, masks=self.draw_masks(picture, *image.shape[:2]))
        if self.numbers is not None:
            objects = replace(objects, labels=self.numbers[objects.labels])
        return self.pipeline(image, objects, picture.image_id, getattr(index, "seed", None), str(picture.path))

    def names(self) -> list[str]:
        return [relative_name(path, self.root) for path in self.paths()]

    def paths(self) -> list[Path]:
        return [picture.path for picture in self.pictures]

    def read(self, picture: AnnotatedPicture) -> np.ndarray:
        """The picture in the orientation that its annotations refer to, `(H, W, 3)` uint8 in RGB."""
        return read_annotated_image(picture.path, picture.size)

    def objects_of(self, picture: AnnotatedPicture, height: int, width: int) -> Objects:
        """The objects in an image, in pixels."""
        return picture.objects

    def draw_masks(self, picture: AnnotatedPicture, height: int, width: int) -> np.ndarray:
        """The masks of a picture's objects, `(N, H, W)` bool, from their outlines."""
        raise NotImplementedError(f"{type(self).__name__} has no masks")

    def occurring_classes(self) -> set[int]:
        return self.occurring

    def renumber(self, numbers: np.ndarray) -> None:
        self.numbers = numbers if self.numbers is None else numbers[self.numbers]
        self.occurring = set(numbers[sorted(self.occurring)].tolist())


def _with_files(pictures: Sequence[AnnotatedPicture], source: str) -> list[AnnotatedPicture]:
    """The images with their files as found on disk: a missing one must not end a run after hours."""

    def describe(number: int) -> str:
        names = pictures[number].names
        return f"{source}: image {pictures[number].image_id}{f', which {names[0]} needs' if names else ''}"

    paths = check_files([picture.path for picture in pictures], describe)
    return [replace(picture, path=path) for picture, path in zip(pictures, paths, strict=True)]


def _count_unusable(pictures: Sequence[AnnotatedPicture], source: str) -> list[int]:
    """The number of usable objects in each image; logs how many boxes are clipped or dropped."""
    usable, cut, lost = [], 0, []
    for picture in pictures:
        objects = picture.objects
        inside = objects.clipped(*picture.size) if picture.size else objects
        empty = ((inside.boxes[:, 2:] - inside.boxes[:, :2]) <= 0).any(axis=1) & ~objects.iscrowd
        cut += int(((inside.boxes != objects.boxes).any(axis=1) & ~empty & ~objects.iscrowd).sum())
        lost += [picture.names[number] for number in np.flatnonzero(empty).tolist()]
        usable.append(int((~empty & ~objects.iscrowd).sum()))
    if cut:
        print_log(f"{source}: {cut} boxes cut at the edges of their pictures", "current")
    if lost:
        print_log(f"{source}: {len(lost)} boxes without area in their pictures dropped (first: {lost[0]})", "current")
    return usable
