"""Training decides the classes: other splits follow by name, and joined data sets pass everything on."""

import json
import unicodedata

import numpy as np
import pytest
import torch
from mmengine.registry import DATASETS, TRANSFORMS
from PIL import Image

from visionattn.data import (
    CocoDetection,
    Digits,
    ImageFolder,
    ImageMaskFolder,
    SeededSampler,
    SyntheticDigits,
    VOCSegmentation,
    check_dataset,
    innermost_config,
    share_classes,
)


def folder(root, **classes):
    for name, count in classes.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(np.full((8, 9, 3), len(name), np.uint8)).save(root / name / f"{number}.png")
    return root


@pytest.fixture
def said(capfd):
    from mmengine.logging import MMLogger

    MMLogger.get_instance("classes")
    return lambda: "".join(capfd.readouterr())


class TestImageFolder:
    def test_a_class_that_is_missing_shifts_no_other(self, tmp_path, said):
        train = ImageFolder(folder(tmp_path / "train", ant=1, bee=1, cow=1), [])
        val = ImageFolder(folder(tmp_path / "val", bee=2, cow=1), [])
        assert val.labels.tolist() == [0, 0, 1]
        meta = val.metainfo
        share_classes(val, train.metainfo["classes"])
        assert val.labels.tolist() == [1, 1, 2] and meta["classes"] == ("ant", "bee", "cow")
        assert "val) lacks classes of the training set: ant" in said()

    def test_a_class_too_many_is_an_error(self, tmp_path):
        val = ImageFolder(folder(tmp_path / "val", ant=1, dog=1), [])
        message = r"ImageFolder \(.*val\) has 'dog', which the training set does not have; its classes are 'ant', 'bee'"
        with pytest.raises(ValueError, match=message):
            share_classes(val, ("ant", "bee"))

    def test_classes_can_be_given(self, tmp_path, said):
        dataset = ImageFolder(folder(tmp_path, ant=1, bee=1), [], classes=["cow", "bee", "ant"])
        assert dataset.labels.tolist() == [1, 2] and "no images of 1 classes: 'cow'" in said()
        with pytest.raises(ValueError, match=r"two classes are named 'ant'"):
            ImageFolder(tmp_path, [], classes=["ant", "ant"])
        with pytest.raises(ValueError, match=r"classes must be a list of names, got 'ant'"):
            ImageFolder(tmp_path, [], classes="ant")

    def test_names_composed_otherwise_are_the_same_class(self, tmp_path):
        composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
        train = ImageFolder(folder(tmp_path / "train", **{composed: 1, "tea": 1}), [])
        val = ImageFolder(folder(tmp_path / "val", **{decomposed: 2}), [])
        share_classes(val, train.metainfo["classes"])
        assert val.labels.tolist() == [0, 0] and len(ImageFolder(tmp_path / "val", [], classes=["tea", composed])) == 2

    def test_splits(self, tmp_path):
        for split in ("train", "val"):
            folder(tmp_path / split, ant=1, bee=2)
        with pytest.raises(ValueError, match=r"holds splits \(train, val\), not classes: choose one, as split='train'"):
            ImageFolder(tmp_path, [])
        assert ImageFolder(tmp_path, [], split="val").labels.tolist() == [0, 1, 1]
        with pytest.raises(
            FileNotFoundError, match=r"no folder .*test \(split='test' of ImageFolder\): it does not exis"
        ):
            ImageFolder(tmp_path, [], split="test")

    def test_empty_folders(self, tmp_path, said):
        with pytest.raises(
            ValueError, match=r"no images in .*: looked for \.bmp, .* in the sub-folders \(there are none\)"
        ):
            ImageFolder(tmp_path, [])
        folder(tmp_path, ant=0, bee=0)
        with pytest.raises(ValueError, match=r"no images in .* in the sub-folders ant, bee"):
            ImageFolder(tmp_path, [])
        with pytest.raises(
            FileNotFoundError, match=r"no folder .*0\.png \(data_root of ImageFolder\): it is a file, not"
        ):
            ImageFolder(folder(tmp_path / "x", cow=1) / "cow" / "0.png", [])


