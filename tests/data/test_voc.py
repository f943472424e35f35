"""Pascal VOC: boxes, difficult objects, palette masks."""

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from visionattn.data import VOCDetection, VOCSegmentation

XML = """<annotation><size><width>40</width><height>30</height><depth>3</depth></size>
<object><name>dog</name><difficult>0</difficult>
<bndbox><xmin>1</xmin><ymin>3</ymin><xmax>40</xmax><ymax>30</ymax></bndbox></object>
<object><name>person</name><difficult>1</difficult>
<bndbox><xmin>5</xmin><ymin>6</ymin><xmax>7.5</xmax><ymax>8</ymax></bndbox></object></annotation>"""


@pytest.fixture
def root(tmp_path):
    """Two years with one picture each, in both kinds of lists."""
    for year in ("2007", "2012"):
        folder = tmp_path / f"VOC{year}"
        for name in ("Annotations", "JPEGImages", "SegmentationClass", "ImageSets/Main", "ImageSets/Segmentation"):
            (folder / name).mkdir(parents=True)
        cv2.imwrite(str(folder / "JPEGImages" / f"{year}_a.jpg"), np.full((30, 40, 3), 50, np.uint8))
        (folder / "Annotations" / f"{year}_a.xml").write_text(XML)
        mask = np.zeros((30, 40), np.uint8)
        mask[:10], mask[10] = 15, 255
        palette = Image.fromarray(mask).convert("P")
        palette.putdata(mask.ravel().tolist())
        palette.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
        palette.save(folder / "SegmentationClass" / f"{year}_a.png")
        (folder / "ImageSets" / "Main" / "train.txt").write_text(f"{year}_a  1\n\n")
        (folder / "ImageSets" / "Segmentation" / "train.txt").write_text(f"{year}_a\n")
    return tmp_path


SETS = [("2007", "train"), ("2012", "train")]


def test_boxes_count_from_one_and_difficult_ones_are_not_learnt(root):
    dataset = VOCDetection(root, SETS, [], test_mode=True)
    assert len(dataset) == 2 and len(dataset.metainfo["classes"]) == 20
    sample = dataset[1]["data_samples"]
    assert sample["image_id"] == 1 and sample["labels"].tolist() == [11]
    assert torch.allclose(sample["boxes"], torch.tensor([[0, 2, 40, 30.0]]))
    original = sample["original"]
    assert original["boxes"].tolist() == [[0, 2, 40, 30], [4, 5, 7.5, 8]]
    assert original["labels"].tolist() == [11, 14] and original["iscrowd"].tolist() == [False, True]


def test_palette_masks_are_class_numbers(root):
    dataset = VOCSegmentation(root, SETS, [], test_mode=True)
    assert dataset.metainfo["classes"][:2] == ("background", "aeroplane") and len(dataset) == 2
    mask = dataset[0]["data_samples"]["mask"]
    assert mask[:10].unique().tolist() == [15] and mask[10].unique().tolist() == [255]
    assert mask[11:].unique().tolist() == [0]


def test_pictures_without_objects(root):
    (root / "VOC2007" / "Annotations" / "2007_a.xml").write_text("<annotation></annotation>")
    assert VOCDetection(root, SETS, [])[0]["data_samples"]["boxes"].shape == (0, 4)
    assert len(VOCDetection(root, SETS, [], drop_empty=True)) == 1


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<ymax>8</ymax>", "", r"object 2 of .*2007_a\.xml has no bndbox of four numbers"),
        ("<xmin>5</xmin>", "<xmin>left</xmin>", r"object 2 of .*2007_a\.xml has no bndbox of four numbers"),
        ("<width>40<", "<width>wide<", r"2007_a\.xml: size must be two integers height and width, .*'wide'"),
        ("</annotation>", "", r"2007_a\.xml is not valid XML"),
    ],
)
def test_faults_name_the_file_and_the_object(root, old, new, message):
    (root / "VOC2007" / "Annotations" / "2007_a.xml").write_text(XML.replace(old, new))
    with pytest.raises(ValueError, match=message):
        VOCDetection(root, SETS, [])


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("ImageSets/Main/train.txt", r"no list of pictures .*train\.txt"),
        ("Annotations/2007_a.xml", r"no file .*Annotations/2007_a\{\.xml\}, which .*train\.txt names"),
        ("JPEGImages/2007_a.jpg", r"no file .*JPEGImages/2007_a\{\.bmp.*\}, which .*train\.txt names"),
    ],
)
def test_missing_files(root, gone, message):
    (root / "VOC2007" / gone).unlink()
    with pytest.raises(FileNotFoundError, match=message):
        VOCDetection(root, SETS, [])
