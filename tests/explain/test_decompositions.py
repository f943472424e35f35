"""Embeddings split into parts, texts that span heads, prompts on images, and matrices of scans."""

import math

import pytest
import timm
import torch
from explained import fill
from torch import nn
from torch.nn import functional as F

from visionattn import explain
from visionattn.testing.fixtures import load, relative_error

SIZE = {"img_size": (32, 48), "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3}
X = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
# The kinds of towers: CLIP's, with registers and layer scale, average pooled both ways, without a projection.
TOWERS = {
    "clip": {"pre_norm": True, "num_classes": 20},
    "registers": {"reg_tokens": 4, "init_values": 0.5, "num_classes": 20, "qk_norm": True},
    "mean": {"class_token": False, "global_pool": "avg", "fc_norm": False, "num_classes": 20},
    "norm of the mean": {"global_pool": "avg", "num_classes": 20},
    "bare": {"num_classes": 0, "qkv_bias": False},
}


def tower(kind="clip", **more):
    return fill(timm.models.VisionTransformer(**SIZE, **{**TOWERS[kind], **more}))


@pytest.mark.parametrize("kind", TOWERS)
def test_parts_of_an_embedding_add_up(kind):
    model = tower(kind)
    terms = explain.decompose_embedding(model, X)
    with torch.no_grad():
        expected = model(X)
    assert relative_error(terms.total, expected) < 1e-5
    tokens = 24 + terms.prefix
    assert terms.attention.shape == (2, 3, 3, tokens, expected.shape[1]) and terms.grid == (4, 6)
    unit = explain.decompose_embedding(model, X, normalise=True)
    torch.testing.assert_close(unit.total.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(F.normalize(terms.heads.flatten(1)), F.normalize(unit.heads.flatten(1)))


def test_part_of_a_head_is_what_goes_with_it():
    """A head whose values are zero writes nothing; the norm's deviation is that of the whole."""
    model = tower()
    before = explain.decompose_embedding(model, X)
    with torch.no_grad():
        stream = model.blocks[2].attn.proj.weight
        stream[:, 16:32] = 0
    after = explain.decompose_embedding(model, X)
    assert before.attention[:, 2, 1].abs().max() > 1e-3
    assert (after.attention[:, 2, 1] == 0).all()


def test_map_of_a_direction():
    terms = explain.decompose_embedding(tower("registers"), X)
    direction = torch.randn(20)
    expected = (terms.attention[:, 1:, :, 5:].sum((1, 2)) @ direction).view(2, 4, 6)
    torch.testing.assert_close(terms.map(direction, layers=[1, 2]), expected)
    torch.testing.assert_close(terms.map(direction.expand(2, -1), layers=[1, 2]), expected)


@pytest.mark.parametrize("name", ["vit_base_patch16_clip_224", "vit_base_patch32_clip_quickgelu_224"])
def test_towers_of_timm(name):
    model = fill(timm.create_model(name, img_size=64, depth=2, num_classes=16))
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert relative_error(explain.decompose_embedding(model, x).total, model(x)) < 1e-5


def test_other_networks_are_refused():
    with pytest.raises(ValueError, match="must be a VisionTransformer of timm's with plain blocks, got ResNet"):
        explain.decompose_embedding(timm.create_model("resnet10t"), X)
    with pytest.raises(ValueError, match="one layer norm and read a token"):
        explain.decompose_embedding(tower(global_pool="map", class_token=False), X)
    with pytest.raises(ValueError, match="no norm of its output"):
        explain.decompose_embedding(tower(scale_attn_norm=True), X)


@pytest.mark.parametrize("name", ["explain_textspan_40x12", "explain_textspan_25x16"])
def test_text_span_as_the_official_code(name):
    golden = load(name)
    settings = golden.meta["constructor"]
    found = explain.text_span(
        golden.arrays["data"], golden.arrays["text"], steps=settings["iterations"], rank=settings["rank"]
    )
    assert found.chosen.tolist() == golden.arrays["chosen"].tolist()
    assert relative_error(found.reconstruction, golden.arrays["out_0"]) < 1e-5
    assert (found.variance.diff() >= 0).all() and 0 < found.variance[0] < found.variance[-1] < 1


def test_text_span_names_what_varies():
    """Outputs vary along two texts of a hundred; these are found, the stronger one first."""
    texts = F.normalize(torch.randn(100, 32), dim=1)
    outputs = 3 * torch.randn(200, 1) * texts[17] + torch.randn(200, 1) * texts[4] + 5
    assert explain.text_span(outputs, texts, steps=2).chosen.tolist() == [17, 4]
    with pytest.raises(ValueError, match="steps must be at most the number of texts, 100, got 101"):
        explain.text_span(outputs, texts, steps=101)
    with pytest.raises(ValueError, match=r"texts \(M, d\), got \(200, 32\) and \(100, 31\)"):
        explain.text_span(outputs, texts[:, 1:], steps=1)


@pytest.mark.parametrize("name", ["explain_attention_prompt_8x8", "explain_attention_prompt_6x10"])
def test_prompt_mask_as_the_official_code(name):
    arrays = load(name).arrays
    actual = explain.prompt_mask(arrays["cls_map"][None], arrays["patch_map"][None])[0]
    assert relative_error(actual, arrays["out_0"]) < 1e-5


def test_text_guided_mask():
    """The parts of the mask are those of the decomposition and of the block's tokens, and follow the text."""
    model = tower()
    text = torch.randn(2, 20)
    mask = explain.text_guided_mask(model, X, text)
    assert mask.shape == (2, 4, 6) and mask.amin() == 0 and mask.amax() == 1
    attended = explain.decompose_embedding(model, X).map(text, layers=[1])
    tokens = []
    model.blocks[1].register_forward_hook(lambda module, args, out: tokens.append(out))
    with torch.no_grad():
        model(X)
        patches = ((tokens[0] - tokens[0].mean(2, keepdim=True)) * model.norm.weight @ model.head.weight.T)[:, 1:]
    patches = (patches * text[:, None]).sum(2).view(2, 4, 6)
    torch.testing.assert_close(mask, explain.prompt_mask(attended, patches), rtol=1e-3, atol=1e-4)
    assert (explain.text_guided_mask(model, X, -text) - mask).abs().max() > 0.1
    with pytest.raises(ValueError, match=r"layer must lie in -3\.\.2, got 3"):
        explain.text_guided_mask(model, X, text, layer=3)


def test_prompted_image():
    images, mask = torch.rand(2, 3, 30, 44), torch.rand(2, 5, 7)
    torch.testing.assert_close(explain.prompt_image(images, torch.ones(2, 5, 7)), images)
    assert (explain.prompt_image(images, torch.zeros(2, 5, 7), grey=0.5) == 0.5).all()
    half = explain.prompt_image(torch.ones(2, 1, 30, 44), mask)
    assert half.min() >= 0 and half.max() <= 1 and half.std() > 0.1


def scan(x, delta, A, B, C, bias):
    """The recurrence, step by step."""
    step = F.softplus(delta + bias[:, None])
    state = torch.zeros(len(x), *A.shape)
    outputs = []
    for t in range(x.shape[2]):
        state = (step[:, :, t, None] * A).exp() * state + (step * x)[:, :, t, None] * B[:, None, :, t]
        outputs.append((state * C[:, None, :, t]).sum(2))
    return torch.stack(outputs, 2)


@pytest.mark.parametrize("name", ["explain_mamba_attention_12", "explain_mamba_attention_9"])
def test_hidden_attention_as_the_official_code(name):
    arrays = load(name).arrays
    parts = [arrays[key] for key in ("delta", "A", "B", "C")]
    alpha = explain.hidden_attention(*parts, delta_bias=arrays["delta_bias"])
    assert relative_error(alpha, arrays["out_0"]) < 1e-5
    y = (alpha @ arrays["x"].unsqueeze(3)).squeeze(3)
    assert relative_error(y, arrays["out_1"]) < 1e-5
    plain = [arrays["delta"], arrays["A"], arrays["B"][:, 0], arrays["C"][:, 0]]
    assert relative_error(y, scan(arrays["x"], *plain, arrays["delta_bias"])) < 1e-5


def test_rows_and_both_directions_of_a_scan():
    delta, x = torch.randn(2, 4, 11), torch.randn(2, 4, 11)
    A, bias = -torch.rand(4, 3), torch.randn(4)
    B, C = torch.randn(2, 2, 2, 3, 11).unbind()
    for backward in (False, True):
        whole = explain.hidden_attention(delta, A, B, C, delta_bias=bias, backward=backward)
        for row in (0, 6, 10):
            one = explain.hidden_attention(delta, A, B, C, delta_bias=bias, backward=backward, row=row)
            torch.testing.assert_close(one, whole[:, :, row])
    groups = [scan(x[:, 2 * g : 2 * g + 2].flip(2), delta[:, 2 * g : 2 * g + 2], A[2 * g : 2 * g + 2], B[:, g],
                   C[:, g], bias[2 * g : 2 * g + 2]) for g in range(2)]  # fmt: skip
    torch.testing.assert_close((whole @ x.unsqueeze(3)).squeeze(3), torch.cat(groups, 1).flip(2), rtol=1e-4, atol=1e-5)
    rolled = explain.rollout_matrix(torch.stack([whole.abs()] * 3, 1))
    torch.testing.assert_close(rolled.sum(2), torch.ones(2, 11))


def test_a_long_scan_stays_finite():
    delta = torch.full((1, 1, 500), 5.0)
    ones = torch.ones(1, 1, 500)
    alpha = explain.hidden_attention(delta, torch.full((1, 1), -2.0), ones, ones)
    assert alpha.isfinite().all() and alpha[0, 0, 400, 0] == 0 and (alpha.triu(1) == 0).all()
    with pytest.raises(ValueError, match=r"row must lie in 0\.\.499, got 500"):
        explain.hidden_attention(delta, torch.full((1, 1), -2.0), ones, ones, row=500)
    with pytest.raises(ValueError, match=r"B \(1, 1, 1, 499\) and C \(1, 1, 1, 500\)"):
        explain.hidden_attention(delta, torch.full((1, 1), -2.0), ones[..., 1:], ones)


class OpenClipBlock(nn.Module):
    """One block as open_clip's names and formulas have it."""

    def __init__(self, width, heads, activation):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential()
        for name, part in (
            ("c_fc", nn.Linear(width, 4 * width)),
            ("gelu", activation()),
            ("c_proj", nn.Linear(4 * width, width)),
        ):
            self.mlp.add_module(name, part)

    def forward(self, x):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class QuickGELU(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


class OpenClipTower(nn.Module):
    """open_clip's VisionTransformer, written from its published formula: the package is not installed everywhere."""

    def __init__(self, activation=nn.GELU, width=32):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 8, 8, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.positional_embedding = nn.Parameter(torch.randn(17, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.ModuleList(OpenClipBlock(width, 4, activation) for _ in range(2))
        self.proj = nn.Parameter(torch.randn(width, 12) / math.sqrt(width))

    def forward(self, x):
        x = self.conv1(x).flatten(2).mT
        x = torch.cat((self.class_embedding.expand(len(x), 1, -1), x), 1) + self.positional_embedding
        x = self.ln_pre(x)
        for block in self.transformer.resblocks:
            x = block(x)
        return self.ln_post(x[:, 0]) @ self.proj


@pytest.mark.parametrize("activation", [nn.GELU, QuickGELU])
def test_tower_of_open_clip(activation):
    visual, x = OpenClipTower(activation).eval(), torch.randn(2, 3, 32, 32)
    model = explain.open_clip_tower(visual)
    with torch.no_grad():
        assert relative_error(model(x), visual(x)) < 1e-5
    assert relative_error(explain.decompose_embedding(model, x).total, visual(x).detach()) < 1e-5
    visual.extra = nn.Parameter(torch.zeros(3))
    with pytest.raises(ValueError, match="visual has parts that timm's network has not"):
        explain.open_clip_tower(visual)
    with pytest.raises(ValueError, match="must be a VisionTransformer of open_clip's, got Linear"):
        explain.open_clip_tower(nn.Linear(2, 2))


def test_open_clip_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "open_clip", None)
    with pytest.raises(ModuleNotFoundError, match="pip install open_clip_torch"):
        explain.open_clip_model()
