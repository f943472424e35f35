"""Probabilistic attention against the official code's recorded results, and what its steps promise."""

from itertools import pairwise

import pytest
import timm
import torch

from visionattn.mixers import ProbabilisticAttention, SoftmaxAttention, replace_attention
from visionattn.ops import mixture_attention
from visionattn.reference.probabilistic import mixture, naive_of, probabilistic
from visionattn.testing.contracts import perturbed
from visionattn.testing.fixtures import filled, load, normal, relative_error


def _ours(q, zeta, mu, alpha, beta, **options):
    """Our operator, called as the official layer: tokens last."""
    magnitude = "both" if options.pop("magnitude_priors", False) else "none"
    positions = options.pop("positions", (None, None, None))
    q_pos, k_pos, v_pos = (None if p is None else p.permute(1, 2, 0) for p in positions)
    k_pos = None if k_pos is None else k_pos.transpose(0, 1)
    pi, fixed, start = options.pop("pi", None), options.pop("fixed", None), options.pop("start", None)
    if pi is not None:
        magnitude, options["bias"] = "none", pi.log()
    if fixed is not None:
        options["values"], options["known"] = fixed[:, :, :-1].mT, fixed[:, :, -1]
    options["start"] = None if start is None else start.mT
    out = mixture_attention(
        q.mT, zeta.mT, mu.mT, alpha, beta, magnitude=magnitude, q_pos=q_pos, k_pos=k_pos, v_pos=v_pos, **options
    ).mT
    if v_pos is None:
        return out
    return torch.stack(out.chunk(2, 2), 3).flatten(2, 3)


def _arguments(golden, x):
    """What the official layer was called with."""
    made = golden.meta["constructor"]
    width, parts = made["channels"], x.unflatten(1, (made["groups"], -1))
    q, zeta, mu = parts[:, :, :width], parts[:, :, width : 2 * width], parts[:, :, 2 * width : 3 * width]
    rest = parts[:, :, 3 * width :]
    options = {"magnitude_priors": made.get("magnitude_priors", False)}
    alpha, beta = made.get("alpha"), made.get("beta")
    if alpha is None:
        alpha, beta = (0.3 * rest[:, :, 0]).exp() / width**0.5, (0.3 * rest[:, :, 1]).exp()
        options["start"] = rest[:, :, 2:]
    if "embedding_scale" in made:
        options["positions"] = tuple(
            made["embedding_scale"] * torch.from_numpy(filled(key, shape)) for key, shape, _ in golden.meta["keys"]
        )
    if made.get("key_adaptation"):
        options["key_iters"], options["key_prior"] = made["key_adaptation_iters"], made["zeta_prior_precision"]
    if "value_belief_propagation_iters" in made:
        known = (rest[:, :, -1:] > 1).float()
        options["fixed"] = torch.cat([rest[:, :, :-1] * known, known], 2)
        options["value_iters"] = made["value_belief_propagation_iters"]
        options["value_prior"] = made["mu_prior_precision"]
    return (q, zeta, mu, alpha, beta), options


@pytest.mark.parametrize("layer", [_ours, mixture])
@pytest.mark.parametrize(
    "name", ["dotproduct_2x49_g2_c16", "precisions_1x64_g2_c16", "adapt_1x49_g2_c16", "positions_1x49_g2_c16"]
)
def test_golden(name, layer):
    golden = load(f"probattn_{name}_eval")
    x = golden.input.requires_grad_()
    arguments, options = _arguments(golden, x)
    out = layer(*arguments, **options)
    (out * normal(golden.meta["input_seed"] + 1, out.shape)).sum().backward()
    assert relative_error(out, golden.arrays["out_0"]) < 1e-5
    assert relative_error(x.grad, golden.arrays["grad_x"]) < 1e-5


@pytest.mark.parametrize("start", [False, True])
@pytest.mark.parametrize("prior", ["none", "magnitude", "pi"])
@pytest.mark.parametrize("places", [(), (0,), (1,), (2,), (0, 1, 2)], ids=str)
@pytest.mark.parametrize("theta", [None, 0.6])
def test_every_option_agrees_with_the_squared_distances(start, prior, places, theta):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    q, zeta, mu = (draw(2, 2, 3, 7).requires_grad_() for _ in range(3))
    known = (draw(2, 1, 1, 7) > 0).double().expand(-1, 2, -1, -1)
    options = {
        "magnitude_priors": prior == "magnitude",
        "pi": draw(2, 2, 7, 7).softmax(-1) if prior == "pi" else None,
        "start": draw(2, 2, 3, 7) if start else None,
        "mask": (draw(7, 7) > -1).double() + torch.eye(7, dtype=torch.float64),
        "positions": tuple(draw(3, 7, 7) if part in places else None for part in range(3)),
        "key_iters": 2,
        "key_prior": theta,
        "fixed": torch.cat([draw(2, 2, 3, 7) * known, known], 2),
        "value_iters": 2,
        "value_prior": theta,
    }
    for alpha, beta in ((0.4, 0.7), (draw(2, 2, 7).tanh().exp(), draw(2, 2, 7).tanh().exp())):
        results = []
        for layer in (_ours, mixture):
            out = layer(q, zeta, mu, alpha, beta, **options)
            results.append((out, *torch.autograd.grad(out.square().sum(), (q, zeta, mu), materialize_grads=True)))
        for ours, theirs in zip(*results, strict=True):
            assert (ours - theirs).abs().max() <= 1e-7 * theirs.abs().max()


