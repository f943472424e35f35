"""Weights in eight bits and in four: small, close, and stable."""

import pytest
import torch

from visionattn.utils.quantization import BITS, SCALE, pack, unpack


@pytest.fixture
def weights():
    generator = torch.Generator().manual_seed(0)
    conv = torch.randn(32, 16, 3, 3, generator=generator) * torch.logspace(-6, 2, 32).view(-1, 1, 1, 1)
    return {
        "conv.weight": conv,
        "fc.weight": torch.randn(10, 64, generator=generator).half(),
        "silent.weight": torch.zeros(4, 9),
        "bn.running_var": torch.rand(32, generator=generator),
        "bn.num_batches_tracked": torch.tensor(7),
        "bias_table": torch.randn(49, 2, generator=generator),
        "index": torch.arange(64).view(8, 8),
    }


def test_what_is_small_or_no_weight_stays(weights):
    packed = pack(weights)
    for key in ("bn.running_var", "bn.num_batches_tracked", "bias_table", "index"):
        assert packed[key] is weights[key] and key + SCALE not in packed
    assert packed["conv.weight"].dtype == torch.int8 and packed["conv.weight"].shape == (32, 16, 3, 3)
    assert packed["conv.weight" + SCALE].shape == (32,)


def test_four_bits_are_half_as_many_bytes(weights):
    packed = pack(weights, 4)
    assert packed["conv.weight"].dtype == torch.uint8 and packed["conv.weight"].shape == (16, 16, 3, 3)
    weights["odd.weight"] = torch.linspace(-7, 7, 15).expand(5, 15).clone()
    packed = pack(weights, 4)
    assert packed["odd.weight"].shape == (3, 15) and packed["odd.weight" + SCALE].shape == (5,)
    assert torch.equal(unpack(packed)["odd.weight"], weights["odd.weight"]), "the sixteen levels are -7 to 7"


def test_four_bits_cut_off_what_costs_the_others_more(weights):
    loaded = unpack(pack(weights, 4))
    assert list(loaded) == list(weights)
    for key in ("conv.weight", "fc.weight"):
        rows = weights[key].float().flatten(1)
        steps = rows.abs().amax(1, keepdim=True) / 7
        plain = ((rows / steps).round() * steps - rows).square().sum(1)
        error = (loaded[key].flatten(1) - rows).square().sum(1)
        assert (error <= 1.001 * plain).all() and error.sum() < 0.9 * plain.sum()
    assert not loaded["silent.weight"].any()


def test_every_weight_is_within_half_a_step(weights):
    loaded = unpack(pack(weights))
    assert list(loaded) == list(weights)
    for key, value in loaded.items():
        assert value.shape == weights[key].shape and value.isfinite().all()
    for key in ("conv.weight", "fc.weight"):
        rows = weights[key].float().flatten(1)
        error = (loaded[key].flatten(1) - rows).abs().amax(1)
        assert (error <= 0.501 * rows.abs().amax(1) / 127).all()
    assert not loaded["silent.weight"].any()


@pytest.mark.parametrize("bits", BITS)
def test_packing_again_changes_nothing(weights, bits):
    packed = pack(weights, bits)
    again = pack(unpack(packed), bits)
    assert packed.keys() == again.keys()
    assert all(torch.equal(value, again[key]) for key, value in packed.items())


def test_others_pass_through(weights):
    assert unpack(weights) == weights


def test_what_is_not_finite_is_refused(weights):
    weights["fc.weight"][3, 5] = torch.inf
    with pytest.raises(ValueError, match=r"fc\.weight cannot be rounded to 8 bits"):
        pack(weights)
    with pytest.raises(ValueError, match="bits must be 4 or 8, got 6"):
        pack(weights, 6)
