"""COCO files: what a good one gives, and that every fault names the file and the annotation."""

import copy
import json

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from visionattn.data import CocoDetection

TRIANGLE = [[2.0, 2.0, 20.0, 4.0, 10.5, 25.0]]
IMAGES = [{"id": number, "file_name": f"{number}.png", "height": 30, "width": 40} for number in (5, 2, 9)]
CATEGORIES = [{"id": 90, "name": "zebra"}, {"id": 1, "name": "ant"}, {"id": 7, "name": "cow"}]


def annotation(number, image_id, category_id, bbox, **more):
    return {"id": number, "image_id": image_id, "category_id": category_id, "bbox": bbox, **more}


GOOD = {
    "images": IMAGES,
    "categories": CATEGORIES,
    "annotations": [
        annotation(11, 5, 90, [2, 2, 18, 23], area=200.5, iscrowd=0, segmentation=TRIANGLE),
        annotation(
            12, 5, 1, [0, 0, 40, 30], iscrowd=1, segmentation={"size": [30, 40], "counts": [0, 600, 600]}, area=600
        ),
        annotation(13, 5, 7, [8, 9, 1, 1], segmentation=[[8, 9, 9, 9, 9, 10, 8, 10]]),
        annotation(14, 2, 7, [3, 4, 10, 5], segmentation={"size": [30, 40], "counts": "PPY19000000"}),
    ],
}


@pytest.fixture
def write(tmp_path):
    """Writes pictures and a changed copy of the good file: `write(change)` -> arguments of the data set."""
    for image in IMAGES:
        cv2.imwrite(str(tmp_path / image["file_name"]), np.full((30, 40, 3), image["id"], np.uint8))

    def write(change=None):
        content = copy.deepcopy(GOOD)
        content["annotations"][3]["segmentation"]["counts"] = encode(box_mask(3, 4, 10, 5))
        if change:
            change(content)
        (tmp_path / "train.json").write_text(json.dumps(content))
        return {"ann_file": tmp_path / "train.json", "image_root": tmp_path, "pipeline": []}

    return write


def box_mask(left, top, width, height):
    mask = np.zeros((30, 40), np.uint8)
    mask[top : top + height, left : left + width] = 1
    return mask


def encode(mask):
    from pycocotools import mask as coco

    return coco.encode(np.asfortranarray(mask))["counts"].decode()


def test_gaps_in_class_ids_are_closed(write):
    dataset = CocoDetection(**write())
    assert dataset.metainfo == {"classes": ("ant", "cow", "zebra"), "class_ids": (1, 7, 90)}
    samples = [dataset[index]["data_samples"] for index in range(3)]
    assert [sample["image_id"] for sample in samples] == [5, 2, 9]
    assert samples[0]["labels"].tolist() == [2, 1] and samples[1]["labels"].tolist() == [1]
    assert torch.allclose(samples[0]["boxes"], torch.tensor([[2, 2, 20, 25], [8, 9, 9, 10.0]]))
    assert dataset[1]["inputs"].unique().tolist() == [2]
    assert samples[2]["boxes"].shape == (0, 4) and "masks" not in samples[2] and "original" not in samples[2]


def test_classes_can_be_chosen_and_ordered(write):
    dataset = CocoDetection(**write(), classes=["cow", "ant"])
    assert dataset.metainfo["classes"] == ("cow", "ant") and dataset[0]["data_samples"]["labels"].tolist() == [0]
    with pytest.raises(ValueError, match=r"train\.json has no category 'dog'; it has ant, cow, zebra"):
        CocoDetection(**write(), classes=["dog"])


def test_crowds_are_for_evaluation_only(write):
    sample = CocoDetection(**write(), test_mode=True)[0]["data_samples"]
    assert sample["labels"].tolist() == [2, 1]
    original = sample["original"]
    assert original["labels"].tolist() == [2, 0, 1] and original["iscrowd"].tolist() == [False, True, False]
    assert original["area"].tolist() == [200.5, 600, 1] and original["size"] == (30, 40)


def test_masks_equal_pycocotools(write):
    from pycocotools.coco import COCO

    arguments = write()
    reference = COCO(arguments["ann_file"])
    dataset = CocoDetection(**arguments, masks=True, test_mode=True)
    for index, image in enumerate(IMAGES):
        masks = dataset[index]["data_samples"]["original"]["masks"].numpy()
        expected = [reference.annToMask(a) for a in reference.imgToAnns[image["id"]]]
        assert masks.shape == (len(expected), 30, 40)
        for mask, other in zip(masks, expected, strict=True):
            assert np.array_equal(mask, other.astype(bool))
    assert dataset[0]["data_samples"]["masks"].shape == (2, 30, 40)


