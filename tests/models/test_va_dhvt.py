"""DHVT's parts and networks against the official ones and their format."""

import pytest
import timm
import torch

import visionattn  # noqa: F401
from visionattn.models import CONVERTERS
from visionattn.models.families.va_dhvt import DAFF, SOPE, dhvt
from visionattn.testing.fixtures import authors_file, check_module, load, relative_error

# Counted from the official networks with 1000, 100 and 100 classes; here with those of the cfg, 1000 and 10.
PARAMS = {
    "tiny_p16": 6_267_334,
    "tiny_cifar_p2": 5_845_162 - 90 * 193,
    "tiny_cifar_p4": 6_008_650 - 90 * 193,
}


class Tokens(torch.nn.Module):
    """A part of a network on tokens, the class token first."""

    def __init__(self, part, grid):
        super().__init__()
        self.part = part
        self.grid = grid

    def forward(self, x):
        return self.part.forward_tokens(x, self.grid, prefix=1)


@pytest.mark.parametrize(
    ("name", "dim", "side"),
    [
        ("dhvt_daff_module_2x50x64_eval", 64, 7),
        ("dhvt_daff_module_2x50x64_train", 64, 7),
        ("dhvt_daff_module_1x145x48_eval", 48, 12),
    ],
)
def test_golden_feed_forward(name, dim, side):
    golden = load(name)
    part = DAFF(dim)
    part.load_state_dict(golden.state_dict)
    check_module(Tokens(part, (side, side)), golden, 1e-5)
    for key, value in golden.meta.get("buffers_after", {}).items():
        torch.testing.assert_close(part.state_dict()[key], torch.tensor(value), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["p16_module_1x3x64x48", "p2_module_1x3x16x12", "p4_module_1x3x32x24"])
def test_golden_stem(name):
    """Outputs only: the stored gradients are not those of the stored outputs.

    PyTorch's batch normalisation on the CPU takes a gradient of one sample whose layout is `(B, P, C)` for one of
    another layout. Ours are checked against differences.
    """
    golden = load(f"dhvt_sope_{name}_eval")
    stem = SOPE(3, 64, patch_size=golden.meta["constructor"]["patch"])
    stem.load_state_dict(golden.state_dict)
    stem.eval()
    assert relative_error(stem(golden.input.permute(0, 2, 3, 1)).flatten(1, 2), golden.arrays["out_0"]) < 1e-5
    x = golden.input.double().permute(0, 2, 3, 1)[:, :16, :12].requires_grad_()
    for layout in (x, x.detach().contiguous().requires_grad_()):
        assert torch.autograd.gradcheck(stem.double(), (layout,), fast_mode=True)


def test_golden_block():
    golden = load("dhvt_block_module_2x50x64_eval")
    model = dhvt(64, 1, 4, img_size=224, num_classes=0, global_pool="token")
    state = {f"blocks.0.{key}": value for key, value in golden.state_dict.items()}
    block = model.blocks[0]
    native = CONVERTERS["va_dhvt_tiny_p16"](state, model)
    block.load_state_dict({key.removeprefix("blocks.0."): value for key, value in native.items()})

    class Block(torch.nn.Module):
        def forward(self, x):
            return block(x, (7, 7), {})[0]

    block.eval()
    check_module(Block(), golden, 1e-5)


@pytest.mark.parametrize(
    ("name", "fixture"),
    [
        ("va_dhvt_tiny_p16", "dhvt_tiny_imagenet_p16_eval"),
        ("va_dhvt_tiny_cifar_p2", "dhvt_tiny_cifar_p2_eval"),
        ("va_dhvt_tiny_cifar_p4", "dhvt_tiny_cifar_p4_eval"),
    ],
)
def test_golden(name, fixture, tmp_path):
    golden = load(fixture)
    classes = golden.meta["constructor"]["classes"]
    overlay = {**authors_file(golden, tmp_path / "author.pth"), "num_classes": classes}
    model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=classes).eval()
    assert sum(p.numel() for p in model.parameters()) == golden.meta["params"]
    with torch.inference_mode():
        flow, tokens = model.start(golden.input), []
        for i, block in enumerate(model.blocks):
            flow = model.run(block, flow)
            if i in (2, 5, 8, 11):
                tokens.append(flow.x)
        assert relative_error(model.forward_head(model.end(flow)), golden.arrays["out_0"]) < 1e-4
    for i, x in enumerate(tokens):
        assert relative_error(x[:, 1:].mean(1), golden.arrays[f"feat_{i}"]) < 1e-4
        assert relative_error(x[:, 0], golden.arrays[f"feat_{i + 4}"]) < 1e-4


