"""The transforms that albumentations lacks."""

import pickle
import random
from functools import partial

import numpy as np
import pytest
import torch
from timm.data.auto_augment import LEVEL_TO_ARG

from visionattn.data import DetectionPipeline, Objects, Pipeline, SegmentationPipeline
from visionattn.data.transforms import RandAugment, _at_least_one_bit

WIDE = np.zeros((100, 200, 3), np.uint8)


def sizes(transform, image=WIDE, draws=40):
    pipeline = Pipeline([{"type": "FitResize", **transform}])
    return {tuple(pipeline(image, seed).shape[1:]) for seed in range(draws)}


def test_fit_resize_keeps_proportions_within_both_limits():
    assert sizes({"short": 50, "long": 1000}) == {(50, 100)}
    assert sizes({"short": 50, "long": 60}) == {(30, 60)}
    assert sizes({"short": 50, "long": 60}, WIDE.transpose(1, 0, 2)) == {(60, 30)}
    assert sizes({"short": [40, 50], "long": 1000}) == {(40, 80), (50, 100)}


def test_fit_resize_jitters_the_scale():
    heights = [height for height, _ in sizes({"short": 100, "long": 100, "ratio": (0.5, 2.0)})]
    assert min(heights) >= 25 and max(heights) <= 100 and min(heights) < 35 and max(heights) > 85


def test_large_scale_jitter_gives_one_size_and_keeps_boxes_in_step():
    crop = {"type": "RandomCrop", "height": 64, "width": 64, "pad_if_needed": True}
    pipeline = DetectionPipeline([{"type": "FitResize", "short": 64, "long": 64, "ratio": (0.1, 2.0)}, crop])
    image = WIDE.copy()
    image[30:60, 80:120] = 255
    found = 0
    for seed in range(30):
        sample = pipeline(image, Objects([[80, 30, 120, 60]], [0]), 0, seed)
        assert sample["inputs"].shape == (3, 64, 64)
        rows, columns = np.nonzero(sample["inputs"][0].numpy() > 127)
        for box in sample["data_samples"]["boxes"].numpy():
            found += 1
            tight = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert np.abs(box - tight).max() <= 2
    assert found > 20


def test_balanced_crop_avoids_a_dominant_class():
    mask = np.zeros((100, 200), np.uint8)
    mask[:, 150:] = 1
    mask[:20] = 255

    def share(name):
        pipeline = SegmentationPipeline([{"type": name, "height": 40, "width": 40}])
        crops = [pipeline(WIDE, mask, 0, seed)["data_samples"]["mask"].numpy() for seed in range(60)]
        return np.mean([(crop == 0).sum() / max((crop != 255).sum(), 1) > 0.75 for crop in crops])

    assert share("RandomCrop") > 0.5 and share("BalancedCrop") < 0.3


@pytest.mark.parametrize("size", [(100, 200), (30, 200), (100, 30), (20, 30)])
def test_balanced_crop_pads_smaller_pictures_with_what_is_ignored(size):
    """Recipes that shrink to half and then crop meet pictures that are smaller than the crop."""
    image, mask = np.full((*size, 3), 9, np.uint8), np.tile(np.arange(size[1]) // 2, (size[0], 1)).astype(np.uint8)
    pipeline = SegmentationPipeline([{"type": "BalancedCrop", "height": 64, "width": 64}])
    for seed in range(5):
        sample = pipeline(image, mask, 0, seed)
        cropped = sample["data_samples"]["mask"]
        height, width = min(size[0], 64), min(size[1], 64)
        assert sample["inputs"].shape == (3, 64, 64) and cropped.shape == (64, 64)
        assert (cropped[:height, :width] != 255).all() and (sample["inputs"][:, :height, :width] == 9).all()
        assert (cropped[height:] == 255).all() and (cropped[:, width:] == 255).all()
        assert (torch.tensor([124, 116, 104]) == sample["inputs"][:, height:].flatten(1).T).all()


def test_crops_that_keep_a_box():
    """albumentations has them; they work through our pipelines."""
    crop = {"type": "AtLeastOneBBoxRandomCrop", "height": 40, "width": 40}
    pipeline = DetectionPipeline([crop])
    for seed in range(20):
        objects = Objects([[150, 60, 170, 80], [5, 5, 20, 20]], [0, 1])
        assert len(pipeline(WIDE, objects, 0, seed)["data_samples"]["labels"])


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        ({"type": "FitResize", "short": 0, "long": 5}, r"FitResize.*short.*must be at least 1, got 0"),
        ({"type": "FitResize", "short": [], "long": 5}, r"FitResize.*short.*must be at least 1"),
        ({"type": "FitResize", "short": 5, "long": 5, "ratio": (2, 1)}, r"ratio.*the smaller first, got \(2.0, 1.0\)"),
        (
            {"type": "FitResize", "short": 5, "long": 5, "size": 1},
            r"transform FitResize takes no size here; it takes long, p, ratio, short",
        ),
        ({"type": "BalancedCrop", "height": 5, "width": 5, "max_share": 2}, r"BalancedCrop.*max_share"),
        ("FitResize", r"a pipeline must be a list of dicts, each with the type of a transform, got \['FitResize'\]"),
        (
            {"type": "FitRezise"},
            r"albumentations' transforms or BalancedCrop or FitResize or RandAugment, got 'FitRezise'.*FitResize",
        ),
    ],
)
def test_wrong_arguments(transform, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        Pipeline([transform])


@pytest.mark.parametrize("operation", ["Posterize", "PosterizeIncreasing", "PosterizeOriginal"])
@pytest.mark.parametrize("magnitude", [0, 10])
def test_rand_augment_posterizes_at_full_strength(operation, magnitude):
    """timm asks for 0 bits there, which Pillow 13 refuses."""
    image = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
    transform = RandAugment(f"rand-m{magnitude}-n1-inc1")
    op = next(op for op in transform.augment.ops if op.name.startswith("Posterize"))
    op.level_fn = partial(_at_least_one_bit, LEVEL_TO_ARG[operation])
    op.prob = 1.0
    transform.augment.ops = [op]
    seen = transform.apply(image, seed=0)
    assert len(np.unique(seen)) >= 2 and len(pickle.dumps(transform))


def test_the_recipe_of_vision_transformers_survives_many_pictures():
    image = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    pipeline = Pipeline([{"type": "RandAugment", "config": "rand-m10-mstd0.5-inc1"}])
    assert all(pipeline(image, seed).shape == (3, 24, 24) for seed in range(300))


def test_rand_augment_follows_the_seed_alone():
    image = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    pipeline = Pipeline([{"type": "RandAugment", "config": "rand-m9-mstd0.5-inc1"}])
    state = random.getstate()
    first, again, other = (pipeline(image, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert random.getstate() == state  # timm's generators are the process's own
    with pytest.raises(ValueError, match=r"config must look like 'rand-m9-mstd0\.5-inc1', got 'augmix-m3'"):
        Pipeline([{"type": "RandAugment", "config": "augmix-m3"}])
