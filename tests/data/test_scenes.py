"""Scenes of digits: a function of (seed, split, index), in step with their pictures, nothing shared by the splits."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from visionattn.data import SeededSampler, SyntheticDigits, list_collate
from visionattn.data.synthetic.digits import PHOTOGRAPHS, load_split

AUGMENT = [
    {"type": "RandomCrop", "height": 96, "width": 112},
    {"type": "HorizontalFlip", "p": 0.5},
    {"type": "Affine", "rotate": (-20, 20), "p": 1.0},
]


def same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_a_scene_is_a_function_of_seed_split_and_index():
    first, again = (SyntheticDigits("train", "instance", length=4) for _ in range(2))
    assert all(same(first[i], again[i]) for i in range(4))
    for other in (SyntheticDigits("train", "instance", seed=1), SyntheticDigits("test", "instance")):
        assert not torch.equal(first[0]["inputs"], other[0]["inputs"])
    assert not torch.equal(first[0]["inputs"], first[1]["inputs"])


def test_the_splits_share_nothing():
    assert not set(PHOTOGRAPHS["train"]) & set(PHOTOGRAPHS["test"])
    train, test = ({digit.tobytes() for digit in load_split(split)[0]} for split in ("train", "test"))
    assert not train & test
    assert len(SyntheticDigits("train", "detection")) == 2000 and len(SyntheticDigits("test", "detection")) == 200


def test_boxes_instances_and_semantic_masks_tell_of_one_scene():
    boxes, instances, semantic = (SyntheticDigits("test", task) for task in ("detection", "instance", "semantic"))
    assert semantic.metainfo["classes"] == ("background", *boxes.metainfo["classes"])
    for index in range(20):
        a, b, c = (dataset[index] for dataset in (boxes, instances, semantic))
        assert torch.equal(a["inputs"], b["inputs"]) and torch.equal(a["inputs"], c["inputs"])
        assert torch.equal(a["data_samples"]["boxes"], b["data_samples"]["boxes"])
        painted = torch.zeros(128, 128, dtype=torch.int64)
        for mask, label, box in zip(*(b["data_samples"][key] for key in ("masks", "labels", "boxes")), strict=True):
            assert not painted[mask].any()
            painted[mask] = label + 1
            rows, columns = np.nonzero(mask.numpy())
            assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert torch.equal(painted, c["data_samples"]["mask"])


def test_number_of_digits():
    def counts(*digits):
        dataset = SyntheticDigits("train", "detection", digits=digits, length=30)
        return [len(dataset[index]["data_samples"]["labels"]) for index in range(30)]

    assert set(counts(1, 1)) == {1} and set(counts(0, 0)) == {0}
    # The last of many are left out where they would hide too much of others.
    assert sum(counts(8, 8)) > 1.5 * sum(counts(1, 6)) and max(counts(8, 8)) == 8


def test_samples_have_the_agreed_shape():
    sample = SyntheticDigits("test", "instance", [{"type": "Resize", "height": 64, "width": 96}])[1]
    data = sample["data_samples"]
    count = len(data["labels"])
    assert sample["inputs"].shape == (3, 64, 96) and sample["inputs"].dtype == torch.uint8
    assert data["image_id"] == 1 and data["size"] == (64, 96)
    assert data["boxes"].shape == (count, 4) and data["boxes"].dtype == torch.float32
    assert data["labels"].dtype == torch.int64
    assert data["masks"].shape == (count, 64, 96) and data["masks"].dtype == torch.bool
    original = data["original"]
    assert original["size"] == (128, 128) and original["masks"].shape == (count, 128, 128)
    assert not original["iscrowd"].any() and original["area"].tolist() == original["masks"].sum((1, 2)).tolist()
    semantic = SyntheticDigits("test", "semantic", [{"type": "Resize", "height": 64, "width": 96}])[1]["data_samples"]
    assert semantic["mask"].shape == (64, 96) and semantic["mask"].dtype == torch.int64
    assert semantic["original_mask"].shape == (128, 128) and semantic["original_mask"].dtype == torch.uint8
    assert "original" not in SyntheticDigits("train", "detection")[0]["data_samples"]
    assert "masks" not in SyntheticDigits("train", "detection")[0]["data_samples"]


def test_augmentation_is_seeded_whatever_the_workers():
    dataset = SyntheticDigits("train", "instance", AUGMENT, length=8)

    def epoch(workers, number=0):
        sampler = SeededSampler(dataset, shuffle=True, seed=0)
        sampler.set_epoch(number)
        return list(DataLoader(dataset, 4, sampler=sampler, num_workers=workers, collate_fn=list_collate))

    first = epoch(0)
    assert len(first[0]["inputs"]) == len(first[0]["data_samples"]) == 4
    for a, b in zip(first, epoch(2), strict=True):
        assert all(map(torch.equal, a["inputs"], b["inputs"]))
        assert all(map(same, a["data_samples"], b["data_samples"]))
    assert not torch.equal(first[0]["inputs"][0], epoch(0, 1)[0]["inputs"][0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "val", "task": "detection"}, r"split must be 'train' or 'test', got 'val'"),
        ({"split": "train", "task": "boxes"}, r"task must be one of detection, instance, semantic, got 'boxes'"),
        ({"split": "train", "task": "semantic", "size": 8}, r"size must be at least 32 .* got size=8"),
        ({"split": "train", "task": "semantic", "length": 0}, r"length at least 1, got .*length=0"),
        (
            {"split": "train", "task": "semantic", "digits": (3, 2)},
            r"digits must be \(fewest, most\) .* got \(3, 2\)",
        ),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        SyntheticDigits(**arguments)


def test_scenes_are_renewed_from_epoch_to_epoch_and_repeated_from_run_to_run():
    dataset = SyntheticDigits("train", "semantic", length=4, renew=True)

    def epoch(number):
        sampler = SeededSampler(dataset, shuffle=False, seed=0)
        sampler.set_epoch(number)
        return [dataset[index] for index in sampler]

    first, again, second = epoch(0), epoch(0), epoch(1)
    assert all(same(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a["inputs"], b["inputs"]) for a, b in zip(first, second, strict=True))
    with pytest.raises(ValueError, match=r"renew=True needs sampler\.type=SeededSampler"):
        dataset[0]