@pytest.mark.parametrize(("variant", "params"), PARAMS.items())
def test_published_sizes(variant, params):
    model = timm.create_model(f"va_dhvt_{variant}", device="meta")
    assert sum(p.numel() for p in model.parameters()) == params


@pytest.mark.parametrize(("variant", "millions"), [("p16", 24.04), ("cifar_p2", 22.77), ("cifar_p4", 23.43)])
def test_published_sizes_of_the_small_one(variant, millions):
    classes = 1000 if variant == "p16" else 100
    model = timm.create_model(f"va_dhvt_small_{variant}", device="meta", num_classes=classes)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == millions


@pytest.mark.parametrize("size", [(1, 1), (32, 32), (45, 30), (17, 64)], ids=str)
def test_any_size(size):
    torch.manual_seed(0)
    model = timm.create_model("va_dhvt_tiny_cifar_p4", dim=32, depth=2, num_heads=2).eval()
    with torch.inference_mode():
        features = model.forward_intermediates(torch.randn(2, 3, *size), intermediates_only=True)[-1]
        assert features.shape == (2, 32, -(-size[0] // 4), -(-size[1] // 4)) and features.isfinite().all()


def test_takes_registers_and_does_without_extra_tokens():
    x = torch.randn(2, 1, 16, 16)
    for given in ({"num_registers": 2}, {"num_registers": 1, "class_token": False}, {"class_token": False}):
        pool = "avg" if "class_token" in given else "token"
        model = dhvt(16, 2, 2, patch_size=4, in_chans=1, num_classes=3, global_pool=pool, **given)
        model(x).sum().backward()
        assert model.num_prefix_tokens == given.get("num_registers", 0) + given.get("class_token", True)
        assert not [key for key, value in model.blocks[0].named_parameters() if value.grad is None]


def test_weights_load_into_other_channels(tmp_path):
    small = {"dim": 16, "depth": 4, "num_heads": 2}
    model = timm.create_model("va_dhvt_tiny_cifar_p2", **small)
    torch.nn.init.normal_(model.stem.pre_affine.alpha)
    torch.save(model.state_dict(), tmp_path / "own.pth")
    overlay = {"file": str(tmp_path / "own.pth")}
    other = timm.create_model(
        "va_dhvt_tiny_cifar_p2", pretrained=True, pretrained_cfg_overlay=overlay, in_chans=1, **small
    )
    torch.testing.assert_close(other.stem.pre_affine.alpha, model.stem.pre_affine.alpha.mean(1, keepdim=True))


def test_bad_arguments():
    for patch_size in (1, 12):
        with pytest.raises(ValueError, match=f"patch_size must be a power of 2 from 2 on, got {patch_size}"):
            dhvt(32, 1, 2, patch_size=patch_size)
    with pytest.raises(ValueError, match="dim must be a multiple of patch_size / 2 = 8, got 12"):
        dhvt(12, 1, 2)
    with pytest.raises(ValueError, match="reduction must be from 1 to dim=16, got 0"):
        DAFF(16, reduction=0)
    with pytest.raises(ValueError, match="class_token must be True for 1 extra tokens, got False"):
        DAFF(16, class_token=False).forward_tokens(torch.randn(1, 5, 16), (2, 2), prefix=1)
    with pytest.raises(ValueError, match="num_heads must divide dim, got dim=32, num_heads=3"):
        dhvt(32, 1, 3)
