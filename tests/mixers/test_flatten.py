"""Focused linear attention against the official code's recorded outputs and gradients, in each of its hosts."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from visionattn.mixers import FocusedLinearAttention
from visionattn.reference.flatten import naive_of
from visionattn.testing.fixtures import check_module, load, relative_error

HOSTS = [
    "swinhost_module_2x14x14x64",
    "swinhost_module_1x9x9x96",
    "pvthost_module_2x14x14x64_sr1",
    "pvthost_module_1x10x7x96_sr1",
    "pvthost_module_2x14x14x64_sr2",
    "pvtv2host_module_2x14x14x64_sr1",
    "pvtv2host_module_1x10x7x96_sr1",
    "pvtv2host_module_2x14x14x64_sr2",
]


class Tokens(nn.Module):
    """Hands tokens `(..., N, C)` on as maps, as the official modules see them."""

    def __init__(self, function, size):
        super().__init__()
        self.function = function
        self.size = size

    def forward(self, x):
        return self.function(x.unflatten(-2, self.size)).flatten(1, 2)


@pytest.mark.parametrize("name", HOSTS)
def test_golden(name):
    golden = load(f"flatten_{name}_eval")
    official = golden.meta["constructor"]
    size = official["H"], official["W"]
    mixer = FocusedLinearAttention(
        official["dim"],
        num_heads=official["heads"],
        grid_size=size,
        sr_ratio=official.get("sr", 1),
        legacy_interpolation=True,
    )
    mixer.load_state_dict(mixer.to_native(golden.state_dict))
    check_module(Tokens(mixer, size), golden, 1e-5)


@pytest.mark.parametrize("name", ["3x2x196x64", "3x1x81x96"])
def test_golden_of_cswin_between_the_projections(name):
    golden = load(f"flatten_cswinhost_module_{name}_eval")
    official = golden.meta["constructor"]
    size = official["H"], official["W"]
    mixer = FocusedLinearAttention(official["dim"], num_heads=official["heads"], grid_size=size, lepe=True)
    loaded = mixer.load_state_dict(golden.state_dict, strict=False)
    assert not loaded.unexpected_keys and {key.split(".")[0] for key in loaded.missing_keys} == {"qkv", "proj"}
    check_module(Tokens(lambda qkv: mixer.attend(*qkv), size), golden, 1e-5)


def test_golden_of_a_cswin_block():
    golden = load("flatten_cswinblock_module_2x196x64_eval")
    weights = FocusedLinearAttention.to_native(golden.state_dict)
    norms = {key: weights.pop(key) for key in list(weights) if key.startswith(("norm", "mlp"))}
    mixer = FocusedLinearAttention(64, num_heads=4, grid_size=14, lepe=True)
    mixer.load_state_dict(weights)

    def block(x):
        x = x + mixer(F.layer_norm(x, (64,), norms["norm1.weight"], norms["norm1.bias"]))
        hidden = F.layer_norm(x, (64,), norms["norm2.weight"], norms["norm2.bias"])
        hidden = F.gelu(F.linear(hidden, norms["mlp.fc1.weight"], norms["mlp.fc1.bias"]))
        return x + F.linear(hidden, norms["mlp.fc2.weight"], norms["mlp.fc2.bias"])

    check_module(Tokens(block, (14, 14)), golden, 1e-5)


def randomised(dim=24, **kwargs):
    torch.manual_seed(0)
    mixer = FocusedLinearAttention(dim, **{"num_heads": 3, "grid_size": (6, 5), **kwargs})
    for parameter in (mixer.scale, mixer.positional_encoding):
        if parameter is not None:
            nn.init.normal_(parameter)
    return mixer


@pytest.mark.parametrize("dim, heads, size", [(24, 3, (6, 5)), (16, 1, (13, 1)), (64, 2, (1, 1)), (32, 4, (2, 3))])
def test_agrees_with_the_naive_formulation(dim, heads, size):
    mixer = randomised(dim, num_heads=heads, grid_size=size).double()
    naive = naive_of(mixer).double()
    results = []
    for block in (naive, mixer):
        x = torch.randn(3, *size, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
        out = block(x)
        (out * torch.linspace(0, 1, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
        results.append([out, x.grad, *(dict(block.named_parameters())[key].grad for key in naive.state_dict())])
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


VARIANTS = {
    "plain": {},
    "no encoding": {"grid_size": None},
    "no bias": {"qkv_bias": False},
    "lepe": {"lepe": True},
    "windows": {"window_size": (4, 3), "grid_size": (4, 3)},
    "reduced": {"sr_ratio": 2},
    "reduced as officially": {"sr_ratio": 4, "legacy_interpolation": True},
    "pooled": {"pool_size": 7},
}
# What the contract of all mixers does not reach.
TRACED = ["lepe", "windows", "reduced", "reduced as officially", "pooled"]


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 2), (6, 5), (13, 11)], ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_takes_any_map(variant, size):
    mixer = randomised(**VARIANTS[variant])
    x = torch.randn(1, *size, 24, requires_grad=True)
    out = mixer(x)
    assert out.shape == x.shape and out.isfinite().all()
    out.square().sum().backward()
    assert x.grad.isfinite().all()
    assert not [key for key, p in mixer.named_parameters() if p.grad is None]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_half_precision_takes_large_inputs(variant, dtype):
    mixer = randomised(**VARIANTS[variant]).to(dtype)
    x = (200 * torch.randn(2, 12, 10, 24)).to(dtype).requires_grad_()
    out = mixer(x)
    out.float().mean().backward()
    assert out.dtype == dtype and out.isfinite().all() and x.grad.isfinite().all()


def test_encoding_is_interpolated_as_a_map():
    mixer = randomised(grid_size=(4, 6))
    stored = mixer.positional_encoding.detach()
    resized = FocusedLinearAttention(24, num_heads=3, grid_size=(8, 9))
    weights = mixer.state_dict()
    encoding = F.interpolate(stored.unflatten(1, (4, 6)).permute(0, 3, 1, 2), (8, 9), mode="bicubic")
    weights["positional_encoding"] = encoding.flatten(2).mT
    resized.load_state_dict(weights)
    x = torch.randn(2, 8, 9, 24)
    assert relative_error(mixer(x), resized(x)) < 1e-6


def test_windows_attend_by_themselves():
    mixer = randomised(window_size=(4, 3), grid_size=(4, 3))
    x = torch.randn(2, 8, 9, 24)
    out = mixer(x)
    torch.testing.assert_close(out[:, 4:, 3:6], mixer(x[:, 4:, 3:6]))
    mixer.window_size = None
    torch.testing.assert_close(out[:, :4, 6:], mixer(x[:, :4, 6:]))


def test_nothing_beyond_the_map_is_attended_to():
    mixer = randomised(window_size=(4, 4), grid_size=(4, 4))
    x = torch.randn(2, 7, 4, 24)
    with torch.no_grad():
        mixer.qkv.bias.add_(1)  # no query that meets keys at right angles, whose weights are all next to nothing
        out = mixer(x)[:, 4:]
        mixer.window_size, grid = None, mixer.positional_encoding.unflatten(1, (4, 4))
        mixer.grid_size, mixer.positional_encoding = (3, 4), nn.Parameter(grid[:, :3].flatten(1, 2))
        assert relative_error(out, mixer(x[:, 4:])) < 1e-4


def test_small_maps_are_pooled_and_reduced_to_nominal_grids():
    assert FocusedLinearAttention(8, num_heads=1, grid_size=(12, 8), sr_ratio=4).positional_encoding.size(1) == 6
    assert FocusedLinearAttention(8, num_heads=1, grid_size=3, sr_ratio=4).positional_encoding.size(1) == 1
    assert FocusedLinearAttention(8, num_heads=1, grid_size=56, pool_size=7).positional_encoding.size(1) == 49


def test_official_weights_under_a_prefix():
    weights = {f"b.0.attn.{key}": torch.full((n, 2), float(n)) for key, n in {"q.weight": 2, "kv.weight": 4}.items()}
    native = FocusedLinearAttention.to_native(weights | {"head.q.weight": torch.zeros(1)}, "b.0.attn.")
    assert set(native) == {"b.0.attn.qkv.weight", "head.q.weight"}
    assert native["b.0.attn.qkv.weight"].flatten().tolist() == [2.0] * 4 + [4.0] * 8
    native = FocusedLinearAttention.to_native({"b.1.attns.0.scale": 1, "b.11.attns.0.scale": 2}, "b.1.")
    assert native == {"b.1.scale": 1, "b.11.attns.0.scale": 2}


def test_starts_as_the_paper_does():
    mixer = FocusedLinearAttention(24, num_heads=3, grid_size=4)
    assert not mixer.scale.any() and not mixer.positional_encoding.any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 10, "num_heads": 3}, "dim=10, num_heads=3"),
        ({"num_heads": 0}, "num_heads=0"),
        ({"focusing_factor": 2.5}, "focusing_factor must be an integer of at least 1, got 2.5"),
        ({"focusing_factor": 0}, "got 0"),
        ({"kernel_size": 4}, "kernel_size must be odd and at least 1"),
        ({"kernel_size": 1, "lepe": True}, "at least 3"),
        ({"sr_ratio": 0}, "sr_ratio"),
        ({"pool_size": 0}, "pool_size"),
        ({"sr_ratio": 2, "pool_size": 7}, "only one of"),
        ({"sr_ratio": 2, "window_size": 7}, "only one of"),
        ({"window_size": (7, 0)}, "window_size"),
        ({"grid_size": (7, 7, 7)}, "grid_size"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        FocusedLinearAttention(**{"dim": 24, "num_heads": 3, **arguments})


def test_unknown_keywords_are_refused():
    with pytest.raises(TypeError, match="nonsense"):
        FocusedLinearAttention(24, nonsense=1)
