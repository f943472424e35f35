"""Replacing attention in transformers: exact where the mixer can be, complete, and undone by nothing that follows."""

import copy
import io
import re

import pytest
import timm
import torch
from torch import nn
from torch.distributed import destroy_process_group, init_process_group

import visionattn
from visionattn.mixers import SoftmaxAttention, replace_attention
from visionattn.models.modifications import apply_modifications

SMALL = {"embed_dim": 48, "num_heads": 3, "depth": 2, "num_classes": 5}
# Name -> network, arguments, side of the picture, number of attentions.
NETWORKS = {
    "vit": ("vit_tiny_patch16_224", {**SMALL, "img_size": 64}, 2),
    "registers": ("vit_small_patch16_224", {**SMALL, "img_size": 64, "reg_tokens": 2, "qk_norm": True}, 2),
    "distilled": ("deit_tiny_distilled_patch16_224", {**SMALL, "img_size": 64}, 2),
    "deit3": ("deit3_small_patch16_224", {**SMALL, "img_size": 64}, 2),
    "beit": ("beit_base_patch16_224", {**SMALL, "img_size": 64}, 2),
    "eva": ("eva02_tiny_patch14_224", {**SMALL, "img_size": 56}, 2),
    "rope": ("vit_small_patch16_rope_224", {**SMALL, "img_size": 64}, 2),
    "cait": ("cait_xxs24_224", {**SMALL, "img_size": 64}, 2),
    "xcit": ("xcit_nano_12_p16_224", {**SMALL, "img_size": 64}, 2),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"depths": (2, 2), "num_heads": (2, 4), "embed_dim": 24, "img_size": 56},
        4,
    ),
    "swinv2": ("swinv2_tiny_window8_256", {"depths": (2, 2), "num_heads": (2, 4), "embed_dim": 24, "img_size": 64}, 4),
    "davit": ("davit_tiny", {"depths": (1, 1), "embed_dims": (24, 48), "num_heads": (2, 4)}, 4),
    "columnar": ("va_vit_softmax_nano", {"global_pool": "token"}, 8),
    "pyramid": ("va_stm_softmax_nano", {}, 8),
}
PLAIN = ("vit", "registers", "distilled", "deit3", "beit", "eva", "rope", "columnar", "pyramid")


def network(kind):
    """A small network with weights that show in the result, and a picture for it."""
    name, arguments, _ = NETWORKS[kind]
    model = build(name, **arguments)
    side = arguments.get("img_size") or model.default_cfg["input_size"][1]
    return model, torch.randn(2, 3, *([min(side, 64)] * 2))


def build(name, **arguments):
    torch.manual_seed(0)
    model = timm.create_model(name, **arguments).eval()
    with torch.no_grad():
        for key, value in model.named_parameters():
            value.normal_(0, 0.3 if value.ndim == 1 else value[0].numel() ** -0.5)
            if "norm" in key and key.endswith("weight"):
                value.add_(1)
    return model


@pytest.mark.parametrize("kind", PLAIN)
def test_softmax_attention_for_softmax_attention_changes_nothing(kind):
    model, x = network(kind)
    before, keys = model(x), set(model.state_dict())
    assert replace_attention(model, "softmax") is model
    torch.testing.assert_close(model(x), before, rtol=1e-5, atol=1e-5)
    assert len(model.replaced) == NETWORKS[kind][2]
    assert all(entry.new == () for entry in model.replaced)
    lost = keys - set(model.state_dict())
    assert all(re.search(r"\.[qkv]_(bias|proj\.weight|proj\.bias)$", key) for key in lost)


# Mixers that keep weights, where they are softmax attention in another form.
EXACT = {
    "sparge": {"topk": 1.0},
    "vmoba": {"threshold": 1.0},
    "sparsifiner": {"keep_rate": 1.0},
    "probabilistic": {"key_iters": 0},
    "scatterbrain": {"window": (16, 16)},
    "multi_window": {"window_sizes": 0},
}
REFUSED = {
    ("probabilistic", "registers"): "has no place for the norms of queries and keys",
    ("multi_window", "registers"): "has no place for the norms of queries and keys",
    ("scatterbrain", "beit"): "a bias for each distance, which scatterbrain cannot take",
    ("multi_window", "beit"): "a bias for each distance, which multi_window cannot take",
}


