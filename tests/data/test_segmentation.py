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


class TestBlackAndWhite:
    """255 is ignored by convention: masks of 0 and 255 would teach nothing, without a word."""

    def test_they_are_refused_with_the_cure(self, folders):
        arguments = {**folders(np.where(VALUES == 1, 255, 0).astype(np.uint8)), "classes": ("background", "thing")}
        message = r"masks of .*images hold only 0 and 255, .* so that thing would never be learnt: .* values=\(0, 255\)"
        with pytest.raises(ValueError, match=message):
            ImageMaskFolder(**arguments)
        mask = ImageMaskFolder(**arguments, values=(0, 255))[0]["data_samples"]["mask"]
        assert torch.equal(mask, torch.from_numpy(VALUES == 1).long())
        kept = ImageMaskFolder(**arguments, ignored=255)[0]["data_samples"]["mask"]
        assert kept.unique().tolist() == [0, 255]

    def test_nothing_but_what_is_ignored_is_refused(self, folders):
        with pytest.raises(ValueError, match=r"hold only 255, .* so that anything would never be learnt"):
            ImageMaskFolder(**folders(np.full((6, 8), 255, np.uint8)))

    def test_other_values_of_classes(self, folders):
        arguments = folders(VALUES * 100 + 20)
        mask = ImageMaskFolder(**arguments, values=(220, 20, 120))[0]["data_samples"]["mask"]
        assert mask[0, :3].tolist() == [1, 2, 0]
        with pytest.raises(
            ValueError, match=r"has the value 220 at row 0, column 2; allowed are 20, 120, 21 for the 3 "
        ):
            ImageMaskFolder(**arguments, values=(20, 120, 21))[0]
        with pytest.raises(ValueError, match=r"values needs one for each of the 3 classes, got \(20, 20, 120\)"):
            ImageMaskFolder(**arguments, values=(20, 20, 120))
        with pytest.raises(ValueError, match="reduce_zero_label, values and palette exclude each other"):
            ImageMaskFolder(**arguments, values=(20, 120, 220), reduce_zero_label=True)


class TestColours:
    PALETTE = ((0, 0, 0), (200, 0, 10), (0, 128, 255))

    @pytest.mark.parametrize("kind", ["rgb", "rgba", "palette"])
    def test_colours_tell_classes(self, folders, kind):
        image = Image.fromarray(np.array(self.PALETTE, np.uint8)[VALUES])
        image = {"rgb": image, "rgba": image.convert("RGBA"), "palette": image.quantize(3)}[kind]
        dataset = ImageMaskFolder(**folders(image), palette=self.PALETTE)
        assert torch.equal(dataset[0]["data_samples"]["mask"], torch.from_numpy(VALUES).long())
        assert dataset.metainfo["palette"] == self.PALETTE

    def test_a_colour_of_no_class_is_named(self, folders):
        colours = np.array(self.PALETTE, np.uint8)[VALUES]
        colours[3, 4] = 7, 8, 9
        dataset = ImageMaskFolder(**folders(Image.fromarray(colours)), palette=self.PALETTE)
        with pytest.raises(ValueError, match=r"1\.png has the colour \(7, 8, 9\) at row 3, column 4, of no class"):
            dataset[0]
        with pytest.raises(ValueError, match=r"palette needs one for each of the 3 classes"):
            ImageMaskFolder(**folders(Image.fromarray(colours)), palette=self.PALETTE[:2])

    def test_white_may_be_a_class(self, folders):
        palette = ((0, 0, 0), (255, 255, 255), (1, 2, 3))
        image = Image.fromarray(np.array(palette, np.uint8)[VALUES])
        sample = ImageMaskFolder(**folders(image), palette=palette)[0]["data_samples"]
        assert torch.equal(sample["mask"], torch.from_numpy(VALUES).long())


def test_masks_with_longer_names_in_one_folder(tmp_path):
    for name in ("1", "2"):
        cv2.imwrite(str(tmp_path / f"{name}.jpg"), np.full((6, 8, 3), 50, np.uint8))
        cv2.imwrite(str(tmp_path / f"{name}_mask.png"), VALUES)
    dataset = ImageMaskFolder(tmp_path, tmp_path, CLASSES, [], mask_suffix="_mask")
    assert len(dataset) == 2 and torch.equal(dataset[1]["data_samples"]["mask"], torch.from_numpy(VALUES).long())


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
    path.rename(path.with_suffix(".jpg"))
    with pytest.raises(FileNotFoundError, match=r"no mask .*images/a/1\.jpg; 1\.jpg is of another format"):
        ImageMaskFolder(tmp_path / "images", tmp_path / "masks", CLASSES, [])
    path.with_suffix(".jpg").unlink()
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
