"""Pictures in shards, tar files and Hugging Face's data sets are those that went in, by number; runs on them resume."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from visionattn.data import ImageReader
from visionattn.data.shards import read_index

COUNT, PER_SHARD = 24, 10
SIDE = 16


def picture(number):
    """Grey stripes whose direction is the class."""
    stripes = np.arange(SIDE) % 4 < 2
    image = np.zeros((SIDE, SIDE, 3), np.uint8)
    image[stripes] = 80 + 5 * number
    return image if number % 2 else np.ascontiguousarray(image.swapaxes(0, 1))


def encoded(number, kind="png"):
    file = io.BytesIO()
    Image.fromarray(picture(number)).save(file, kind)
    return file.getvalue()


def add(tar, name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


@pytest.fixture
def shards(tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    for first in range(0, COUNT, PER_SHARD):
        with tarfile.open(folder / f"train-{first // PER_SHARD:03}.tar", "w") as tar:
            for number in range(first, min(first + PER_SHARD, COUNT)):
                add(tar, f"sample{number:04}.png", encoded(number))
                add(tar, f"sample{number:04}.cls", str(number % 2).encode())
                add(tar, f"sample{number:04}.json", json.dumps({"target": number % 2, "extra": "text"}).encode())
    return folder


@pytest.mark.parametrize("label_key", ["cls", "json:target"])
def test_shards(shards, label_key):
    data = ImageReader("wds", shards, [], split="train", classes=["across", "down"], label_key=label_key)
    assert len(data) == COUNT and data.metainfo["classes"] == ("across", "down")
    for number in (23, 0, 9, 10, 11):
        sample = data[number]
        assert torch.equal(sample["inputs"], torch.from_numpy(picture(number)).permute(2, 0, 1))
        assert sample["data_samples"] == {"label": number % 2, "index": number}
    assert data.describe(12).endswith("train-001.tar: sample0012")


def test_shards_read_in_processes_are_the_same(shards):
    data = ImageReader("wds", shards, [])
    loader = torch.utils.data.DataLoader(data, None, num_workers=2)
    for number, sample in enumerate(loader):
        assert torch.equal(sample["inputs"], torch.from_numpy(picture(number)).permute(2, 0, 1))


def test_index_is_kept_and_renewed(shards, tmp_path, monkeypatch):
    file = tmp_path / "index.npz"
    first = ImageReader("wds", shards, [], index_file=file)
    with monkeypatch.context() as patch:
        patch.setattr(tarfile, "open", None)  # headers are not read again
        again = ImageReader("wds", shards, [], index_file=file)
        assert np.array_equal(again.labels, first.labels) and np.array_equal(again.read(13), picture(13))
    with tarfile.open(shards / "train-002.tar", "a") as tar:
        add(tar, "more.png", encoded(3))
        add(tar, "more.cls", b"1")
        add(tar, "padding", b"0" * 20480)
    assert len(ImageReader("wds", shards, [], index_file=file)) == COUNT + 1
    kept = read_index(sorted(shards.glob("*.tar")), file)
    assert len(kept.label) == COUNT + 1 and kept.key[-1] == "more"


def test_webdataset_reads_the_same(shards):
    webdataset = pytest.importorskip("webdataset", reason="compares with the package webdataset where it is installed")
    urls = [str(path) for path in sorted(shards.glob("*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    data = ImageReader("wds", shards, [])
    assert [int(sample["cls"]) for sample in samples] == data.labels.tolist()
    assert [sample["__key__"] for sample in samples] == data.pictures.index.key.tolist()
    assert all(sample["png"] == data.pictures.content(number) for number, sample in enumerate(samples))


def test_tar_files(tmp_path):
    with tarfile.open(tmp_path / "all.tar", "w") as tar:
        for number in range(6):
            add(tar, f"{('across', 'down')[number % 2]}/{number}.png", encoded(number))
    data = ImageReader("tar", tmp_path / "all.tar", [])
    assert data.metainfo["classes"] == ("across", "down") and len(data) == 6
    for number in range(6):
        at = int(Path(data.pictures.name(number)).stem)
        assert np.array_equal(data.read(number), picture(at)) and data.labels[number] == at % 2
    (tmp_path / "train").mkdir()
    for label, name in enumerate(("across", "down")):  # one tar file a class
        with tarfile.open(tmp_path / "train" / f"{name}.tar", "w") as tar:
            add(tar, f"{name}.png", encoded(label))
    data = ImageReader("tar", tmp_path, [], split="train")
    assert data.metainfo["classes"] == ("across", "down") and np.array_equal(data.read(1), picture(1))


def test_hugging_face(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets", reason="needs pip install '.[large]'")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["across", "down"])})
    rows = {"image": [{"bytes": encoded(n), "path": None} for n in range(6)], "label": [n % 2 for n in range(6)]}
    folder = tmp_path / "stripes"
    (folder / "data").mkdir(parents=True)
    datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / "data" / "train-00000-of-00001.parquet")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    data = ImageReader("hfds", folder, [])
    assert data.metainfo["classes"] == ("across", "down") and data.labels.tolist() == rows["label"]
    assert all(np.array_equal(data.read(number), picture(number)) for number in range(6))


def test_what_is_missing_is_named(shards, tmp_path):
    with pytest.raises(ValueError, match=r"reader must be one of wds, tar, hfds, got 'zip'"):
        ImageReader("zip", shards, [])
    with pytest.raises(FileNotFoundError, match=r"no file .*/val\*\.tar"):
        ImageReader("wds", shards, [], split="val")
    with pytest.raises(ValueError, match="index_file is nothing that reader='tar' takes"):
        ImageReader("tar", shards, [], index_file="index.npz")
    with tarfile.open(tmp_path / "no.tar", "w") as tar:
        add(tar, "a.png", encoded(0))
    with pytest.raises(ValueError, match=r"no\.tar: a has a picture, but no a\.cls"):
        ImageReader("wds", tmp_path / "no.tar", [])
    with tarfile.open(tmp_path / "no.tar", "w") as tar:
        add(tar, "a.png", encoded(0))
        add(tar, "a.cls", b"cat")
    with pytest.raises(ValueError, match=r"a\.cls holds no class number"):
        ImageReader("wds", tmp_path / "no.tar", [])
    (tmp_path / "no.tar").write_bytes(b"text" * 300)
    with pytest.raises(ValueError, match="is no uncompressed tar file"):
        ImageReader("wds", tmp_path / "no.tar", [])
    with tarfile.open(tmp_path / "no.tar", "w") as tar:
        add(tar, "a.png", b"no picture")
        add(tar, "a.cls", b"0")
    with pytest.raises(ValueError, match=r"cannot read image .*no\.tar: a"):
        ImageReader("wds", tmp_path / "no.tar", [])[0]


DATA = """dict(_delete_=True, type="ImageReader", reader="wds", data_root="shards", split="train", pipeline=[],
    classes=["across", "down"], index_file="index.npz")"""
LOADER = f"dict(batch_size=8, num_workers=0, persistent_workers=False, dataset={DATA})"
CONFIG = f"""
_base_ = ["visionattn::quickstart"]
model = dict(backbone=dict(num_classes=2))
train_dataloader = {LOADER}
val_dataloader = {LOADER}
test_dataloader = {LOADER}
val_evaluator = dict(scores=dict(_delete_=True, top1=dict(type="MulticlassAccuracy", num_classes=2, average="micro")))
test_evaluator = val_evaluator
param_scheduler = []
"""


def test_a_run_on_shards_resumes_bit_for_bit(shards, run_cli, tmp_path):
    (tmp_path / "stripes.py").write_text(CONFIG)
    for folder, epochs in (("whole", (3,)), ("parts", (1, 3))):
        for epoch in epochs:
            more = ["--resume"] if epoch > epochs[0] else []
            options = ["--work-dir", folder, *more, "--cfg-options", f"train_cfg.max_epochs={epoch}"]
            code, _, error = run_cli("train", "stripes.py", *options)
            assert code == 0, error
    one, two = (torch.load(tmp_path / name / "epoch_3.pth")["state_dict"] for name in ("whole", "parts"))
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
