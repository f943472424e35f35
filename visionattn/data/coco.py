"""Detection and instance segmentation data in COCO's format (arXiv 1405.0312): one json file beside the pictures."""

import json
from collections import defaultdict
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.registry import DATASETS

from .detection import AnnotatedPicture, DetectionImages
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
        test_mode: Whether samples also hold the original annotations, for evaluation.
        drop_empty: Whether to leave out pictures in which there is nothing to learn.
        box_params: Which boxes stay after the transforms, see `visionattn.data.DetectionPipeline`.

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
        test_mode: bool = False,
        drop_empty: bool = False,
        box_params: dict[str, Any] | None = None,
    ) -> None:
        content = _read(Path(ann_file))
        ids = _class_ids(content["categories"], classes, ann_file)
        numbers = {class_id: number for number, class_id in enumerate(ids.values())}
        grouped = _group(content, numbers, ann_file)
        pictures = (
            _picture(image, grouped[image["id"]], numbers, Path(image_root), masks, ann_file)
            for image in content["images"]
        )
        super().__init__(pictures, tuple(ids), pipeline, str(ann_file), test_mode, drop_empty, box_params)
        self.metainfo["class_ids"] = tuple(ids.values())

    def draw_masks(self, picture: AnnotatedPicture, height: int, width: int) -> np.ndarray:
        """Polygons and run lengths as masks."""
        from faster_coco_eval.core import mask as coco

        masks = np.zeros((len(picture.outlines), height, width), bool)
        for mask, outline in zip(masks, picture.outlines, strict=True):
            if isinstance(outline, list):
                outline = coco.merge(coco.frPyObjects(outline, height, width)) if outline else None
            elif isinstance(outline["counts"], list):
                outline = coco.frPyObjects(outline, height, width)
            if outline is not None:
                mask[:] = coco.decode(outline)
        return masks


def _read(path: Path) -> dict[str, list[dict[str, Any]]]:
    if not path.is_file():
        raise FileNotFoundError(f"no annotation file {path}")
    try:
        content = json.loads(path.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged or no json file: {error}") from error
    missing = [
        key
        for key in ("images", "annotations", "categories")
        if not isinstance(content, dict) or not isinstance(content.get(key), list)
    ]
    if missing:
        raise ValueError(f"{path} is no COCO file: it has no list {' and no list '.join(missing)}")
    needed = {
        "images": ("id", "file_name"),
        "categories": ("id", "name"),
        "annotations": ("id", "image_id", "category_id", "bbox"),
    }
    for kind, keys in needed.items():
        seen = set()
        for number, record in enumerate(content[kind]):
            lacking = [key for key in keys if key not in record]
            if lacking:
                raise ValueError(f"{path}: {kind}[{number}] (id {record.get('id')}) has no {', '.join(lacking)}")
            if record["id"] in seen:
                raise ValueError(f"{path}: two {kind} have the id {record['id']}")
            seen.add(record["id"])
    return content


def _class_ids(categories: list[dict[str, Any]], classes: Sequence[str] | None, source: str | Path) -> dict[str, int]:
    ids = {category["name"]: category["id"] for category in sorted(categories, key=lambda category: category["id"])}
    if len(ids) < len(categories):
        raise ValueError(f"{source}: two categories have the same name")
    unknown = [name for name in classes or () if name not in ids]
    if unknown:
        raise ValueError(f"{source} has no category {unknown[0]!r}; it has {', '.join(ids)}")
    return ids if classes is None else {name: ids[name] for name in classes}


def _group(
    content: dict[str, list[dict[str, Any]]], wanted: Container[int], source: str | Path
) -> dict[int, list[dict[str, Any]]]:
    """Annotations of the wanted classes by their picture; all of them are checked."""
    images = {image["id"] for image in content["images"]}
    class_ids = {category["id"] for category in content["categories"]}
    grouped = defaultdict(list)
    for annotation in content["annotations"]:
        where = f"{source}: annotation {annotation['id']}"
        if annotation["image_id"] not in images:
            raise ValueError(f"{where} names image {annotation['image_id']}, which the file does not have")
        if annotation["category_id"] not in class_ids:
            raise ValueError(f"{where} has category {annotation['category_id']}, which the file does not have")
        try:
            box = np.asarray(annotation["bbox"], float)
        except (TypeError, ValueError):
            box = np.empty(0)
        if box.shape != (4,) or not np.isfinite(box).all():
            raise ValueError(f"{where}: bbox must be four numbers [x, y, width, height], got {annotation['bbox']}")
        if annotation["category_id"] in wanted:
            grouped[annotation["image_id"]].append(annotation)
    return grouped


def _picture(
    image: dict[str, Any],
    annotations: list[dict[str, Any]],
    numbers: dict[int, int],
    root: Path,
    masks: bool,
    source: str | Path,
) -> AnnotatedPicture:
    boxes = np.array([annotation["bbox"] for annotation in annotations], np.float64).reshape(-1, 4)
    objects = Objects(
        np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]]),
        [numbers[annotation["category_id"]] for annotation in annotations],
        iscrowd=[annotation.get("iscrowd", 0) for annotation in annotations],
        area=[annotation.get("area", box[2] * box[3]) for annotation, box in zip(annotations, boxes, strict=True)],
    )
    size = (image["height"], image["width"]) if image.get("height") and image.get("width") else None
    outlines = [_outline(annotation, size, source) for annotation in annotations] if masks else None
    names = [f"annotation {annotation['id']}" for annotation in annotations]
    return AnnotatedPicture(root / image["file_name"], image["id"], size, objects, names, outlines)


def _outline(
    annotation: dict[str, Any], size: tuple[int, int] | None, source: str | Path
) -> list[list[float]] | dict[str, Any]:
    """Polygons of at least three corners, or run lengths."""
    outline = annotation.get("segmentation")
    where = f"{source}: annotation {annotation['id']}"
    if isinstance(outline, list) and all(isinstance(polygon, list) for polygon in outline):
        if not outline:
            raise ValueError(f"{where} has an empty segmentation (masks=True)")
        if any(len(polygon) % 2 for polygon in outline):
            raise ValueError(f"{where}: a polygon has an odd number of coordinates")
        return [polygon for polygon in outline if len(polygon) >= 6]
    if isinstance(outline, dict) and {"size", "counts"} <= outline.keys():
        if size is not None and tuple(outline["size"]) != size:
            raise ValueError(f"{where}: its run lengths are for a picture of {outline['size']}, not {list(size)}")
        if isinstance(outline["counts"], list) and sum(outline["counts"]) != np.prod(outline["size"]):
            raise ValueError(
                f"{where}: its run lengths add up to {sum(outline['counts'])} pixels, not {np.prod(outline['size'])}"
            )
        return outline
    raise ValueError(f"{where} has no segmentation of polygons or run lengths (masks=True)")