def test_pictures_without_objects_are_kept_or_dropped(write):
    def crowd_only(content):
        content["annotations"][3]["iscrowd"] = 1

    assert len(CocoDetection(**write(crowd_only))) == 3
    assert len(CocoDetection(**write(crowd_only), drop_empty=True)) == 1
    sample = CocoDetection(**write(crowd_only), masks=True)[2]["data_samples"]
    assert sample["boxes"].shape == (0, 4) and sample["masks"].shape == (0, 30, 40)


def test_boxes_outside_are_cut_or_dropped_with_a_count(write, capfd):
    def shift(content):
        boxes = ([-5, -5, 20, 50], None, [50, 5, 10, 10], [3, 4, 0, 5])
        for record, box in zip(content["annotations"], boxes, strict=True):
            record["bbox"] = box or record["bbox"]

    from mmengine.logging import MMLogger

    MMLogger.get_instance("boxes")  # messages go to the newest logger
    dataset = CocoDetection(**write(shift), test_mode=True)
    said = "".join(capfd.readouterr())
    assert "train.json: 1 boxes cut at the edges of their pictures" in said
    assert "train.json: 2 boxes without area in their pictures dropped (first: annotation 13)" in said
    sample = dataset[0]["data_samples"]
    assert torch.allclose(sample["boxes"], torch.tensor([[0, 0, 15, 30.0]])) and sample["dropped"] == 1
    assert sample["original"]["boxes"][0].tolist() == [-5, -5, 15, 45]  # as annotated
    assert len(CocoDetection(**write(shift), drop_empty=True)) == 1


