"""Data of every format, made on the spot: what is recognised, the split that is made, and what errors say."""

import json

import numpy as np
import pytest
from mmengine.registry import DATASETS
from PIL import Image

from visionattn.data import discover

XML = """<annotation><object><name>{name}</name>
<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object></annotation>"""


def pictures(folder, count, size=(12, 16), suffix=".png"):
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{number}{suffix}" for number in range(count)]
    for number, name in enumerate(names):
        Image.fromarray(np.full((*size, 3), number, np.uint8)).save(folder / name)
    return names


def class_folders(root, count=5):
    for name in ("bee", "ant"):
        pictures(root / name, count)


def coco(file, names, categories=("cat", "dog")):
    file.parent.mkdir(parents=True, exist_ok=True)
    box = [1, 1, 8, 8]
    polygon = [[1, 1, 9, 1, 9, 9]]
    content = {
        "images": [{"id": number, "file_name": name} for number, name in enumerate(names)],
        "categories": [{"id": number + 1, "name": name} for number, name in enumerate(categories)],
        "annotations": [
            {"id": n, "image_id": n, "category_id": n % len(categories) + 1, "bbox": box, "segmentation": polygon}
            for n in range(len(names))
        ],
    }
    file.write_text(json.dumps(content))


def labels(folder, count, text="0 0.5 0.5 0.2 0.2\n1 0.2 0.2 0.1 0.1\n"):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"{number}.txt").write_text(text)


def masks(folder, count, values=(0, 1, 2), ending=""):
    folder.mkdir(parents=True, exist_ok=True)
    values = np.asarray(values, np.uint8)
    for number in range(count):
        Image.fromarray(values[np.arange(192).reshape(12, 16) % len(values)]).save(folder / f"{number}{ending}.png")


def load(found, split, pipeline=()):
    """The data set that a config describes, with its first sample."""
    config = found.datasets[split]
    parts = (
        {"datasets": [{**part, "pipeline": pipeline} for part in config["datasets"]]} if "datasets" in config else {}
    )
    dataset = DATASETS.build({**config, **(parts or {"pipeline": pipeline})})
    return dataset, dataset[0]["data_samples"]


class TestFoldersOfClasses:
    def test_a_split_is_made_and_written_down(self, tmp_path):
        class_folders(tmp_path / "data", 10)
        before = sorted((tmp_path / "data").rglob("*"))
        found = discover(tmp_path / "data", work_dir=tmp_path / "work")
        assert (found.task, found.classes, found.size) == ("classification", ("ant", "bee"), (12, 16))
        assert found.counts == {"train": 16, "val": 4, "test": 4} and found.datasets["test"] == found.datasets["val"]
        assert found.layout == "a folder with one sub-folder a class" and "20% set apart for validation" in found.split
        train, val = (load(found, split)[0] for split in ("train", "val"))
        assert np.bincount(train.labels).tolist() == [8, 8] and np.bincount(val.labels).tolist() == [2, 2]
        assert not set(train.paths()) & set(val.paths()) and sorted((tmp_path / "data").rglob("*")) == before
        written = (tmp_path / "work" / "split" / "val.txt").read_text().splitlines()
        assert written == val.names() and len(written) == 4 and written[0].startswith("ant/")

    def test_it_is_the_same_again_and_kept(self, tmp_path):
        class_folders(tmp_path / "data", 10)
        first, again, other = (
            discover(tmp_path / "data", work_dir=tmp_path / name, seed=seed)
            for name, seed in (("a", 0), ("b", 0), ("c", 1))
        )
        names = [load(found, "val")[0].names() for found in (first, again, other)]
        assert names[0] == names[1] != names[2]
        (tmp_path / "data" / "ant" / "new.png").write_bytes((tmp_path / "data" / "ant" / "1.png").read_bytes())
        kept = discover(tmp_path / "data", work_dir=tmp_path / "a", seed=5)
        assert load(kept, "val")[0].names() == names[0] and kept.counts["train"] == 16 and "as in" in kept.split

    def test_splits_are_taken_as_they_are(self, tmp_path):
        for split in ("train", "valid", "test"):
            class_folders(tmp_path / split, 3)
        found = discover(tmp_path)
        assert found.counts == {"train": 6, "val": 6, "test": 6} and found.split == "as found"
        assert found.datasets["val"]["data_root"].endswith("valid")
        pictures(tmp_path / "test" / "wasp", 1)
        with pytest.raises(ValueError, match="has 'wasp', which the training set does not have"):
            discover(tmp_path)

    def test_one_folder_around_all(self, tmp_path):
        class_folders(tmp_path / "unpacked" / "data")
        assert discover(tmp_path, work_dir=tmp_path.parent / "w").classes == ("ant", "bee")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({}, "has no pictures to validate on: give a work_dir, into which the split is written"),
            ({"work_dir": "inside"}, "the work folder .*inside lies within the data .*: choose one outside"),
            ({"val_share": 1.0}, r"val_share must lie in \(0, 1\), got 1\.0"),
            ({"task": "poses"}, "task must be one of classification, detection, instance, segmentation, got 'poses'"),
            (
                {"task": "detection"},
                "(?s)no data set for detection recognised in .*YOLO's text labels.*COCO.*Pascal VOC",
            ),
        ],
    )
    def test_what_cannot_be_done(self, tmp_path, options, message):
        class_folders(tmp_path)
        if "work_dir" in options:
            options = {"work_dir": tmp_path / options["work_dir"]}
        with pytest.raises(ValueError, match=message):
            discover(tmp_path, **options)

    def test_nothing_there(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"no data at .*none"):
            discover(tmp_path / "none")
        with pytest.raises(ValueError, match=r"(?s)no data set recognised in .*one sub-folder of pictures a class"):
            discover(tmp_path)


