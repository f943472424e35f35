"""The classifier: what it refuses, and starting from weights that were trained on other classes."""

import ast
import logging
from pathlib import Path

import pytest
import torch
from mmengine.logging import MMLogger

import visionattn
from visionattn.data import list_collate
from visionattn.tasks import Classifier, Detector, Segmentor

NAME = "va_resnet10n"


def build(classes=3, **kwargs):
    return Classifier({"model_name": NAME, "num_classes": classes}, **kwargs)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (
            torch.zeros(2, 1, 32, 32),
            r"inputs must be \(B, 3, H, W\), got \(2, 1, 32, 32\): model.backbone.in_chans is 3",
        ),
        (torch.zeros(3, 32, 32), r"inputs must be \(B, 3, H, W\), got \(3, 32, 32\)"),
        (torch.zeros(2, 3, 32, 32, dtype=torch.uint8), "inputs must be normalised, got torch.uint8: the config lacks"),
    ],
)
def test_inputs_that_do_not_fit(inputs, message):
    with pytest.raises(ValueError, match=message):
        build()(inputs)


def test_every_task_looks_at_its_inputs():
    grey = torch.zeros(1, 1, 32, 32)
    one = {"backbone": {"model_name": NAME, "in_chans": 1}, "num_classes": 3}
    detector = Detector({"model_name": NAME}, {"type": "FCOS"}, 3, pyramid_channels=64)
    decoder = {"type": "FPN", "decoder_pyramid_channels": 16, "decoder_segmentation_channels": 32}
    segmentor = Segmentor({"model_name": NAME}, decoder, 3)
    for model in (detector, segmentor):
        with pytest.raises(ValueError, match=r"inputs must be \(B, 3, H, W\), got \(1, 1, 32, 32\)"):
            model(grey)
    assert Segmentor(decoder=decoder, **one).eval()(grey).shape == (1, 3, 32, 32)


def test_an_empty_batch():
    assert build().eval()(torch.zeros(0, 3, 32, 32)).shape == (0, 3)


def test_pictures_of_different_sizes_are_not_padded():
    model = build(data_preprocessor={"type": "ImgDataPreprocessor", "mean": [127.5] * 3, "std": [127.5] * 3})
    samples = [{"inputs": torch.zeros(3, side, 20, dtype=torch.uint8), "data_samples": {}} for side in (20, 40)]
    with pytest.raises(
        ValueError, match="have different sizes in one batch, 20x20, 20x40: end the pipeline with a Resi"
    ):
        model.data_preprocessor(list_collate(samples))
    assert model.data_preprocessor(list_collate(samples[:1] * 2))["inputs"].shape == (2, 3, 20, 20)


def test_weights_that_come_with_the_package_or_none(capfd):
    MMLogger.get_instance("packaged")
    backbone = {"model_name": "va_resnet10n_cbam.digits", "pretrained": "packaged"}
    given = Classifier(backbone).state_dict()
    again = Classifier({**backbone, "pretrained": True}).state_dict()
    assert all(torch.equal(value, again[key]) for key, value in given.items())
    Classifier({"model_name": "va_resnet10n_bam", "num_classes": 3, "pretrained": "packaged"})
    Classifier({"model_name": "va_davit_tiny", "depths": (1, 1, 1, 1), "pretrained": "packaged"})
    said = "".join(capfd.readouterr())
    assert "no weights of va_davit_tiny come with the package: its backbone starts from scratch" in said
    with pytest.raises(ValueError, match="pretrained must be True, False or 'packaged', got 'package'"):
        Classifier({**backbone, "pretrained": "package"})
    with pytest.raises(
        ValueError, match=r"No pretrained weights exist .*model.backbone.pretrained=False trains from scr"
    ):
        Classifier({"model_name": "va_balanced12_bmta", "pretrained": True})


