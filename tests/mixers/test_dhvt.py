"""Head-interacted attention against the official one, and what head tokens do."""

import pytest
import torch

from visionattn.mixers import HeadInteractionAttention
from visionattn.reference.dhvt import head_interaction_attention
from visionattn.testing.contracts import perturbed
from visionattn.testing.fixtures import check_module, load, relative_error


class Tokens(torch.nn.Module):
    """Attention of tokens, the class token first."""

    def __init__(self, mixer, grid):
        super().__init__()
        self.mixer = mixer
        self.grid = grid

    def forward(self, x):
        return self.mixer.forward_tokens(x, self.grid, prefix=1)


def test_golden():
    golden = load("dhvt_hiattn_module_2x50x64_eval")
    mixer = HeadInteractionAttention(64, num_heads=4)
    mixer.load_state_dict(golden.state_dict)
    check_module(Tokens(mixer, (7, 7)), golden, 1e-5)


@pytest.mark.parametrize("prefix", [0, 1, 3])
def test_agrees_with_the_formula(prefix):
    torch.manual_seed(0)
    mixer = perturbed(HeadInteractionAttention(12, num_heads=3)).double()
    x = torch.randn(2, prefix + 15, 12, dtype=torch.float64, requires_grad=True)
    weight, results = torch.randn_like(x), []
    for out in (mixer.forward_tokens(x, (3, 5), prefix), head_interaction_attention(mixer, x, prefix)):
        results.append((out, *torch.autograd.grad(out, x, weight)))
    for ours, theirs in zip(*results, strict=True):
        assert relative_error(ours, theirs) < 1e-9


def test_weights_and_head_tokens_make_the_map():
    mixer = perturbed(HeadInteractionAttention(12, num_heads=3)).double()
    x = torch.randn(2, 4, 5, 12, dtype=torch.float64)
    weights, tokens = mixer.weights(x), x.flatten(1, 2)
    assert weights.shape == (2, 3, 20, 20) and (weights.sum(-1) < 1).all()
    torch.testing.assert_close(weights, mixer.weights(tokens))
    heads = mixer.head_tokens(tokens)
    joint = torch.cat([tokens, heads], 1)
    q, k, v = mixer.qkv(joint).unflatten(-1, (3, 3, 4)).permute(2, 0, 3, 1, 4)
    rows = (q[:, :, :20] @ k.mT / 2).softmax(-1)
    torch.testing.assert_close(rows[..., :20], weights)
    out = mixer.proj((weights @ v[:, :, :20] + rows[..., 20:] @ v[:, :, 20:]).transpose(1, 2).flatten(2))
    torch.testing.assert_close(out.view(x.shape), mixer(x))


def test_only_the_class_token_gets_what_the_heads_saw():
    mixer = perturbed(HeadInteractionAttention(8, num_heads=2)).double()
    x = torch.randn(2, 7, 8, dtype=torch.float64)
    with_class, without = mixer.forward_tokens(x, (2, 3), prefix=1), mixer.forward_tokens(x, (1, 7))
    torch.testing.assert_close(with_class[:, 1:], without[:, 1:])
    assert not torch.allclose(with_class[:, 0], without[:, 0])


def test_bad_arguments():
    with pytest.raises(ValueError, match="dim=8, num_heads=3"):
        HeadInteractionAttention(8, num_heads=3)
