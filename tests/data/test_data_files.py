"""Finding and reading files: hidden ones, links, names in other encodings, and pictures of every orientation."""

import json
import os
import unicodedata

import cv2
import numpy as np
import pytest
from PIL import Image

from visionattn.data import ImageFolder, ImageMaskFolder
from visionattn.data.files import check_files, find_files, read_json, read_lines, select_names
from visionattn.data.images import image_size, read_annotated_image, read_image, read_mask


def picture(path, value=50, size=(6, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), value, np.uint8)).save(path)
    return path


def test_hidden_files_and_folders_are_no_part_of_a_data_set(tmp_path):
    for name in ("a/1.png", "b/2.PNG"):
        picture(tmp_path / name)
    for name in (".ipynb_checkpoints/1.png", "a/.ipynb_checkpoints/1.png", "__MACOSX/1.png", "a/@eaDir/1.png"):
        picture(tmp_path / name)
    for name in ("a/._1.png", "a/.DS_Store", "a/Thumbs.db", "b/desktop.ini"):
        (tmp_path / name).write_bytes(b"\0\5\x16\7")
    (tmp_path / "a" / "folder.png").mkdir()
    dataset = ImageFolder(tmp_path, [])
    assert dataset.metainfo["classes"] == ("a", "b") and dataset.labels.tolist() == [0, 1]
    assert [dataset.describe(index).removeprefix(f"{tmp_path}/") for index in range(2)] == ["a/1.png", "b/2.PNG"]


