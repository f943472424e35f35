"""Synthetic objects: scenes of cut-out photographs, the stamps of the drawing program Tux Paint, on photographs.

Debian's package tuxpaint-stamps-default has them, with transparent surroundings. Eight classes are made of its folders;
drawings, toys and what is in the wrong folder are left out. The result is a composed benchmark, not one of natural
scenes. The stamps are under the GNU GPL (the package's copyright file tells): none of them is part of this package.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from visionattn.utils.files import replacing

from ..files import find_files
from ..objects import Objects
from .composing import Cutout, compose, load_photographs, square_piece

__all__ = ["STAMPS", "find_stamps", "prepare_stamps"]

SYSTEM_FOLDER = Path("/usr/share/tuxpaint/stamps")
# The classes, and the folders of the package that they are made of.
STAMPS = {
    "bird": ["animals/birds"],
    "mammal": ["animals/mammals", "animals/marsupials"],
    "insect": ["animals/insects"],
    "flower": ["plants/flowers"],
    "fruit or vegetable": ["food/fruit", "food/vegetables"],
    "vehicle": ["vehicles", "military/vehicles"],
    "fish": ["animals/fish"],
    "instrument": ["hobbies/music"],
}
# Backgrounds: photographs that show nothing of these classes.
PHOTOGRAPHS = {
    "train": ("china.jpg", "astronaut", "brick", "grass", "camera", "immunohistochemistry", "hubble_deep_field"),
    "test": ("coffee", "gravel", "coins", "moon", "retina"),
}
_NO_PHOTOGRAPHS = {"cartoon", "toys", "plastic"}  # folders
_LEFT_OUT = {
    *("echidna", "hedgehog", "bee", "ww2_german_gun", "sedan_police"),  # drawings
    *("Brown_slug", "Woodlouse", "lobster", "shrimp"),  # neither insects nor fish
    *("7spoke256", "wheel_tractor"),  # wheels
}


def find_stamps(folder: Path, split: str) -> list[tuple[Path, int]]:
    """The stamps of a split with their class numbers.

    Pictures of the same thing (`lion`, `lion-2`) stay together; every third thing of a class is for testing.

    Raises:
        FileNotFoundError: If the folder is missing.
        ValueError: If a class has fewer than three things.
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no stamps in {folder}; on Debian `apt install tuxpaint-stamps-default`, or unpack the package somewhere "
            f"(`dpkg -x`) and name its folder usr/share/tuxpaint/stamps"
        )
    found = []
    for label, (name, places) in enumerate(STAMPS.items()):
        things: dict[str, list[Path]] = {}
        for path in (
            path for place in places if (folder / place).is_dir() for path in find_files(folder / place, (".png",))
        ):
            stem = path.stem
            if _NO_PHOTOGRAPHS & set(path.relative_to(folder).parts) or stem in _LEFT_OUT or stem.endswith("_mirror"):
                continue
            things.setdefault(re.split(r"[-_]", stem)[0], []).append(path)
        if len(things) < 3:
            raise ValueError(
                f"{folder} has {len(things)} kinds of {name!r} (in {', '.join(places)}), at least 3 needed"
            )
        for number, thing in enumerate(sorted(things)):
            if (number % 3 == 2) == (split == "test"):
                found += [(path, label) for path in things[thing]]
    return found


def prepare_stamps(
    source: Path,
    out: Path,
    counts: dict[str, int],
    size: int = 256,
    seed: int = 0,
    progress: Callable[[Iterable[int], str], Iterable[int]] = lambda numbers, _: numbers,
) -> None:
    """Writes scenes as a COCO data set with masks of class numbers beside it.

    Each split gets `<split>.json`, pictures in `<split>/` and masks, 0 for the background, in `<split>-masks/`.
    Stamps and photographs of one split do not occur in the other.

    Args:
        source: Folder of the stamps, with `animals`, `food`, ...
        out: A new folder; it appears when all is written.
        counts: How many scenes each of `train` and `test` gets.
        size: Side of the pictures in pixels.
        seed: Gives other scenes of the same stamps.
        progress: Is handed the numbers of the scenes and the split, to show how far it is.

    Raises:
        FileNotFoundError: If the stamps are missing.
        ValueError: If the folder exists, or an argument is out of range.
    """
    if out.exists():
        raise ValueError(f"{out} exists already; name another folder, so that nothing is overwritten")
    if size < 64 or min(counts.values()) < 1:
        raise ValueError(f"size must be at least 64 and counts at least 1, got size={size}, counts={counts}")
    with replacing(out) as temporary:
        temporary.mkdir()
        for number, (split, count) in enumerate(counts.items()):
            stamps = [(_read(path), label) for path, label in find_stamps(source, split)]
            scenes = (
                _scene(stamps, split, size, np.random.default_rng((seed, number, index)))
                for index in progress(range(count), split)
            )
            _write(temporary, split, scenes)
        (temporary / "README.txt").write_text(
            f"Stamps of Tux Paint on photographs from scikit-learn and scikit-image (seed {seed}, {size} px).\n"
            "The stamps are under the GNU GPL; see the copyright file of Debian's package tuxpaint-stamps-default.\n",
            encoding="utf-8",
        )