@pytest.mark.parametrize("mixer", EXACT)
@pytest.mark.parametrize("kind", PLAIN)
def test_mixers_that_leave_nothing_out_change_nothing(kind, mixer):
    model, x = network(kind)
    before = model(x)
    if refused := REFUSED.get((mixer, kind)):
        with pytest.raises(ValueError, match=refused):
            replace_attention(model, mixer, **EXACT[mixer])
        assert torch.equal(model(x), before)
        return
    replace_attention(model, mixer, **EXACT[mixer])
    torch.testing.assert_close(model(x), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["swin", "davit"])
def test_windows_for_the_same_windows_change_nothing(kind):
    model, x = network(kind)
    before, keys = model(x), set(model.state_dict())
    spatial = [0, 2] if kind == "davit" else None
    replace_attention(model, "swin", blocks=spatial)
    torch.testing.assert_close(model(x), before, rtol=1e-5, atol=1e-5)
    assert set(model.state_dict()) == keys


def test_a_window_that_covers_the_map_is_exact_without_extra_tokens():
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", **SMALL, img_size=64, class_token=False, global_pool="avg").eval()
    x = torch.randn(2, 3, 64, 64)
    before = model(x)
    replace_attention(model, "swin", window_size=4)
    torch.testing.assert_close(model(x), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mixer", ["linear", "lkca", "pool", "halonet"])
@pytest.mark.parametrize("kind", [kind for kind in NETWORKS if kind not in ("beit", "eva", "rope")])
def test_new_mixers_anywhere(kind, mixer):
    model, x = network(kind)
    before, keys = model(x), set(model.state_dict())
    parts = {name for name, _ in model.named_modules()}
    replace_attention(model, mixer, weights="new")
    after = model(x)
    assert after.shape == before.shape and after.isfinite().all() and not torch.equal(after, before)
    inside = [entry.name for entry in model.replaced]
    assert len(inside) == NETWORKS[kind][2] and set(inside) <= parts
    assert all(any(key.startswith(name) for name in inside) for key in keys - set(model.state_dict()))
    after.sum().backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if any(name.startswith(i) for i in inside))


@pytest.mark.parametrize(("mixer", "weights"), [("linear", "keep"), ("swin", "keep"), ("lkca", "new")])
@pytest.mark.parametrize("kind", ["vit", "columnar", "davit"])
def test_can_be_saved_copied_and_done_again(kind, mixer, weights):
    model, x = network(kind)
    fresh = copy.deepcopy(model)
    replace_attention(model, mixer, blocks=[0, -1], weights=weights)
    expected = model(x)
    again = apply_modifications(fresh, model.modifications)
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again(x), expected)
    torch.testing.assert_close(copy.deepcopy(model)(x), expected)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    torch.testing.assert_close(torch.load(file, weights_only=False)(x), expected)


class TestExtraTokens:
    def test_are_queries_over_all_tokens_beside_a_mixer_of_maps(self):
        model, _ = network("registers")
        attention = model.blocks[0].attn
        x = torch.randn(2, 3 + 16, 48)
        expected = attention(x)[:, :3]
        for weights, mixer in (("keep", "swin"), ("new", "lkca")):
            changed = copy.deepcopy(model)
            if weights == "keep":  # windows have no norms of queries and keys
                with pytest.raises(ValueError, match="swin has no place for the norms of queries and keys"):
                    replace_attention(changed, mixer)
                continue
            replace_attention(changed, mixer, weights=weights)
            torch.testing.assert_close(changed.blocks[0].attn(x)[:, :3], expected, rtol=1e-5, atol=1e-5)
        plain, _ = network("vit")
        x = torch.randn(2, 1 + 16, 48)
        expected = plain.blocks[0].attn(x)[:, :1]
        replace_attention(plain, "swin", window_size=2)
        result = plain.blocks[0].attn(x)
        torch.testing.assert_close(result[:, :1], expected, rtol=1e-5, atol=1e-5)
        changed = x.clone()
        changed[:, 0] += 1
        torch.testing.assert_close(plain.blocks[0].attn(changed)[:, 1:], result[:, 1:])

    def test_weights_that_stay_keep_their_names(self):
        model, _ = network("vit")
        before = {key: value.clone() for key, value in model.state_dict().items()}
        replace_attention(model, "lkca", weights="new")
        after = model.state_dict()
        assert all(torch.equal(after[key], value) for key, value in before.items())
        assert {key.split("attn.")[1].split(".")[0] for key in after.keys() - before.keys()} == {"mixer"}


