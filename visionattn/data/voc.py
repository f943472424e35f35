"""Pascal VOC (Everingham et al., IJCV 2010): boxes from xml files, class numbers from palette pictures."""

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.registry import DATASETS

from .detection import AnnotatedPicture, DetectionImages
from .objects import Objects
from .segmentation import SegmentedImages

__all__ = ["VOCDetection", "VOCSegmentation"]

# fmt: off
CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)
# fmt: on


@DATASETS.register_module()
class VOCDetection(DetectionImages):
    """The 20 classes of Pascal VOC, or others in its format.

    Objects marked difficult are not learnt, and evaluation neither rewards nor punishes them, as with COCO's crowds.

    Args:
        data_root: Folder with `VOC2007`, `VOC2012`, ...
        sets: Which lists of pictures, as (year, name): `[("2007", "trainval"), ("2012", "trainval")]`.
        pipeline: Transforms.
        classes: Names of the classes, if others than VOC's.
        test_mode: Whether samples also hold the original annotations, for evaluation.
        drop_empty: Whether to leave out pictures in which there is nothing to learn.
        box_params: Which boxes stay after the transforms, see `visionattn.data.DetectionPipeline`.

    Raises:
        FileNotFoundError: If a list, an annotation or a picture is missing.
        ValueError: If an annotation is wrong; the message names the file and the object.
    """

    def __init__(
        self,
        data_root: str | Path,
        sets: Sequence[tuple[str, str]],
        pipeline: Sequence[dict[str, Any]],
        classes: Sequence[str] = CLASSES,
        test_mode: bool = False,
        drop_empty: bool = False,
        box_params: dict[str, Any] | None = None,
    ) -> None:
        files = [
            (root / "JPEGImages" / f"{name}.jpg", root / "Annotations" / f"{name}.xml")
            for root, name in _listed(Path(data_root), "Main", sets)
        ]
        numbers = {name: number for number, name in enumerate(classes)}
        pictures = (_picture(image, xml, index, numbers) for index, (image, xml) in enumerate(files))
        super().__init__(pictures, classes, pipeline, str(data_root), test_mode, drop_empty, box_params)


@DATASETS.register_module()
class VOCSegmentation(SegmentedImages):
    """The 20 classes of Pascal VOC and the background; outlines of objects are ignored.

    Args:
        data_root: Folder with `VOC2007`, `VOC2012`, ...
        sets: Which lists of pictures, as (year, name): `[("2012", "train")]`.
        pipeline: Transforms.
        test_mode: Whether samples also hold the original mask, for evaluation.

    Raises:
        FileNotFoundError: If a list, a mask or a picture is missing.
    """

    def __init__(
        self,
        data_root: str | Path,
        sets: Sequence[tuple[str, str]],
        pipeline: Sequence[dict[str, Any]],
        test_mode: bool = False,
    ) -> None:
        files = [
            (root / "JPEGImages" / f"{name}.jpg", root / "SegmentationClass" / f"{name}.png")
            for root, name in _listed(Path(data_root), "Segmentation", sets)
        ]
        super().__init__(files, ("background", *CLASSES), pipeline, str(data_root), test_mode)


def _listed(root: Path, kind: str, sets: Sequence[tuple[str, str]]) -> list[tuple[Path, str]]:
    """The folder of the year and the name of each picture in the lists."""
    found = []
    for year, name in sets:
        folder = root / f"VOC{year}"
        path = folder / "ImageSets" / kind / f"{name}.txt"
        if not path.is_file():
            raise FileNotFoundError(f"no list of pictures {path}")
        found += [(folder, line.split()[0]) for line in path.read_text().splitlines() if line.strip()]
    return found


def _picture(image: Path, xml: Path, index: int, numbers: dict[str, int]) -> AnnotatedPicture:
    if not xml.is_file():
        raise FileNotFoundError(f"no annotation file {xml}")
    try:
        root = ElementTree.parse(xml).getroot()
    except ElementTree.ParseError as error:
        raise ValueError(f"{xml} is damaged or no xml file: {error}") from error
    boxes, labels, difficult, names = [], [], [], []
    for number, entry in enumerate(root.iter("object"), 1):
        where = f"object {number} of {xml}"
        name = (entry.findtext("name") or "").strip()
        if name not in numbers:
            raise ValueError(f"{where} is a {name!r}; the classes are {', '.join(numbers)}")
        try:
            box = [float(entry.findtext(f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax")]
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where} has no bndbox of four numbers xmin, ymin, xmax, ymax") from error
        # Pixels count from 1, and the last one belongs to the box.
        boxes.append([box[0] - 1, box[1] - 1, box[2], box[3]])
        labels.append(numbers[name])
        difficult.append((entry.findtext("difficult") or "0").strip() == "1")
        names.append(where)
    try:
        size = tuple(int(root.findtext(f"size/{side}") or 0) for side in ("height", "width"))
    except ValueError as error:
        raise ValueError(f"{xml}: size must be two integers height and width, {error}") from error
    objects = Objects(boxes, labels, iscrowd=difficult)
    return AnnotatedPicture(image, index, size if all(size) else None, objects, names)
