"""Softmax attention against timm's, on maps and on tokens."""

from functools import partial

import pytest
import torch
from timm.layers import Attention

from visionattn.mixers import SoftmaxAttention

GRID = (3, 5)


@pytest.mark.parametrize("qk_norm", [False, True], ids=["plain", "normed"])
def test_equals_timms(qk_norm):
    torch.manual_seed(0)
    theirs = Attention(
        24, num_heads=3, qkv_bias=True, qk_norm=qk_norm, norm_layer=partial(torch.nn.LayerNorm, eps=1e-6)
    )
    ours = SoftmaxAttention(24, num_heads=3, qk_norm=qk_norm)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 15, 24)
    torch.testing.assert_close(ours(x.unflatten(1, GRID)).flatten(1, 2), theirs(x))
    tokens = torch.randn(2, 17, 24)
    torch.testing.assert_close(ours.forward_tokens(tokens, GRID, 2), theirs(tokens))


def test_weights_are_what_it_applies():
    torch.manual_seed(0)
    mixer = SoftmaxAttention(24, num_heads=3, qk_norm=True)
    x = torch.randn(2, *GRID, 24)
    weights = mixer.weights(x)
    assert weights.shape == (2, 3, 15, 15)
    torch.testing.assert_close(weights, mixer.weights(x.flatten(1, 2)))
    v = mixer.qkv(x.flatten(1, 2))[..., 48:].unflatten(-1, (3, 8)).transpose(1, 2)
    out = mixer.proj((weights @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(mixer(x).flatten(1, 2), out)


def test_scores_may_be_cosines_and_heads_of_any_width():
    torch.manual_seed(0)
    mixer = SoftmaxAttention(24, num_heads=2, head_dim=7, qk_norm="cosine")
    assert mixer.qkv.out_features == 3 * 14 and mixer.proj.in_features == 14
    with torch.no_grad():
        mixer.q_norm.logit_scale[1] = 9.0  # beyond the largest factor
    x = torch.randn(2, *GRID, 24, requires_grad=True)
    q, k, v = mixer.qkv(x.flatten(1, 2)).unflatten(-1, (3, 2, 7)).permute(2, 0, 3, 1, 4)
    cosines = torch.nn.functional.cosine_similarity(q.unsqueeze(3), k.unsqueeze(2), dim=-1)
    weights = (cosines * torch.tensor([10.0, 100.0]).view(2, 1, 1)).softmax(-1)
    torch.testing.assert_close(mixer.weights(x), weights, rtol=1e-4, atol=1e-5)
    out = mixer.proj((weights @ v).transpose(1, 2).flatten(2)).unflatten(1, GRID)
    torch.testing.assert_close(mixer(x), out, rtol=1e-4, atol=1e-5)
    mixer(x).square().sum().backward()
    assert mixer.q_norm.logit_scale.grad[0] != 0


def test_bad_arguments():
    with pytest.raises(ValueError, match="head_dim must be at least 1, got 0"):
        SoftmaxAttention(24, num_heads=5, head_dim=0)
    with pytest.raises(ValueError, match="qk_norm must be one of False, True, cosine, got 'l2'"):
        SoftmaxAttention(24, qk_norm="l2")
    with pytest.raises(ValueError, match="num_heads must divide dim, got dim=24, num_heads=5"):
        SoftmaxAttention(24, num_heads=5)
