"""Neural Attention against the official one, and its scores in groups of queries."""

import pytest
import torch

from visionattn.mixers import NeuralAttention, neural_attention
from visionattn.reference.neural_attention import naive_of
from visionattn.testing.contracts import perturbed
from visionattn.testing.fixtures import check_module, load, relative_error


class Tokens(torch.nn.Module):
    def __init__(self, mixer):
        super().__init__()
        self.mixer = mixer

    def forward(self, x):
        return self.mixer.forward_tokens(x, (1, x.shape[1]))


@pytest.mark.parametrize("name", ["1x49x128_p2", "2x70x64_p4"])
def test_golden(name):
    golden = load(f"neuralattention_module_{name}_eval")
    words = golden.meta["constructor"]
    given = {} if name.endswith("p2") else {"projection_dim": words["projection_dim"]}  # 2 is the default there
    mixer = NeuralAttention(words["dim"], num_heads=words["heads"], **given)
    mixer.load_state_dict(NeuralAttention.to_native(golden.state_dict, words["heads"]))
    check_module(Tokens(mixer), golden, 1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_groups_of_queries_change_nothing(causal, monkeypatch):
    torch.manual_seed(0)
    mixer = perturbed(NeuralAttention(12, num_heads=3, projection_dim=4, causal=causal)).double()
    x = torch.randn(2, 4, 5, 12, dtype=torch.float64, requires_grad=True)
    expected = naive_of(mixer)(x)
    weight = torch.randn_like(expected)
    gradient = torch.autograd.grad(expected, x, weight)[0]
    whole = mixer.weights(x)
    monkeypatch.setattr(neural_attention, "_HELD", 7 * 2 * 3 * 20 * 4)  # seven queries
    out = mixer(x)
    assert relative_error(out, expected) < 1e-9
    assert relative_error(torch.autograd.grad(out, x, weight)[0], gradient) < 1e-9
    torch.testing.assert_close(mixer.weights(x), whole)


def test_weights_sum_to_one_and_make_the_map():
    mixer = perturbed(NeuralAttention(8, num_heads=2, causal=True))
    x = torch.randn(2, 3, 4, 8)
    rows = mixer.weights(x)
    assert rows.shape == (2, 2, 12, 12) and not rows.triu(1).any()
    torch.testing.assert_close(rows.sum(-1), torch.ones(2, 2, 12))
    values = mixer.qkv(x.flatten(1, 2)).chunk(3, -1)[2].unflatten(-1, (2, -1)).transpose(1, 2)
    torch.testing.assert_close(mixer.proj((rows @ values).transpose(1, 2).flatten(2)).view(x.shape), mixer(x))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_heads": 3}, "dim=8, num_heads=3"),
        ({"projection_dim": 1}, "projection_dim must be at least 2, got 1"),
    ],
)
def test_bad_arguments(given, message):
    with pytest.raises(ValueError, match=message):
        NeuralAttention(8, **given)
