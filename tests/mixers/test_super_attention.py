"""Efficient and Optimised attention against an independent implementation."""

import pytest
import torch

from visionattn.mixers import KeyValueFreeAttention
from visionattn.testing.contracts import perturbed
from visionattn.testing.fixtures import load, normal, relative_error


@pytest.mark.parametrize("name", ["optimisedattn", "kvfreeattn"])
def test_golden(name):
    golden = load(f"{name}_module_2x50x48_h3_eval")
    seed = golden.meta["input_seed"]
    mixer = KeyValueFreeAttention(48, num_heads=3, bias=False, key_proj=golden.meta["constructor"]["key_proj"])
    mixer.load_state_dict(golden.state_dict)
    x = golden.input.requires_grad_()
    out = mixer.forward_tokens(x, (5, 10))
    assert relative_error(out, golden.arrays["out_0"]) < 1e-5
    (gradient,) = torch.autograd.grad((out * normal(seed + 1, out.shape)).sum(), x)
    slope = (gradient * normal(seed + 2, x.shape)).sum().item()
    assert slope == pytest.approx(golden.meta["control"]["directional_derivative"], rel=1e-4)


@pytest.mark.parametrize("key_proj", [False, True])
def test_weights_make_the_map(key_proj):
    mixer = perturbed(KeyValueFreeAttention(12, num_heads=3, key_proj=key_proj))
    x = torch.randn(2, 3, 4, 12)
    rows, values = mixer.weights(x), x.flatten(1, 2).unflatten(-1, (3, -1)).transpose(1, 2)
    assert rows.shape == (2, 3, 12, 12)
    torch.testing.assert_close(mixer.wo((rows @ values).transpose(1, 2).flatten(2)).view(x.shape), mixer(x))


def test_bad_arguments():
    with pytest.raises(ValueError, match="dim=8, num_heads=3"):
        KeyValueFreeAttention(8, num_heads=3)