class TestCOCO:
    @pytest.mark.parametrize("task", [None, "instance"])
    def test_usual_folders(self, tmp_path, task):
        for split, count in (("train", 6), ("val", 2)):
            names = pictures(tmp_path / f"{split}2017", count)
            coco(tmp_path / "annotations" / f"instances_{split}2017.json", names)
            (tmp_path / "annotations" / f"captions_{split}2017.json").write_text("{}")
        found = discover(tmp_path, task)
        assert found.task == (task or "detection") and found.classes == ("cat", "dog")
        assert found.counts == {"train": 6, "val": 2, "test": 2}
        _, sample = load(found, "val")
        assert "original" in sample and ("masks" in sample) == (task == "instance")
        assert found.datasets["train"]["drop_empty"]

    def test_a_file_without_a_split(self, tmp_path):
        coco(tmp_path / "data" / "labels.json", pictures(tmp_path / "data" / "images", 10))
        for path in (tmp_path / "data", tmp_path / "data" / "labels.json"):
            found = discover(path, work_dir=tmp_path / "work")
            assert found.counts == {"train": 8, "val": 2, "test": 2}
            assert found.datasets["train"]["image_root"].endswith("images")

    def test_annotations_within_the_splits(self, tmp_path):
        for split in ("train", "valid", "test"):
            coco(tmp_path / split / "_annotations.coco.json", pictures(tmp_path / split, 3))
        assert discover(tmp_path).counts == {"train": 3, "val": 3, "test": 3}

    def test_faults(self, tmp_path):
        coco(tmp_path / "a.json", ["x.png"])
        with pytest.raises(
            FileNotFoundError, match=r"no folder with x\.png and the other pictures of .*a\.json; looked in"
        ):
            discover(tmp_path)
        (tmp_path / "a.json").write_text("{")
        with pytest.raises(ValueError, match=r"a\.json is not valid JSON"):
            discover(tmp_path / "a.json")
        for name in ("train_a.json", "train_b.json"):
            coco(tmp_path / name, pictures(tmp_path, 2))
        (tmp_path / "a.json").unlink()
        with pytest.raises(
            ValueError, match=r"train_a\.json and .*train_b\.json are both annotations for train: name one"
        ):
            discover(tmp_path)


