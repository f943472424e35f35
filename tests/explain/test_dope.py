"""DoPE: the arithmetic against the fixtures, and the intervention on networks of timm's."""

import pytest
import timm
import torch
from timm.layers import apply_rot_embed_cat
from torch.nn import functional as F

from visionattn.explain import (
    axial_rope,
    denoise_rope,
    low_bands,
    rope_band_entropy,
    rope_truncated_rank,
    unrotate,
)
from visionattn.testing.fixtures import load, relative_error

SMALL = {"embed_dim": 48, "num_heads": 3, "depth": 2, "num_classes": 5}
NETWORKS = {
    "eva02_tiny_patch14_224": {"img_size": 56},
    "vit_small_patch16_rope_224": {"img_size": 64},
    "vit_small_patch16_rope_mixed_224": {"img_size": 64},
    "vit_small_patch16_dinov3": {"img_size": 64},
}


def network(name, **kwargs):
    torch.manual_seed(0)
    model = timm.create_model(name, **{**SMALL, **NETWORKS[name], **kwargs}).eval()
    with torch.no_grad():
        for key, value in model.named_parameters():
            if not key.startswith("rope"):
                value.normal_(0, 0.3 if value.ndim == 1 else value[0].numel() ** -0.5)
            if "norm" in key and key.endswith("weight"):
                value.add_(1)
    side = model.patch_embed.img_size[0]
    return model, torch.randn(2, 3, side, side)


@pytest.mark.parametrize("name", ["dope_parts_2x5x6x64_eval", "dope_all_2x5x6x64_eval"])
def test_agrees_with_the_fixtures(name):
    golden = load(name)
    given, state, x = golden.meta["constructor"], golden.state_dict, golden.input.flatten(1, 2)
    heads, grid = given["heads"], tuple(golden.meta["input_shape"][1:3])
    q, k, v = (F.linear(x, state[f"{part}.weight"]).unflatten(-1, (heads, -1)).transpose(1, 2) for part in "qkv")
    width = q.shape[-1]
    rope = axial_rope(grid, width, base=given["base"])
    rotated = apply_rot_embed_cat(k, rope)
    rank = rope_truncated_rank(rotated, given["r"])
    assert relative_error(rank, golden.arrays["truncated_rank"]) < 1e-5
    # The fixture holds effective ranks under this name.
    assert relative_error(rope_band_entropy(rotated).exp(), golden.arrays["band_entropy"]) < 1e-5
    mask = torch.zeros(heads, dtype=torch.bool)
    mask[rank.mean(0).argsort(stable=True)[: given["num_heads_removed"]]] = True
    trained = tuple(given["train_grid"])
    bands = low_bands(axial_rope(trained, width, base=given["base"]), trained) if given["mode"] == "parts" else None
    table = unrotate(rope, mask, bands)
    out = F.scaled_dot_product_attention(apply_rot_embed_cat(q, table), apply_rot_embed_cat(k, table), v)
    out = F.linear(out.transpose(1, 2).flatten(2), state["proj.weight"], state["proj.bias"])
    assert relative_error(out.view(golden.arrays["out_0"].shape), golden.arrays["out_0"]) < 1e-5


def test_the_statistics():
    torch.manual_seed(0)
    k = torch.randn(2, 3, 20, 8)
    assert torch.equal(rope_truncated_rank(k, 1), torch.ones(2, 3))
    one = k[..., :1] * torch.randn(8)  # all keys on a line
    torch.testing.assert_close(rope_truncated_rank(one, 8), torch.ones(2, 3), rtol=1e-4, atol=1e-4)
    assert (rope_truncated_rank(k, 8) <= 8).all() and rope_band_entropy(one).abs().max() < 1e-4
    halves = k.unflatten(-1, (4, 2)).mT.flatten(-2)
    torch.testing.assert_close(rope_band_entropy(halves, half=True), rope_band_entropy(k))


def test_low_bands_turn_less_than_once():
    speeds = 100.0 ** (-torch.arange(4) / 4)
    expected = torch.cat([speeds < 2 * torch.pi / 8, speeds < 2 * torch.pi / 14]).repeat_interleave(2)
    assert torch.equal(low_bands(axial_rope((8, 14), 16), (8, 14)), expected)
    assert expected.any() and not expected.all()


