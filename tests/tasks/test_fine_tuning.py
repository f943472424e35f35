"""Starting from one's own training checkpoint: all that fits is loaded, what is new is named, nothing else passes."""

import pytest
import torch

import visionattn  # noqa: F401
from visionattn.checkpoints import read_weights
from visionattn.tasks import Classifier


def checkpoint(path, name, classes=4, **task):
    torch.manual_seed(0)
    model = Classifier({"model_name": name, "num_classes": classes}, **task)
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.add_(0.1 * torch.rand_like(value))
    torch.save({"state_dict": model.state_dict(), "meta": {"dataset_meta": {"classes": tuple("abcd")}}}, path)
    return model.state_dict(), {"model_name": name, "pretrained": True, "pretrained_cfg_overlay": {"file": str(path)}}


@pytest.mark.parametrize("name", ["resnet18", "va_resnet10n"])
@pytest.mark.parametrize("attach", [None, {"plugin": "cbam", "stages": [-1]}], ids=["plain", "with attention"])
def test_for_the_same_and_for_other_classes(name, attach, tmp_path, caplog):
    own, backbone = checkpoint(tmp_path / "best.pth", name, attach=attach)
    again = Classifier({**backbone, "num_classes": 4}, attach=attach).state_dict()
    assert own.keys() == again.keys() and all(torch.equal(value, again[key]) for key, value in own.items())
    assert "new" not in caplog.text
    other = Classifier({**backbone, "num_classes": 7}, attach=attach).state_dict()
    assert (
        all(torch.equal(v, own[k]) for k, v in other.items() if ".fc." not in k) and len(other["backbone.fc.bias"]) == 7
    )
    assert "fc.weight" in caplog.text and "fc.bias" in caplog.text and "layer" not in caplog.text


def test_attention_that_is_new_starts_as_attach_says(tmp_path):
    own, backbone = checkpoint(tmp_path / "best.pth", "va_resnet10n")
    model = Classifier({**backbone, "num_classes": 4}, attach={"plugin": "ela_l"})
    state = model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in own.items()) and len(state) > len(own)


def test_another_attention_is_refused(tmp_path):
    _, backbone = checkpoint(tmp_path / "best.pth", "va_resnet10n", attach={"plugin": "ela_l"})
    with pytest.raises(ValueError, match=r"missing: layer1.*not in the model: layer1.0.drop_path.plugin"):
        Classifier({**backbone, "num_classes": 4}, attach={"plugin": "cbam"})
    with pytest.raises(ValueError, match=r"not in the model: layer1.0.drop_path.plugin"):
        Classifier({**backbone, "num_classes": 4})


def test_weights_that_are_not_finite(tmp_path):
    own, backbone = checkpoint(tmp_path / "best.pth", "resnet18")
    own["backbone.fc.bias"][0] = float("nan")
    torch.save({"state_dict": own}, tmp_path / "best.pth")
    with pytest.raises(ValueError, match=r"best.pth holds NaN or infinite values in fc.bias"):
        Classifier({**backbone, "num_classes": 4})
    assert read_weights(tmp_path / "best.pth", allow_nonfinite=True)


def test_published_networks_of_timm_are_given_by_file():
    with pytest.raises(ValueError, match=r"timm has no weights 'resnet18.mine'; .*pretrained_cfg_overlay=dict\(file"):
        Classifier({"model_name": "resnet18.mine", "num_classes": 4})
