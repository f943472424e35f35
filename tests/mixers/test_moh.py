"""Mixtures of heads against the official code's recorded outputs, gradients and loss of balance."""

from functools import partial

import pytest
import torch
from torch import nn

from visionattn.mixers import (
    MixtureOfHeadAggregatedAttention,
    MixtureOfHeadAttention,
    SoftmaxAttention,
    moh_aggregated,
)
from visionattn.ops.losses import collect_losses
from visionattn.ops.query_tiles import CACHED, in_tiles
from visionattn.reference.moh import naive_of
from visionattn.testing.contracts import perturbed
from visionattn.testing.fixtures import check_module, load, relative_error

ATTENTION = ["7x10x64_b1_s0_r4_of8", "7x10x64_b1_s2_r4_of8", "7x7x96_b2_s4_r6_of12", "7x7x64_b1_s1_r4_of8"]
ATTENTION += ["7x7x64_b1_s8_r0_of8"]
AGGREGATED = ["14x10x64_b1_sr2_s2_r4_of8", "14x14x96_b2_sr2_s3_r6_of12", "8x12x48_b1_sr4_s3_r0_of3"]


class Tokens(nn.Module):
    """Runs a mixer on tokens `(B, N, C)`, as the official modules are."""

    def __init__(self, mixer, grid):
        super().__init__()
        self.mixer = mixer
        self.grid = tuple(grid)

    def forward(self, x):
        return self.mixer(x.unflatten(1, self.grid)).flatten(1, 2)


def official(golden, kind, **kwargs):
    facts = golden.meta["constructor"]
    mixer = kind(
        facts["dim"],
        num_heads=facts["heads"],
        shared_heads=facts["shared"],
        routed_heads=facts["routed"],
        **kwargs,
    )
    mixer.load_state_dict(golden.state_dict)
    return Tokens(mixer, facts["grid"])


@pytest.mark.parametrize("name", ATTENTION)
def test_golden(name):
    golden = load(f"moh_attn_module_{name}_eval")
    check_module(official(golden, MixtureOfHeadAttention, cosine=True), golden, 1e-5)


@pytest.mark.parametrize("name", AGGREGATED)
def test_golden_of_the_aggregated_form(name):
    golden = load(f"moh_aggattn_module_{name}_eval")
    sr_ratio = golden.meta["constructor"]["sr"]
    check_module(official(golden, MixtureOfHeadAggregatedAttention, sr_ratio=sr_ratio), golden, 1e-5)


def test_golden_loss_of_balance():
    golden = load("moh_attn_module_7x10x64_b1_s2_r4_of8_train")
    module = official(golden, MixtureOfHeadAttention, cosine=True, balance_weight=1.0).train()
    with collect_losses() as losses:
        out = module(golden.input)
    assert relative_error(out, golden.arrays["out_0"]) < 1e-5
    assert relative_error(losses["balance"][0].view(1), golden.arrays["out_2"]) < 1e-5
    weighted = official(golden, MixtureOfHeadAttention, cosine=True).train()
    with collect_losses() as losses:
        weighted(golden.input)
    assert relative_error(losses["balance"][0].view(1), 0.01 * golden.arrays["out_2"]) < 1e-5


@pytest.mark.parametrize("held", [0, 500, CACHED], ids=["one row", "some", "all"])
@pytest.mark.parametrize(("grid", "sr_ratio"), [((7, 10), 4), ((5, 9), 2), ((3, 3), 8), ((1, 6), 2)])
def test_maps_that_the_official_code_refuses(grid, sr_ratio, held, monkeypatch):
    """Cells of unequal size, and a nominal map of another one."""
    monkeypatch.setattr(moh_aggregated, "in_tiles", partial(in_tiles, held=held, kept=0))
    torch.manual_seed(0)
    keywords = {"num_heads": 4, "shared_heads": 1, "routed_heads": 2, "sr_ratio": sr_ratio, "grid_size": (9, 14)}
    module = perturbed(MixtureOfHeadAggregatedAttention(16, **keywords)).double()
    x = torch.randn(2, *grid, 16, dtype=torch.float64, requires_grad=True)
    results = []
    for one in (module, naive_of(module)):
        out = one(x)
        results.append((out, *torch.autograd.grad(out.square().sum(), x)))
    for ours, theirs in zip(*results, strict=True):
        assert relative_error(ours, theirs) < 1e-9


def test_even_routing_costs_the_number_of_routed_heads():
    module = MixtureOfHeadAttention(24, num_heads=6, shared_heads=1, routed_heads=5, balance_weight=1.0).train()
    nn.init.zeros_(module.wg.weight)
    with collect_losses() as losses:
        module(torch.randn(2, 3, 3, 24))
    torch.testing.assert_close(losses["balance"][0].item(), 5.0)


