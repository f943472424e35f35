"""BiFormer against the authors' network, and the formats of its weights."""

import pytest
import timm
import torch
from torch import nn

import visionattn  # noqa: F401
from visionattn.models.builder import rename_keys
from visionattn.models.families.va_biformer import BiFormer, checkpoint_filter_fn
from visionattn.testing.fixtures import authors_file, check_module, load, relative_error

PARAMS = {"tiny": 13_142_760, "small": 25_536_232, "base": 56_804_968, "stl": 28_372_552}
NARROW = {"dims": (16, 32, 64, 128), "depths": (1, 1, 2, 1), "num_heads": (1, 2, 2, 4)}


def test_golden(tmp_path):
    golden = load("biformer_tiny_eval")
    overlay = authors_file(golden, tmp_path / "author.pth")
    model = timm.create_model("va_biformer_tiny", pretrained=True, pretrained_cfg_overlay=overlay).eval()
    with torch.inference_mode():
        features, stages = model.forward_intermediates(golden.input)
        assert relative_error(model.forward_head(features), golden.arrays["out_0"]) < 1e-4
    for index, stage in enumerate(stages):
        assert relative_error(stage.mean((2, 3)), golden.arrays[f"feat_{index}"]) < 1e-4


def test_golden_of_a_block():
    golden = load("biformer_block_module_1x64x14x21_k4_eval")
    block = BiFormer((64,), (1,), (2,), topk=(4,)).stages[0].blocks[0]
    names = (
        (r"^pos_embed\.", "position."),
        (r"^norm1\.", "attn.norm."),
        (r"^norm2\.", "mlp.norm."),
        (r"^attn\.(?!norm)(qkv\.)?", "attn.fn."),
        (r"^mlp\.0\.", "mlp.fn.fc1."),
        (r"^mlp\.3\.", "mlp.fn.fc2."),
        (r"fn\.wo\.", "fn.proj."),
    )
    block.load_state_dict(rename_keys(golden.state_dict, names))

    class ChannelsFirst(nn.Module):
        def forward(self, x):
            return block(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    check_module(ChannelsFirst(), golden, 1e-5)


@pytest.mark.parametrize(("size", "params"), PARAMS.items())
def test_published_sizes(size, params):
    assert sum(p.numel() for p in timm.create_model(f"va_biformer_{size}", device="meta").parameters()) == params


@pytest.mark.parametrize("size", [(160, 160), (224, 448), (97, 131)], ids=str)
@pytest.mark.parametrize("name", ["tiny", "stl"])
def test_sizes_that_the_official_code_refuses(name, size):
    torch.manual_seed(0)
    model = timm.create_model(f"va_biformer_{name}", **NARROW).train()
    model(torch.randn(2, 3, *size)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def official(model, pointwise):
    """The weights of a network of Swin's layout under the names of the authors' two files."""
    names = (
        (r"^stem\.conv\.", "downsample_layers.0.0."),
        (r"^stem\.norm\.", "downsample_layers.0.1."),
        (r"^stages\.(\d)\.downsample\.norm_first\.", r"downsample_layers.\1.0."),
        (r"^stages\.(\d)\.downsample\.conv\.", r"downsample_layers.\1.1."),
        (r"^final\.", "norm."),
        (r"^head\.fc\.", "head."),
        (r"\.attn\.norm\.", ".norm1."),
        (r"\.mlp\.norm\.", ".norm2."),
        (r"\.mlp\.fn\.fc1\.", ".mlp.0."),
        (r"\.mlp\.fn\.fc2\.", ".mlp.2."),
        (r"^(stages\.[012]\..*)\.attn\.fn\.qkv\.", r"\1.attn.qkv_linear." if pointwise else r"\1.attn.qkv.qkv."),
        (r"^(stages\.[012]\..*)\.attn\.fn\.proj\.", r"\1.attn.output_linear." if pointwise else r"\1.attn.wo."),
        (r"\.attn\.fn\.", ".attn."),
    )
    state = rename_keys(model.state_dict(), names)
    linear = ("linear.weight", ".mlp.0.weight", ".mlp.2.weight") if pointwise else ()
    return {k: v[..., None, None] if k.endswith(tuple(linear)) and k != "head.weight" else v for k, v in state.items()}


@pytest.mark.parametrize("pointwise", [False, True])
def test_official_names_of_swins_layout(pointwise):
    model = BiFormer(**NARROW, layout="swin", form="nchw" if pointwise else "legacy")
    native = checkpoint_filter_fn(official(model, pointwise), model)
    own = model.state_dict()
    assert set(native) == set(own)
    assert all(torch.equal(native[key], own[key]) for key in own)


def test_both_forms_differ_in_the_last_stage_only():
    torch.manual_seed(0)
    x = torch.randn(1, 3, 224, 224)
    networks = [BiFormer(**NARROW, form=form).eval() for form in ("legacy", "nchw")]
    networks[1].load_state_dict(networks[0].state_dict())
    with torch.inference_mode():
        stages = [network.forward_intermediates(x, intermediates_only=True) for network in networks]
    errors = [relative_error(*pair) for pair in zip(*stages, strict=True)]
    assert max(errors[:3]) < 1e-4 < errors[3]


def test_plain_attention_and_another_number_of_classes():
    model = BiFormer(**NARROW, topk=(1, 4, 16, -1), num_classes=5)
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 5)
    model.reset_classifier(7)
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"topk": (1, 4)}, r"topk must hold one number for each of 4 stages, got \(1, 4\)"),
        ({"topk": (1, 4, 50, -2)}, "topk must be from 1 to the number of regions, 49, got 50"),
        ({"topk": (1, 4, 0, -2)}, "topk must be from 1 to the number of regions, 49, got 0"),
        ({"layout": "pvt"}, "layout must be one of overlapping, swin, got 'pvt'"),
        ({"num_heads": (3, 2, 2, 4)}, "num_heads must divide dim, got dim=16, num_heads=3"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        BiFormer(**{**NARROW, **arguments})
