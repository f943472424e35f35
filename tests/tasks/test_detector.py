"""The detectors: torchvision's numbers, any sizes, empty pictures, boxes in pixels of the original picture."""

import pytest
import torch
from dense import detection_batch
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.transform import GeneralizedRCNNTransform

import visionattn  # noqa: F401
from visionattn.tasks import Detector

NAME = "va_resnet10n_cbam"
KINDS = ("RetinaNet", "FCOS", "FasterRCNN", "MaskRCNN")
FEW = {"rpn_pre_nms_top_n_train": 50, "rpn_post_nms_top_n_train": 50, "box_batch_size_per_image": 8}
FEW |= {
    "rpn_pre_nms_top_n_test": 50,
    "rpn_post_nms_top_n_test": 10,
    "box_detections_per_img": 5,
    "box_score_thresh": 0.0,
}


def build(kind, classes=5, backbone=NAME, **kwargs):
    torch.manual_seed(0)
    arguments = {"type": kind, **(FEW if "RCNN" in kind else {"score_thresh": 0.0, "detections_per_img": 5})}
    return Detector({"model_name": backbone}, arguments, classes, pyramid_channels=64, **kwargs)


@pytest.mark.parametrize("kind", KINDS)
def test_same_as_torchvision(kind):
    """Where torchvision's own resizing and normalising do nothing, losses and predictions are its own."""
    model = build(kind, backbone="resnet18", pyramid_norm=True).train()
    inputs, samples = detection_batch([(64, 96), (64, 96)], [3, 2])
    shift = model.first_class
    targets = [{**s, "labels": s["labels"] + shift, "masks": s["masks"].byte()} for s in samples]
    torch.manual_seed(1)
    ours = model(inputs, samples, "loss")
    own = model.detector.transform
    model.detector.transform = GeneralizedRCNNTransform(64, 96, [0.0] * 3, [1.0] * 3, _skip_resize=True)
    torch.manual_seed(1)
    theirs = model.detector(list(inputs), targets)
    assert {key.removeprefix("loss_") for key in ours} == {key.removeprefix("loss_") for key in theirs}
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key if key in ours else f"loss_{key}"], value)
    model.eval()
    with torch.inference_mode():
        expected = model.detector(list(inputs))
        model.detector.transform = own
        found = model(inputs, samples, "predict")
    for result, reference in zip(found, expected, strict=True):
        assert len(reference["boxes"])
        torch.testing.assert_close(result["preds"]["boxes"], reference["boxes"])
        assert torch.equal(result["preds"]["labels"], reference["labels"] - shift)
        if kind == "MaskRCNN":
            assert torch.equal(result["preds"]["masks"], reference["masks"][:, 0] >= 0.5)


def test_anchors_are_torchvisions_at_its_strides():
    retina = build("RetinaNet", backbone="resnet18").detector.anchor_generator
    assert retina.sizes == RetinaNet(torch_backbone(), 2).anchor_generator.sizes
    fcos = build("FCOS", backbone="resnet18").detector.anchor_generator
    assert fcos.sizes == FCOS(torch_backbone(), 2).anchor_generator.sizes
    rpn = build("FasterRCNN", backbone="resnet18").detector.rpn.anchor_generator
    assert rpn.sizes == FasterRCNN(torch_backbone(), 2).rpn.anchor_generator.sizes
    custom = build("RetinaNet", anchors={"sizes": [[8], [16], [32], [64], [128]], "aspect_ratios": [1.0, 2.0]})
    assert custom.detector.anchor_generator.num_anchors_per_location() == [2] * 5
    assert custom.train()(*detection_batch([(64, 64)], [1]), "loss")


def torch_backbone():
    backbone = torch.nn.Identity()
    backbone.out_channels = 64
    return backbone


