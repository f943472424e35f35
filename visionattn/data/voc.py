"""Pascal VOC (Everingham et al., IJCV 2010): boxes from xml files, class numbers from palette pictures."""

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.registry import DATASETS

from .coco_file import check_number
from .detection import AnnotatedPicture, DetectionImages
from .files import existing_folder, find_files, read_lines
from .images import IMAGE_SUFFIXES
from .objects import Objects
from .segmentation import MASK_SUFFIXES, SegmentedImages

__all__ = ["VOCDetection", "VOCSegmentation"]

# fmt: off
CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)
# fmt: on
Sets = Sequence[tuple[str, str] | str] | None


@DATASETS.register_module()
class VOCDetection(DetectionImages):
    """The 20 classes of Pascal VOC, or others in its format.

    Objects marked difficult are not learnt, and evaluation neither rewards nor punishes them, as with COCO's crowds.

    Args:
        data_root: Folder with `VOC2007`, `VOC2012`, ..., or the folder that holds the annotations itself.
        sets: Which lists of pictures: (year, name), `[("2007", "trainval"), ("2012", "trainval")]`, or a name alone,
            `["train"]`, where `data_root` holds `ImageSets` itself. Without it all annotations in `data_root`.
        pipeline: Transforms.
        classes: Names of the classes in the order of their numbers; without it VOC's, or if there are others those that
            occur, sorted.
        image_folder: Folder of the pictures within that of the annotations and lists; of any format.
        annotation_folder: Folder of the xml files.
        **kwargs: As for `visionattn.data.DetectionImages`: `test_mode`, `drop_empty`, `names_file`, `skip_unreadable`,
            `box_params`.

    Raises:
        FileNotFoundError: If a list, an annotation or a picture is missing.
        ValueError: If an annotation is wrong; the message names the file and the object.
    """

    def __init__(
        self,
        data_root: str | Path,
        sets: Sets,
        pipeline: Sequence[dict[str, Any]],
        classes: Sequence[str] | None = None,
        image_folder: str = "JPEGImages",
        annotation_folder: str = "Annotations",
        **kwargs: Any,
    ) -> None:
        root = existing_folder(data_root, "data_root of VOCDetection")
        files = _pairs(root, "Main", sets, image_folder, annotation_folder, (".xml",))
        read = [(image, xml, *_read(xml)) for image, xml in files]
        if classes is None:
            found = {name for *_, entries in read for name, *_ in entries}
            classes = CLASSES if found.issubset(CLASSES) else sorted(found)
        numbers = {name: number for number, name in enumerate(classes)}
        pictures = (
            _picture(image, xml, index, size, entries, numbers)
            for index, (image, xml, size, entries) in enumerate(read)
        )
        super().__init__(pictures, classes, pipeline, str(data_root), root=root, **kwargs)


@DATASETS.register_module()
class VOCSegmentation(SegmentedImages):
    """The 20 classes of Pascal VOC and the background, or others in its format; outlines of objects are ignored.

    Args:
        data_root: Folder with `VOC2007`, `VOC2012`, ..., or the folder that holds the masks itself.
        sets: Which lists of pictures, as for `VOCDetection`: `[("2012", "train")]`.
        pipeline: Transforms.
        classes: Names of the classes, the background first; without it VOC's, or those in `labelmap.txt` beside the
            folders, as labelling tools write it, whose colours then tell the classes.
        image_folder: Folder of the pictures within that of the masks and lists; of any format.
        mask_folder: Folder of the masks.
        **kwargs: As for `visionattn.data.SegmentedImages`: `test_mode`, `names_file`, `skip_unreadable`, `palette`,
            `values`, `ignored`.

    Raises:
        FileNotFoundError: If a list, a mask or a picture is missing.
        ValueError: If there are no pictures, or `labelmap.txt` is wrong.
    """

    def __init__(
        self,
        data_root: str | Path,
        sets: Sets,
        pipeline: Sequence[dict[str, Any]],
        classes: Sequence[str] | None = None,
        image_folder: str = "JPEGImages",
        mask_folder: str = "SegmentationClass",
        **kwargs: Any,
    ) -> None:
        root = existing_folder(data_root, "data_root of VOCSegmentation")
        files = _pairs(root, "Segmentation", sets, image_folder, mask_folder, MASK_SUFFIXES)
        if classes is None and (root / "labelmap.txt").is_file():
            colours = _read_labelmap(root / "labelmap.txt")
            classes = tuple(colours)
            kwargs.setdefault("palette", tuple(colours.values()))
        classes = ("background", *CLASSES) if classes is None else classes
        super().__init__(files, classes, pipeline, str(data_root), root=root, **kwargs)


