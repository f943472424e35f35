"""YOLO text labels: one file per image, one line per object, relative to the image's width and height."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.logging import print_log
from mmengine.registry import DATASETS

from .detection import AnnotatedPicture, DetectionImages
from .files import existing_folder, find_files, read_lines
from .images import read_image
from .objects import Objects

__all__ = ["YOLODetection"]

_SLACK = 0.01  # rounding may put an edge this far outside


@DATASETS.register_module()
class YOLODetection(DetectionImages):
    """Pictures with labels in text files: `class x y width height`, the centre first, or `class x1 y1 x2 y2 x3 y3 ...`.

    Labels refer to upright pictures, as their EXIF data turn them. A picture without a label file shows nothing.

    Args:
        image_root: Folder of the pictures, searched through.
        classes: Names of the classes in the order of their numbers.
        pipeline: Transforms.
        label_root: Folder of the label files, in sub-folders as the pictures; without it that of the pictures with its
            last `images` replaced by `labels`, or else the same.
        masks: Whether to give instance masks too, from polygons.
        **kwargs: As for `visionattn.data.DetectionImages`: `test_mode`, `drop_empty`, `names_file`, `skip_unreadable`,
            `box_params`.

    Raises:
        FileNotFoundError: If a folder is missing, or there is no label file at all.
        ValueError: If there are no pictures, or a line is wrong; the message names the file and the line.
    """

    def __init__(
        self,
        image_root: str | Path,
        classes: Sequence[str],
        pipeline: Sequence[dict[str, Any]],
        label_root: str | Path | None = None,
        masks: bool = False,
        **kwargs: Any,
    ) -> None:
        root = existing_folder(image_root, "image_root of YOLODetection")
        labels = existing_folder(label_root or label_folder(root), "label_root of YOLODetection")
        files = find_files(labels, (".txt",))
        known = {path.relative_to(labels).with_suffix("").as_posix(): path for path in files}
        images = find_files(root)
        pictures = []
        for index, image in enumerate(images):
            path = known.pop(image.relative_to(root).with_suffix("").as_posix(), None)
            pictures.append(_picture(image, index, path, len(classes), masks))
        unlabelled = len(images) + len(known) - len(files)
        if images and unlabelled == len(images):
            raise FileNotFoundError(f"no labels for {images[0]} nor any other picture in {labels}")
        if unlabelled:
            print_log(
                f"{root}: {unlabelled} of {len(images)} pictures have no label file and count as empty", "current"
            )
        super().__init__(pictures, classes, pipeline, str(root), root=root, **kwargs)

    def read(self, picture: AnnotatedPicture) -> np.ndarray:
        return read_image(picture.path)

    def objects_of(self, picture: AnnotatedPicture, height: int, width: int) -> Objects:
        return Objects(picture.objects.boxes * np.array([width, height] * 2, np.float32), picture.objects.labels)

    def draw_masks(self, picture: AnnotatedPicture, height: int, width: int) -> np.ndarray:
        """Polygons as masks."""
        from faster_coco_eval.core import mask as coco

        assert picture.outlines is not None  # masks are drawn of pictures that have outlines
        masks = np.zeros((len(picture.outlines), height, width), bool)
        for mask, polygon in zip(masks, picture.outlines, strict=True):
            corners = (polygon * (width, height)).ravel().tolist()
            mask[:] = coco.decode(coco.frPyObjects([corners], height, width))[..., 0]
        return masks


def label_folder(images: Path) -> Path:
    """The conventional folder of the labels of an image folder."""
    parts = list(images.parts)
    for place in range(len(parts) - 1, -1, -1):
        if parts[place] == "images":
            return Path(*parts[:place], "labels", *parts[place + 1 :])
    return images


def _picture(image: Path, index: int, path: Path | None, classes: int, masks: bool) -> AnnotatedPicture:
    labels, boxes, outlines, names = [], [], [], []
    for number, line in enumerate(read_lines(path) if path else (), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        label, numbers = _parse(line, classes, where)
        if len(numbers) == 4:
            if masks:
                raise ValueError(f"{where}: a box, but masks=True needs the polygon of each object")
            corners = np.array([numbers[:2] - numbers[2:] / 2, numbers[:2] + numbers[2:] / 2])
        else:
            corners = numbers.reshape(-1, 2)
        labels.append(label)
        boxes.append([*corners.min(0), *corners.max(0)])
        outlines.append(corners.clip(0, 1))
        names.append(where)
    objects = Objects(np.clip(np.reshape(boxes, (-1, 4)), 0, 1), labels)
    # Boxes are in shares of the picture, whatever its size.
    return AnnotatedPicture(image, index, (1, 1), objects, names, outlines if masks else None)


def _parse(line: str, classes: int, where: str) -> tuple[int, np.ndarray]:
    try:
        label, *numbers = map(float, line.split())
    except ValueError as error:
        raise ValueError(f"{where}: expected numbers, got {line!r}") from error
    if not (label.is_integer() and 0 <= label < classes):
        raise ValueError(f"{where}: class {label:g} is not one of 0..{classes - 1}")
    if len(numbers) != 4 and (len(numbers) < 6 or len(numbers) % 2):
        form = "'class x y width height' or 'class x1 y1 x2 y2 x3 y3 ...'"
        raise ValueError(f"{where}: expected {form}, got {len(numbers) + 1} numbers")
    if not all(-_SLACK <= value <= 1 + _SLACK for value in numbers):
        raise ValueError(f"{where}: coordinates must be shares of the picture in 0..1, got {line.strip()!r}")
    return int(label), np.array(numbers)