# What each family's attention is replaced by below.
REPLACED = {
    "vit": ("linear", "keep"),
    "registers": ("lkca", "new"),
    "distilled": ("swin", "keep"),
    "deit3": ("fastmax", "keep"),
    "beit": ("softmax", "keep"),
    "eva": ("softmax", "keep"),
    "rope": ("softmax", "keep"),
    "cait": ("linear", "new"),
    "xcit": ("linear", "new"),
    "swin": ("swin", "keep"),
    "swinv2": ("linear", "new"),
    "davit": ("linear", "new"),
    "columnar": ("linear", "keep"),
    "pyramid": ("linear", "keep"),
}


@pytest.fixture(params=NETWORKS)
def family(request):
    model, x = network(request.param)
    mixer, weights = REPLACED[request.param]
    return replace_attention(model, mixer, weights=weights), x


class TestEveryFamilyWorksWith:
    def test_compilation(self, family):
        model, x = family
        expected = model(x)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), expected, rtol=1e-4, atol=1e-4)

    def test_export(self, family):
        model, x = family
        batch = torch.export.Dim("batch", min=1, max=64)
        program = torch.export.export(model, (x,), dynamic_shapes=({0: batch},))
        torch.testing.assert_close(program.module()(x[:1]), model(x[:1]), rtol=1e-4, atol=1e-4)

    @pytest.mark.slow
    def test_onnx(self, family, tmp_path):
        onnxruntime = pytest.importorskip("onnxruntime", reason="the export extra is not installed")
        model, x = family
        torch.onnx.export(model, (x,), tmp_path / "model.onnx", dynamo=True)
        session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
        (given,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(given), model(x), rtol=1e-3, atol=1e-3)

    def test_gradient_checkpointing(self, family):
        model, x = family
        gradients = []
        for enable in (False, True):
            model.set_grad_checkpointing(enable)
            model.zero_grad()
            model(x).square().sum().backward()
            gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)

    def test_copies_and_files(self, family):
        model, x = family
        expected = model(x)
        torch.testing.assert_close(copy.deepcopy(model)(x), expected)
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        torch.testing.assert_close(torch.load(file, weights_only=False)(x), expected)

    def test_data_parallel_training(self, family, tmp_path):
        """A parameter without a gradient would stop the second step."""
        model, x = family
        init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
        try:
            parallel = nn.parallel.DistributedDataParallel(model)
            for _ in range(2):
                model.zero_grad()
                parallel(x).sum().backward()
        finally:
            destroy_process_group()
        inside = tuple(entry.name for entry in model.replaced)
        assert all(p.grad is not None for name, p in model.named_parameters() if name.startswith(inside))


@pytest.mark.parametrize("kind", NETWORKS)
def test_feature_maps_of_every_family(kind):
    name, arguments, attentions = NETWORKS[kind]
    more = {key: value for key, value in arguments.items() if key not in ("num_classes", "global_pool")}
    if "depth" in more:
        more["out_indices"] = (0, 1)
    model = build(name, **more, features_only=True)
    side = min(arguments.get("img_size") or 64, 64)
    x = torch.randn(1, 3, side, side)
    before = model(x)
    mixer, weights = REPLACED[kind]
    replace_attention(model, mixer, weights=weights)
    after = model(x)
    assert len(model.replaced) == attentions
    assert [m.shape for m in after] == [m.shape for m in before]
    if (mixer, weights) in (("softmax", "keep"), ("swin", "keep")) and kind != "distilled":
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)
    else:
        assert not torch.equal(after[-1], before[-1])


