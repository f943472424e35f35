"""Boxes and masks stay in step with their pictures."""

import numpy as np
import pytest
import torch

from visionattn.data import DetectionPipeline, Objects, Pipeline, SegmentationPipeline, list_collate, stack_collate

MOVES = [
    {"type": "LongestMaxSize", "max_size": 90},
    {"type": "RandomCrop", "height": 60, "width": 50},
    {"type": "HorizontalFlip", "p": 0.5},
    {"type": "Affine", "translate_percent": (-0.2, 0.2), "p": 1.0},
]


def squares():
    """Two painted squares with their masks, labels 3 and 5, on a black picture of 80x100."""
    image = np.zeros((80, 100, 3), np.uint8)
    boxes = np.array([[10, 20, 40, 60], [60, 30, 90, 70]], np.float32)
    masks = np.zeros((2, 80, 100), bool)
    for mask, (left, top, right, bottom), colour in zip(masks, boxes.astype(int), (100, 200), strict=True):
        mask[top:bottom, left:right] = True
        image[mask] = colour
    return image, Objects(boxes, [3, 5], masks)


@pytest.mark.parametrize("seed", range(12))
def test_boxes_and_masks_follow_the_picture(seed):
    image, objects = squares()
    sample = DetectionPipeline(MOVES)(image, objects, 7, seed)
    data = sample["data_samples"]
    assert data["size"] == tuple(sample["inputs"].shape[1:]) == (60, 50)
    assert len(data["labels"]) + data["dropped"] == 2
    for box, label, mask in zip(data["boxes"], data["labels"], data["masks"], strict=True):
        colour = {3: 100, 5: 200}[int(label)]
        seen = (sample["inputs"][0].int() - colour).abs() < 20
        assert (seen & ~mask).sum() <= 0.1 * mask.sum() and (mask & ~seen).sum() <= 0.1 * mask.sum() + 60
        rows, columns = np.nonzero(mask.numpy())
        tight = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        assert (box - tight).abs().max() <= 1.5


def test_what_leaves_the_picture_is_dropped_and_counted():
    image, objects = squares()
    crop = [{"type": "Crop", "x_min": 0, "y_min": 0, "x_max": 50, "y_max": 80}]
    data = DetectionPipeline(crop)(image, objects, 0)["data_samples"]
    assert data["labels"].tolist() == [3] and data["dropped"] == 1
    assert torch.allclose(data["boxes"], torch.tensor([[10, 20, 40, 60.0]])) and data["masks"].shape == (1, 80, 50)


def test_boxes_are_cut_at_the_edges_and_degenerate_ones_dropped():
    image = np.zeros((50, 60, 3), np.uint8)
    boxes = [[-10, -5, 20, 30], [10, 10, 10, 30], [70, 10, 90, 20], [40, 30, 20, 40], [5, 5, 6, 6]]
    data = DetectionPipeline([], original=True)(image, Objects(boxes, range(5)), 0)["data_samples"]
    expected = torch.tensor([[0, 0, 20, 30], [5, 5, 6, 6.0]])  # one pixel is an object
    assert torch.allclose(data["boxes"], expected) and data["boxes"].max() <= 60
    assert data["labels"].tolist() == [0, 4] and data["dropped"] == 3
    assert data["original"]["boxes"].tolist() == boxes  # as annotated


def test_an_instance_of_which_no_pixel_is_left_is_dropped():
    image, objects = squares()
    objects.masks[1] = False
    data = DetectionPipeline([])(image, objects, 0)["data_samples"]
    assert data["labels"].tolist() == [3] and data["dropped"] == 1 and len(data["masks"]) == 1


def test_crowds_are_kept_for_evaluation_only():
    image, objects = squares()
    objects = Objects(objects.boxes, objects.labels, objects.masks, iscrowd=[False, True])
    data = DetectionPipeline([], original=True)(image, objects, 0)["data_samples"]
    assert data["labels"].tolist() == [3] and data["dropped"] == 0
    assert data["original"]["labels"].tolist() == [3, 5] and data["original"]["iscrowd"].tolist() == [False, True]


@pytest.mark.parametrize("masks", [None, np.zeros((0, 80, 100), bool)], ids=["boxes", "instances"])
def test_a_picture_without_objects(masks):
    data = DetectionPipeline(MOVES)(squares()[0], Objects([], [], masks), 0, seed=1)["data_samples"]
    assert data["boxes"].shape == (0, 4) and data["labels"].shape == (0,) and data["dropped"] == 0
    assert masks is None or data["masks"].shape == (0, 60, 50)


def test_small_boxes_can_be_dropped():
    image, objects = squares()
    crop = [{"type": "Crop", "x_min": 0, "y_min": 0, "x_max": 62, "y_max": 80}]
    pipeline = DetectionPipeline(crop, box_params={"min_visibility": 0.2})
    assert pipeline(image, objects, 0)["data_samples"]["labels"].tolist() == [3]
    with pytest.raises(ValueError, match=r"wrong box_params .*min_size"):
        DetectionPipeline([], box_params={"min_size": 3})