def coco(path, categories, labels, **more):
    names = [f"{number}.png" for number in range(len(labels))]
    for name in names:
        Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(path.parent / name)
    content = {
        "images": [{"id": number, "file_name": name} for number, name in enumerate(names)],
        "categories": [{"id": number, "name": name} for number, name in categories.items()],
        "annotations": [
            {"id": n, "image_id": n, "category_id": label, "bbox": [1, 1, 5, 5]} for n, label in enumerate(labels)
        ],
    }
    path.write_text(json.dumps(content))
    return CocoDetection(path, path.parent, [], test_mode=True, **more)


def test_coco_files_with_other_ids(tmp_path, said):
    train = coco(tmp_path / "train.json", {1: "ant", 2: "bee", 3: "cow"}, [1, 2, 3])
    val = coco(tmp_path / "val.json", {7: "cow", 9: "ant", 12: "dog"}, [7, 9, 9])
    share_classes(val, train.metainfo["classes"])
    assert [val[index]["data_samples"]["labels"].tolist() for index in range(3)] == [[2], [0], [0]]
    assert val[0]["data_samples"]["original"]["labels"].tolist() == [2]
    assert val.metainfo == {"classes": ("ant", "bee", "cow"), "class_ids": (9, None, 7)}
    assert "val.json) lacks classes of the training set: bee" in said()
    extra = coco(tmp_path / "extra.json", {1: "ant", 5: "dog"}, [1, 5])
    with pytest.raises(ValueError, match=r"extra\.json\) has 'dog', which the training set does not have"):
        share_classes(extra, train.metainfo["classes"])


def test_masks_are_renumbered_by_name(tmp_path):
    for kind, content in (("i", np.zeros((4, 4, 3), np.uint8)), ("m", np.arange(16, dtype=np.uint8).reshape(4, 4) % 3)):
        (tmp_path / kind).mkdir()
        Image.fromarray(content).save(tmp_path / kind / "1.png")
    val = ImageMaskFolder(tmp_path / "i", tmp_path / "m", ["sky", "road", "car"], [])
    share_classes(val, ("road", "tree", "car", "sky"))
    assert val[0]["data_samples"]["mask"][0].tolist() == [3, 0, 2, 3]


def test_fixed_classes():
    share_classes(Digits("test", []), [str(digit) for digit in range(10)])
    with pytest.raises(
        ValueError, match=r"SyntheticDigits \(synthetic digits\) has '0', .* which the training set does"
    ):
        share_classes(SyntheticDigits("test", "detection"), ("a", "b"))
    with pytest.raises(ValueError, match=r"list has the classes 'x', but the training set 'y'"):
        share_classes(type("list", (), {"metainfo": {"classes": ("x",)}})(), ("y",))
    assert issubclass(VOCSegmentation, ImageMaskFolder.__base__)