@pytest.mark.parametrize("learn_precision", [False, True])
@pytest.mark.parametrize("theta", [None, 2.0])
def test_agrees_with_the_literal_form_with_known_values(theta, learn_precision):
    module = perturbed(
        ProbabilisticAttention(
            12, num_heads=3, key_iters=2, theta=theta, value_theta=theta, learn_precision=learn_precision, value_iters=3
        )
    ).double()
    x, values = (torch.randn(2, 3, 5, 12, dtype=torch.float64) for _ in range(2))
    known = torch.rand(2, 3, 5) > 0.5
    known[:, 0, 0] = True
    assert relative_error(module(x), naive_of(module)(x)) < 1e-9
    assert relative_error(module(x, values, known), probabilistic(module, x, values, known)) < 1e-9
    applied = module.weights(x) @ module._heads(x.flatten(1, 2), None)[2]
    assert relative_error(module(x), module.proj(applied.transpose(1, 2).flatten(2)).view(x.shape)) < 1e-9


def test_without_steps_it_is_softmax_attention():
    module, plain = ProbabilisticAttention(24, num_heads=3, learn_precision=True), SoftmaxAttention(24, num_heads=3)
    plain.load_state_dict(module.state_dict(), strict=False)
    x = torch.randn(2, 5, 7, 24)
    torch.testing.assert_close(module(x), plain(x))
    module.precision = None
    torch.testing.assert_close(module(x), plain(x))
    module.key_iters, module.theta = 2, 1e7  # keys that are held fast
    torch.testing.assert_close(module(x), plain(x), rtol=1e-4, atol=1e-5)
    module.theta = 1.0
    assert not torch.allclose(module(x), plain(x), rtol=1e-3, atol=1e-4)


def test_keys_move_to_the_queries_that_they_explain():
    """Steps of expectation maximisation: the likelihood of the queries never falls."""
    torch.manual_seed(0)
    q, k = (torch.randn(1, 1, 20, 4, dtype=torch.float64) for _ in range(2))
    likelihoods = []
    for steps in range(6):
        moved = k
        for _ in range(steps):
            w = mixture_attention(q, moved, torch.eye(20).double().expand(1, 1, -1, -1), 1.0)
            moved = w.mT @ q / w.sum(-2).unsqueeze(-1)
        likelihoods.append(torch.logsumexp(-torch.cdist(q, moved).square() / 2, -1).sum())
        out = mixture_attention(q, k, moved, 1.0, key_iters=steps)
        torch.testing.assert_close(out, mixture_attention(q, moved, moved, 1.0))
    assert all(after > before for before, after in pairwise(likelihoods))


def test_known_values_spread_and_only_in_their_image():
    module = ProbabilisticAttention(8, num_heads=2, value_iters=3, value_theta=0.1).double()
    x = torch.randn(3, 4, 4, 8, dtype=torch.float64)
    values, known = torch.full_like(x, 5.0), torch.zeros(3, 4, 4)
    known[1, 2, 2] = 1
    out = module(x, values, known)
    torch.testing.assert_close(out[[0, 2]], module(x)[[0, 2]])
    module.proj = torch.nn.Identity()
    plain, few = module(x)[1], module(x, values, known)[1]
    many = module(x, values, torch.ones(3, 4, 4))[1]
    assert ((few - 5).abs() < (plain - 5).abs()).all() and ((many - 5).abs() < (few - 5).abs()).all()


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch16_rope_224", "beit_base_patch16_224"])
def test_stands_in_for_timms_attention_exactly_until_keys_move(name):
    torch.manual_seed(0)
    model = timm.create_model(name, embed_dim=48, num_heads=3, depth=2, num_classes=5, img_size=64).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected, names = model(x), list(model.state_dict())
        replace_attention(model, "probabilistic", key_iters=0)
        assert list(model.state_dict()) == names or name.startswith("beit")
        assert relative_error(model(x), expected) < 1e-5
        for module in model.modules():
            if isinstance(module, ProbabilisticAttention):
                module.key_iters = 1
        assert not torch.equal(model(x), expected) and model(x).isfinite().all()


def test_networks_move_their_keys():
    network = timm.create_model("va_vit_probabilistic_nano")
    assert all(block.attn.fn.key_iters == 1 for block in network.blocks)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_heads": 3}, "dim=8, num_heads=3"),
        ({"key_iters": -1}, "key_iters must be at least 0, got -1"),
        ({"theta": 0.0}, r"theta must be above 0, got 0\.0"),
        ({"value_precision": -1.0}, r"value_precision must be above 0, got -1\.0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        ProbabilisticAttention(8, **arguments)


def test_bad_input():
    module, x = ProbabilisticAttention(8, num_heads=2), torch.randn(1, 2, 2, 8)
    with pytest.raises(ValueError, match="must come together, got values without known"):
        module(x, values=x)
    with pytest.raises(ValueError, match=r"must have the shapes \(1, 4, 8\) and \(1, 4\)"):
        module(x, x, torch.ones(1, 2, 3))
    q = torch.randn(1, 1, 3, 4)
    with pytest.raises(ValueError, match="magnitude must be one of none, keys, both, got 'values'"):
        mixture_attention(q, q, q, 1.0, magnitude="values")
    with pytest.raises(ValueError, match="mask must leave every query a key"):
        mixture_attention(q, q, q, 1.0, mask=torch.tensor([[1, 1, 0], [0, 0, 0], [0, 1, 1]]))
