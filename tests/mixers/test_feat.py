"""FEAT's mixers against the official modules' recorded results and the sums of the formula."""

import pytest
import timm
import torch
from largest import LargestTensor
from torch import nn

from visionattn.mixers import (
    GatedDepthwiseFFN,
    GlobalChannelAttention,
    WKVSpatialMixer,
    WKVTemporalMixer,
    replace_attention,
)
from visionattn.ops import bidirectional_wkv
from visionattn.reference.feat_channel import channel_attention
from visionattn.reference.feat_wkv import wkv, wkv_spatial
from visionattn.testing.contracts import perturbed
from visionattn.testing.fixtures import check_module, load, relative_error


class _Official(nn.Module):
    """Takes what the official module takes: tokens of a grid, perhaps with those of the first layer behind."""

    def __init__(self, m, grid, forward=None):
        super().__init__()
        self.m, self.grid, self.run = m, grid, forward or m

    def forward(self, x):
        if isinstance(self.m, WKVTemporalMixer):  # (B h w, frames, C)
            video = x.unflatten(0, (-1, *self.grid)).permute(0, 3, 1, 2, 4)
            return self.run(video).permute(0, 2, 3, 1, 4).flatten(0, 2)
        maps = x.unflatten(1, self.grid)
        inputs = maps.chunk(2, -1) if getattr(self.m, "guidance", False) else (maps,)
        return self.run(*inputs).flatten(1, 2)


@pytest.mark.parametrize(
    ("name", "build", "literal"),
    [
        ("wkvspatial_res_2x7x8x32", lambda made: WKVSpatialMixer(made["dim"], guidance=made["res"]), wkv_spatial),
        ("wkvtemporal_8f_2x3x32", lambda made: WKVTemporalMixer(made["dim"]), None),
        (
            "channelattn_2x7x8x48",
            lambda made: GlobalChannelAttention(made["dim"], num_heads=made["heads"], bias=made["bias"]),
            channel_attention,
        ),
        (
            "ffn_1x7x8x32",
            lambda made: GatedDepthwiseFFN(made["dim"], expansion=made["expansion"], bias=made["bias"]),
            None,
        ),
    ],
)
def test_golden(name, build, literal):
    golden = load(f"feat_{name}_eval")
    made = golden.meta["constructor"]
    module = build(made)
    for run in (None, *([] if literal is None else [lambda *x: literal(module, *x)])):
        module.load_state_dict({key.removeprefix("m."): value for key, value in golden.state_dict.items()})
        check_module(_Official(module, made["grid"], run), golden, 1e-5)


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("length", [1, 2, 30])
def test_scan_is_the_sum_over_all_pairs(length, offset):
    generator = torch.Generator().manual_seed(0)
    k, v = (torch.randn(2, length, 5, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2))
    decay = torch.tensor([-3.0, -0.2, 0.0, 0.5, 3.0], dtype=torch.float64, requires_grad=True)
    first = torch.randn(5, generator=generator, dtype=torch.float64).requires_grad_()
    results = []
    for out in (bidirectional_wkv(k, v, decay, first, decay_offset=offset), wkv(k, v, decay, first, offset)):
        grads = torch.autograd.grad(out.square().sum(), (k, v, decay, first), materialize_grads=True)
        results.append((out, *grads))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("over_all", [-60.0, -5.0, 5.0, 60.0])
def test_scan_keeps_its_digits_in_float32(over_all):
    generator = torch.Generator().manual_seed(0)
    k, v = (torch.randn(1, 600, 3, generator=generator) * scale for scale in (4, 1))
    decay, first = torch.full((3,), over_all / 600), torch.randn(3, generator=generator)
    exact = wkv(k.double(), v.double(), decay.double(), first.double())
    assert relative_error(bidirectional_wkv(k, v, decay, first), exact) < 1e-5


def test_scan_stays_finite_whatever_decays_and_keys_are():
    k, v = torch.tensor([-200.0, 0.0, 300.0]).repeat(4)[None, :, None], torch.randn(1, 12, 1)
    for value in (-1e4, 1e4):
        out = bidirectional_wkv(k, v, torch.tensor([value]), torch.tensor([value]))
        assert out.isfinite().all() and out.abs().max() <= v.abs().max() * 1.001


