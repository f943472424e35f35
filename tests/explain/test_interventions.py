"""Heads off, attention cut, sinks emptied, masked patches, registers."""

import pytest
import timm
import torch
from explained import fill
from torch import nn

from visionattn import explain
from visionattn.testing.fixtures import filled, load, relative_error


def vit(golden=None):
    settings = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": 10}
    model = timm.models.VisionTransformer(**settings)
    if golden is None:
        return fill(model)
    model.load_state_dict(golden.state_dict)
    return model.eval()


def test_a_head_that_is_off():
    model, x = vit(), torch.randn(2, 3, 32, 32)
    with torch.no_grad(), explain.edit(model, explain.scale_heads({(1, 2): 0.0})):
        actual = model(x)
    with torch.no_grad():
        model.blocks[1].attn.proj.weight[:, 32:] = 0
        torch.testing.assert_close(actual, model(x))
    with (
        pytest.raises(ValueError, match=r"heads of layer 0 must lie in 0\.\.2, got 3"),
        explain.edit(model, explain.scale_heads({(0, 3): 0.0})),
    ):
        model(x)


def test_knocked_out_tokens():
    model, x = vit(), torch.randn(2, 3, 32, 32)
    mask = torch.ones(17, 17, dtype=torch.bool)
    mask[0, 5:] = False
    with torch.no_grad(), explain.edit(model, explain.knock_out([0], range(5, 17))):
        actual = model(x)
    with torch.no_grad():
        torch.testing.assert_close(actual, model.forward(x, attn_mask=mask[None, None]))
    with (
        pytest.raises(ValueError, match=r"columns must lie in 0\.\.16 in layer 0, got \[17\]"),
        explain.edit(model, explain.knock_out([0], [17])),
    ):
        model(x)


def test_emptied_sinks():
    model, x = vit(), torch.randn(2, 3, 32, 32)
    with torch.no_grad(), explain.capture(model) as plain:
        model(x)
    with torch.no_grad(), explain.edit(model, explain.redistribute_sinks(0.5, times=1.3, layers=[0])) as record:
        model(x)
    before, after = plain[0].probs, record[0].probs
    sinks = (before.mean(-2, keepdim=True) > 1.3 / 17).expand_as(before)
    assert 0 < sinks.float().mean() < 1
    torch.testing.assert_close(after[sinks], before[sinks] / 2)
    torch.testing.assert_close(after.sum(-1), torch.ones(after.shape[:-1]))


@pytest.mark.parametrize("name", ["explain_ifam_hard_vit_32", "explain_ifam_soft_vit_32"])
@pytest.mark.parametrize("prune", [True, False])
def test_masked_network_as_the_official_code(name, prune):
    golden = load(name)
    model = timm.models.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=48, depth=3, num_heads=3, num_classes=0
    ).eval()
    own = {key: torch.from_numpy(filled(key, list(value.shape))) for key, value in model.state_dict().items()}
    model.load_state_dict(own)
    model.head = nn.Linear(48, 6, bias=False)
    model.head.weight.data = torch.from_numpy(filled("head.weight", [6, 48]))
    mask = golden.arrays["mask"]
    mask = mask.bool() if "hard" in name else mask
    with torch.no_grad():
        actual = explain.masked_forward(model, golden.input, mask, prune=prune)
    assert relative_error(actual, golden.arrays["out_0"]) < 1e-5


def test_masked_pixels_do_not_matter():
    model, x = vit(), torch.randn(2, 3, 32, 32)
    mask = torch.rand(2, 4, 4) > 0.5
    noise = torch.where(mask.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None], x, torch.randn_like(x))
    with torch.no_grad():
        assert torch.equal(explain.masked_forward(model, x, mask), explain.masked_forward(model, noise, mask))
        everything = explain.masked_forward(model, x, torch.ones(2, 4, 4, dtype=torch.bool))
        torch.testing.assert_close(everything, model(x))
    with pytest.raises(ValueError, match=r"mask must be of 2 x 16 patches, got \(2, 9\)"):
        explain.masked_forward(model, x, torch.ones(2, 3, 3))


def test_registers_as_the_official_code():
    golden = load("explain_registers_vit_32")
    model, x, arrays = vit(golden), golden.input, golden.arrays
    neurons = {int(block): units for block, units in golden.meta["neurons"].items()}
    with torch.no_grad():
        assert relative_error(model(x), arrays["out_0"]) < 1e-5
        for number, patches in enumerate(("zero", "mean", "only_outliers", "same"), 1):
            with explain.test_time_registers(model, neurons, rule="layer", patches=patches):
                assert relative_error(model(x), arrays[f"out_{number}"]) < 1e-5, patches
        with explain.test_time_registers(model, neurons):
            assert relative_error(model(x), arrays["out_5"]) < 1e-5
            assert relative_error(model.forward_features(x), arrays["tokens"]) < 1e-5
            both = model(torch.cat((x, x + 1)))
            torch.testing.assert_close(both[:1], model(x))
        assert relative_error(model(x), arrays["out_0"]) < 1e-5


def test_register_neurons_are_found():
    model = vit()
    with torch.no_grad():  # unit 7 of block 1 writes outliers at patches that are bright
        model.blocks[1].mlp.fc2.weight[:, 7] *= 200
    x = torch.randn(2, 3, 32, 32)
    found = explain.find_register_neurons(model, [x], top=5, layer=1, threshold=20.0)
    assert sum(map(len, found.values())) == 5
    with pytest.raises(ValueError, match="no image has tokens with outlying norms"):
        explain.find_register_neurons(model, [x], threshold=1e9)
    with (
        pytest.raises(ValueError, match=r"neurons must be units of the blocks 0\.\.2"),
        explain.test_time_registers(model, {5: [1]}),
    ):
        pass
