"""Swin's window attention against recorded blocks, a literal formulation and timm's."""

import pytest
import torch
from timm.models.swin_transformer import WindowAttention as TimmWindowAttention
from torch import nn

from visionattn.mixers import WindowAttention
from visionattn.ops import partition_windows
from visionattn.reference.window import window_attention as naive_attention
from visionattn.testing.fixtures import check_module, load


class Block(nn.Module):
    """The unified Swin block of STM-Evaluation around the mixer, with the official names."""

    def __init__(self, dim, num_heads):
        super().__init__()
        self.gamma_1, self.gamma_2 = nn.Parameter(torch.empty(dim)), nn.Parameter(torch.empty(dim))
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn = WindowAttention(dim, num_heads=num_heads, shift_size=3)
        self.mlp = nn.Sequential()
        self.mlp.fc1, self.mlp.act, self.mlp.fc2 = nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim)

    def forward(self, x):
        x = x.permute(0, 2, 3, 1)
        x = x + self.gamma_1 * self.attn(self.norm1(x))
        x = x + self.gamma_2 * self.mlp(self.norm2(x))
        return x.permute(0, 3, 1, 2)


@pytest.mark.parametrize("name", ["2x64x14x14", "1x48x14x21", "1x48x7x14"])
def test_golden(name):
    golden = load(f"stm_swinblock_module_{name}_eval")
    constructor = golden.meta["constructor"]
    block = Block(constructor["channels"], constructor["heads"])
    block.load_state_dict(golden.state_dict)
    check_module(block, golden, 1e-5)


@pytest.mark.parametrize("mask", ["none", "exact"])
@pytest.mark.parametrize(
    ("size", "window", "shift"),
    [
        ((5, 7), (3, 3), (1, 1)),
        ((7, 6), (3, 3), (2, 2)),
        ((4, 6), (2, 3), (1, 0)),
        ((7, 4), (4, 3), (3, 2)),
        ((1, 5), (3, 3), (1, 1)),
        ((2, 3), (4, 4), (1, 2)),
        ((4, 4), (4, 4), (0, 0)),
    ],
    ids=str,
)
@pytest.mark.parametrize("batch", [1, 2])
def test_agrees_with_the_naive_formulation(size, window, shift, mask, batch):
    torch.manual_seed(0)
    module = WindowAttention(
        8, num_heads=2, window_size=window, shift_size=shift, pad_mask=mask, fit_window=False, dtype=torch.float64
    )
    nn.init.normal_(module.relative_position_bias_table)
    x = torch.randn(batch, *size, 8, dtype=torch.float64, requires_grad=True)
    table = module.relative_position_bias_table.view(2 * window[0] - 1, 2 * window[1] - 1, 2)
    expected = module.proj(
        naive_attention(
            x,
            module.qkv,
            2,
            window,
            shift,
            bias=lambda head, dy, dx: table[dy + window[0] - 1, dx + window[1] - 1, head],
            mask_padding=mask == "exact",
        )
    )
    actual = module(x)
    weight = torch.randn_like(expected)
    wanted = (x, *module.parameters())
    for grads in zip(
        torch.autograd.grad((expected * weight).sum(), wanted),
        torch.autograd.grad((actual * weight).sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(*reversed(grads), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shift", [0, 2])
def test_a_bias_that_does_not_learn_gives_the_same(shift):
    torch.manual_seed(0)
    module = WindowAttention(8, num_heads=2, window_size=4, shift_size=shift)
    nn.init.normal_(module.relative_position_bias_table)
    x = torch.randn(2, 7, 9, 8)
    learning = module(x)
    torch.testing.assert_close(module.requires_grad_(False)(x), learning)
    with torch.inference_mode():
        torch.testing.assert_close(module(x), learning)


def test_exact_mask_leaves_no_trace_of_padding():
    torch.manual_seed(0)
    module = WindowAttention(8, num_heads=2, window_size=4, pad_mask="exact", fit_window=False, rel_pos=False).double()
    corner = torch.randn(1, 3, 2, 8, dtype=torch.float64)
    alone = WindowAttention(8, num_heads=2, window_size=(3, 2), fit_window=False, rel_pos=False).double()
    alone.load_state_dict(module.state_dict())
    torch.testing.assert_close(module(corner), alone(corner))


@pytest.mark.parametrize("size", [(7, 7), (14, 21)], ids=str)
def test_agrees_with_timm(size):
    torch.manual_seed(0)
    timm, module = TimmWindowAttention(24, num_heads=3, window_size=7), WindowAttention(24, num_heads=3)
    nn.init.normal_(timm.relative_position_bias_table)
    module.load_state_dict({k: v for k, v in timm.state_dict().items() if k != "relative_position_index"})
    x = torch.randn(2, *size, 24)
    expected = timm(partition_windows(x, (7, 7)))
    torch.testing.assert_close(partition_windows(module(x), (7, 7)), expected, rtol=1e-5, atol=1e-5)


def test_fits_the_window_to_small_maps():
    module = WindowAttention(8, num_heads=2, window_size=7, shift_size=3)
    assert module.windows(14, 8) == ((7, 7), (3, 3))
    assert module.windows(7, 14) == ((7, 7), (0, 0))
    assert module.windows(5, 14) == ((5, 5), (0, 0))
    assert module.windows(14, 1) == ((1, 1), (0, 0))
    module = WindowAttention(8, num_heads=2, window_size=(7, 2), shift_size=(3, 1), fit_window=False)
    assert module.windows(1, 1) == ((7, 2), (3, 1))


def test_small_windows_read_the_middle_of_the_table():
    large, small = (WindowAttention(8, num_heads=2, window_size=side) for side in (7, 4))
    state = large.state_dict()
    state["relative_position_bias_table"] = (
        state["relative_position_bias_table"].view(13, 13, 2)[3:10, 3:10].flatten(0, 1)
    )
    small.load_state_dict(state)
    x = torch.randn(2, 4, 9, 8)
    torch.testing.assert_close(large(x), small(x))


def test_dropout_acts_in_training_only():
    module = WindowAttention(8, num_heads=2, window_size=4, attn_drop=0.5)
    x = torch.randn(2, 8, 8, 8)
    assert not module(x).equal(module(x))
    module.eval()
    assert module(x).equal(module(x))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_heads": 3}, "num_heads must divide dim, got dim=8, num_heads=3"),
        ({"window_size": 0}, r"window_size must be one integer or two \(height, width\), at least 1, got 0"),
        ({"window_size": (7, 7, 7)}, "window_size must be one integer or two"),
        ({"shift_size": 7}, "shift_size must be less than window_size=7, got 7"),
        ({"shift_size": (0, -1)}, "shift_size"),
        ({"pad_mask": "official"}, "pad_mask must be one of none, exact, got 'official'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        WindowAttention(8, **{"num_heads": 2} | arguments)