@pytest.mark.parametrize(
    ("build", "literal"),
    [
        (lambda: WKVSpatialMixer(12, guidance=True, key_norm=True, decay_offset=0), wkv_spatial),
        (lambda: GlobalChannelAttention(12, num_heads=3, guidance=True, bias=True), channel_attention),
    ],
)
def test_guidance_agrees_with_the_literal_form(build, literal):
    torch.manual_seed(0)
    module = build()
    x, first = (torch.randn(2, 5, 4, 12, dtype=torch.float64) for _ in range(2))
    plain = type(module)(12, **({"num_heads": 3, "bias": True} if hasattr(module, "qkv") else {"key_norm": True}))
    plain.load_state_dict(module.state_dict())  # without alpha
    if hasattr(plain, "decay_offset"):
        plain.decay_offset = 0
    # alpha starts at zero
    torch.testing.assert_close(module.double()(x, first), plain.double()(x))
    assert relative_error(plain(x), literal(plain, x)) < 1e-9
    module = perturbed(module)
    out = module(x, first)
    assert relative_error(out, literal(module, x, first)) < 1e-9
    assert not torch.allclose(out, module(x, first.flip(1)))


def test_frames_are_mixed_at_each_position():
    module = WKVTemporalMixer(6, guidance=True).double()
    x, first = (torch.randn(2, 5, 3, 4, 6, dtype=torch.float64) for _ in range(2))
    out = module(x, first)
    assert out.shape == x.shape
    changed = x.clone()
    changed[:, 4, 0, 0] += 1
    moved = (module(changed, first) - out).abs().amax((0, 4)) > 0
    assert moved[:, :2, :2].all() and not moved[:, 2:].any() and not moved[:, :, 2:].any()
    torch.testing.assert_close(module(x.flip(1), first), _flipped(module)(x, first.flip(1)).flip(1))


def _flipped(module):
    other = WKVTemporalMixer(6, guidance=True).double()
    other.load_state_dict(module.state_dict())
    with torch.no_grad():
        other.dwconv1d.weight.copy_(module.dwconv1d.weight.flip(-1))
    return other


def test_channels_are_weighed_by_their_angles():
    module = perturbed(GlobalChannelAttention(12, num_heads=3))
    x = torch.randn(2, 5, 6, 12)
    rows = module.channel_weights(x)
    assert rows.shape == (2, 3, 4, 4)
    torch.testing.assert_close(rows.sum(-1), torch.ones(2, 3, 4))
    torch.testing.assert_close(module.channel_weights(7 * x), rows)


def test_holds_no_matrix_of_all_pairs():
    mixer, largest = WKVSpatialMixer(8), {}
    for side in (14, 56):
        x = torch.randn(1, side, side, 8, requires_grad=True)
        with LargestTensor() as seen:
            mixer(x).sum().backward()
        largest[side] = seen.numbers
    assert largest[56] <= 16 * largest[14]


@pytest.mark.parametrize("name", ["feat_wkv", "feat_channel"])
def test_mixes_the_patches_of_timms_networks(name):
    model = timm.create_model("vit_tiny_patch16_224", embed_dim=48, num_heads=3, depth=2, num_classes=5, img_size=64)
    with pytest.raises(ValueError, match=f"{name} has no place for attention's own weights: pass weights='new'"):
        replace_attention(model, name)
    replace_attention(model, name, blocks=1, weights="new")
    assert model(torch.randn(2, 3, 64, 64)).isfinite().all()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: WKVSpatialMixer(0), "dim must be at least 1, got 0"),
        (lambda: WKVSpatialMixer(8, decay_offset=2), "decay_offset must be one of 0, 1, got 2"),
        (lambda: GlobalChannelAttention(8, num_heads=3), "dim=8, num_heads=3"),
        (lambda: GatedDepthwiseFFN(8, expansion=0.1), r"expansion must leave a hidden width.*got 0\.1 of dim=8"),
        (lambda: WKVTemporalMixer(8)(torch.randn(1, 2, 2, 8)), r"takes videos \(B, F, H, W, C\), got \(1, 2, 2, 8\)"),
        (lambda: WKVSpatialMixer(8, guidance=True)(torch.randn(1, 2, 2, 8)), "guidance is True, first none"),
        (
            lambda: WKVSpatialMixer(8)(torch.randn(1, 2, 2, 8), torch.randn(1, 2, 2, 8)),
            r"guidance is False, first \(1, 2, 2, 8\)",
        ),
        (
            lambda: GlobalChannelAttention(8, guidance=True)(torch.randn(1, 2, 2, 8), torch.randn(1, 4, 8)),
            r"the shape of x, \(1, 2, 2, 8\), got \(1, 4, 8\)",
        ),
    ],
)
def test_bad_arguments(build, message):
    with pytest.raises(ValueError, match=message):
        build()