class TestWorksWith:
    def test_another_square_size(self):
        model = timm.create_model("vit_tiny_patch16_224", **SMALL, img_size=64, dynamic_img_size=True).eval()
        replace_attention(model, "swin")
        assert model(torch.randn(1, 3, 96, 96)).shape == (1, 5)
        with pytest.raises(ValueError, match=r"24 patches are neither the 4x4 of the network's img_size nor a square"):
            model(torch.randn(1, 3, 64, 96))

    def test_a_config(self):
        from visionattn.tasks import Classifier

        backbone = {"model_name": "vit_tiny_patch16_224", **SMALL, "img_size": 64}
        model = Classifier(backbone, replace_attention={"mixer": "linear", "blocks": [1]})
        assert [entry.name for entry in model.backbone.replaced] == ["blocks.1.attn"]


class TestRefuses:
    def refused(self, kind, message, *args, **kwargs):
        model, x = network(kind)
        before = model(x)
        with pytest.raises(ValueError, match=message):
            replace_attention(model, *args, **kwargs)
        torch.testing.assert_close(model(x), before, rtol=0, atol=0)
        assert not hasattr(model, "replaced")

    def test_an_unknown_mixer(self):
        self.refused("vit", "unknown mixer 'nope'", "nope")

    def test_unknown_weights(self):
        self.refused("vit", "weights must be one of keep, new, got 'old'", "linear", weights="old")

    @pytest.mark.parametrize("blocks", [2, -3, [0, 7], []])
    def test_blocks_that_are_not_there(self, blocks):
        self.refused("vit", r"blocks must be some of 0 to 1 \(-1 is the last\)", "linear", blocks=blocks)

    def test_weights_that_a_mixer_has_no_place_for(self):
        self.refused(
            "vit", "lkca has no place for attention's own weights: pass weights='new', or one of .*linear", "lkca"
        )
        self.refused("cait", "softmax has no place for proj_l, proj_w of blocks.0.attn: pass weights='new'", "softmax")
        self.refused("swin", r"linear has no place for these weights .* relative_position_bias_table", "linear")

    @pytest.mark.parametrize(
        ("kind", "words"), [("eva", "rotary embeddings"), ("rope", "rotary"), ("beit", "a bias for each distance")]
    )
    def test_positions_that_a_mixer_cannot_take(self, kind, words):
        for weights in ("keep", "new"):
            self.refused(kind, f"gets {words}.*, which linear cannot take", "linear", weights=weights)

    def test_heads_that_do_not_divide_the_width(self):
        self.refused("vit", "linear does not fit blocks.0.attn: num_heads must divide dim", "linear", num_heads=5)

    def test_a_network_without_attention(self):
        with pytest.raises(ValueError, match="ResNet has no attention that can be replaced; looked for the blocks of"):
            replace_attention(timm.create_model("resnet18"), "linear")

    def test_replacing_twice_works_on_the_result_of_the_first(self):
        model, _ = network("vit")
        with pytest.raises(ValueError, match="VisionTransformer has no attention that can be replaced"):
            replace_attention(replace_attention(model, "linear"), "softmax")


def test_a_class_of_ones_own():
    class Mean(nn.Module):
        def __init__(self, dim, device=None, dtype=None):
            super().__init__()
            self.proj = nn.Linear(dim, dim, device=device, dtype=dtype)

        def forward(self, x):
            return self.proj(x.mean((1, 2), keepdim=True)).expand_as(x)

    model, x = network("vit")
    replace_attention(model, Mean, weights="new")
    assert model(x).isfinite().all()
    assert {entry.mixer for entry in model.replaced} == {"Mean"}


def test_prints_a_table():
    model, _ = network("vit")
    visionattn.replace_attention(model, SoftmaxAttention, blocks=-1)
    assert str(model.replaced).splitlines() == [
        "attention      width  heads  mixer             new weights",
        "blocks.1.attn  48     3      SoftmaxAttention  none",
    ]
    assert model.modifications[-1]["arguments"]["mixer"] == "softmax"