def faults():
    def put(kind, number, **values):
        return lambda content: content[kind][number].update(values)

    def lose(kind, number, key):
        return lambda content: content[kind][number].pop(key)

    return {
        "unknown image": (put("annotations", 1, image_id=77), r"annotation 12 names image 77, which the file does not"),
        "unknown class": (put("annotations", 1, category_id=3), r"annotation 12 has category 3, which the file does"),
        "double annotation": (put("annotations", 1, id=11), r"two annotations have the id 11"),
        "double image": (put("images", 0, id=2), r"two images have the id 2"),
        "double category": (put("categories", 0, id=1), r"two categories have the id 1"),
        "double name": (put("categories", 0, name="ant"), r"two categories have the same name"),
        "short box": (put("annotations", 2, bbox=[1, 2, 3]), r"annotation 13: bbox must be four numbers .*\[1, 2, 3\]"),
        "box of text": (put("annotations", 2, bbox=["a"] * 4), r"annotation 13: bbox must be four numbers"),
        "box of nan": (put("annotations", 2, bbox=[1, 2, float("nan"), 3]), r"annotation 13: bbox must be four numb"),
        "box as text": (put("annotations", 2, bbox="1,2,3,4"), r"annotation 13: bbox must be four numbers"),
        "box of digits as text": (
            put("annotations", 2, bbox=["1", "2", "3", "4"]),
            r"annotation 13: bbox must be four",
        ),
        "box far away": (put("annotations", 2, bbox=[0, 0, 1e30, 3]), r"annotation 13: bbox must be four numbers"),
        "box of flags": (put("annotations", 2, bbox=[True, 2, 3, 3]), r"annotation 13: bbox must be four numbers"),
        "flag as text": (put("annotations", 2, iscrowd="0"), r"annotation 13: iscrowd must be 0 or 1, got '0'"),
        "area as text": (put("annotations", 2, area="81"), r"annotation 13: area must be a number of pixels, got '81'"),
        "negative area": (put("annotations", 2, area=-3), r"annotation 13: area must be a number of pixels, got -3"),
        "infinite area": (put("annotations", 2, area=float("inf")), r"annotation 13: area must be a number of pixels"),
        "null as id": (put("annotations", 2, id=None), r"annotations\[2\]: id must be an integer, got None"),
        "list as image": (
            put("annotations", 2, image_id=[5]),
            r"annotations\[2\]: image_id must be an integer, got \[5\]",
        ),
        "text for a number": (
            put("annotations", 2, image_id="5"),
            r"annotation 13 names image '5', which the file does",
        ),
        "class as text": (
            put("annotations", 2, category_id="7"),
            r"annotation 13 has category '7', which the file does",
        ),
        "no object": (lambda content: content["annotations"].append(7), r"annotations\[4\] must be an object with id"),
        "categories by text": (put("categories", 0, id="90"), r"categories: id must be an integer, got '90'"),
        "class without name": (put("categories", 0, name=""), r"category 90: name must be text, got ''"),
        "class named by number": (put("categories", 0, name=3), r"category 90: name must be text, got 3"),
        "no classes": (lambda content: content["categories"].clear(), r" has no categories"),
        "null as file": (put("images", 0, file_name=None), r"image 5: file_name must be text, got None"),
        "size as text": (put("images", 0, width="40"), r"image 5: width must be a whole number of pixels, got '40'"),
        "broken size": (put("images", 0, height=30.5), r"image 5: height must be a whole number of pixels, got 30\.5"),
        "object for a list": (lambda content: content.update(images={}), r"is no COCO file: it has no list images"),
        "no box": (lose("annotations", 2, "bbox"), r"annotations\[2\] \(id 13\) has no bbox"),
        "no name": (lose("images", 1, "file_name"), r"images\[1\] \(id 2\) has no file_name"),
        "no images": (lambda content: content.pop("images"), r"is no COCO file: it has no list images"),
        "no outline": (lose("annotations", 0, "segmentation"), r"annotation 11 has no segmentation of polygons"),
        "empty outline": (put("annotations", 0, segmentation=[]), r"annotation 11 has an empty segmentation"),
        "odd polygon": (put("annotations", 0, segmentation=[[1] * 7]), r"annotation 11: a polygon has an odd number"),
        "pairs": (
            put("annotations", 0, segmentation=[[[2, 2], [9, 2], [9, 9]]]),
            r"annotation 11: a polygon must be flat",
        ),
        "bare pairs": (
            put("annotations", 0, segmentation=[[2, 2], [9, 2], [9, 9]]),
            r"annotation 11: a polygon must be",
        ),
        "bare polygon": (
            put("annotations", 0, segmentation=[2, 2, 9, 2, 9, 9]),
            r"annotation 11: polygons must be lists",
        ),
        "two corners": (
            put("annotations", 0, segmentation=[[2, 2, 9, 2]]),
            r"annotation 11: no polygon has three corners",
        ),
        "text in a polygon": (
            put("annotations", 0, segmentation=[["2"] * 6]),
            r"annotation 11: a polygon must be of num",
        ),
        "null in a polygon": (
            put("annotations", 0, segmentation=[[None] * 6]),
            r"annotation 11: a polygon must be of num",
        ),
        "infinite polygon": (
            put("annotations", 0, segmentation=[[float("inf"), 2, 9, 2, 9, 9]]),
            r"annotation 11: a polygon must be of numbers in pixels",
        ),
        "huge polygon": (
            put("annotations", 0, segmentation=[[1e9, 2, 9, 2, 9, 9]]),
            r"annotation 11: a polygon must be",
        ),
        "fractions of runs": (
            put("annotations", 1, segmentation={"size": [30, 40], "counts": [600.0, 600.0]}),
            r"annotation 12: counts of run lengths must be integers or COCO's text",
        ),
        "negative runs": (
            put("annotations", 1, segmentation={"size": [30, 40], "counts": [-5, 1205]}),
            r"annotation 12: it has a negative run length, -5",
        ),
        "size of runs": (
            put("annotations", 1, segmentation={"size": "30x40", "counts": [1200]}),
            r"annotation 12: its run lengths need size \[height, width\], got '30x40'",
        ),
        "damaged runs": (
            put("annotations", 3, segmentation={"size": [30, 40], "counts": "abc"}),
            r"annotation 14: its run lengths (are damaged|add up to|are negative)",
        ),
        "runs cut short": (
            put("annotations", 3, segmentation={"size": [30, 40], "counts": "PPY1o"}),
            r"annotation 14: its run lengths are damaged, got 'PPY1o'",
        ),
        "other size": (
            put("annotations", 1, segmentation={"size": [40, 30], "counts": [1200]}),
            r"annotation 12: its run lengths are for a picture of \[40, 30\], not \[30, 40\]",
        ),
        "wrong runs": (
            put("annotations", 1, segmentation={"size": [30, 40], "counts": [5, 5]}),
            r"annotation 12: its run lengths add up to 10 pixels, not 1200",
        ),
    }


@pytest.mark.parametrize("fault", faults())
def test_faults_name_the_file_and_the_annotation(write, fault):
    change, message = faults()[fault]
    with pytest.raises(ValueError, match=rf"train\.json.*{message}"):
        CocoDetection(**write(change), masks=True)


def test_run_lengths_of_a_picture_of_unknown_size(write):
    def change(content):
        content["images"][0].update(height=None, width=0)
        content["annotations"][1]["segmentation"] = {"size": [40, 60], "counts": [1200, 1200]}

    dataset = CocoDetection(**write(change), masks=True)
    with pytest.raises(
        ValueError, match=r"train\.json: annotation 12: .* picture of \[40, 60\], but .*5\.png has \[30, 40\]"
    ):
        dataset[0]