class TestJoined:
    """mmengine's ConcatDataset and RepeatDataset around ours."""

    @pytest.fixture
    def config(self, tmp_path):
        noise = np.random.default_rng(0)
        for name in ("ant", "bee"):
            (tmp_path / name).mkdir()
            for number in range(2):
                Image.fromarray(noise.integers(0, 256, (8, 9, 3), np.uint8)).save(tmp_path / name / f"{number}.png")
        pipeline = [{"type": "RandomCrop", "height": 4, "width": 4}]
        return {"type": "ImageFolder", "data_root": str(tmp_path), "pipeline": pipeline}

    def test_sizes_and_classes_pass_through(self, config):
        joined = DATASETS.build({"type": "ConcatDataset", "datasets": [config, dict(config)]})
        repeated = DATASETS.build({"type": "RepeatDataset", "times": 3, "dataset": config})
        assert len(joined) == 8 and len(repeated) == 12
        assert joined.metainfo["classes"] == repeated.metainfo["classes"] == ("ant", "bee")
        assert [joined[index]["data_samples"]["label"] for index in range(8)] == [0, 0, 1, 1] * 2

    def test_the_pipeline_within(self, config):
        joined = {
            "type": "ConcatDataset",
            "datasets": [{"type": "RepeatDataset", "times": 2, "dataset": config}, config],
        }
        assert innermost_config(joined) is config and innermost_config(config) is config

    def test_classes_of_training_reach_the_parts(self, config):
        repeated = {"type": "RepeatDataset", "times": 2, "dataset": config}
        joined = DATASETS.build({"type": "ConcatDataset", "datasets": [repeated, dict(config)]})
        share_classes(joined, ("bee", "cow", "ant"))
        assert joined.metainfo["classes"] == ("bee", "cow", "ant")
        assert [joined[index]["data_samples"]["label"] for index in range(12)] == [2, 2, 0, 0] * 3

    @pytest.mark.parametrize("kind", ["ConcatDataset", "RepeatDataset"])
    def test_augmentation_follows_the_seed(self, config, kind):
        parts = {
            "ConcatDataset": {"datasets": [config, dict(config)]},
            "RepeatDataset": {"times": 2, "dataset": config},
        }

        def epoch():
            dataset = DATASETS.build({"type": kind, **parts[kind]})
            return [dataset[index]["inputs"] for index in SeededSampler(dataset, shuffle=False, seed=0)]

        first, again = epoch(), epoch()
        assert all(map(torch.equal, first, again))
        assert not all(map(torch.equal, first[:4], first[4:]))  # each repetition has a crop of its own


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"type": "ImageFoldr"},
            r"train\.dataset type must be one of .*ImageFolder.*, got 'ImageFoldr'; did you mean Image",
        ),
        (
            {"type": "CocoDetection", "ann_fil": "x"},
            r"train\.dataset CocoDetection takes no ann_fil here; it takes ann_file, box_params, classes, drop_empty, "
            r"image_root, masks, names_file, pipeline, skip_unreadable, test_mode; did you mean ann_file",
        ),
        (
            {"type": "RepeatDataset", "times": 2, "dataset": {"type": "Digits", "splits": "train"}},
            r"train\.dataset\.dataset Digits takes no splits here; it takes pipeline, split",
        ),
        (
            {"type": "ConcatDataset", "datasets": [{"type": "Digits"}, {"type": "ADE20K", "root": "x"}]},
            r"train\.dataset\.datasets\.1 ADE20K takes no root here; it takes data_root, ",
        ),
    ],
)
def test_unknown_types_and_arguments_are_answered_with_the_known_ones(config, message):
    with pytest.raises(ValueError, match=message):
        check_dataset(config, "train.dataset")


def test_a_data_set_of_ones_own_by_name(tmp_path, monkeypatch):
    from mmengine.config import Config

    (tmp_path / "my_data.py").write_text(
        """
import numpy as np
import albumentations as A
from mmengine.registry import DATASETS, TRANSFORMS
from visionattn.data.labelled import LabelledImages

@DATASETS.register_module()
class Stripes(LabelledImages):
    def __init__(self, count, pipeline):
        super().__init__(np.arange(count) % 2, ("across", "down"), pipeline, "made up")

    def read(self, index):
        image = np.zeros((8, 8, 3), np.uint8)
        image[::2] = 200
        return image if self.labels[index] == 0 else np.ascontiguousarray(image.swapaxes(0, 1))

@TRANSFORMS.register_module()
class Negative(A.ImageOnlyTransform):
    def apply(self, img, **params):
        return 255 - img
"""
    )
    config = tmp_path / "config.py"
    config.write_text(
        "custom_imports = dict(imports=['my_data'])\n"
        "dataset = dict(type='Stripes', count=4, pipeline=[dict(type='Negative', p=1.0)])\n".replace("\\\n", "\n")
    )
    monkeypatch.syspath_prepend(tmp_path)
    try:
        dataset = DATASETS.build(Config.fromfile(config).dataset)
        assert len(dataset) == 4 and dataset[1]["inputs"].unique().tolist() == [55, 255]
    finally:
        for table, name in ((DATASETS, "Stripes"), (TRANSFORMS, "Negative")):
            table.module_dict.pop(name, None)