def test_links_are_followed_and_broken_ones_named(tmp_path):
    picture(tmp_path / "elsewhere" / "deep" / "2.png")
    picture(tmp_path / "data" / "a" / "1.png")
    (tmp_path / "data" / "b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "a" / "3.png").symlink_to(tmp_path / "elsewhere" / "deep" / "2.png")
    assert ImageFolder(tmp_path / "data", []).labels.tolist() == [0, 0, 1]
    (tmp_path / "data" / "a" / "4.jpg").symlink_to(tmp_path / "gone.jpg")
    with pytest.raises(FileNotFoundError, match=r"a/4\.jpg is a symbolic link to .*gone\.jpg, which is missing"):
        ImageFolder(tmp_path / "data", [])
    (tmp_path / "data" / "a" / "4.jpg").unlink()
    (tmp_path / "data" / "c").symlink_to(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match=r"data/c is a symbolic link to .*gone, which is missing"):
        ImageFolder(tmp_path / "data", [])
    (tmp_path / "data" / "c").unlink()
    (tmp_path / "data" / "a" / "up").symlink_to(tmp_path / "data")
    with pytest.raises(ValueError, match=r"a/up/a is .*data/a once more, by a symbolic link that leads back"):
        ImageFolder(tmp_path / "data", [])


def test_order_is_that_of_paths(tmp_path):
    names = ["b.png", "a/2.png", "a/10.png", "c/1.png", "B.png"]
    for name in names:
        picture(tmp_path / name)
    assert [path.relative_to(tmp_path).as_posix() for path in find_files(tmp_path)] == sorted(names)


def test_text_is_utf8_whatever_the_locale(tmp_path, monkeypatch):
    monkeypatch.setattr("locale.getpreferredencoding", lambda *_: "ascii")
    path = tmp_path / "list.txt"
    for encoding in ("utf-8", "utf-8-sig"):
        path.write_text("é\n鳥\n", encoding=encoding)
        assert read_lines(path) == ["é", "鳥"]
    path.write_bytes("é\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"list\.txt is not in UTF-8 \(byte 0xe9 at 0\): save it as UTF-8"):
        read_lines(path)
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        path.write_text(json.dumps({"name": "鳥"}, ensure_ascii=False), encoding=encoding)
        assert read_json(path) == {"name": "鳥"}
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"list\.txt is not valid JSON"):
        read_json(path)


def test_names_composed_otherwise_and_backslashes_are_found(tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "né.png") for form in ("NFC", "NFD"))
    picture(tmp_path / "a" / decomposed)
    found = check_files([tmp_path / "a" / composed, tmp_path / f"a\\{decomposed}"], str)
    assert found == [tmp_path / "a" / decomposed] * 2
    with pytest.raises(FileNotFoundError, match=r"no file .*x\.png \(picture 0\)"):
        check_files([tmp_path / "a" / "x.png"], lambda number: f"picture {number}")
    (tmp_path / "a" / "y.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(FileNotFoundError, match=r"y\.png is a symbolic link to .*gone\.png, which is missing"):
        check_files([tmp_path / "a" / "y.png"], str)


def test_names_that_are_no_utf8(tmp_path):
    raw = os.fsencode(tmp_path / "a") + b"/\xe9.png"
    picture(tmp_path / "a" / "1.png")
    os.rename(tmp_path / "a" / "1.png", raw)
    assert ImageFolder(tmp_path, [])[0]["inputs"].shape == (3, 6, 8)


def test_a_list_chooses_pictures(tmp_path):
    for name in ("a/1.png", "a/2.png", "b/3.png"):
        picture(tmp_path / "data" / name)
    listed = tmp_path / "train.txt"
    listed.write_text("b/3.png\n\na/2.png\n", encoding="utf-8-sig")
    dataset = ImageFolder(tmp_path / "data", [], names_file=listed)
    assert dataset.labels.tolist() == [0, 1] and dataset.describe(0).endswith("a/2.png")
    listed.write_text("a/2.png\nc/9.png\nd/8.png\n")
    with pytest.raises(ValueError, match=r"train\.txt names 'c/9\.png' and 1 more that .*data does not have"):
        ImageFolder(tmp_path / "data", [], names_file=listed)
    assert select_names([1, 2], None, str, "x") == [1, 2]


@pytest.mark.parametrize("suffix", ["tif", "png", "webp", "jpg"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_annotations_refer_to_pictures_as_stored(tmp_path, suffix, orientation):
    stored = np.zeros((24, 40, 3), np.uint8)
    stored[:8, :16] = 255
    stored[16:, :8] = 128
    path = tmp_path / f"a.{suffix}"
    exif = Image.Exif()
    exif[274] = orientation
    options = {"tif": {"tiffinfo": {274: orientation}}, "webp": {"exif": exif, "lossless": True}}
    Image.fromarray(stored).save(path, **options.get(suffix, {"exif": exif}))
    for read in (
        read_image(path, upright=False),
        read_annotated_image(path, None),
        read_annotated_image(path, (24, 40)),
    ):
        assert np.abs(read.astype(int) - stored).max() < 30  # JPEG rounds
    upright = read_image(path)
    assert upright.shape[:2] == image_size(path) == ((40, 24) if orientation >= 5 else (24, 40))
    if orientation >= 5:
        assert np.array_equal(read_annotated_image(path, (40, 24)), upright)


def test_broken_and_huge_pictures_are_named(tmp_path):
    path = picture(tmp_path / "a.png", size=(400, 500))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"a\.png"):
        read_image(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"a\.png: the file is empty"):
        read_image(path)
    header = b"P5 70000 70000 255\n"
    (tmp_path / "b.ppm").write_bytes(header.replace(b"P5", b"P6") + b"\0" * 100)
    with pytest.raises(ValueError, match=r"cannot read image .*b\.ppm"):
        read_image(tmp_path / "b.ppm")
    (tmp_path / "b.png").write_bytes(header)
    with pytest.raises(ValueError, match=r"cannot read mask .*b\.png.*exceeds limit"):
        read_mask(tmp_path / "b.png")


class TestUnreadablePicturesCanBeSkipped:
    @pytest.fixture
    def root(self, tmp_path):
        for label in "ab":
            for number in range(10):
                picture(tmp_path / label / f"{number}.png")
        (tmp_path / "b" / "3.png").write_bytes(b"no picture")
        return tmp_path

    def test_by_default_they_are_errors(self, root):
        dataset = ImageFolder(root, [])
        assert len(dataset) == 20
        with pytest.raises(ValueError, match=r"cannot read image .*b/3\.png"):
            dataset[13]

    def test_they_are_counted_and_named(self, root, capfd):
        from mmengine.logging import MMLogger

        MMLogger.get_instance("skipped")
        dataset = ImageFolder(root, [], skip_unreadable=0.05)
        assert len(dataset) == 19 and dataset.labels.tolist() == [0] * 10 + [1] * 9
        said = "".join(capfd.readouterr())
        assert "1 of 20 pictures skipped, unreadable" in said and "b/3.png: cannot read image" in said
        assert all(dataset[index]["inputs"].shape == (3, 6, 8) for index in range(19))

    def test_at_most_a_share(self, root):
        (root / "a" / "5.png").write_bytes(b"")
        with pytest.raises(
            ValueError, match=r"2 of 20 pictures cannot be read, more than skip_unreadable=0\.05 allows"
        ):
            ImageFolder(root, [], skip_unreadable=0.05)
        with pytest.raises(ValueError, match=r"skip_unreadable must be a share in \[0, 1\), got 5"):
            ImageFolder(root, [], skip_unreadable=5)

    def test_masks_too(self, root):
        for number in range(10):
            Image.fromarray(np.eye(6, 8, dtype=np.uint8)).save(picture(root / "m" / f"{number}.png"))
        (root / "m" / "7.png").write_bytes(b"no picture")
        arguments = {"image_root": root / "a", "mask_root": root / "m", "classes": ["x", "y"], "pipeline": []}
        assert len(ImageMaskFolder(**arguments, skip_unreadable=0.1)) == 9


def test_truncated_mask_formats(tmp_path):
    """Grey with transparency, one bit, fractions that are whole."""
    values = np.eye(6, 8, dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), values)
    Image.fromarray(np.dstack([values, values * 0 + 255]), "LA").save(tmp_path / "la.png")
    Image.fromarray(values.astype(bool)).save(tmp_path / "bit.png")
    Image.fromarray(values.astype(np.float32)).save(tmp_path / "float.tif")
    for name in ("a.png", "la.png", "bit.png", "float.tif"):
        assert np.array_equal(read_mask(tmp_path / name).astype(int), values), name
    Image.fromarray(values.astype(np.float32) / 2).save(tmp_path / "half.tif")
    with pytest.raises(ValueError, match=r"half\.tif is in colours or fractions"):
        read_mask(tmp_path / "half.tif")
    Image.fromarray(values).save(tmp_path / "turned.tif", tiffinfo={274: 6})
    with pytest.raises(ValueError, match=r"turned\.tif: .*a TIFF with an orientation tag: save it without one"):
        read_mask(tmp_path / "turned.tif")