def test_regions_are_pooled_by_the_true_strides():
    """torchvision guesses them from the first batch: 3/65 is no 1/32."""
    model = build("MaskRCNN", backbone="resnet18").eval()
    with torch.inference_mode():
        model(torch.randn(1, 3, 65, 65), [{"size": (65, 65)}], "predict")
    for pool in (model.detector.roi_heads.box_roi_pool, model.detector.roi_heads.mask_roi_pool):
        assert pool.scales == [1 / 4, 1 / 8, 1 / 16, 1 / 32] and (pool.map_levels.k_min, pool.map_levels.k_max) == (
            2,
            5,
        )


@pytest.mark.parametrize("kind", KINDS)
def test_empty_pictures_train(kind):
    model = build(kind).train()
    for counts in ([0, 2], [0, 0]):
        losses = model(*detection_batch([(64, 51), (45, 64)], counts), "loss")
        total = sum(losses.values())
        total.backward()
        assert total.isfinite() and all("loss" in key for key in losses)


@pytest.mark.parametrize("kind", KINDS)
def test_boxes_of_one_pixel_and_of_the_whole_picture_train(kind):
    model = build(kind).train()
    inputs, samples = detection_batch([(64, 51), (45, 64)], [3, 1])
    samples[0]["boxes"] = torch.tensor([[0, 0, 1, 1], [50, 63, 51, 64], [0, 0, 51, 64.0]])
    samples[1]["boxes"] = torch.tensor([[30, 20, 31, 21.0]])
    for sample in samples:
        sample["masks"][:] = False
        for mask, (left, top, right, bottom) in zip(sample["masks"], sample["boxes"].int().tolist(), strict=True):
            mask[top:bottom, left:right] = True
    total = sum(model(inputs, samples, "loss").values())
    total.backward()
    assert total.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("kind", ["FCOS", "MaskRCNN"])
def test_predictions_are_in_pixels_of_the_untouched_picture(kind):
    model = build(kind).eval()
    inputs, samples = detection_batch([(64, 51), (45, 64)], [0, 0])
    with torch.inference_mode():
        plain = model(inputs, samples, "predict")
        scaled = [{**s, "original": {"size": (3 * s["size"][0], 2 * s["size"][1])}} for s in samples]
        larger = model(inputs, scaled, "predict")
    for sample, small, large in zip(samples, plain, larger, strict=True):
        height, width = sample["size"]
        boxes = small["preds"]["boxes"]
        assert len(boxes) and boxes.min() >= 0
        assert boxes[:, 0::2].max() <= width and boxes[:, 1::2].max() <= height  # without the batch's padding
        torch.testing.assert_close(large["preds"]["boxes"], boxes * torch.tensor([2, 3, 2, 3]))
        if kind == "MaskRCNN":
            assert small["preds"]["masks"].shape[1:] == (height, width)
            assert large["preds"]["masks"].shape[1:] == (3 * height, 2 * width)
            assert large["preds"]["masks"].dtype == torch.bool
        assert large["target"]["size"] == (3 * height, 2 * width)
        labels = small["preds"]["labels"]
        assert labels.min() >= 0 and labels.max() < 5


@pytest.mark.parametrize("kind", KINDS)
def test_mixed_precision_gives_full_boxes(kind):
    model = build(kind)
    inputs, samples = detection_batch([(64, 64)], [2])
    with torch.autocast("cpu", torch.bfloat16):
        assert all(value.dtype == torch.float32 for value in model.train()(inputs, samples, "loss").values())
        preds = model.eval()(inputs, samples, "predict")[0]["preds"]
    assert preds["boxes"].dtype == preds["scores"].dtype == torch.float32


@pytest.mark.slow
def test_learns():
    """Two pictures are learnt by heart."""
    model = build("FCOS", classes=3, pyramid_norm=True)
    inputs, samples = detection_batch([(64, 64), (64, 64)], [2, 1], classes=3, seed=3)
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=2e-3)
    for _ in range(40):
        losses = model(inputs, samples, "loss")
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    with torch.inference_mode():
        for result, sample in zip(model.eval()(inputs, samples, "predict"), samples, strict=True):
            best = result["preds"]["scores"].argsort(descending=True)[: len(sample["labels"])]
            assert sorted(result["preds"]["labels"][best].tolist()) == sorted(sample["labels"].tolist())
            assert result["preds"]["scores"][best].min() > 0.3