class TestStartingFromOtherClasses:
    @pytest.fixture
    def checkpoint(self, tmp_path):
        torch.manual_seed(1)
        model = build(5)
        torch.save({"state_dict": model.state_dict(), "meta": {}}, tmp_path / "best.pth")
        return tmp_path / "best.pth", model.state_dict()

    def test_on_request_the_head_starts_anew(self, checkpoint, capfd):
        MMLogger.get_instance("start", log_level=logging.INFO)
        path, old = checkpoint
        torch.manual_seed(2)
        model = build(3, start_from={"checkpoint": str(path), "new_head": True})
        fresh = {key: value.clone() for key, value in model.state_dict().items()}
        model.init_weights()
        head = {"backbone.fc.weight", "backbone.fc.bias"}
        for key, value in model.state_dict().items():
            assert torch.equal(value, fresh[key] if key in head else old[key]), key
        said = "".join(capfd.readouterr())
        kept = len(old) - 2
        assert (
            f"{kept} of {len(old)} tensors taken over; new start backbone.fc.weight (5 -> 3), backbone.fc.bias (5 -> 3)"
            in said
        )

    def test_without_the_request_it_is_an_error_with_the_cure(self, checkpoint):
        model = build(3, start_from={"checkpoint": str(checkpoint[0])})
        message = r"other number of classes: backbone\.fc\.weight \(5 -> 3\), .*model\.start_from\.new_head=True starts"
        with pytest.raises(ValueError, match=message):
            model.init_weights()

    def test_the_same_classes_keep_the_head(self, checkpoint):
        path, old = checkpoint
        model = build(5, start_from={"checkpoint": str(path)})
        model.init_weights()
        assert all(torch.equal(value, old[key]) for key, value in model.state_dict().items())

    def test_weights_of_the_network_alone(self, checkpoint, tmp_path):
        _, old = checkpoint
        bare = {key.removeprefix("backbone."): value for key, value in old.items()}
        torch.save(bare, tmp_path / "bare.pth")
        model = build(2, start_from={"checkpoint": str(tmp_path / "bare.pth"), "new_head": True})
        model.init_weights()
        assert torch.equal(model.state_dict()["backbone.conv1.0.weight"], old["backbone.conv1.0.weight"])

    def test_another_network_is_refused(self, checkpoint):
        model = Classifier(
            {"model_name": "va_resnet18n", "num_classes": 3},
            start_from={"checkpoint": str(checkpoint[0]), "new_head": True},
        )
        with pytest.raises(ValueError, match="the weights do not fit Classifier"):
            model.init_weights()

    @pytest.mark.parametrize("kind", ["FCOS", "MaskRCNN"])
    def test_detectors(self, tmp_path, kind):
        def detector(classes, **kwargs):
            return Detector({"model_name": NAME}, {"type": kind}, classes, pyramid_channels=64, **kwargs)

        old = detector(5).state_dict()
        torch.save({"state_dict": old}, tmp_path / "best.pth")
        model = detector(2, start_from={"checkpoint": str(tmp_path / "best.pth"), "new_head": True})
        model.init_weights()
        new = model.state_dict()
        differ = {key for key in new if new[key].shape != old[key].shape}
        assert 2 <= len(differ) <= 6 and all(torch.equal(new[key], old[key]) for key in new.keys() - differ)
        assert all("cls" in key or "bbox_pred" in key or "mask_fcn_logits" in key for key in differ)


def test_a_classifier_needs_no_detector_and_no_decoder():
    """Their libraries cost seconds to import: nothing that a classifier imports does so at its beginning."""
    folder = Path(visionattn.__file__).parent / "tasks"
    reached, libraries = {"__init__", "classifier"}, set()
    for name in (todo := list(reached)):
        for node in ast.parse((folder / f"{name}.py").read_text()).body:
            if isinstance(node, ast.ImportFrom) and node.level == 1:
                found = {node.module} if node.module else {alias.name for alias in node.names}
                todo += sorted(found - reached)
                reached |= found
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                libraries |= {getattr(node, "module", None) or node.names[0].name}
    assert "_base" in reached and not {"detector", "segmentor", "_smp", "_torchvision", "_features"} & reached
    assert not [name for name in libraries if name.startswith(("segmentation_models", "torchvision"))]
