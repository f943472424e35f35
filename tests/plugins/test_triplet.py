"""Triplet attention against the official code's recorded outputs, gradients and running statistics."""

import pytest
import torch

from visionattn.models.builder import rename_keys
from visionattn.plugins import TripletAttention
from visionattn.reference.triplet import NaiveTripletAttention
from visionattn.testing.fixtures import check_module, load, relative_error

FIXTURES = {
    "triplet_module_2x64x14x14_train": {},
    "triplet_module_1x48x17x9_eval": {},
    "triplet_module_1x48x17x9_train": {},
    "triplet_module_k3_1x48x17x9_eval": {"kernel_size": 3},
    "triplet_module_nospatial_1x48x17x9_eval": {"no_spatial": True},
    "triplet_module_oldkeys_1x48x17x9_eval": {},
}


@pytest.mark.parametrize("name", FIXTURES)
def test_golden(name):
    golden = load(name)
    module = TripletAttention(golden.meta["input_shape"][1], **FIXTURES[name])
    loaded = module.load_state_dict(rename_keys(golden.state_dict, TripletAttention.official_keys), strict=False)
    assert loaded.unexpected_keys == [] and all(k.endswith("num_batches_tracked") for k in loaded.missing_keys)
    check_module(module, golden, 1e-5)
    for key, expected in golden.meta.get("buffers_after", {}).items():
        actual = module.get_buffer(key.replace(".conv.bn.", ".bn."))
        torch.testing.assert_close(actual, torch.tensor(expected), rtol=1e-5, atol=0)


def test_own_keys_pass_the_official_names_unchanged():
    own = TripletAttention(4).state_dict()
    assert rename_keys(own, TripletAttention.official_keys).keys() == own.keys()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("no_spatial", [False, True])
@pytest.mark.parametrize("size", [(16, 13, 9), (9, 16, 21), (3, 1, 40)], ids=str)
def test_agrees_with_the_naive_formulation(layout, no_spatial, size):
    torch.manual_seed(0)
    naive = NaiveTripletAttention(size[0], kernel_size=5, no_spatial=no_spatial)
    module = TripletAttention(size[0], kernel_size=5, no_spatial=no_spatial)
    for parameter in naive.parameters():
        torch.nn.init.normal_(parameter)
    module.load_state_dict(naive.state_dict())
    naive.double(), module.double()
    # Few levels: many ties, whose gradient both give to the first.
    x = torch.randn(2, *size, dtype=torch.float64).mul(2).round().to(memory_format=layout)
    weight = torch.randn_like(x)
    results = []
    for block in (naive, module):
        leaf = x.clone().requires_grad_()
        out = block(leaf)
        (out * weight).sum().backward()
        results.append([out, leaf.grad, *(p.grad for p in block.parameters()), *block.buffers()])
    for expected, actual in zip(*results, strict=True):
        assert relative_error(actual, expected) < 1e-10
    naive.float().eval(), module.float().eval()
    with torch.no_grad():
        assert relative_error(module(x.float()), naive(x.float())) < 2e-6


def test_starts_as_the_official_resnets():
    module = TripletAttention(16)
    assert [gate.bn.weight.item() for gate in (module.cw, module.hc, module.hw)] == [1, 1, 0]
    assert {gate.bn.momentum for gate in module.children()} == {0.01}
    assert sum(p.numel() for p in module.parameters()) == 300
    assert TripletAttention(16, zero_init_spatial=False).hw.bn.weight.item() == 1


def test_starts_again():
    module = TripletAttention(16)
    for parameter in module.parameters():
        torch.nn.init.constant_(parameter, 3)
    module.reset_parameters()
    assert not module.hw.bn.weight.any() and module.cw.conv.weight.std() > 0 and not module.hc.bn.bias.any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": 0}, "channels must be at least 1, got 0"),
        ({"channels": 8, "kernel_size": 4}, "kernel_size must be a positive odd number, got 4"),
        ({"channels": 8, "kernel_size": -1}, "kernel_size must be a positive odd number, got -1"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        TripletAttention(**arguments)
