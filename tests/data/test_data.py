"""Data sets and pipelines: what comes out, and that it is a function of the seed alone."""

import gzip

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from visionattn.data import Digits, FashionMNIST, ImageFolder, Pipeline, SeededSampler
from visionattn.data.images import read_image

AUGMENT = [
    {"type": "Resize", "height": 20, "width": 20},
    {"type": "RandomCrop", "height": 16, "width": 16},
    {"type": "HorizontalFlip", "p": 0.5},
    {"type": "OneOf", "transforms": [{"type": "GaussNoise", "p": 1.0}, {"type": "Blur", "p": 1.0}], "p": 0.5},
]


def epoch(dataset, number, workers=0, seed=0):
    sampler = SeededSampler(dataset, shuffle=True, seed=seed)
    sampler.set_epoch(number)
    return list(DataLoader(dataset, 64, sampler=sampler, num_workers=workers))


def test_digits_split_is_fixed():
    train, test = Digits("train", []), Digits("test", [])
    assert (len(train), len(test)) == (1438, 359)
    assert test[0]["inputs"].shape == (3, 8, 8) and test[0]["inputs"].dtype == torch.uint8
    assert [test[i]["data_samples"]["label"] for i in range(5)] == [4, 9, 4, 9, 4]
    assert not {image.tobytes() for image in test.images} & {image.tobytes() for image in train.images}


def test_augmentation_depends_on_seed_epoch_and_index_only():
    dataset = Digits("train", AUGMENT)
    first = epoch(dataset, 0)
    for again in (epoch(dataset, 0), epoch(dataset, 0, workers=2)):
        for a, b in zip(first, again, strict=True):
            assert torch.equal(a["inputs"], b["inputs"])
            assert torch.equal(a["data_samples"]["index"], b["data_samples"]["index"])
    for other in (epoch(dataset, 1), epoch(dataset, 0, seed=1)):
        assert not torch.equal(first[0]["data_samples"]["index"], other[0]["data_samples"]["index"])


def test_transforms_draw_independently():
    """One seed for each transform would tie the flip to the crop."""
    ramp = np.zeros((20, 20, 3), np.uint8) + np.arange(20, dtype=np.uint8)[None, :, None]
    pipeline = Pipeline(AUGMENT[1:3])
    seen = set()
    for seed in range(200):
        row = pipeline(ramp, seed)[0, 0]
        seen.add((bool(row[0] > row[-1]), int(row.min())))
    assert seen == {(flipped, left) for flipped in (False, True) for left in range(5)}


IMAGES = np.random.default_rng(0).integers(0, 256, (7, 28, 28), np.uint8)


def write_idx_files(place, packed=False):
    """Seven images labelled 0 to 6, as both splits."""
    place.mkdir(parents=True, exist_ok=True)
    for prefix in ("train", "t10k"):
        for kind, array in (("images-idx3", IMAGES), ("labels-idx1", np.arange(7, dtype=np.uint8))):
            header = bytes((0, 0, 8, array.ndim)) + b"".join(size.to_bytes(4, "big") for size in array.shape)
            content = header + array.tobytes()
            name = place / f"{prefix}-{kind}-ubyte"
            if packed:
                name.with_name(f"{name.name}.gz").write_bytes(gzip.compress(content))
            else:
                name.write_bytes(content)


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("folder", ["", "FashionMNIST/raw"])
def test_fashion_mnist_is_read_from_idx_files(tmp_path, packed, folder):
    write_idx_files(tmp_path / folder, packed)
    for split in ("train", "test"):
        dataset = FashionMNIST(split, [], tmp_path, download=False)
        assert len(dataset) == 7 and dataset.metainfo["classes"][9] == "ankle boot"
        sample = dataset[3]
        assert torch.equal(sample["inputs"][1], torch.from_numpy(IMAGES[3])) and sample["data_samples"]["label"] == 3


def test_fashion_mnist_is_downloaded_where_it_is_missing(tmp_path, monkeypatch):
    import torchvision

    from visionattn.data import fashion_mnist

    def download(root, train, download):
        if not train:
            raise RuntimeError("no network")
        write_idx_files(tmp_path / "FashionMNIST" / "raw")

    monkeypatch.setattr(fashion_mnist, "_SYSTEM_FOLDER", tmp_path / "none")
    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", download)
    with pytest.raises(FileNotFoundError, match=r"they could not be downloaded: no network"):
        FashionMNIST("test", [], tmp_path)
    assert len(FashionMNIST("train", [], tmp_path)) == 7


def test_image_folder(tmp_path):
    for label, names in {"b": ["x.png", "deep/y.JPG", "notes.txt"], "a": ["z.png"]}.items():
        for name in names:
            path = tmp_path / label / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix != ".txt":
                cv2.imwrite(str(path), np.full((9, 5, 3), (255, 0, 0), np.uint8))
    dataset = ImageFolder(tmp_path, [])
    assert dataset.metainfo["classes"] == ("a", "b") and dataset.labels.tolist() == [0, 1, 1]
    assert dataset[0]["inputs"].shape == (3, 9, 5)
    assert dataset[0]["inputs"][:, 0, 0].tolist() == [0, 0, 255]  # OpenCV writes blue first, we read RGB
    (tmp_path / "list.txt").write_text("b/x.png 1\n\na/z.png 0\n")
    listed = ImageFolder(tmp_path, [], classes=["a", "b"], ann_file=tmp_path / "list.txt")
    assert listed.labels.tolist() == [1, 0]


def test_pictures_are_rgb_whatever_the_file(tmp_path):
    grey, alpha = tmp_path / "grey.png", tmp_path / "alpha.png"
    cv2.imwrite(str(grey), np.full((4, 4), 9, np.uint8))
    cv2.imwrite(str(alpha), np.full((4, 4, 4), 9, np.uint8))
    assert read_image(grey).shape == read_image(alpha).shape == (4, 4, 3)
