"""DaViT's two attentions against the official code's recorded outputs and gradients, and against timm's."""

import pytest
import torch
from timm.models import davit
from torch import nn

from visionattn.mixers import ChannelAttention, SpatialWindowAttention
from visionattn.ops import partition_windows, prefer_moments
from visionattn.profiling.operator_counter import saved_bytes
from visionattn.reference.davit import channel_attention as naive_attention
from visionattn.testing.fixtures import check_module, load, relative_error


class Tokens(nn.Module):
    """The official interface, `(B, N, C)`, around a mixer."""

    def __init__(self, mixer, height, width):
        super().__init__()
        self.mixer, self.size = mixer, (height, width)

    def forward(self, x):
        return self.mixer(x.unflatten(1, self.size)).flatten(1, 2)


@pytest.mark.parametrize("moments", [True, False])
def test_golden_channel_attention(moments):
    golden = load("davit_chanattn_module_2x196x64_eval")
    mixer = ChannelAttention(64, num_heads=golden.meta["constructor"]["groups"], moments=moments)
    mixer.load_state_dict(golden.state_dict)
    check_module(Tokens(mixer, 14, 14), golden, 1e-5)


@pytest.mark.parametrize("name", ["4x49x64", "3x49x96"])
def test_golden_window_attention(name):
    golden = load(f"davit_winattn_module_{name}_eval")
    constructor = golden.meta["constructor"]
    mixer = SpatialWindowAttention(constructor["dim"], num_heads=constructor["heads"])
    mixer.load_state_dict(golden.state_dict)
    check_module(Tokens(mixer, 7, 7), golden, 1e-5)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("scale", ["dim", "tokens"])
@pytest.mark.parametrize("moments", [True, False])
@pytest.mark.parametrize("size", [(1, 1), (3, 2), (5, 7)], ids=str)
def test_agrees_with_the_naive_formulation(size, moments, scale, bias):
    torch.manual_seed(0)
    mixer = ChannelAttention(12, num_heads=3, scale=scale, moments=moments, qkv_bias=bias).double()
    x = torch.randn(2, *size, 12, dtype=torch.float64, requires_grad=True)
    expected = naive_attention(x.flatten(1, 2), mixer.qkv, mixer.proj, 3, scale).view(x.shape)
    actual = mixer(x)
    torch.testing.assert_close(actual, expected)
    wanted = (x, *mixer.parameters())
    expected, actual = (torch.autograd.grad(out.square().sum(), wanted) for out in (expected, actual))
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("moments", [True, False])
def test_gradients_of_gradients(moments):
    torch.manual_seed(0)
    mixer = ChannelAttention(4, num_heads=2, moments=moments).double()
    x = torch.randn(2, 3, 2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(mixer, (x,))
    assert torch.autograd.gradgradcheck(mixer, (x,))


@pytest.mark.parametrize("size", [(14, 14), (13, 9), (3, 4)], ids=str)
def test_agrees_with_timm(size):
    torch.manual_seed(0)
    pairs = [
        (davit.ChannelAttention(24, 3, qkv_bias=True), {}),
        (davit.ChannelAttention(24, 3), {"qkv_bias": False}),
        (davit.ChannelAttentionV2(24, 3), {"scale": "tokens"}),
    ]
    x = torch.randn(2, *size, 24)
    for timm, arguments in pairs:
        for moments in (True, False, None):
            mixer = ChannelAttention(24, num_heads=3, moments=moments, **arguments)
            mixer.load_state_dict(timm.state_dict())
            assert relative_error(mixer(x).flatten(1, 2), timm(x.flatten(1, 2))) < 1e-5
    timm, mixer = davit.WindowAttention(24, (7, 7), 3), SpatialWindowAttention(24, num_heads=3)
    mixer.load_state_dict(timm.state_dict())
    expected = davit.window_reverse(timm(partition_windows(x, (7, 7))), (7, 7), -size[0] // 7 * -7, -size[1] // 7 * -7)
    assert relative_error(mixer(x), expected[:, : size[0], : size[1]]) < 1e-5


def test_masked_windows_leave_padding_out():
    torch.manual_seed(0)
    whole = SpatialWindowAttention(8, num_heads=2, window_size=(3, 5))
    masked = SpatialWindowAttention(8, num_heads=2, window_size=7, pad_mask="exact")
    masked.load_state_dict(whole.state_dict())
    x = torch.randn(2, 3, 5, 8)
    torch.testing.assert_close(masked(x), whole(x))
    assert relative_error(SpatialWindowAttention(8, num_heads=2)(x), whole(x)) > 1e-3


def test_the_form_follows_from_the_shape():
    assert prefer_moments(3136, 96) and prefer_moments(784, 192) and not prefer_moments(196, 384)
    called = []
    mixer = ChannelAttention(8, num_heads=2)
    mixer.qkv.register_forward_hook(lambda *_: called.append(1))
    mixer(torch.randn(1, 4, 4, 8))
    assert not called
    mixer(torch.randn(1, 2, 4, 8))
    assert called


@pytest.mark.parametrize("moments", [True, False])
def test_half_precision_keeps_the_scores(moments):
    torch.manual_seed(0)
    mixer = ChannelAttention(32, num_heads=4, moments=moments)
    x = 4 * torch.randn(2, 40, 40, 32)
    x = x.bfloat16().float()
    for parameter in mixer.parameters():
        parameter.data = parameter.data.bfloat16().float()
    expected = mixer(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert relative_error(mixer(x), expected) < 0.02
    assert relative_error(mixer.bfloat16()(x.bfloat16()), expected) < 0.02


@pytest.mark.parametrize(
    ("size", "moments", "dtype", "share"),
    [
        ((28, 28, 32), True, torch.float32, 0.3),
        ((28, 28, 32), True, torch.bfloat16, 0.3),
        ((14, 14, 96), None, torch.bfloat16, 0.55),
        ((14, 14, 96), False, torch.bfloat16, 1.05),
    ],
    ids=str,
)
def test_keeps_little_for_the_backward_pass(size, moments, dtype, share):
    """By moments the tokens and small matrices; in the plain form about what timm keeps, in half precision too."""
    dim = size[-1]
    modules = (
        davit.ChannelAttention(dim, dim // 16, qkv_bias=True),
        ChannelAttention(dim, num_heads=dim // 16, moments=moments),
    )
    x = torch.randn(2, *size, dtype=dtype)
    timm, ours = (saved_bytes(m.to(dtype), t) for m, t in zip(modules, (x.flatten(1, 2), x), strict=True))
    assert ours < share * timm


@pytest.mark.parametrize(
    ("build", "arguments", "message"),
    [
        (SpatialWindowAttention, {"num_heads": 3}, "num_heads must divide dim, got dim=8, num_heads=3"),
        (SpatialWindowAttention, {"window_size": (7, 0)}, r"window_size must be .*, at least 1, got \(7, 0\)"),
        (SpatialWindowAttention, {"pad_mask": "official"}, "pad_mask must be one of none, exact, got 'official'"),
        (ChannelAttention, {"num_heads": 5}, "num_heads=5"),
        (ChannelAttention, {"scale": "width"}, "scale must be one of dim, tokens, got 'width'"),
    ],
)
def test_bad_arguments(build, arguments, message):
    with pytest.raises(ValueError, match=message):
        build(8, **{"num_heads": 2} | arguments)
