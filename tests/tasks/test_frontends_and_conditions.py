"""A front-end before any backbone, and networks that take a second input, in every task."""

import pytest
import torch
from dense import detection_batch, segmentation_batch
from torch import nn

import visionattn
from visionattn.checkpoints import publish
from visionattn.inference import Predictor
from visionattn.plugins import FeatEnHancer
from visionattn.tasks import FRONTENDS, Classifier, Detector, Segmentor, from_checkpoint

BACKBONE = {"model_name": "va_resnet10n"}
FPN = {"type": "FPN", "decoder_pyramid_channels": 16, "decoder_segmentation_channels": 32}
FCOS = {"type": "FCOS", "topk_candidates": 10}
SIZES = [(64, 51), (45, 64)]


def classification(**kwargs):
    labels = {"label": torch.tensor([0, 1]), "index": torch.arange(2)}
    return Classifier({**BACKBONE, "num_classes": 5}, **kwargs), torch.randn(2, 3, 32, 32), labels


def detection(**kwargs):
    return Detector(BACKBONE, FCOS, num_classes=5, pyramid_channels=64, **kwargs), *detection_batch(SIZES, [1, 2])


def segmentation(**kwargs):
    return Segmentor(BACKBONE, FPN, num_classes=5, **kwargs), *segmentation_batch(SIZES)


every_task = pytest.mark.parametrize("build", [classification, detection, segmentation], ids=lambda b: b.__name__)


def flat(found):
    if isinstance(found, torch.Tensor):
        return [found]
    return [value for part in (found.values() if isinstance(found, dict) else found) for value in flat(part)]


@every_task
def test_a_frontend_changes_what_the_backbone_gets(build):
    torch.manual_seed(0)
    plain, inputs, samples = build()
    torch.manual_seed(0)
    same = build(frontend={"type": "FeatEnHancer", "zero_init": True})[0]
    assert isinstance(same.frontend, FeatEnHancer)
    report = same.load_state_dict(plain.state_dict(), strict=False)
    assert report.missing_keys and all(key.startswith("frontend.") for key in report.missing_keys)
    plain.eval(), same.eval()
    assert all(map(torch.equal, flat(plain(inputs)), flat(same(inputs))))
    nn.init.normal_(same.frontend.ue_conv9.weight)
    enhanced = same.frontend(inputs)
    for ours, theirs in zip(flat(same(inputs)), flat(plain(enhanced)), strict=True):
        torch.testing.assert_close(ours, theirs)
    losses = same.train()(inputs, samples, "loss")
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.count_nonzero() for p in same.frontend.parameters())


def test_a_frontend_of_one_s_own():
    @FRONTENDS.register_module()
    class Gain(nn.Module):
        def __init__(self, in_channels, start=1.0):
            super().__init__()
            self.gain = nn.Parameter(torch.full((in_channels, 1, 1), start))

        def forward(self, x):
            return x * self.gain

    try:
        task, inputs, _ = classification(frontend={"type": "Gain", "start": 2.0})
        torch.testing.assert_close(task.eval()(inputs), task.backbone(2 * inputs))
        with pytest.raises(ValueError, match="frontend Gain takes no stop here; it takes start"):
            classification(frontend={"type": "Gain", "stop": 1})
    finally:
        FRONTENDS.module_dict.pop("Gain")
    with pytest.raises(ValueError, match="frontend type must be one of FeatEnHancer, got 'Gain'"):
        classification(frontend={"type": "Gain"})
    with pytest.raises(ValueError, match="frontend must be a dict, got 'FeatEnHancer'"):
        classification(frontend="FeatEnHancer")
    with pytest.raises(ValueError, match="frontend AvgPool2d must give pictures of the shape it gets"):
        classification(frontend={"type": nn.AvgPool2d, "kernel_size": 2})[0](torch.randn(1, 3, 32, 32))


def test_published_files_carry_the_frontend(tmp_path):
    task = Classifier(
        {**BACKBONE, "num_classes": 2},
        frontend={"type": "FeatEnHancer"},
        data_preprocessor={"type": "ImgDataPreprocessor", "mean": [0.0] * 3, "std": [255.0] * 3},
    )
    config = {
        "type": "Classifier",
        "backbone": {**BACKBONE, "num_classes": 2},
        "frontend": {"type": "FeatEnHancer"},
    }
    facts = {"task": "classification", "dataset": "none", "metrics": {}, "license": "MIT", "origin": "a test"}
    preprocessor = {"type": "ImgDataPreprocessor", "mean": [0.0] * 3, "std": [255.0] * 3}
    facts |= {"task_config": config, "preprocessor": preprocessor, "pipeline": []}
    path = publish(
        task.eval(),
        "va_resnet10n.enhanced",
        tmp_path,
        classes=["a", "b"],
        mean=[0.0] * 3,
        std=[1.0] * 3,
        input_size=(3, 32, 32),
        facts=facts,
    )
    again, _ = from_checkpoint(path)
    image = torch.randint(0, 255, (32, 32, 3), dtype=torch.uint8)
    inputs = (image.permute(2, 0, 1) / 255)[None]
    assert isinstance(again.frontend, FeatEnHancer)
    torch.testing.assert_close(again(inputs), task(inputs))
    (result,) = Predictor(path)(image.numpy())
    expected = task(inputs).softmax(-1)[0].sort(descending=True)
    assert list(result.scores) == pytest.approx(expected.values.tolist(), rel=1e-4)