def _read(path: Path) -> np.ndarray:
    """A stamp as `(h, w, 4)` uint8, cut to what can be seen of it."""
    try:
        with Image.open(path) as image:
            stamp = np.asarray(image.convert("RGBA"))
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"cannot read stamp {path}: it is empty, truncated or no image") from error
    x, y, w, h = cv2.boundingRect((stamp[..., 3] > 127).astype(np.uint8))
    if not w:
        raise ValueError(f"stamp {path} is transparent all over")
    return stamp[y : y + h, x : x + w]


def _scene(
    stamps: list[tuple[np.ndarray, int]], split: str, size: int, rng: np.random.Generator
) -> tuple[np.ndarray, Objects]:
    photographs = load_photographs(PHOTOGRAPHS[split])
    background = square_piece(photographs[rng.integers(len(photographs))], size, rng)
    return compose(background, _cutouts(stamps, size, rng), rng)


def _cutouts(stamps: list[tuple[np.ndarray, int]], size: int, rng: np.random.Generator) -> Iterator[Cutout]:
    """One to four stamps; all classes are equally likely."""
    by_class: dict[int, list[np.ndarray]] = {}
    for stamp, label in stamps:
        by_class.setdefault(label, []).append(stamp)
    for _ in range(rng.integers(1, 5)):
        label = int(rng.integers(len(by_class)))
        stamp = by_class[label][rng.integers(len(by_class[label]))]
        scale = size * rng.uniform(0.25, 0.65) / max(stamp.shape[:2])
        stamp = stamp[:, ::-1] if rng.random() < 0.5 else stamp
        # Colours are averaged by how much can be seen of them: the invisible ones are arbitrary.
        visible = stamp[..., 3:] / np.float32(255)
        drawn = np.dstack([stamp[..., :3] * visible, visible]).astype(np.float32)
        sides = [max(round(side * scale), 2) for side in stamp.shape[1::-1]]
        weighted = cv2.resize(drawn, sides, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        alpha = weighted[..., 3].clip(0, 1)
        colours = weighted[..., :3] / np.maximum(alpha, 1e-3)[..., None]
        yield Cutout(label, alpha, alpha > 0.5, _painted(colours))


def _painted(colours: np.ndarray) -> Callable[[tuple[slice, slice], np.ndarray], np.ndarray]:
    return lambda part, around: colours[part]


def _write(folder: Path, split: str, scenes: Iterable[tuple[np.ndarray, Objects]]) -> None:
    from faster_coco_eval.core import mask as coco

    (folder / split).mkdir()
    (folder / f"{split}-masks").mkdir()
    categories = [{"id": number, "name": name} for number, name in enumerate(STAMPS, 1)]
    content: dict[str, list] = {"images": [], "annotations": [], "categories": categories}
    for number, (image, objects) in enumerate(scenes, 1):
        name = f"{number:06d}"
        height, width = image.shape[:2]
        content["images"].append({"id": number, "file_name": f"{name}.jpg", "height": height, "width": width})
        Image.fromarray(image).save(folder / split / f"{name}.jpg", quality=95)
        assert objects.masks is not None  # composed scenes have them
        classes = (objects.masks * (objects.labels + 1)[:, None, None]).sum(axis=0).astype(np.uint8)
        Image.fromarray(classes).save(folder / f"{split}-masks" / f"{name}.png")
        for box, label, mask, area in zip(objects.boxes, objects.labels, objects.masks, objects.area, strict=True):
            runs = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
            left, top, right, bottom = box.tolist()
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": number,
                    "category_id": int(label) + 1,
                    "bbox": [left, top, right - left, bottom - top],
                    "area": float(area),
                    "iscrowd": 0,
                    "segmentation": {"size": [height, width], "counts": _text(runs["counts"])},
                }
            )
    (folder / f"{split}.json").write_text(json.dumps(content), encoding="utf-8")


def _text(counts: bytes | str) -> str:
    return counts.decode() if isinstance(counts, bytes) else counts
