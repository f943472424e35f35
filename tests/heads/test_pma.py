"""Pooling by learnt seeds against the official code's recorded results, and in timm's vision transformers."""

import pytest
import timm
import torch

from visionattn.heads import PMAPool
from visionattn.reference.set_transformer import naive_of
from visionattn.testing.contracts import perturbed
from visionattn.testing.fixtures import check_module, load, relative_error


def test_golden():
    golden = load("settransformer_pma_2x70x48_eval")
    pool = PMAPool(48, num_heads=4, num_seeds=4)
    pool.load_state_dict(golden.state_dict)
    check_module(torch.nn.Sequential(pool, torch.nn.Unflatten(1, (4, 48))), golden, 1e-5)
    assert pool.out_features == 4 * 48


@pytest.mark.parametrize("keywords", [{}, {"num_seeds": 3, "norm": True}, {"rff": True}], ids=str)
def test_agrees_with_the_formula(keywords):
    pool = perturbed(PMAPool(12, num_heads=3, **keywords)).double()
    x = torch.randn(2, 7, 12, dtype=torch.float64, requires_grad=True)
    results = []
    for one in (pool, naive_of(pool)):
        out = one(x)
        gradients = torch.autograd.grad(out.square().sum(), (x, *one.parameters()))
        results.append((out, *gradients))
    for ours, literal in zip(*results, strict=True):
        torch.testing.assert_close(ours, literal, rtol=1e-9, atol=1e-9)


def test_order_and_hidden_tokens_do_not_matter():
    pool, x = perturbed(PMAPool(8, num_heads=2, num_seeds=2)), torch.randn(3, 6, 8)
    assert relative_error(pool(x[:, [3, 1, 5, 0, 2, 4]]), pool(x)) < 1e-5
    mask = torch.arange(6).expand(3, -1) < 4
    assert relative_error(pool(x, attn_mask=mask), pool(x[:, :4])) < 1e-5
    weights = pool.weights(x)
    assert weights.shape == (3, 2, 2, 6)
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 2, 2))


def test_stands_in_for_timms_attention_pooling():
    model = timm.create_model("vit_tiny_patch16_224", global_pool="map", class_token=False, num_classes=5, depth=2)
    model.attn_pool = PMAPool(model.embed_dim, num_heads=3)
    out = model(torch.randn(2, 3, 224, 224))
    assert out.shape == (2, 5)
    out.sum().backward()
    assert model.attn_pool.S.grad is not None


@pytest.mark.parametrize(
    ("keywords", "message"),
    [({"num_heads": 5}, "num_heads"), ({"num_seeds": 0}, "num_seeds must be at least 1, got 0")],
)
def test_bad_arguments(keywords, message):
    with pytest.raises(ValueError, match=message):
        PMAPool(12, **keywords)


def test_bad_inputs():
    pool = PMAPool(12, num_heads=3)
    for shape in ((2, 12), (2, 3, 4, 12), (2, 5, 8), (2, 0, 12)):
        with pytest.raises(ValueError, match=r"x must be \(B, tokens, 12\), at least one token, got "):
            pool(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"attn_mask must be bool \(2, 5\), got torch.float32 \(2, 5\)"):
        pool(torch.zeros(2, 5, 12), torch.ones(2, 5))