SENTENCE = {"plugin": "sentence", "condition": True, "cond_dim": 6, "start": "paper", "rescale": True}
SALIENCY = {"plugin": "acat", "condition": True, "start": "paper", "where": "stage_end"}


def with_conditions(samples, conditions):
    if isinstance(samples, dict):
        return {**samples, "condition": torch.stack(conditions)}
    return [{**sample, "condition": condition} for sample, condition in zip(samples, conditions, strict=True)]


@every_task
@pytest.mark.parametrize("attach", [SENTENCE, SALIENCY], ids=["sentence", "saliency"])
def test_the_condition_comes_from_the_samples(build, attach):
    torch.manual_seed(0)
    task, inputs, samples = build(attach=attach)
    sizes = [(32, 32)] * 2 if build is classification else SIZES
    shapes = [(6,)] * 2 if attach is SENTENCE else [(1, *size) for size in sizes]
    one, other = ([torch.rand(shape) * scale for shape in shapes] for scale in (1, 5))
    first, second = (with_conditions(samples, conditions) for conditions in (one, other))
    losses = sum(task.train()(inputs, first, "loss").values())
    losses.backward()
    gates = [p for name, p in task.named_parameters() if ".plugin." in name and p.requires_grad]
    assert gates and any(p.grad is not None and p.grad.count_nonzero() for p in gates)
    task.eval()
    results = [flat(task(inputs, given, "tensor")) for given in (first, first, second)]
    assert all(map(torch.equal, results[0], results[1]))
    assert not any(map(torch.equal, results[0], results[2]))
    for bad, message in ((samples, "condition is missing"), (with_conditions(samples, [c[..., :0] for c in one]), "")):
        with pytest.raises((ValueError, RuntimeError), match=message):
            task(inputs, bad, "tensor")
    bad = with_conditions(samples, [one[0], torch.full_like(one[1], torch.nan)])
    with pytest.raises(ValueError, match="condition must be finite; that of picture 1 of the batch is not"):
        task(inputs, bad, "tensor")


def test_a_sample_without_condition_is_named():
    task, inputs, samples = segmentation(attach=SENTENCE)
    given = with_conditions(samples, [torch.rand(6)] * 2)
    with pytest.raises(ValueError, match="condition is missing: sample 1 of the batch has none, others have one"):
        task(inputs, [given[0], samples[1]], "tensor")
    given[1]["condition"] = torch.rand(5)
    with pytest.raises(ValueError, match=r"condition must have one shape in a batch, got \(5,\), \(6,\)"):
        task(inputs, given, "tensor")
    mixed = classification(attach=SENTENCE, mixup={"mixup_alpha": 0.2})
    with pytest.raises(ValueError, match="mixup mixes pictures, and each has a condition of its own"):
        mixed[0].train()(mixed[1], with_conditions(mixed[2], [torch.rand(6)] * 2), "loss")


def test_a_picture_is_segmented_the_same_alone_and_in_windows_as_wide():
    torch.manual_seed(0)
    for attach in (SENTENCE, SALIENCY):
        task, inputs, samples = segmentation(attach=attach)
        conditions = [torch.rand(6) if attach is SENTENCE else torch.rand(1, *size) for size in SIZES]
        samples = with_conditions(samples, conditions)
        together = [found["preds"] for found in task.eval()(inputs, samples, "predict")]
        alone = [
            task(x[None, :, :h, :w], [s], "predict")[0]["preds"]
            for x, s, (h, w) in zip(inputs, samples, SIZES, strict=True)
        ]
        assert all(map(torch.equal, together, alone))
        task.predictor = type(task.predictor)(crop=64, stride=64, flip=False)
        assert all(map(torch.equal, together, [found["preds"] for found in task(inputs, samples, "predict")]))
        task.predictor = type(task.predictor)(crop=32, stride=16, flip=True)
        assert [found["preds"].shape for found in task(inputs, samples, "predict")] == SIZES


def test_the_loss_of_domains_reaches_the_classifier():
    torch.manual_seed(0)
    collector = [{"type": "ReportedLosses", "weights": {"cam": 1000.0}}]
    task, inputs, samples = classification(attach={"plugin": "cam"}, loss_collectors=collector)
    assert set(task.train()(inputs, samples, "loss")) == {"loss"}
    losses = task(inputs, {**samples, "domain": torch.tensor([0, 1])}, "loss")
    assert set(losses) == {"loss", "loss_cam"} and losses["loss_cam"] > 100
    assert visionattn.attach  # the package registers the networks
