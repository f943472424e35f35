"""YOLO's text labels: boxes and polygons in shares of upright pictures, and faults that name the line."""

import numpy as np
import pytest
import torch
from PIL import Image

from visionattn.data import YOLODetection

CLASSES = ("car", "鳥")


@pytest.fixture
def root(tmp_path):
    """Three pictures of 40x20, one without labels, the last one turned by its EXIF data."""
    exif = Image.Exif()
    exif[274] = 6
    for name in ("a.jpg", "deep/b.PNG", "c.jpg"):
        path = tmp_path / "images" / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((20, 40, 3), 90, np.uint8)).save(path, **({"exif": exif} if name == "c.jpg" else {}))
    write(tmp_path, "a", "0 0.5 0.5 0.5 0.5\n1 0.25 0.5 0.1 0.2\n\n")
    write(tmp_path, "c", "1 0.1 0.1 0.6 0.1 0.6 0.5\n")
    return tmp_path


def write(root, name, text):
    path = root / "labels" / "train" / f"{name}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8-sig")


def build(root, **kwargs):
    return YOLODetection(root / "images" / "train", CLASSES, [], **kwargs)


def test_boxes_are_in_pixels_of_the_upright_picture(root):
    dataset = build(root, test_mode=True)
    assert len(dataset) == 3 and dataset.metainfo["classes"] == CLASSES
    first, turned, empty = (dataset[index]["data_samples"] for index in range(3))
    assert torch.allclose(first["boxes"], torch.tensor([[10, 5, 30, 15], [8, 8, 12, 12.0]]))
    assert first["labels"].tolist() == [0, 1] and first["original"]["area"].tolist() == pytest.approx([200, 16])
    assert turned["size"] == (40, 20) and torch.allclose(turned["boxes"], torch.tensor([[2, 4, 12, 20.0]]))
    assert empty["boxes"].shape == (0, 4)
    assert len(build(root, drop_empty=True)) == 2


def test_polygons_are_masks(root):
    write(root, "a", "0 0.25 0.25 0.75 0.25 0.75 0.75 0.25 0.75\n")
    masks = build(root, masks=True)[0]["data_samples"]["masks"]
    assert masks.shape == (1, 20, 40) and abs(int(masks.sum()) - 200) <= 30
    assert masks[0, 7:13, 12:28].all() and not masks[0, :4].any()
    write(root, "a", "0 0.5 0.5 0.5 0.5\n")
    with pytest.raises(ValueError, match=r"a\.txt, line 1: a box, but masks=True needs the polygon"):
        build(root, masks=True)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2 0.5 0.5 0.5 0.5", r"class 2 is not one of 0\.\.1"),
        ("0.5 0.5 0.5 0.5 0.5", r"class 0\.5 is not one of 0\.\.1"),
        ("car 0.5 0.5 0.5 0.5", r"expected numbers, got 'car 0\.5"),
        ("0 0.5 0.5 0.5", r"expected 'class x y width height' or .*, got 4 numbers"),
        ("0 0.5 0.5 0.5 0.5 0.9", r"expected 'class x y width height' or .*, got 6 numbers"),
        ("0 20 10 20 10", r"coordinates must be shares of the picture in 0\.\.1, got '0 20 10"),
        ("0 nan 0.5 0.5 0.5", r"coordinates must be shares of the picture"),
    ],
)
def test_faults_name_the_file_and_the_line(root, line, message):
    write(root, "a", f"0 0.5 0.5 0.5 0.5\n{line}\n")
    with pytest.raises(ValueError, match=rf"labels/train/a\.txt, line 2: {message}"):
        build(root)


def test_folders_of_labels(root, tmp_path):
    (root / "labels").rename(root / "other")
    with pytest.raises(FileNotFoundError, match=r"no folder .*labels/train \(label_root of YOLODetection\)"):
        build(root)
    assert len(build(root, label_root=root / "other" / "train")[0]["data_samples"]["boxes"]) == 2
    (tmp_path / "none").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no labels for .*a\.jpg nor any other picture in .*none"):
        build(root, label_root=tmp_path / "none")