def _pairs(
    root: Path, kind: str, sets: Sets, image_folder: str, annotation_folder: str, endings: tuple[str, ...]
) -> list[tuple[Path, Path]]:
    """Picture and annotation of each name in the lists, or of each annotation."""
    pairs = []
    if sets is None:
        images = _by_stem(existing_folder(root / image_folder, "image_folder"), IMAGE_SUFFIXES)
        for path in find_files(existing_folder(root / annotation_folder, "annotation_folder"), endings):
            name = path.relative_to(root / annotation_folder).with_suffix("").as_posix()
            pairs.append((_of_name(images, name, root / image_folder, f"{path} needs"), path))
        return pairs
    for entry in sets:
        year, name = (None, entry) if isinstance(entry, str) else entry
        base = root if year is None else root / f"VOC{year}"
        path = base / "ImageSets" / kind / f"{name}.txt"
        if not path.is_file():
            raise FileNotFoundError(f"no list of pictures {path}")
        images, annotations = (
            _by_stem(existing_folder(base / folder, what), suffixes)
            for folder, what, suffixes in (
                (image_folder, "image_folder", IMAGE_SUFFIXES),
                (annotation_folder, "annotation_folder or mask_folder", endings),
            )
        )
        for line in read_lines(path):
            if line.strip():
                # Lists of single classes have -1, 0 or 1 at the end.
                name = line.strip() if line.strip() in images else re.sub(r"\s+-?[01]$", "", line.strip())
                image = _of_name(images, name, base / image_folder, f"{path} names")
                pairs.append((image, _of_name(annotations, name, base / annotation_folder, f"{path} names", endings)))
    return pairs


def _by_stem(folder: Path, suffixes: tuple[str, ...]) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for path in find_files(folder, suffixes):
        found.setdefault(path.relative_to(folder).with_suffix("").as_posix(), []).append(path)
    return found


def _of_name(
    files: dict[str, list[Path]], name: str, folder: Path, who: str, suffixes: tuple[str, ...] = IMAGE_SUFFIXES
) -> Path:
    found = files.get(name, [])
    if not found:
        raise FileNotFoundError(f"no file {folder / name}{{{','.join(suffixes)}}}, which {who}")
    if len(found) > 1:
        raise ValueError(f"{' and '.join(map(str, found))} have the name that {who}: keep one")
    return found[0]


def _read(xml: Path) -> tuple[tuple[int, int] | None, list[tuple[str, list[float], bool, str]]]:
    """The size of the image, and name, box, difficulty and position in the file of each object."""
    try:
        root = ElementTree.parse(xml).getroot()
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # the latter two of encodings
        raise ValueError(f"{xml} is not valid XML: {error}") from error
    entries = []
    for number, entry in enumerate(root.iter("object"), 1):
        where = f"object {number} of {xml}"
        name = (entry.findtext("name") or "").strip()
        if not name:
            raise ValueError(f"{where} has no name")
        try:
            box = [float(entry.findtext(f"bndbox/{side}", "")) for side in ("xmin", "ymin", "xmax", "ymax")]
        except ValueError as error:
            raise ValueError(f"{where} has no bndbox of four numbers xmin, ymin, xmax, ymax") from error
        if not all(map(check_number, box)):
            raise ValueError(f"{where}: bndbox must be four numbers in pixels, got {box}")
        difficult = (entry.findtext("difficult") or "0").strip()
        if difficult not in ("0", "1"):
            raise ValueError(f"{where}: difficult must be 0 or 1, got {difficult!r}")
        # Pixels count from 1, and the last one belongs to the box.
        entries.append((name, [box[0] - 1, box[1] - 1, box[2], box[3]], difficult == "1", where))
    try:
        height, width = (int(root.findtext(f"size/{side}") or 0) for side in ("height", "width"))
    except ValueError as error:
        raise ValueError(f"{xml}: size must be two integers height and width, {error}") from error
    size = (height, width)
    if min(size) < 0:
        raise ValueError(f"{xml}: size must be two integers height and width, got {size}")
    return (size if all(size) else None), entries


def _picture(
    image: Path,
    xml: Path,
    index: int,
    size: tuple[int, int] | None,
    entries: list[tuple[str, list[float], bool, str]],
    numbers: dict[str, int],
) -> AnnotatedPicture:
    for name, *_, where in entries:
        if name not in numbers:
            raise ValueError(f"{where} is a {name!r}; the classes are {', '.join(numbers)}")
    names, boxes, difficult, places = zip(*entries, strict=True) if entries else ((), (), (), ())
    objects = Objects(boxes, [numbers[name] for name in names], iscrowd=difficult)
    return AnnotatedPicture(image, index, size, objects, places)


def _read_labelmap(path: Path) -> dict[str, tuple[int, int, int]]:
    """Colours by class, from lines `name:red,green,blue:parts:actions`, the background first."""
    colours: dict[str, tuple[int, int, int]] = {}
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, rest = line.partition(":")
        parts = rest.partition(":")[0].split(",")
        if not name or len(parts) != 3 or not all(p.strip().isdecimal() and int(p) < 256 for p in parts):
            raise ValueError(f"{path}, line {number}: expected 'name:red,green,blue:parts:actions', got {line!r}")
        red, green, blue = map(int, parts)
        colours[name] = red, green, blue
    return dict(sorted(colours.items(), key=lambda item: item[0] != "background"))
