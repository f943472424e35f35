"""DaViT against the authors' network and timm's, and the formats of their weights."""

import pytest
import timm
import torch

import visionattn  # noqa: F401
from visionattn.models.builder import rename_keys
from visionattn.models.families.va_davit import DaViT, checkpoint_filter_fn
from visionattn.profiling.operator_counter import saved_bytes
from visionattn.testing.fixtures import authors_file, check_module, load, relative_error

PARAMS = {"tiny": 28_360_168, "small": 49_745_896, "base": 87_954_408, "large": 196_811_752}


def test_golden(tmp_path):
    golden = load("davit_tiny_eval")
    overlay = authors_file(golden, tmp_path / "author.pth")
    model = timm.create_model("va_davit_tiny", pretrained=True, pretrained_cfg_overlay=overlay).eval()
    with torch.inference_mode():
        features, stages = model.forward_intermediates(golden.input)
        assert relative_error(model.forward_head(features), golden.arrays["out_0"]) < 1e-4
    for index, stage in enumerate(stages):
        assert relative_error(stage.mean((2, 3)), golden.arrays[f"feat_{index}"]) < 1e-4


def test_golden_with_overlapping_patches():
    golden = load("davit_micro_overlapped_eval")
    model = DaViT((32, 64, 96, 128), (1, 1, 1, 1), (1, 2, 3, 4), down_kernel_size=3).eval()
    model.load_state_dict(checkpoint_filter_fn(golden.state_dict, model))
    with torch.inference_mode():
        assert relative_error(model(golden.input), golden.arrays["out_0"]) < 1e-4
    with pytest.raises(ValueError, match="down_kernel_size must be 2 or 3, got 4"):
        DaViT((32,), (1,), (1,), down_kernel_size=4)


@pytest.mark.parametrize("kind", ["spatial", "channel"])
def test_blocks(kind):
    """Outputs and gradients of a whole block on a map that no window divides."""
    golden = load(f"davit_{kind}block_module_1x17x10x48_eval")
    model = DaViT((48,), (1,), (3,), device="meta")
    block = model.stages[0].blocks[0 if kind == "spatial" else 1].to_empty(device="cpu")
    names = (
        (r"^cpe\.0\.proj\.", "position1."),
        (r"^cpe\.1\.proj\.", "position2."),
        (r"^norm1\.", "attn.norm."),
        (r"^norm2\.", "mlp.norm."),
        (r"^(attn|mlp)\.(?!norm)", r"\1.fn."),
    )
    block.load_state_dict(rename_keys(golden.state_dict, names))

    class OnTokens(torch.nn.Module):
        def forward(self, x):
            return block(x.unflatten(1, (17, 10))).flatten(1, 2)

    check_module(OnTokens(), golden, 1e-5)


@pytest.mark.parametrize(("variant", "params"), PARAMS.items())
def test_published_sizes(variant, params):
    assert sum(p.numel() for p in timm.create_model(f"va_davit_{variant}", device="meta").parameters()) == params


@pytest.mark.parametrize(
    "variant",
    [pytest.param(v, marks=[] if v == "tiny" else pytest.mark.slow) for v in [*PARAMS, "huge", "giant"]],
)
def test_equals_timm(variant):
    torch.manual_seed(0)
    theirs = timm.create_model(f"davit_{variant}").eval()
    ours = timm.create_model(f"va_davit_{variant}", device="meta").eval()
    ours.load_state_dict(checkpoint_filter_fn(theirs.state_dict(), ours), assign=True)
    x = torch.randn(2, 3, 90, 160)
    with torch.inference_mode():
        assert relative_error(ours(x), theirs(x)) < 1e-5


def test_dense_norms_touch_only_what_is_handed_out():
    torch.manual_seed(0)
    model = DaViT((32, 64), (1, 1), (1, 2), feature_norms=True).eval()
    plain = DaViT((32, 64), (1, 1), (1, 2)).eval()
    plain.load_state_dict(model.state_dict(), strict=False)
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        final, normed = model.forward_intermediates(x)
        expected, raw = plain.forward_intermediates(x)
        torch.testing.assert_close(final, expected)
        for a, b in zip(normed, raw, strict=True):
            b = torch.nn.functional.layer_norm(b.permute(0, 2, 3, 1), (b.shape[1],)).permute(0, 3, 1, 2)
            torch.testing.assert_close(a, b)


def test_saves_no_more_than_timms_for_the_backward_pass():
    x = torch.randn(1, 3, 64, 64)
    ours, theirs = (
        saved_bytes(timm.create_model(name, drop_path_rate=0.2), x) for name in ("va_davit_tiny", "davit_tiny")
    )
    assert ours <= theirs
