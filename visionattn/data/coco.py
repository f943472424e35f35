"""Detection and instance segmentation data in COCO's format (arXiv 1405.0312): one json file beside the pictures."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.registry import DATASETS

from .coco_file import check_outline, read_coco
from .detection import AnnotatedPicture, DetectionImages
from .files import existing_folder
from .objects import Objects

__all__ = ["CocoDetection"]


@DATASETS.register_module()
class CocoDetection(DetectionImages):
    """Pictures annotated by a json file with `images`, `annotations` and `categories`.

    Classes are numbered from 0 on in the order of their ids, whatever gaps these have; `metainfo['class_ids']` holds
    the ids. Crowds are not learnt, but evaluation knows them. Annotations refer to the pictures as stored, without
    the rotation of their EXIF data, unless only the rotated picture has the size that the file tells.

    Args:
        ann_file: The json file.
        image_root: Folder from which the pictures' file names start.
        pipeline: Transforms.
        masks: Whether to give instance masks too, from polygons or run lengths.
        classes: Names of the classes to use, in this order; all without it.
        **kwargs: As for `visionattn.data.DetectionImages`: `test_mode`, `drop_empty`, `names_file`, `skip_unreadable`,
            `box_params`.

    Raises:
        FileNotFoundError: If the file or a picture is missing.
        ValueError: If something in the file is wrong; the message names the annotation.
    """

    def __init__(
        self,
        ann_file: str | Path,
        image_root: str | Path,
        pipeline: Sequence[dict[str, Any]],
        masks: bool = False,
        classes: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        content = read_coco(ann_file)
        root = existing_folder(image_root, "image_root of CocoDetection")
        ids = _class_ids(content["categories"], classes, ann_file)
        pictures = _pictures(content, ids, root, masks, str(ann_file))
        super().__init__(pictures, tuple(ids), pipeline, str(ann_file), root=root, **kwargs)
        self.metainfo["class_ids"] = tuple(ids.values())

    def renumber(self, numbers: np.ndarray) -> None:
        """Renumbers category ids too; a class that the file lacks has none."""
        super().renumber(numbers)
        old = self.metainfo["class_ids"]
        ids = {int(number): old[place] for place, number in enumerate(numbers)}
        self.metainfo["class_ids"] = tuple(ids.get(number) for number in range(max(ids) + 1))

    def draw_masks(self, picture: AnnotatedPicture, height: int, width: int) -> np.ndarray:
        """Polygons and run lengths as masks."""
        from faster_coco_eval.core import mask as coco

        assert picture.outlines is not None  # masks are drawn of pictures that have outlines
        masks = np.zeros((len(picture.outlines), height, width), bool)
        for mask, outline, name in zip(masks, picture.outlines, picture.names, strict=True):
            if isinstance(outline, list):
                outline = coco.merge(coco.frPyObjects(outline, height, width))
            elif tuple(outline["size"]) != (height, width):
                raise ValueError(
                    f"{self.source}: {name}: its run lengths are for a picture of {outline['size']}, but "
                    f"{picture.path} has {[height, width]}"
                )
            elif isinstance(outline["counts"], list):
                outline = coco.frPyObjects(outline, height, width)
            mask[:] = coco.decode(outline)
        return masks


def _class_ids(categories: list[dict[str, Any]], classes: Sequence[str] | None, source: str | Path) -> dict[str, int]:
    ids = {category["name"]: category["id"] for category in sorted(categories, key=lambda category: category["id"])}
    if len(ids) < len(categories):
        raise ValueError(f"{source}: two categories have the same name")
    unknown = [name for name in classes or () if name not in ids]
    if unknown:
        raise ValueError(f"{source} has no category {unknown[0]!r}; it has {', '.join(ids)}")
    return ids if classes is None else {name: ids[name] for name in classes}


def _pictures(
    content: dict[str, list[dict[str, Any]]], ids: dict[str, int], root: Path, masks: bool, source: str
) -> Iterator[AnnotatedPicture]:
    numbers = {class_id: number for number, class_id in enumerate(ids.values())}
    grouped = defaultdict(list)
    for annotation in content["annotations"]:
        if annotation["category_id"] in numbers:
            grouped[annotation["image_id"]].append(annotation)
    for image in content["images"]:
        annotations = grouped[image["id"]]
        boxes = np.array([annotation["bbox"] for annotation in annotations], np.float64).reshape(-1, 4)
        areas = [annotation.get("area") for annotation in annotations]
        objects = Objects(
            np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]]),
            [numbers[annotation["category_id"]] for annotation in annotations],
            iscrowd=[bool(annotation.get("iscrowd")) for annotation in annotations],
            area=[box[2] * box[3] if area is None else area for area, box in zip(areas, boxes, strict=True)],
        )
        size = (image["height"], image["width"]) if image["height"] and image["width"] else None
        names = [f"annotation {annotation['id']}" for annotation in annotations]
        outlines = None
        if masks:
            outlines = [
                check_outline(annotation.get("segmentation"), size, f"{source}: {name}")
                for annotation, name in zip(annotations, names, strict=True)
            ]
        yield AnnotatedPicture(root / image["file_name"], image["id"], size, objects, names, outlines)
