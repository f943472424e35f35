"""Context broadcasting: the module, and in the MLPs of networks."""

import copy

import pytest
import timm
import torch

from visionattn.mixers import ContextBroadcast, insert_context_broadcast
from visionattn.models.modifications import apply_modifications
from visionattn.testing.fixtures import check_module, load


@pytest.mark.parametrize("name", ["module_1x50x48", "module_2x197x64", "scaled_module_2x50x48"])
def test_golden(name):
    golden = load(f"cb_{name}_eval")
    module = ContextBroadcast(golden.meta["constructor"]["dim"], scaled=name.startswith("scaled"))
    module.load_state_dict(golden.state_dict)
    check_module(module, golden, 1e-5)


def test_tokens_and_maps_alike_and_extra_ones_may_be_left_out():
    torch.manual_seed(0)
    module, x = ContextBroadcast(8), torch.randn(2, 3, 4, 8)
    torch.testing.assert_close(module(x).flatten(1, 2), module.forward_tokens(x.flatten(1, 2), (3, 4)))
    tokens = torch.randn(2, 5, 8)
    expected = (tokens + tokens[:, 2:].mean(1, keepdim=True)) / 2
    torch.testing.assert_close(ContextBroadcast(8, exclude=2)(tokens), expected)


def vit(**kwargs):
    torch.manual_seed(0)
    arguments = {"embed_dim": 48, "num_heads": 3, "depth": 2, "num_classes": 5, "img_size": 64, **kwargs}
    return timm.create_model("vit_tiny_patch16_224", **arguments).eval()


@pytest.mark.parametrize("position", ["front", "mid", "end"])
@pytest.mark.parametrize("name", ["vit", "columnar", "pyramid"])
def test_in_a_network(name, position):
    build = {
        "vit": vit,
        "columnar": lambda: timm.create_model("va_vit_softmax_nano", global_pool="token").eval(),
        "pyramid": lambda: timm.create_model("va_stm_linear_nano").eval(),
    }[name]
    model, x = build(), torch.randn(2, 3, 64, 64)
    keys, before = {*model.state_dict()}, model(x)
    scaled, plain = (insert_context_broadcast(copy.deepcopy(model), position, s, True) for s in (True, False))
    torch.testing.assert_close(scaled(x), before)
    assert keys == {*plain.state_dict()} and not torch.equal(plain(x), before)  # layer scale may hide much
    new = {*scaled.state_dict()} - keys
    assert keys < {*scaled.state_dict()} and all(key.endswith("context.scale") for key in new)
    with torch.no_grad():
        for key, value in scaled.named_parameters():
            if key.endswith("scale"):
                value.fill_(0.5)
    scaled(x).sum().backward()
    again = apply_modifications(model, scaled.modifications)
    again.load_state_dict(scaled.state_dict())
    torch.testing.assert_close(again(x), scaled(x))
    plain = torch.compile(plain, fullgraph=True, backend="eager")
    assert plain(x).shape == before.shape


def test_half_of_the_mlp_is_the_mean_at_the_end():
    model = vit()
    mlp, tokens = copy.deepcopy(model.blocks[0].mlp), torch.randn(2, 17, 48)
    insert_context_broadcast(model)
    out = mlp(tokens)
    torch.testing.assert_close(model.blocks[0].mlp(tokens), (out + out.mean(1, keepdim=True)) / 2)


def test_bad_arguments():
    with pytest.raises(ValueError, match="position must be one of front, mid, end, got 'middle'"):
        insert_context_broadcast(vit(), "middle")
    with pytest.raises(ValueError, match="Linear has no blocks with an mlp"):
        insert_context_broadcast(torch.nn.Linear(3, 3))
    other = torch.nn.ModuleDict({"mlp": torch.nn.Linear(3, 3)})
    with pytest.raises(ValueError, match="context is broadcast in MLPs with layers fc1 and fc2, got Linear"):
        insert_context_broadcast(other)
    with pytest.raises(ValueError, match="dim=0"):
        ContextBroadcast(0)
    with pytest.raises(ValueError, match="exclude=-1"):
        ContextBroadcast(8, exclude=-1)
