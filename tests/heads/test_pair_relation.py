"""RelatiViT against the official code, with what the objects tell each other, and on other grids."""

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer

from visionattn.heads import PairRelationViT
from visionattn.testing.fixtures import load, relative_error

SMALL = {"embed_dim": 32, "num_heads": 4, "depth": 2, "patch_size": 4, "img_size": 16, "num_classes": 0}


def head(num_predicates=5, vit=None, **options):
    torch.manual_seed(0)
    vit = vit or VisionTransformer(**SMALL)
    return PairRelationViT(vit, num_predicates, hidden=16, **options).eval()


def pair(side=16):
    torch.manual_seed(1)
    boxes = torch.tensor([[0.1, 0.6, 0.0, 0.5], [0.3, 0.9, 0.4, 1.0]])
    return torch.randn(2, 3, side, side), boxes, boxes.flip(0)


@pytest.mark.parametrize("name", ["max", "maxroi", "avgroi_nomask"])
def test_agrees_with_the_official_code(name):
    golden = load(f"relativit_{name}_2x3x16x16_eval")
    pool = golden.meta["constructor"]["pool"].removesuffix("-in-roi")
    vit = VisionTransformer(**{**SMALL, "num_classes": 1000})
    module = head(vit=vit, pool=pool, roi="roi" in name, mask=golden.meta["constructor"]["attn_mask"])
    module.load_state_dict(PairRelationViT.from_official(golden.state_dict))
    boxes = golden.arrays["in_subject_box"], golden.arrays["in_object_box"]
    assert relative_error(module(golden.input, *boxes), golden.arrays["out_0"]) < 1e-5
    assert relative_error(module.pair_embedding(golden.input, *boxes), golden.arrays["out_1"]) < 1e-5


@pytest.mark.parametrize("roi", [False, True])
def test_objects_tell_each_other_once_it_is_learnt(roi):
    """`CoAttention` starts without any effect; then it tells the pooled subject of the object's patches in its box."""
    x, subject, object_ = pair()
    plain, fused = head(roi=roi), head(roi=roi, fuse=True)
    missing = fused.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert {key.split(".")[0] for key in missing} == {"fuse", "fused"}
    assert torch.equal(plain(x, subject, object_), fused(x, subject, object_))
    fused.fused.weight.data.normal_(0, 0.1)
    assert not torch.allclose(plain(x, subject, object_), fused(x, subject, object_), atol=1e-3)
    fused(x, subject, object_).sum().backward()
    assert all(
        value.grad is not None and value.grad.abs().sum() > 0 for value in fused.fuse.parameters() if value.ndim > 1
    )


def test_fusion_is_the_two_ways_of_co_attention():
    x, subject, object_ = pair()
    module = head(fuse=True, pool="avg")
    module.fused.weight.data.normal_(0, 0.1)
    sets = []
    module.vit.norm.register_forward_hook(lambda _, inputs, out: sets.append(out))
    found = module.pair_embedding(x, subject, object_)
    a, b = sets[0][:, 18:34], sets[0][:, 35:]
    expected = [one + module.fused(module.fuse(one, other)[0]) for one, other in ((a, b), (b, a))]
    torch.testing.assert_close(found, torch.cat([one.mean(1) for one in expected], 1))


@pytest.mark.parametrize("mask", [True, False])
def test_the_picture_sees_no_object_with_a_mask(mask):
    """In one block: from a second on, the class token tells it, as in the official code."""
    x, subject, object_ = pair()
    module, seen = head(mask=mask, vit=VisionTransformer(**{**SMALL, "depth": 1})), []
    module.vit.norm.register_forward_hook(lambda _, inputs, out: seen.append(out[:, 1:17]))
    module(x, subject, object_)
    module(x, object_, subject)
    assert torch.allclose(*seen, atol=1e-6) == mask


def test_poolings():
    x, subject, object_ = pair()
    top, mean, lse = (head(pool=pool).pair_embedding(x, subject, object_) for pool in ("max", "avg", "lse"))
    assert (mean <= top).all() and (top <= lse).all()
    everything = torch.tensor([[0.0, 1.0, 0.0, 1.0]]).expand(2, 4)
    for pool in ("max", "avg", "lse"):
        inside, over_all = head(pool=pool, roi=True), head(pool=pool)
        torch.testing.assert_close(inside(x, everything, everything), over_all(x, everything, everything))


def test_any_grid_and_registers():
    vit = timm.create_model("vit_small_patch16_224", **SMALL, dynamic_img_size=True, reg_tokens=2)
    x = torch.randn(2, 3, 12, 20)
    _, subject, object_ = pair()
    assert head(vit=vit, roi=True, fuse=True)(x, subject, object_).shape == (2, 5)


def test_boxes_of_no_width_show_four_pixels():
    x, _, object_ = pair()
    line = torch.tensor([[0.5, 0.5, 0.25, 0.25]]).expand(2, 4)
    same = torch.tensor([[0.5, 0.75, 0.25, 0.5]]).expand(2, 4)
    module = head(roi=True)
    assert torch.equal(module(x, line, object_), module(x, same, object_))


def test_bad_input():
    with pytest.raises(TypeError, match="vit must be a VisionTransformer of timm, got Linear"):
        PairRelationViT(torch.nn.Linear(2, 2), 3)
    with pytest.raises(ValueError, match="vit must have a class token"):
        head(vit=VisionTransformer(**SMALL, class_token=False, global_pool="avg"))
    with pytest.raises(ValueError, match="pool must be one of max, avg, lse, got 'mean'"):
        head(pool="mean")
    with pytest.raises(ValueError, match="num_predicates must be"):
        head(num_predicates=0)
    x, subject, object_ = pair()
    with pytest.raises(ValueError, match=r"object_box must be \(2, 4\), got \(1, 4\)"):
        head()(x, subject, object_[:1])