@pytest.mark.parametrize("seed", range(6))
def test_semantic_masks_follow_the_picture(seed):
    image, objects = squares()
    mask = (objects.masks * np.array([3, 5])[:, None, None]).sum(0).astype(np.uint8)
    sample = SegmentationPipeline(MOVES[:3], original=True)(image, mask, 0, seed)
    moved = sample["data_samples"]["mask"]
    for label, colour in ((3, 100), (5, 200)):
        seen = (sample["inputs"][0].int() - colour).abs() < 20
        assert ((moved == label) ^ seen).sum() <= 0.1 * seen.sum() + 60
    assert torch.equal(sample["data_samples"]["original_mask"], torch.from_numpy(mask))


def test_what_is_added_around_a_picture_is_ignored():
    image, mask = np.zeros((20, 20, 3), np.uint8), np.ones((20, 20), np.uint8)
    pad = {"type": "PadIfNeeded", "min_height": 30, "min_width": 30}
    nested = {"type": "OneOf", "transforms": [pad], "p": 1.0}
    for transform, value in ((pad, 255), (nested, 255), ({**pad, "fill_mask": 0}, 0)):
        padded = SegmentationPipeline([transform])(image, mask, 0)["data_samples"]["mask"]
        assert (padded == 1).sum() == 400 and (padded == value).sum() == 500


class TestOutputs:
    """What transforms give is looked at, and an error names the transform and the picture."""

    IMAGE = np.zeros((32, 40, 3), np.uint8)

    @pytest.mark.parametrize(
        ("transform", "message"),
        [
            ({"type": "ToTensorV2"}, "gives a tensor; pipelines make tensors themselves, so leave it out"),
            (
                {"type": "ToGray", "num_output_channels": 1, "p": 1},
                r"gives a picture of shape \(32, 40(, 1)?\); expected \(height, width, 3\)",
            ),
            ({"type": "RandomCrop", "height": 64, "width": 64}, r"fails: Crop size .* exceeds image dimensions"),
            ({"type": "Normalize"}, "gives float32; expected uint8, for normalising belongs to data_preprocessor"),
            ({"type": "ToFloat"}, "gives float32; expected uint8"),
        ],
    )
    def test_of_pictures(self, transform, message):
        chain = [{"type": "HorizontalFlip", "p": 1}, transform, {"type": "VerticalFlip", "p": 1}]
        with pytest.raises(
            ValueError, match=rf"transform 2 of the pipeline, {transform['type']}, {message}.*x\.png, 40x32"
        ):
            Pipeline(chain)(self.IMAGE, 0, "x.png")
        objects = Objects([[0, 0, 9, 9]], [0], np.ones((1, 32, 40), bool))
        with pytest.raises(ValueError, match=f"transform 2 of the pipeline, {transform['type']}"):
            DetectionPipeline(chain)(self.IMAGE, objects, 0)
        with pytest.raises(ValueError, match=f"transform 2 of the pipeline, {transform['type']}"):
            SegmentationPipeline(chain)(self.IMAGE, self.IMAGE[..., 0], 0)

    def test_the_first_that_fails_is_named_though_chance_decides(self):
        rare = {"type": "OneOf", "transforms": [{"type": "ToFloat"}, {"type": "Blur"}], "p": 0.3}
        pipeline, failed = Pipeline([{"type": "HorizontalFlip", "p": 0.5}, rare]), 0
        for seed in range(60):
            try:
                assert pipeline(self.IMAGE, seed).dtype == torch.uint8
            except ValueError as error:
                assert "transform 2 of the pipeline, OneOf, gives float32" in str(error)
                failed += 1
        assert 0 < failed < 30

    def test_of_masks(self):
        import albumentations as A
        from mmengine.registry import TRANSFORMS

        class Halved(A.ImageOnlyTransform):
            def apply(self, img, **params):
                return img[::2]

        TRANSFORMS.register_module(module=Halved, force=True)
        try:
            chain, message = (
                [{"type": "Halved", "p": 1}],
                r"Halved, gives mask of shape \(32, 40\) and uint8 with a pict",
            )
            with pytest.raises(ValueError, match=message):
                SegmentationPipeline(chain)(self.IMAGE, self.IMAGE[..., 0], 0)
        finally:
            TRANSFORMS.module_dict.pop("Halved")

    def test_a_picture_that_is_none(self):
        with pytest.raises(ValueError, match=r"the pipeline gives a picture of shape \(32, 40, 1\)"):
            Pipeline([])(self.IMAGE[..., :1])


def test_without_a_seed_the_draws_differ():
    pipeline = Pipeline([{"type": "RandomCrop", "height": 8, "width": 8}])
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    assert len({pipeline(noise).numpy().tobytes() for _ in range(8)}) > 4


def test_pictures_of_a_batch_have_one_size_or_stay_apart():
    samples = [
        {"inputs": torch.zeros(3, 4, side, dtype=torch.uint8), "data_samples": {"label": side}} for side in (5, 6)
    ]
    with pytest.raises(
        ValueError, match=r"pictures of a batch have different sizes, 5x4, 6x4: end the pipeline with a Res"
    ):
        stack_collate(samples)
    assert [x.shape[2] for x in list_collate(samples)["inputs"]] == [5, 6]
    batch = stack_collate(samples[:1] * 2)
    assert batch["inputs"].shape == (2, 3, 4, 5) and batch["data_samples"]["label"].tolist() == [5, 5]
