"""A2N's blocks against the official code's recorded outputs and gradients, alone and in whole networks."""

import pytest
import timm
import torch
from super_resolution import A2N, a2n_keys
from torch import nn

import visionattn
from visionattn.plugins import CBAM, AttentionInAttention, DynamicBranch, PixelAttention
from visionattn.reference.a2n import naive_of
from visionattn.testing.contracts import perturbed
from visionattn.testing.fixtures import check_module, load, relative_error


def test_golden():
    golden = load("a2n_aab_1x24x17x9_eval")
    given = golden.meta["constructor"]
    module = AttentionInAttention(given["channels"], reduction=given["reduction"], temperature=given["temperature"])
    module.load_state_dict(a2n_keys(golden.state_dict))
    assert sum(p.numel() for p in module.parameters()) == golden.meta["params"]
    check_module(module, golden, 1e-5)


@pytest.mark.parametrize("name", ["a2n_x2_eval", "a2n_x4_eval"])
def test_golden_of_the_networks(name):
    golden = load(name)
    network = A2N(**golden.meta["constructor"]).eval()
    network.load_state_dict(a2n_keys(golden.state_dict))
    assert sum(p.numel() for p in network.parameters()) == golden.meta["params"]
    with torch.inference_mode():
        assert relative_error(network(golden.input), golden.arrays["out_0"]) < 1e-4


def test_smaller_block():
    """A2N-M: 16 blocks of 40 channels have 204,800 parameters fewer."""
    sizes = [sum(p.numel() for p in AttentionInAttention(40, plain_size=size).parameters()) for size in (3, 1)]
    assert 16 * (sizes[0] - sizes[1]) == 204800


@pytest.mark.parametrize("build", [AttentionInAttention, PixelAttention], ids=lambda cls: cls.__name__)
def test_all_gradients_are_those_of_the_steps(build):
    torch.manual_seed(0)
    module = perturbed(build(8).double())
    naive, x = naive_of(module), torch.randn(2, 8, 6, 5, dtype=torch.float64, requires_grad=True)
    weight, results = torch.randn_like(x), []
    for one in (module, naive):
        out = one(x)
        results.append((out, *torch.autograd.grad(out, (x, *one.parameters()), weight)))
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-11)


def test_branches_start_alike_and_are_chosen_for_each_image():
    torch.manual_seed(0)
    module, x = DynamicBranch(16, attention="cbam"), 3 * torch.randn(4, 16, 5, 5) + torch.randn(4, 16, 1, 1)
    weights = module.weights(x)
    torch.testing.assert_close(weights.sum(1), torch.ones(4))
    assert (weights - 0.5).abs().max() < 0.05 and weights[:, 0].unique().numel() == 4
    module.temperature = 0.01
    assert (module.weights(x) - 0.5).abs().max() > 0.2


@pytest.mark.parametrize("share", [0, 1])
def test_a_branch_can_be_left_out(share):
    module, x = (
        DynamicBranch(8, attention={"type": "cbam", "reduction": 4}, temperature=1e-6).eval(),
        torch.rand(2, 8, 5, 5),
    )
    nn.init.ones_(module.fc1.weight)
    module.fc2.weight.data.copy_(torch.tensor([[-1.0], [1.0]]).expand(2, 2) * (-1) ** share)
    expected = module.attention(x) if share else x
    torch.testing.assert_close(module(x), expected)


def test_any_plug_in_can_be_weighed():
    plain = {"type": "simam", "e_lambda": 0.1}
    module = DynamicBranch(8, attention=CBAM, plain=plain, device="meta", dtype=torch.bfloat16)
    assert {p.dtype for p in module.parameters()} == {torch.bfloat16} and module.plain.e_lambda == 0.1
    assert module(torch.empty(2, 8, 5, 5, device="meta", dtype=torch.bfloat16)).shape == (2, 8, 5, 5)
    own = DynamicBranch(8, attention="cbam")
    nn.init.zeros_(own.attention.channel_gate.fc1.weight)
    own.reset_parameters()
    assert own.attention.channel_gate.fc1.weight.any()


def test_weighed_plug_ins_are_attached():
    model = timm.create_model("va_resnet10n", num_classes=10).eval()
    x = torch.randn(2, 3, 32, 32)
    before = model(x)
    visionattn.attach(model, DynamicBranch, attention="ela_t")
    assert {place.plugin for place in model.attached} == {"DynamicBranch"} and torch.equal(model(x), before)


@pytest.mark.parametrize(
    ("cls", "arguments", "message"),
    [
        (AttentionInAttention, {"channels": 0}, "channels must be at least 1, got 0"),
        (AttentionInAttention, {"channels": 8, "reduction": 0}, "reduction must be at least 1, got 0"),
        (AttentionInAttention, {"channels": 8, "temperature": 0.0}, r"temperature must be above 0, got 0\.0"),
        (AttentionInAttention, {"channels": 8, "plain_size": 5}, "plain_size must be one of 1, 3, got 5"),
        (DynamicBranch, {"channels": 8, "attention": "cbma"}, "unknown plug-in 'cbma'; there are: .*cbam"),
        (DynamicBranch, {"channels": 8, "attention": "cbam", "temperature": float("nan")}, "temperature .* got nan"),
        (PixelAttention, {"channels": 0}, "channels must be at least 1, got 0"),
    ],
)
def test_bad_arguments(cls, arguments, message):
    with pytest.raises(ValueError, match=message):
        cls(**arguments)