class TestVOC:
    def write(self, folder, count, images="JPEGImages", annotations="Annotations"):
        names = pictures(folder / images, count, suffix=".jpg")
        (folder / annotations).mkdir(parents=True, exist_ok=True)
        for number, name in enumerate(names):
            text = XML.format(name=("zebra", "yak")[number % 2])
            (folder / annotations / name.replace(".jpg", ".xml")).write_text(text)

    def test_lists(self, tmp_path):
        self.write(tmp_path, 6)
        lists = tmp_path / "ImageSets" / "Main"
        lists.mkdir(parents=True)
        (lists / "train.txt").write_text("0\n1\n2\n3\n")
        (lists / "val.txt").write_text("4\n")
        found = discover(tmp_path)
        assert (found.task, found.classes) == ("detection", ("yak", "zebra"))
        assert found.counts == {"train": 4, "val": 1, "test": 1} and load(found, "train")[1]["labels"].tolist() == [1]

    @pytest.mark.parametrize("folders", [("JPEGImages", "Annotations"), ("images", "annotations"), ("", "")])
    def test_without_lists(self, tmp_path, folders):
        self.write(tmp_path / "data", 10, *folders)
        found = discover(tmp_path / "data", work_dir=tmp_path / "work")
        assert found.counts == {"train": 8, "val": 2, "test": 2} and found.layout == "Pascal VOC's xml files"

    def test_splits_as_folders(self, tmp_path):
        for split in ("train", "valid"):
            self.write(tmp_path / split, 2, "", "")
        assert discover(tmp_path).counts == {"train": 2, "val": 2, "test": 2}

    def test_years_and_masks(self, tmp_path):
        for year in ("VOC2007", "VOC2012"):
            self.write(tmp_path / year, 3)
            masks(tmp_path / year / "SegmentationClass", 3)
            for kind in ("Main", "Segmentation"):
                (tmp_path / year / "ImageSets" / kind).mkdir(parents=True)
                (tmp_path / year / "ImageSets" / kind / "train.txt").write_text("0\n1\n")
                (tmp_path / year / "ImageSets" / kind / "val.txt").write_text("2\n")
        assert discover(tmp_path).counts == {"train": 4, "val": 2, "test": 2}
        found = discover(tmp_path, "segmentation")
        assert found.task == "segmentation" and found.counts["train"] == 4
        assert found.classes[:2] == ("background", "aeroplane")


class TestYOLO:
    @pytest.mark.parametrize("form", ["list", "dict"])
    def test_data_yaml(self, tmp_path, form):
        for split in ("train", "val"):
            pictures(tmp_path / "images" / split, 4)
            labels(tmp_path / "labels" / split, 4)
        names = {"list": "[car, 鳥]", "dict": "{0: car, 1: 鳥}"}[form]
        text = f"path: /somewhere/else\ntrain: images/train\nval: images/val\ntest:\nnc: 2\nnames: {names}\n"
        (tmp_path / "data.yaml").write_text(text, encoding="utf-8-sig")
        for path in (tmp_path, tmp_path / "data.yaml"):
            found = discover(path)
            assert found.classes == ("car", "鳥") and found.counts == {"train": 4, "val": 4, "test": 4}
        assert load(found, "val")[1]["labels"].tolist() == [0, 1]

    def test_paths_from_elsewhere_and_a_test_set_that_is_not_there(self, tmp_path):
        for split in ("train", "valid"):
            pictures(tmp_path / split / "images", 3)
            labels(tmp_path / split / "labels", 3, "0 0.1 0.1 0.9 0.1 0.9 0.9\n")
        text = "train: ../train/images\nval: ../valid/images\ntest: ../test/images\nnames: [car]\n"
        (tmp_path / "data.yaml").write_text(text)
        found = discover(tmp_path, "instance")
        assert found.counts == {"train": 3, "val": 3, "test": 3} and load(found, "train")[1]["masks"].shape == (
            1,
            12,
            16,
        )

    def test_several_folders(self, tmp_path):
        for name in ("a", "b"):
            pictures(tmp_path / name / "images", 2)
            labels(tmp_path / name / "labels", 2)
        (tmp_path / "data.yaml").write_text("train: [a/images, b/images]\nval: b/images\nnames: [x, y]\n")
        found = discover(tmp_path)
        assert found.counts == {"train": 4, "val": 2, "test": 2} and found.datasets["train"]["type"] == "ConcatDataset"
        assert len(load(found, "train")[0]) == 4
        (tmp_path / "data.yaml").write_text("train: [a/images, b/images]\nnames: [x, y]\n")
        with pytest.raises(ValueError, match=r"several folders to train on and none to validate on"):
            discover(tmp_path, work_dir=tmp_path.parent / "w")

    def test_without_a_yaml(self, tmp_path):
        pictures(tmp_path / "data" / "images", 10)
        labels(tmp_path / "data" / "labels", 10)
        found = discover(tmp_path / "data", work_dir=tmp_path / "work")
        assert found.classes == ("0", "1") and found.counts == {"train": 8, "val": 2, "test": 2}
        (tmp_path / "data" / "labels" / "classes.txt").write_text("car\nbird\n")
        assert discover(tmp_path / "data", work_dir=tmp_path / "work").classes == ("car", "bird")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (
                "names: !!python/object/apply:os.system ['touch x']\ntrain: a\n",
                r"data\.yaml is not valid YAML of plain data",
            ),
            ("names: [a\ntrain: b\n", r"data\.yaml is not valid YAML"),
            ("names: {0: a, 2: b}\ntrain: images\n", r"names must be numbered 0, 1, 2, \.\.\., got \[0, 2\]"),
            ("names: 3\ntrain: images\n", "names must be a list of classes, got 3"),
            ("names: [a]\nnc: 2\ntrain: images\n", "nc is 2, but there are 1 names"),
            ("names: [a]\ntrain: images.txt\n", r"train names the list .*images\.txt; name the folder of the pictures"),
            ("names: [a]\ntrain: 5\n", "train and path must be text, got 5"),
        ],
    )
    def test_faults(self, tmp_path, text, message):
        pictures(tmp_path / "images", 1)
        (tmp_path / "images.txt").write_text("images/0.png\n")
        (tmp_path / "data.yaml").write_text(text)
        with pytest.raises(ValueError, match=message):
            discover(tmp_path)
        assert not (tmp_path / "x").exists()

    def test_a_folder_that_is_not_there(self, tmp_path):
        (tmp_path / "data.yaml").write_text("names: [a]\ntrain: images/train\nval: images/val\n")
        with pytest.raises(FileNotFoundError, match=r"data\.yaml: train names 'images/train', but there is no folder"):
            discover(tmp_path)


