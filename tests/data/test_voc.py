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
        ("<difficult>1<", "<difficult>yes<", r"object 2 of .*2007_a\.xml: difficult must be 0 or 1, got 'yes'"),
        ("<xmin>5<", "<xmin>nan<", r"object 2 of .*2007_a\.xml: bndbox must be four numbers in pixels, got \[nan, 6"),
        ("<xmin>5<", "<xmin>1e9<", r"object 2 of .*2007_a\.xml: bndbox must be four numbers in pixels"),
        ("<name>dog</name>", "", r"object 1 of .*2007_a\.xml has no name"),
        ("<width>40<", "<width>-40<", r"2007_a\.xml: size must be two integers height and width, got \(30, -40\)"),
        ("</annotation>", "", r"2007_a\.xml is not valid XML"),
    ],
)
def test_faults_name_the_file_and_the_object(root, old, new, message):
    (root / "VOC2007" / "Annotations" / "2007_a.xml").write_text(XML.replace(old, new))
    with pytest.raises(ValueError, match=message):
        VOCDetection(root, SETS, [])


def test_a_class_that_is_not_among_those_given(root):
    with pytest.raises(ValueError, match=r"object 1 of .*2007_a\.xml is a 'dog'; the classes are cat, person"):
        VOCDetection(root, SETS, [], classes=["cat", "person"])


class TestOtherDataInVOCsFormat:
    """Written by labelling tools: other classes, other kinds of pictures, no years, no lists."""

    @pytest.fixture
    def own(self, root):
        folder = root / "VOC2007"
        (folder / "JPEGImages" / "2007_a.jpg").unlink()
        cv2.imwrite(str(folder / "JPEGImages" / "2007_a.PNG"), np.full((30, 40, 3), 50, np.uint8))
        xml = f"\ufeff{XML.replace('dog', 'Zebra').replace('person', '鳥')}"
        (folder / "Annotations" / "2007_a.xml").write_text(xml, encoding="utf-8")
        return folder

    @pytest.mark.parametrize("sets", [None, ["train"]])
    def test_classes_are_those_that_occur(self, own, sets):
        dataset = VOCDetection(own, sets, [], test_mode=True)
        assert dataset.metainfo["classes"] == ("Zebra", "鳥")
        assert dataset[0]["data_samples"]["original"]["labels"].tolist() == [0, 1]

    def test_all_in_one_folder(self, own):
        flat = own / "flat"
        flat.mkdir()
        (own / "JPEGImages" / "2007_a.PNG").rename(flat / "a b.png")
        (own / "Annotations" / "2007_a.xml").rename(flat / "a b.xml")
        assert len(VOCDetection(flat, None, [], image_folder="", annotation_folder="")) == 1

    def test_two_pictures_of_one_name(self, own):
        cv2.imwrite(str(own / "JPEGImages" / "2007_a.jpg"), np.zeros((30, 40, 3), np.uint8))
        with pytest.raises(
            ValueError, match=r"2007_a\.PNG and .*2007_a\.jpg have the name that .*2007_a\.xml needs: keep"
        ):
            VOCDetection(own, None, [])

    def test_names_with_spaces_in_lists_of_classes(self, own):
        (own / "JPEGImages" / "2007_a.PNG").rename(own / "JPEGImages" / "my photo.png")
        (own / "Annotations" / "2007_a.xml").rename(own / "Annotations" / "my photo.xml")
        (own / "ImageSets" / "Main" / "train.txt").write_text("my photo -1\n", encoding="utf-8-sig")
        assert len(VOCDetection(own, ["train"], [])) == 1

    def test_classes_of_masks_can_be_given(self, own):
        dataset = VOCSegmentation(own, ["train"], [], classes=[f"class {number}" for number in range(16)])
        assert dataset.metainfo["classes"][15] == "class 15" and 15 in dataset[0]["data_samples"]["mask"]

    def test_colours_and_classes_of_masks_from_labelmap(self, own):
        colours = np.zeros((30, 40, 3), np.uint8)
        colours[:5], colours[5:9] = (10, 200, 0), (0, 0, 90)
        Image.fromarray(colours).save(own / "SegmentationClass" / "2007_a.png")
        listed = "# label:color_rgb:parts:actions\nroad:0,0,90::\nbackground:0,0,0::\nsign:10,200,0::\n"
        (own / "labelmap.txt").write_text(listed, encoding="utf-8-sig")
        dataset = VOCSegmentation(own, None, [])
        assert dataset.metainfo["classes"] == ("background", "road", "sign")
        mask = dataset[0]["data_samples"]["mask"]
        assert mask[:5].unique().tolist() == [2] and mask[5:9].unique().tolist() == [1] and not mask[9:].any()
        (own / "labelmap.txt").write_text("road:red\n")
        with pytest.raises(
            ValueError, match=r"labelmap\.txt, line 1: expected 'name:red,green,blue:parts:actions', got"
        ):
            VOCSegmentation(own, None, [])


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
