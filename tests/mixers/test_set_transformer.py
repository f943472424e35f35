"""The blocks of the Set Transformer against the official code's recorded results and what sets promise."""

import pytest
import torch
from largest import LargestTensor

from visionattn.mixers import ISABMixer, SABMixer, Tokens
from visionattn.reference.set_transformer import naive_of
from visionattn.testing.contracts import perturbed
from visionattn.testing.fixtures import check_module, load, relative_error

MIXERS = [
    lambda **kw: SABMixer(12, num_heads=3, **kw),
    lambda **kw: ISABMixer(12, num_heads=3, num_inducing=5, **kw),
]


@pytest.mark.parametrize("name", ["isab_2x70x48", "isab_ln_1x77x32to64"])
def test_golden(name):
    golden = load(f"settransformer_{name}_eval")
    official = golden.meta["constructor"]
    mixer = ISABMixer(
        official["dim_out"],
        num_heads=official["heads"],
        num_inducing=official["inducing"],
        dim_in=official["dim_in"],
        norm=official["ln"],
    )
    mixer.load_state_dict(golden.state_dict)
    check_module(Tokens(mixer, (1, golden.input.shape[1])), golden, 1e-5)


@pytest.mark.parametrize("build", MIXERS, ids=["sab", "isab"])
@pytest.mark.parametrize("keywords", [{"norm": True}, {"form": "prenorm"}, {"dim_in": 7}], ids=str)
def test_every_form_agrees_with_the_formula(build, keywords):
    mixer = perturbed(build(**keywords)).double()
    x = torch.randn(2, 3, 4, keywords.get("dim_in", 12), dtype=torch.float64, requires_grad=True)
    results = []
    for one in (mixer, naive_of(mixer)):
        out = one(x)
        results.append((out, *torch.autograd.grad(out.square().sum(), x)))
    for ours, literal in zip(*results, strict=True):
        assert relative_error(ours, literal) < 1e-9


@pytest.mark.parametrize("build", MIXERS, ids=["sab", "isab"])
def test_moves_with_its_elements(build):
    mixer, x, order = build(), torch.randn(2, 20, 12), torch.randperm(20)
    torch.testing.assert_close(mixer.forward_tokens(x[:, order], (4, 5)), mixer.forward_tokens(x, (4, 5))[:, order])


def test_as_many_inducing_points_as_elements_are_not_all_pairs():
    torch.manual_seed(0)
    all_pairs, induced = SABMixer(12, num_heads=3), ISABMixer(12, num_heads=3, num_inducing=20)
    induced.mab1.load_state_dict(all_pairs.mab.state_dict())
    x = torch.randn(1, 4, 5, 12)
    assert relative_error(induced(x), all_pairs(x)) > 1e-2


@pytest.mark.parametrize("build", MIXERS, ids=["sab", "isab"])
def test_is_the_projected_query_where_values_and_feed_forward_are_zero(build):
    mixer = build()
    last = mixer.mab if isinstance(mixer, SABMixer) else mixer.mab1
    for layer in (last.fc_v, last.fc_o):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    x = torch.randn(2, 3, 4, 12)
    torch.testing.assert_close(mixer(x), last.fc_q(x))


def test_masked_elements_are_as_if_they_were_not_there():
    x, mask = torch.randn(2, 9, 12), torch.ones(2, 9, dtype=torch.bool)
    mask[:, 6:] = False
    mixers = [build() for build in MIXERS]
    for mixer, keyword, value in zip(mixers, ("bias", "mask"), (mask[:, None, None], mask), strict=True):
        out = mixer.forward_tokens(x, (3, 3), **{keyword: value})[:, :6]
        torch.testing.assert_close(out, mixer.forward_tokens(x[:, :6], (2, 3)))


def test_weights_are_what_is_applied():
    mixer, x = SABMixer(12, num_heads=3, form="prenorm"), torch.randn(2, 3, 4, 12)
    values = mixer.mab.fc_v(x.flatten(1, 2)).unflatten(-1, (3, -1)).transpose(1, 2)
    torch.testing.assert_close(mixer(x).flatten(1, 2), (mixer.weights(x) @ values).transpose(1, 2).flatten(2))


def test_inducing_points_hold_no_matrix_of_all_pairs():
    mixer, largest = ISABMixer(16, num_heads=2, num_inducing=8), {}
    for side in (14, 112):
        x = torch.randn(1, side, side, 16, requires_grad=True)
        with LargestTensor() as seen:
            mixer(x).sum().backward()
        largest[side] = seen.numbers
    assert largest[112] <= 64 * largest[14]


def test_the_inducing_points_start_as_the_official_ones():
    points = ISABMixer(64, num_inducing=16).I
    bound = (6 / (64 * 17)) ** 0.5
    assert 0.9 * bound < points.abs().max() <= bound


@pytest.mark.parametrize(
    ("build", "arguments", "message"),
    [
        (SABMixer, {"num_heads": 3}, "dim=8, num_heads=3"),
        (ISABMixer, {"num_heads": 3}, "dim=8, num_heads=3"),
        (ISABMixer, {"num_inducing": 0}, "num_inducing must be at least 1, got 0"),
        (SABMixer, {"dim_in": 0}, "dim_in must be at least 1, got 0"),
        (SABMixer, {"form": "post"}, "form must be one of paper, prenorm, got 'post'"),
        (ISABMixer, {"form": "prenorm", "norm": True}, "norm=True needs form='paper'"),
    ],
)
def test_bad_arguments(build, arguments, message):
    with pytest.raises(ValueError, match=message):
        build(8, **arguments)