class TestMasks:
    @pytest.mark.parametrize("around", [False, True])
    def test_splits(self, tmp_path, around):
        for split in ("train", "val"):
            places = [tmp_path / split / kind if around else tmp_path / kind / split for kind in ("images", "masks")]
            pictures(places[0], 3)
            masks(places[1], 3)
        found = discover(tmp_path)
        assert (found.task, found.classes) == ("segmentation", ("0", "1", "2"))
        assert found.counts == {"train": 3, "val": 3, "test": 3} and "original_mask" in load(found, "val")[1]

    @pytest.mark.parametrize(
        ("values", "classes", "seen"),
        [
            ((0, 255), ("background", "object"), [0, 1]),
            ((0, 1), ("background", "object"), [0, 1]),
            ((0, 1, 2, 255), ("0", "1", "2"), [0, 1, 2, 255]),
            ((0, 80, 160), ("0", "80", "160"), [0, 1, 2]),
        ],
    )
    def test_values(self, tmp_path, values, classes, seen):
        pictures(tmp_path / "data" / "imgs", 10)
        masks(tmp_path / "data" / "masks", 10, values)
        found = discover(tmp_path / "data", work_dir=tmp_path / "work")
        assert found.classes == classes and found.counts == {"train": 8, "val": 2, "test": 2}
        assert load(found, "train")[1]["mask"].unique().tolist() == seen

    def test_colours_names_and_longer_names_in_one_folder(self, tmp_path):
        pictures(tmp_path / "data", 10, suffix=".jpg")
        colours = np.zeros((12, 16, 3), np.uint8)
        colours[:3], colours[3:6] = (0, 200, 0), (250, 0, 250)
        for number in range(10):
            Image.fromarray(colours).save(tmp_path / "data" / f"{number}_mask.png")
        found = discover(tmp_path / "data", work_dir=tmp_path / "work")
        assert found.datasets["train"]["palette"] == [(0, 0, 0), (0, 200, 0), (250, 0, 250)] and len(found.classes) == 3
        assert load(found, "train")[1]["mask"][:, 0].tolist() == [1] * 3 + [2] * 3 + [0] * 6
        (tmp_path / "data" / "classes.txt").write_text("nothing\ntree\nroad\n", encoding="utf-8-sig")
        assert discover(tmp_path / "data", work_dir=tmp_path / "work").classes == ("nothing", "tree", "road")
        (tmp_path / "data" / "classes.txt").write_text("nothing\ntree\n")
        with pytest.raises(ValueError, match=r"the list of classes has 2 names, but masks such as .* have 3 classes"):
            discover(tmp_path / "data", work_dir=tmp_path / "work")

    def test_masks_that_are_none(self, tmp_path):
        pictures(tmp_path / "images", 2)
        (tmp_path / "masks").mkdir()
        for number in range(2):
            noise = np.random.default_rng(number).integers(0, 256, (12, 16, 3), np.uint8)
            Image.fromarray(noise).resize((64, 64)).save(tmp_path / "masks" / f"{number}.png")
        with pytest.raises(ValueError, match=r"have more than 256 values: they are no class numbers"):
            discover(tmp_path, work_dir=tmp_path.parent / "w")
