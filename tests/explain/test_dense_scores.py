"""Detectors and segmentors as networks of classes: their scores, maps, positions and gradients."""

import pytest
import torch
from explained import fill

from visionattn import explain
from visionattn.explain.tokens import inner_network
from visionattn.tasks import Detector, Segmentor

SWIN = {"model_name": "va_stm_swin_nano", "strides": (8, 16)}
VIT = {"model_name": "vit_tiny_patch16_224", "img_size": 64, "depth": 4, "out_indices": (0, 1, 2, 3)}


@pytest.fixture(scope="module")
def detector():
    torch.manual_seed(0)
    task = Detector(SWIN, {"type": "FCOS", "score_thresh": 0.0, "detections_per_img": 20}, 3, pyramid_channels=64)
    fill(task.backbone)  # at their start heads hardly differ
    return task.eval(), torch.randn(1, 3, 64, 64)


@pytest.fixture(scope="module")
def segmentor():
    torch.manual_seed(0)
    return Segmentor(VIT, {"type": "FPN"}, 4).eval(), torch.randn(1, 3, 64, 64)


def test_the_score_of_a_box_is_that_of_its_detection(detector):
    task, x = detector
    preds = task(x, [{"size": (64, 64)}], mode="predict")[0]["preds"]
    scores = explain.BoxScores(task, preds["boxes"][0])(x)
    assert scores.shape == (1, 3)
    assert scores[0, preds["labels"][0]].sigmoid().item() == pytest.approx(preds["scores"][0].item())
    assert (explain.BoxScores(task, (900, 900, 910, 910))(x).sigmoid() < 2e-6).all()


def test_relevance_of_a_detection(detector):
    task, x = detector
    preds = task(x, [{"size": (64, 64)}], mode="predict")[0]["preds"]
    network, label = explain.BoxScores(task, preds["boxes"][0]), int(preds["labels"][0])
    found = explain.relevance(network, x, label)
    assert found.shape[0] == 1 and found.std() > 0
    grads = torch.autograd.grad(network(x.requires_grad_())[0, label], x)[0]
    x.requires_grad_(False)
    assert grads.abs().sum() > 0  # the score is differentiable down to the pixels
    with torch.no_grad(), explain.capture(network, keep=("probs",)) as record:
        network(x)
    assert [layer.path.startswith("task.") for layer in record] == [True] * len(record)
    with torch.no_grad(), explain.capture(task.backbone, keep=("probs",)) as alone:
        task.backbone(x)
    assert len(record) == len(alone)
    for layer in (0, 1):
        assert torch.equal(record.map(layer, (20, 30)), alone.map(layer, (20, 30)))
    assert len(explain.page(record)) > 10_000


def test_a_region_of_a_segmentation(segmentor):
    task, x = segmentor
    region = torch.zeros(64, 64, dtype=torch.bool)
    region[10:30, 40:60] = True
    network = explain.RegionScores(task, region)
    logits = task(x)
    torch.testing.assert_close(network(x)[0], logits[0, :, 10:30, 40:60].mean((1, 2)))
    assert explain.tokens(network, (64, 64)) == explain.Tokens(1, None, (4, 4), (16, 16))
    found = explain.relevance(network, x, 2)
    assert found.shape == (1, 4, 4) and found.std() > 0
    assert explain.rollout(_record(network, x)).sum() <= 1 + 1e-5
    name, layout = explain.cam_layer(network, x)
    assert name.startswith("task.network.encoder.maps.network.") and layout.grid == (4, 4)


def test_the_network_within(detector, segmentor):
    network = inner_network(detector[0].backbone)
    assert (
        network is not detector[0].backbone and inner_network(explain.BoxScores(detector[0], (0, 0, 1, 1))) is network
    )
    assert type(inner_network(segmentor[0])).__name__ == "VisionTransformer"


def test_cam_of_a_detection(detector):
    task, x = detector
    preds = task(x, [{"size": (64, 64)}], mode="predict")[0]["preds"]
    network = explain.BoxScores(task, preds["boxes"][0])
    found = explain.cam(network, x, int(preds["labels"][0]))
    assert found.shape == (1, 64, 64) and found.std() > 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: explain.BoxScores(None, (3, 3, 3, 9)), "box must be left, top, right, bottom"),
        (lambda: explain.BoxScores(None, (0, 0, 1, 1), overlap=2), r"overlap must lie in 0\.\.1, got 2"),
        (lambda: explain.RegionScores(None, torch.zeros(4, 4, dtype=torch.bool)), "at least one pixel"),
        (lambda: explain.RegionScores(None, torch.ones(4, 4)), r"region must be \(H, W\) bool"),
    ],
)
def test_mistakes(make, message):
    class Task(torch.nn.Module):
        backbone = None

    with pytest.raises(ValueError, match=message):
        make()


def test_a_region_of_another_size(segmentor):
    network = explain.RegionScores(segmentor[0], torch.ones(4, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"region must have the size of the images, \(64, 64\), got \(4, 4\)"):
        network(segmentor[1])


def _record(network, x):
    with torch.no_grad(), explain.capture(network, keep=("probs",)) as record:
        network(x)
    return record