@pytest.mark.parametrize("name", NETWORKS)
def test_without_heads_nothing_changes(name):
    model, x = network(name)
    before = model(x)
    with denoise_rope(model, [x], heads=0) as chosen:
        torch.testing.assert_close(model(x), before)
    assert chosen == [[], []]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("mode", ["parts", "all", "gaussian"])
def test_changes_a_network_inside_the_block_only(name, mode):
    model, x = network(name)
    before, keys = model(x), set(model.state_dict())
    with denoise_rope(model, [x, (x, None)], heads=1, mode=mode, train_grid=(2, 2)) as chosen:
        inside = model(x)
        assert torch.equal(model(x), inside) and not torch.allclose(inside, before, atol=1e-4)
        torch.testing.assert_close(model(x[1:]), inside[1:], rtol=1e-4, atol=1e-5)
    assert torch.equal(model(x), before) and set(model.state_dict()) == keys
    assert [len(numbers) for numbers in chosen] == [1, 1]


@pytest.mark.parametrize("name", NETWORKS)
def test_all_heads_without_rotation_see_no_positions(name):
    """Then attention is that of a network without rotary embeddings."""
    model, x = network(name)
    with denoise_rope(model, None, heads=[range(3)] * 2, mode="all"):
        inside = model(x)
    for block in model.blocks:
        block.attn.register_forward_pre_hook(lambda _, args, kwargs: (args, {**kwargs, "rope": None}), with_kwargs=True)
    torch.testing.assert_close(inside, model(x), rtol=1e-4, atol=1e-5)


def test_orders_are_opposite_and_train_mode_is_kept():
    model, x = network("eva02_tiny_patch14_224")
    model.train()
    sets = []
    for order, of in (("lowest", "keys"), ("highest", "keys"), ("lowest", "queries")):
        with denoise_rope(model, [x], heads=1, order=order, of=of, r=4) as chosen:
            sets.append(chosen)
    assert model.training and all(low != high for low, high in zip(*sets[:2], strict=True))
    with denoise_rope(model, [x], heads=2, r=4) as two:
        assert all(set(few) < set(more) for few, more in zip(sets[0], two, strict=True))


def test_works_above_the_grid_of_training():
    model, _ = network("eva02_tiny_patch14_224", dynamic_img_size=True)
    large = torch.randn(1, 3, 112, 84)
    with denoise_rope(model, [large], heads=2, train_grid=(4, 4)), torch.inference_mode():
        assert model(large).isfinite().all()


def test_bad_input():
    model, x = network("eva02_tiny_patch14_224")
    for message, given in {
        "mode must be one of parts, all, gaussian, got 'some'": {"mode": "some"},
        "order must be one of": {"order": "up"},
        "of must be one of": {"of": "values"},
        "r must be at least 1, got 0": {"r": 0},
        "heads must be in 0 to 3, the heads of a layer, got 4": {"heads": 4},
        "heads must name those of each of 2 layers, got 1": {"heads": [[0]]},
        r"heads must be of 0 to 2, got \[3\]": {"heads": [[0], [3]]},
        "height of train_grid must be at least 1": {"train_grid": (0, 4)},
    }.items():
        with pytest.raises(ValueError, match=message), denoise_rope(model, [x], **given):
            pass
    with pytest.raises(ValueError, match="it is empty"), denoise_rope(model, []):
        pass
    with pytest.raises(ValueError, match="loader must give pictures"), denoise_rope(model, None):
        pass
    plain = timm.create_model("vit_tiny_patch16_224", **SMALL)
    with pytest.raises(ValueError, match="VisionTransformer has no rotary embeddings"), denoise_rope(plain, [x]):
        pass
    with pytest.raises(ValueError, match="dim must be a multiple of 4, got 6"):
        axial_rope((2, 2), 6)
    with pytest.raises(ValueError, match="r must be in 1 to 8, the width of a head, got 9"):
        rope_truncated_rank(torch.randn(1, 1, 4, 8), 9)
    with pytest.raises(ValueError, match="rope must have 3 x 3 rows, got 4"):
        low_bands(axial_rope((2, 2), 8), (3, 3))