def test_a_token_hears_its_heads_only():
    torch.manual_seed(0)
    module = perturbed(MixtureOfHeadAttention(32, num_heads=8, shared_heads=2, routed_heads=3))
    gates = module.head_gates(torch.randn(2, 20, 32))
    assert ((gates[..., :2] > 0).all()) and ((gates[..., 2:] > 0).sum(-1) == 3).all()
    # Two stages: shares within each kind, and a share of each kind.
    torch.testing.assert_close(gates[..., :2].sum(-1) / 2 + gates[..., 2:].sum(-1) / 3, torch.full((2, 20), 2.0))


def test_softmax_attention_is_what_it_starts_from():
    """With all heads for all tokens and even weights nothing is mixed; the projections are those of softmax."""
    torch.manual_seed(0)
    plain = SoftmaxAttention(12, num_heads=3)
    mixed = MixtureOfHeadAttention(12, num_heads=3, shared_heads=3, routed_heads=0)
    mixed.load_state_dict({**plain.state_dict(), "wg_1.weight": torch.zeros(3, 12)})
    x = torch.randn(2, 4, 5, 12)
    torch.testing.assert_close(mixed(x), plain(x))


@pytest.mark.parametrize("cosine", [False, True])
def test_weights_are_what_it_applies(cosine):
    torch.manual_seed(0)
    module = perturbed(MixtureOfHeadAttention(16, num_heads=4, cosine=cosine)).double().eval()
    x = torch.randn(2, 3, 5, 16, dtype=torch.float64)
    v = module.qkv(x).flatten(1, 2).chunk(3, dim=-1)[2].unflatten(-1, (4, -1)).transpose(1, 2)
    expected = module.proj((module.weights(x) @ v).transpose(1, 2).flatten(2)).view(x.shape)
    assert relative_error(module(x), expected) < 1e-10


@pytest.mark.parametrize("grid", [(6, 4), (5, 7)])
def test_weights_of_the_aggregated_form(grid):
    """What it applies, where what is pooled is the mean of the positions: values without norm and activation."""
    torch.manual_seed(0)
    module = perturbed(MixtureOfHeadAggregatedAttention(16, num_heads=4, sr_ratio=2)).double().eval()
    x = torch.randn(2, *grid, 16, dtype=torch.float64)
    seen = []
    module.proj.register_forward_pre_hook(lambda proj, args: seen.append(args[0]))
    attend = module._attend
    v = module.kv(x)[..., 16:]
    heads = v.flatten(1, 2).unflatten(2, (4, -1)).transpose(1, 2)
    pooled = nn.functional.adaptive_avg_pool2d(v.permute(0, 3, 1, 2), module._cells(grid)).flatten(2).mT
    pooled = pooled.unflatten(2, (4, -1)).transpose(1, 2)

    weights = module.weights(x)
    module._attend = lambda x: attend(x, pooled)
    module(x)
    expected = (weights @ heads).transpose(1, 2).flatten(2)
    assert relative_error(seen[0].flatten(1, 2), expected) < 1e-10


@pytest.mark.parametrize("cosine", [False, True])
def test_extra_tokens_take_part(cosine):
    torch.manual_seed(0)
    module = MixtureOfHeadAttention(16, num_heads=4, cosine=cosine)
    tokens = torch.randn(2, 1 + 6, 16)
    out, without = module.forward_tokens(tokens, (2, 3), prefix=1), module.forward_tokens(tokens[:, 1:], (2, 3))
    assert out.shape == tokens.shape and not torch.allclose(out[:, 1:], without)
    torch.testing.assert_close(without, module(tokens[:, 1:].unflatten(1, (2, 3))).flatten(1, 2))


@pytest.mark.parametrize("kind", [MixtureOfHeadAttention, MixtureOfHeadAggregatedAttention])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_heads": 5}, "num_heads must divide dim, got dim=24, num_heads=5"),
        ({"num_heads": 4, "shared_heads": 5}, "shared_heads must be 0 to num_heads, got .*shared_heads=5"),
        ({"num_heads": 4, "shared_heads": -1}, "shared_heads must be 0 to num_heads, got .*shared_heads=-1"),
        ({"num_heads": 4, "shared_heads": 2, "routed_heads": 3}, r"0 to num_heads - shared_heads, .*routed_heads=3"),
        ({"num_heads": 4, "shared_heads": 2, "routed_heads": 0}, "routed_heads=0 needs all heads shared"),
        ({"num_heads": 1, "shared_heads": 1, "routed_heads": 0}, "routed_heads=0 needs all heads shared, and at least"),
        ({"num_heads": 4, "balance_weight": -1.0}, r"balance_weight must be at least 0, got -1\.0"),
    ],
)
def test_bad_arguments(kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        kind(24, **arguments)


def test_bad_sizes():
    with pytest.raises(ValueError, match="grid_size is for cosine=True, got grid_size=7"):
        MixtureOfHeadAttention(24, num_heads=4, grid_size=7)
    with pytest.raises(ValueError, match="window_size must be a positive odd number, got 2"):
        MixtureOfHeadAggregatedAttention(24, num_heads=4, window_size=2)
    with pytest.raises(ValueError, match="sr_ratio must be at least 1, got 0"):
        MixtureOfHeadAggregatedAttention(24, num_heads=4, sr_ratio=0)