@pytest.mark.parametrize("kind", ["FCOS", "MaskRCNN"])
def test_channels_last_changes_the_layout_alone(kind):
    inputs, samples = detection_batch([(64, 50), (45, 64)], [3, 2])
    losses = []
    for channels_last in (False, True):
        model = build(kind, channels_last=channels_last).train()
        torch.manual_seed(1)  # R-CNNs draw samples
        losses.append(model(inputs, samples, "loss"))
    maps = model(inputs)
    assert all(m.is_contiguous(memory_format=torch.channels_last) for m in maps)
    for name, value in losses[0].items():
        torch.testing.assert_close(losses[1][name], value, rtol=1e-4, atol=1e-5)


def test_pyramid_is_what_tensor_mode_gives():
    maps = build("FasterRCNN", backbone="resnet18")(torch.zeros(1, 3, 65, 30))
    assert [tuple(m.shape[-2:]) for m in maps] == [(24, 8), (12, 4), (6, 2), (3, 1), (2, 1)]


def test_names_for_the_rest_of_the_house():
    model = build("FCOS")
    assert model.backbone.strides == [4, 8, 16] and model.num_classes == 5
    state = model.state_dict()
    other = build("FCOS", attach={"plugin": "ela_l", "where": "stage_end"})
    with pytest.raises(ValueError, match="do not fit Detector"):
        other.load_weights(state)
    torch.manual_seed(1)
    again = build("FCOS")
    again.load_weights({key: value + 1 for key, value in state.items()})
    assert all(torch.equal(value, state[key] + 1) for key, value in again.state_dict().items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"detector": {"type": "YOLO"}}, "detector type must be one of RetinaNet, FCOS, FasterRCNN, MaskRCNN, got 'YO"),
        ({"detector": {"type": "FCOS", "min_size": 8}}, "FCOS of torchvision takes no min_size here; it takes cent"),
        ({"detector": {"type": "MaskRCNN", "score_thresh": 0.1}}, "MaskRCNN of torchvision takes no score_thresh"),
        ({"num_classes": 0}, "num_classes must be at least 1"),
        ({"pyramid_channels": 32}, "FCOS needs pyramid_channels of 64, 96, .* got 32"),
        ({"anchors": {"size": [8]}}, "anchors have sizes and aspect_ratios, got size"),
        ({"anchors": {"sizes": [[8]]}}, r"a list for each of the 5 levels \(strides 4, 8, 16, 32, 64\), got 1"),
        ({"anchors": {"sizes": [8, 16, 32, 64, 128]}}, r"anchors\.sizes must be a list of numbers for each level, got"),
        ({"detector": "FCOS"}, "detector must be a dict, got 'FCOS'"),
        ({"anchors": {"aspect_ratios": [1.0, 2.0]}}, "FCOS has one point a place"),
        ({"backbone": {"model_name": "vgg_nope"}}, "unknown model 'vgg_nope'"),
    ],
    ids=str,
)
def test_errors(arguments, message):
    whole = {"backbone": {"model_name": NAME}, "detector": {"type": "FCOS"}, "num_classes": 3, **arguments}
    with pytest.raises(ValueError, match=message):
        Detector(**whole)


def test_wrong_use():
    model = build("MaskRCNN").train()
    inputs, samples = detection_batch([(64, 64)], [1])
    with pytest.raises(ValueError, match="mode must be 'tensor', 'loss' or 'predict', got 'los'"):
        model(inputs, samples, "los")
    with pytest.raises(ValueError, match="mode 'predict' needs the model in evaluation mode"):
        model(inputs, samples, "predict")
    del samples[0]["masks"]
    with pytest.raises(ValueError, match="MaskRCNN needs masks, and the data set gives none"):
        model(inputs, samples, "loss")