def test_run_lengths_as_text_are_read_as_pycocotools_reads_them():
    """Short ones, long ones, and differences of either sign."""
    from visionattn.data.coco_file import _unpack_runs

    generator = np.random.default_rng(0)
    for density in (0.001, 0.02, 0.5, 0.98):
        mask = (generator.random((300, 400)) < density).astype(np.uint8)
        ends = np.flatnonzero(np.diff(mask.T.ravel(), prepend=0, append=2))
        assert _unpack_runs(encode(mask), "x") == np.diff([0, *ends]).tolist()


def test_flags_ids_and_names_in_other_forms(write, tmp_path):
    """true, 1.0, null; ids of images as text; a byte order mark; names of other alphabets."""

    def change(content):
        content["annotations"][0].update(iscrowd=False, area=None, image_id="fünf")
        content["annotations"][1].update(iscrowd=True, image_id="fünf")
        content["annotations"][2].update(category_id=7.0, iscrowd=None, image_id="fünf")
        content["images"][0].update(id="fünf", file_name="鳥.png")
        content["categories"][0]["name"] = "斑馬"

    arguments = write(change)
    (tmp_path / "5.png").rename(tmp_path / "鳥.png")
    text = json.dumps(json.loads(arguments["ann_file"].read_text()), ensure_ascii=False)
    arguments["ann_file"].write_text(text, encoding="utf-8-sig")
    dataset = CocoDetection(**arguments, test_mode=True)
    assert dataset.metainfo["classes"] == ("ant", "cow", "斑馬")
    original = dataset[0]["data_samples"]["original"]
    assert original["iscrowd"].tolist() == [False, True, False] and original["area"].tolist() == [414, 600, 1]


def test_missing_and_damaged_files(write, tmp_path):
    arguments = write()
    (tmp_path / "5.png").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"no file .*5\.png \(.*train\.json: image 5, which annotation 11 needs"
    ):
        CocoDetection(**arguments)
    arguments["ann_file"].write_text('{"images": [')
    with pytest.raises(ValueError, match=r"train\.json is not valid JSON: .*line 1"):
        CocoDetection(**arguments)
    with pytest.raises(FileNotFoundError, match=r"no annotation file .*none\.json"):
        CocoDetection(**{**arguments, "ann_file": tmp_path / "none.json"})


def test_a_file_without_pictures(write):
    def clear(content):
        content["images"], content["annotations"] = [], []

    with pytest.raises(ValueError, match=r"CocoDetection: no images in .*train\.json"):
        CocoDetection(**write(clear))


@pytest.mark.parametrize("stored", [True, False], ids=["as stored", "as turned"])
def test_annotations_tell_how_a_turned_picture_is_meant(write, tmp_path, stored):
    """Stored 40x30 with a note to turn it: annotated on the stored pixels, or (by other tools) on the turned ones."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(tmp_path / "5.jpg", exif=exif)
    size = {"height": 30, "width": 40} if stored else {"height": 40, "width": 30}
    arguments = write(lambda content: content["images"][0].update(file_name="5.jpg", **size))
    assert CocoDetection(**arguments)[0]["inputs"].shape == (3, size["height"], size["width"])


def test_a_picture_of_another_size_is_refused(write):
    dataset = CocoDetection(**write(lambda content: content["images"][0].update(width=41)))
    with pytest.raises(ValueError, match=r"5\.png is 40x30 pixels, but its annotation was made on 41x30"):
        dataset[0]


@pytest.mark.parametrize("kind", ["16 bit", "16 bit colour", "grey", "rgba", "palette"])
def test_all_kinds_of_pictures(write, tmp_path, kind):
    path = str(tmp_path / "5.png")
    pictures = {
        "16 bit": np.full((30, 40), 100 << 8, np.uint16),
        "16 bit colour": np.full((30, 40, 3), 100 << 8, np.uint16),
        "grey": np.full((30, 40), 100, np.uint8),
        "rgba": np.full((30, 40, 4), 100, np.uint8),
    }
    if kind == "palette":
        image = Image.fromarray(np.zeros((30, 40), np.uint8), "P")
        image.putpalette([100] * 3)
        image.save(path)
    else:
        cv2.imwrite(path, pictures[kind])
    inputs = CocoDetection(**write())[0]["inputs"]
    assert inputs.shape == (3, 30, 40) and inputs.unique().tolist() == [100]
