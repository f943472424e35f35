"""U-GAT-IT's attention and normalisations against the official code, and the loss that makes it attention."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from visionattn.models.builder import rename_keys
from visionattn.ops.losses import collect_losses, known_targets
from visionattn.plugins import ILN, LIN, AdaLIN, AdaLINBlock, AdaLINParameters, CAMAttention, clip_rho_
from visionattn.reference.ugatit import layer_instance
from visionattn.testing.fixtures import load, normal, relative_error


def check(golden, outputs, x):
    (outputs[0] * normal(golden.meta["input_seed"] + 1, outputs[0].shape)).sum().backward()
    for number, out in enumerate(outputs):
        assert relative_error(out, golden.arrays[f"out_{number}"]) < 1e-5, number
    assert relative_error(x.grad, golden.arrays["grad_x"]) < 1e-5


@pytest.mark.parametrize("name", ["ugatit_cam_light_2x64x14x14_eval", "ugatit_cam_full_1x48x8x8_eval"])
def test_golden_attention(name):
    golden = load(name)
    channels, light = (golden.meta["constructor"][key] for key in ("channels", "light"))
    cam = CAMAttention(channels).eval()
    parameters = AdaLINParameters(channels, light=light, grid=None if light else golden.input.shape[2])
    weights = rename_keys(golden.state_dict, AdaLINParameters.official_keys)
    own = set(cam.state_dict())
    cam.load_state_dict({key: weights.pop(key) for key in own})
    parameters.load_state_dict(weights)
    assert sum(p.numel() for m in (cam, parameters) for p in m.parameters()) == golden.meta["params"]
    x = golden.input.requires_grad_()
    out, logits = cam(x, return_logits=True)
    check(golden, (out, logits, cam.heatmap(out), *parameters(out)), x)


def test_golden_normalisations():
    golden = load("ugatit_adalin_2x48x7x10_eval")
    norm, x = AdaLIN(48), golden.input.requires_grad_()
    norm.load_state_dict({key.removeprefix("norm."): value for key, value in golden.state_dict.items()})
    check(golden, [norm(x, 1 + x.mean((2, 3)), 0.5 * x.amax((2, 3)))], x)
    golden = load("ugatit_lin_2x48x7x10_eval")
    norm, x = ILN(48), golden.input.requires_grad_()
    norm.load_state_dict(golden.state_dict)
    check(golden, [norm(x)], x)


@pytest.mark.parametrize("size", [(2, 1), (5, 7), (1, 9)], ids=str)
def test_normalisations_are_the_literal_ones(size):
    torch.manual_seed(0)
    x, gamma, beta = torch.randn(3, 8, *size).double(), torch.randn(3, 8).double(), torch.randn(3, 8).double()
    norm = AdaLIN(8).double()
    nn.init.uniform_(norm.rho)
    expected = layer_instance(x, norm.rho, gamma[:, :, None, None], beta[:, :, None, None])
    torch.testing.assert_close(norm(x, gamma, beta), expected)
    biased = AdaLIN(8, unbiased=False).double()
    nn.init.ones_(biased.rho)
    torch.testing.assert_close(biased(x, torch.ones_like(gamma), torch.zeros_like(beta)), F.instance_norm(x))


def test_a_single_value_is_no_trouble():
    assert AdaLIN(4)(torch.randn(2, 4, 1, 1), torch.ones(2, 4), torch.zeros(2, 4)).isfinite().all()
    torch.testing.assert_close(LIN(1)(torch.randn(2, 1, 1, 1)), torch.zeros(2, 1, 1, 1), rtol=0, atol=1e-3)


def test_the_generator_s_block():
    block = AdaLINBlock(6)
    assert {*block.state_dict()} == {"conv1.weight", "norm1.rho", "conv2.weight", "norm2.rho"}
    for size in ((1, 1), (1, 5), (6, 4)):
        x = torch.randn(2, 6, *size)
        out = block(x, torch.zeros(2, 6), torch.zeros(2, 6))
        assert torch.equal(out, x)
    x, ones = torch.randn(1, 6, 5, 4), torch.ones(1, 6)
    y = F.relu(block.norm1(block.conv1(F.pad(x, (1, 1, 1, 1), "reflect")), ones, ones))
    expected = x + block.norm2(block.conv2(F.pad(y, (1, 1, 1, 1), "reflect")), ones, ones)
    torch.testing.assert_close(block(x, ones, ones), expected)


def test_rho_is_brought_back():
    model = nn.Sequential(AdaLIN(2), LIN(2))
    nn.init.constant_(model[0].rho, 1.5)
    nn.init.constant_(model[1].rho, -0.5)
    clip_rho_(model)
    assert (model[0].rho == 1).all() and (model[1].rho == 0).all()


def test_parameters_of_any_size():
    full = AdaLINParameters(4, light=False, grid=(4, 6))
    assert full(torch.randn(2, 4, 9, 3))[0].shape == (2, 4)
    x = torch.randn(2, 4, 4, 6)
    torch.testing.assert_close(full(x)[1], full(x.repeat_interleave(2, 2).repeat_interleave(2, 3))[1])


def test_its_loss_goes_to_whoever_collects():
    torch.manual_seed(0)
    cam, x, domain = CAMAttention(8).train(), torch.randn(4, 8, 5, 5), torch.tensor([0, 1, 1, 0])
    expected = cam(x)
    with collect_losses() as losses:
        assert torch.equal(cam(x), expected) and not losses
        with known_targets({"domain": domain}):
            out = cam(x)
        assert torch.equal(cam(x), expected)
    (value,) = losses["cam"]
    torch.testing.assert_close(out, expected)
    logits = cam(x, return_logits=True)[1]
    wanted = domain.float()[:, None].expand(4, 2)
    torch.testing.assert_close(value, F.binary_cross_entropy_with_logits(logits, wanted))
    torch.testing.assert_close(
        CAMAttention(8, loss="least_squares").domain_loss(logits, domain), F.mse_loss(logits, wanted)
    )
    with (
        known_targets({"domain": domain[:3]}),
        pytest.raises(ValueError, match=r"domain must be \(B,\) = \(4,\), 0 or 1"),
    ):
        cam(x)


def test_its_loss_survives_checkpointing():
    torch.manual_seed(0)
    cam, domain = CAMAttention(8).train(), torch.tensor([0, 1])
    grads = []
    for saving in (False, True):
        x = torch.randn(2, 8, 5, 5, generator=torch.Generator().manual_seed(1)).requires_grad_()
        with collect_losses() as losses, known_targets({"domain": domain}):
            out = torch.utils.checkpoint.checkpoint(cam, x, use_reentrant=False) if saving else cam(x)
        grads.append(torch.autograd.grad(out.sum() + sum(losses.get("cam", [])), [x, cam.gap_fc.weight]))
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_discriminators_attention():
    torch.manual_seed(0)
    x = torch.randn(2, 6, 5, 4)
    weights = {}
    for legacy in (False, True):
        cam = CAMAttention(6, negative_slope=0.2, normalize=True, legacy=legacy)
        spectral = [nn.utils.spectral_norm(nn.Linear(6, 1, bias=False)) for _ in range(2)]
        if not weights:
            names = ("gap_fc", "gmp_fc")
            weights = {f"{n}.weight_orig": layer.weight_orig.detach() for n, layer in zip(names, spectral, strict=True)}
            weights |= {key: value.clone() for key, value in cam.state_dict().items() if key.startswith("conv")}
        cam.load_state_dict(rename_keys(weights, CAMAttention.official_keys))
        raw = [weights["gap_fc.weight_orig"], weights["gmp_fc.weight_orig"]]
        unit = [w / w.norm() for w in raw]
        scaled = [x * w[:, :, None, None] for w in (raw if legacy else unit)]
        expected = F.leaky_relu(cam.conv1x1(torch.cat(scaled, 1)), 0.2)
        out, logits = cam(x, return_logits=True)
        torch.testing.assert_close(out, expected)
        torch.testing.assert_close(logits[:, :1], x.mean((2, 3)) @ unit[0].T)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: CAMAttention(0), "channels must be at least 1, got 0"),
        (lambda: CAMAttention(4, loss="hinge"), "loss must be one of bce, least_squares, got 'hinge'"),
        (lambda: AdaLINParameters(4, light=False), "grid is needed without light, and only then"),
        (lambda: AdaLINParameters(4, grid=3), "grid is needed without light, and only then"),
        (lambda: LIN(0), "channels must be at least 1, got 0"),
        (
            lambda: AdaLIN(4)(torch.ones(2, 4, 3, 3), torch.ones(2, 3), torch.ones(2, 4)),
            r"gamma must be \(B, C\) = \(2, 4\), got \(2, 3\)",
        ),
    ],
)
def test_bad_arguments(build, message):
    with pytest.raises(ValueError, match=message):
        build()
