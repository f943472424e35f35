"""Masks from files: what values mean, and what is refused."""

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from visionattn.data import ADE20K, ImageMaskFolder

CLASSES = ("road", "car", "sky")


@pytest.fixture
def folders(tmp_path):
    """One picture and a place for its mask: `write(mask)` -> arguments of the data set."""
    (tmp_path / "images" / "a").mkdir(parents=True)
    (tmp_path / "masks" / "a").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "images" / "a" / "1.jpg"), np.full((6, 8, 3), 50, np.uint8))

    def write(mask, suffix=".png"):
        path = tmp_path / "masks" / "a" / f"1{suffix}"
        mask.save(path) if isinstance(mask, Image.Image) else cv2.imwrite(str(path), mask)
        return {
            "image_root": tmp_path / "images",
            "mask_root": tmp_path / "masks",
            "classes": CLASSES,
            "pipeline": [],
            "test_mode": True,
        }

    return write


VALUES = (np.arange(48).reshape(6, 8) % 3).astype(np.uint8)


@pytest.mark.parametrize("kind", ["grey", "16 bit", "palette", "grey as colour", "bmp", "tif"])
def test_all_kinds_of_masks(folders, kind):
    palette = Image.fromarray(VALUES).convert("P")
    palette.putdata(VALUES.ravel().tolist())
    palette.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200])
    masks = {"16 bit": VALUES.astype(np.uint16), "palette": palette, "grey as colour": np.dstack([VALUES] * 3)}
    suffix = f".{kind}" if kind in ("bmp", "tif") else ".png"
    sample = ImageMaskFolder(**folders(masks.get(kind, VALUES), suffix))[0]["data_samples"]
    assert torch.equal(sample["mask"], torch.from_numpy(VALUES).long())
    assert torch.equal(sample["original_mask"], torch.from_numpy(VALUES))


def test_zero_can_be_ignored(folders):
    sample = ImageMaskFolder(**folders(VALUES + 1), reduce_zero_label=True)[0]["data_samples"]
    assert torch.equal(sample["mask"], torch.from_numpy(VALUES).long())
    sample = ImageMaskFolder(**folders(VALUES), reduce_zero_label=True)[0]["data_samples"]
    assert sample["mask"][0].tolist() == [255, 0, 1, 255, 0, 1, 255, 0]


def test_all_of_a_mask_may_be_ignored(folders):
    sample = ImageMaskFolder(**folders(np.full((6, 8), 255, np.uint8)), ignored=255)[0]["data_samples"]
    assert sample["mask"].unique().tolist() == [255]


def test_other_values_can_be_ignored(folders):
    mask = VALUES.astype(np.uint16)
    mask[0, 0], mask[0, 1] = 65535, 1000
    sample = ImageMaskFolder(**folders(mask), ignored=(65535, 1000))[0]["data_samples"]
    assert sample["mask"][0, :3].tolist() == [255, 255, 2]


@pytest.mark.parametrize(
    ("value", "options", "message"),
    [
        (3, {}, r"1\.png has the value 3 at row 2, column 5; allowed are 0 to 2 for the 3 classes and 255"),
        (4, {"reduce_zero_label": True}, r"has the value 4 at row 2, column 5; allowed are 1 to 3"),
        (255, {"ignored": 9}, r"has the value 255 .* and 9 for what is ignored"),
        (700, {}, r"has the value 700"),
    ],
)
def test_values_out_of_range_name_the_file(folders, value, options, message):
    mask = VALUES.astype(np.uint16)
    mask[2, 5] = value
    with pytest.raises(ValueError, match=message):
        ImageMaskFolder(**folders(mask), **options)[0]


def test_unreadable_masks(folders, tmp_path):
    dataset = ImageMaskFolder(**folders(np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)))
    with pytest.raises(ValueError, match=r"mask .*1\.png is in colours or fractions; expected class numbers"):
        dataset[0]
    path = tmp_path / "masks" / "a" / "1.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"cannot read mask .*1\.png: it is empty, truncated, too large or no image"):
        dataset[0]
    dataset = ImageMaskFolder(**folders(np.zeros((5, 8), np.uint8)))
    with pytest.raises(ValueError, match=r"1\.jpg is 8x6 pixels, but its annotation was made on 8x5"):
        dataset[0]
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"no mask .*masks/a/1\{\.png.*\} for .*images/a/1\.jpg"):
        ImageMaskFolder(tmp_path / "images", tmp_path / "masks", CLASSES, [])
    with pytest.raises(FileNotFoundError, match=r"no folder .*none \(folder of masks\)"):
        ImageMaskFolder(tmp_path / "images", tmp_path / "none", CLASSES, [])
    (tmp_path / "images" / "a" / "1.jpg").unlink()
    with pytest.raises(ValueError, match="ImageMaskFolder: no images in"):
        ImageMaskFolder(tmp_path / "images", tmp_path / "masks", CLASSES, [])


def test_a_picture_turned_by_exif_fits_a_mask_of_either_orientation(folders, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(tmp_path / "images" / "a" / "1.jpg", exif=exif)
    for shape in ((6, 8), (8, 6)):
        assert ImageMaskFolder(**folders(np.zeros(shape, np.uint8)))[0]["inputs"].shape == (3, *shape)


def test_ade20k(tmp_path):
    for kind, suffix, content in (("images", "jpg", np.zeros((6, 8, 3), np.uint8)), ("annotations", "png", VALUES)):
        (tmp_path / kind / "validation").mkdir(parents=True)
        cv2.imwrite(str(tmp_path / kind / "validation" / f"x.{suffix}"), content)
    with pytest.raises(FileNotFoundError, match=r"no list of classes .*objectInfo150\.txt"):
        ADE20K(tmp_path, "validation", [])
    (tmp_path / "objectInfo150.txt").write_text("Idx\tRatio\tName\n1\t0.1\twall\n2\t0.1\tbuilding, edifice\n")
    dataset = ADE20K(tmp_path, "validation", [], test_mode=True)
    assert dataset.metainfo["classes"] == ("wall", "building")
    assert dataset[0]["data_samples"]["mask"][0, :3].tolist() == [255, 0, 1]
    with pytest.raises(FileNotFoundError, match=r"no folder .*images/training"):
        ADE20K(tmp_path, "training", [])
