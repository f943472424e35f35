"""What weights say of heads, scores as sums of few terms, joint embeddings, heads taken out for good."""

import pytest
import timm
import torch
from explained import fill, small

from visionattn import explain
from visionattn.testing.fixtures import relative_error

SIZE = {"img_size": (32, 48), "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": 10}
X = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))


def vit(**more):
    return fill(timm.models.VisionTransformer(**{**SIZE, **more}))


@pytest.mark.parametrize(
    "more", [{}, {"init_values": 0.5, "reg_tokens": 2, "qkv_bias": False}], ids=["plain", "scaled"]
)
@pytest.mark.parametrize("pair", [(0, 7), (9, 9)])
def test_terms_of_a_score(more, pair):
    model = vit(**more)
    with torch.no_grad(), explain.capture(model) as record:
        model(X)
    for layer, head in ((0, 0), (2, 1)):
        found = explain.score_terms(model, X, layer, head, *pair)
        q, k = record[layer].q[:, 0, head, pair[0]], record[layer].k[:, 0, head, pair[1]]
        torch.testing.assert_close(found.score, (q * k).sum(1), rtol=1e-3, atol=1e-4)
        assert found.terms.shape == (2, 16) and (found.singular.diff() <= 1e-5).all()
        kept = (found.terms * found.chosen).sum(1)
        assert (kept * found.score.sign() >= 0.7 * found.score.abs() - 1e-4).all()
        smallest = torch.where(found.chosen, found.terms * found.score.sign()[:, None], torch.inf).amin(1)
        assert (kept * found.score.sign() - smallest < 0.7 * found.score.abs() + 1e-4).all()  # one less is too few
        for sources in (found.query_sources, found.key_sources):
            assert sources.shape == (2, 2 + 5 * layer) == (2, len(found.names))
            torch.testing.assert_close(sources.sum(1), kept, rtol=1e-3, atol=1e-3)


def test_source_of_a_signal():
    """Without its output a head is no source; what others bring does not change where they do not read it."""
    model = vit()
    with torch.no_grad():
        model.blocks[0].attn.proj.weight[:, 16:32] = 0
    found = explain.score_terms(model, X, 1, 0, 3, 5)
    place = found.names.index("layer 0 head 1")
    assert (found.key_sources[:, place] == 0).all() and (found.key_sources[:, place + 1] != 0).all()
    with pytest.raises(ValueError, match=r"key must lie in 0\.\.24, got 25"):
        explain.score_terms(model, X, 1, 0, 3, 25)
    with pytest.raises(ValueError, match="must not be normalised"):
        explain.score_terms(vit(qk_norm=True), X, 1, 0, 3, 5)
    with pytest.raises(ValueError, match=r"share must be above 0 and at most 1, got 1\.5"):
        explain.score_terms(model, X, 1, 0, 3, 5, share=1.5)


def head_that(model, layer, head, maps):
    """Makes a head do this to what it reads."""
    with torch.no_grad():
        block = model.blocks[layer]
        width = 48 // block.attn.num_heads
        block.norm1.weight.fill_(1.0)
        model.norm.weight.fill_(1.0)
        rows = slice(96 + head * width, 96 + (head + 1) * width)
        u, s, v = torch.linalg.svd(maps)
        block.attn.qkv.weight[rows] = (s[:width, None] * v[:width]) / s[0]
        block.attn.proj.weight[:, head * width : (head + 1) * width] = u[:, :width]


def test_relations_of_heads():
    """One head copies classes, one suppresses them, one takes each to the next of its pair."""
    torch.manual_seed(0)
    model = vit(num_heads=2)
    classes = torch.randn(10, 48)
    classes -= classes.mean(1, keepdim=True)
    with torch.no_grad():
        model.head.weight.copy_(classes)
    inverse = torch.linalg.pinv(classes)
    pairs = torch.eye(10)[[1, 0, 3, 2, 5, 4, 7, 6, 9, 8]]
    head_that(model, 0, 0, (inverse @ classes).T)
    head_that(model, 0, 1, -(inverse @ classes).T)
    head_that(model, 2, 1, (inverse @ pairs @ classes).T)
    found = explain.relation_scores(model, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4], k=1, permutations=50)
    assert found.copying.shape == (3, 2)
    assert found.copying[0, 0] == 1 and found.copying_suppressed[0, 0] == 0
    assert found.copying_suppressed[0, 1] == 1 and found.copying[0, 1] == 0
    assert found.association[2, 1] == 1 and found.p_association[2, 1] == 0 and found.copying[2, 1] == 0
    assert found.association[0, 0] == 0 and found.p_association[0, 0] == 1
    salient = explain.salient_operations(model, 2, 1, count=10, k=1)
    assert {number: raised for number, _, raised in salient} == {n: [n + 1 - 2 * (n % 2)] for n in range(10)}
    gains = [gain for _, gain, _ in salient]
    assert gains == sorted(gains, reverse=True)
    alone = explain.relation_scores(model, k=1, tokens=classes.expand(3, -1, -1))
    assert alone.association is None and torch.equal(alone.copying, found.copying)
    with pytest.raises(ValueError, match="k must be at most the number of classes, 10, got 11"):
        explain.relation_scores(model, k=11)
    with pytest.raises(ValueError, match="must have a classifier, its head is Identity"):
        explain.relation_scores(vit(num_classes=0))


def test_preference_of_positions():
    """With tokens that are nothing but positions, attention is the softmax of the preference."""
    model = vit(class_token=False, global_pool="avg", qkv_bias=True)
    with torch.no_grad():
        model.patch_embed.proj.weight.zero_()
        model.patch_embed.proj.bias.zero_()
    with torch.no_grad(), explain.capture(model) as record:
        model(X)
    preference = explain.position_preference(model)
    assert preference.shape == (3, 3, 24, 24)
    torch.testing.assert_close(preference[0].softmax(-1), record[0].probs[0, 0])


def test_joint_embedding(tmp_path):
    generator = torch.Generator().manual_seed(0)
    k = 3 * torch.randn(20, 8, generator=generator)
    q = torch.cat((k[:10], torch.randn(5, 8, generator=generator)))
    plain = explain.joint_embedding(q, k, method="pca")
    assert plain.queries.shape == (15, 2) and plain.keys.shape == (20, 2)
    assert plain.scale == pytest.approx((k.norm(dim=1).mean() / q.norm(dim=1).mean()).sqrt().item(), rel=1e-5)
    torch.testing.assert_close(plain.queries.mean(0), plain.keys.mean(0), rtol=0, atol=1e-4)
    best = explain.joint_embedding(0.1 * q, k, method="pca", scale="rank")
    fixed = explain.joint_embedding(0.1 * q, k, method="pca", scale=1.0)
    assert best.rank_correlation > fixed.rank_correlation and best.rank_correlation > 0.3
    spread = explain.joint_embedding(
        q, k, method="tsne", labels=([f"q{i}" for i in range(15)], [str(j) for j in range(20)])
    )
    spread.to_csv(tmp_path / "points.csv")
    spread.to_html(tmp_path / "points.html", "Head <1>")
    lines = (tmp_path / "points.csv").read_text().splitlines()
    assert lines[0] == "kind,label,x,y" and len(lines) == 36 and lines[1].startswith("query,q0,")
    page = (tmp_path / "points.html").read_text()
    assert page.count("<circle") == 35 and "<title>query q14</title>" in page and "Head &lt;1&gt;" in page
    assert "http" not in page and "<script" not in page
    with pytest.raises(ValueError, match="method must be one of pca, tsne, umap, got 'mds'"):
        explain.joint_embedding(q, k, method="mds")


def test_umap_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "umap", None)
    with pytest.raises(ModuleNotFoundError, match="pip install umap-learn"):
        explain.joint_embedding(torch.randn(5, 4), torch.randn(5, 4), method="umap")


def pruned(name, heads, **more):
    """The smaller network and the whole one with these heads off give the same, eager and in gradients."""
    model, x = small(name) if not more else (vit(**more), X)
    with torch.no_grad(), explain.capture(model, keep=()) as record:
        model(x)
    paths = {layer.path: layer for layer in record}
    chosen = {path: heads for path in list(paths)[:2]}
    smaller = explain.prune_heads(model, chosen)
    factors = {(paths[path].index, head): 0.0 for path in chosen for head in heads}
    with torch.no_grad(), explain.edit(model, explain.scale_heads(factors)):
        expected = model(x)
    with torch.no_grad():
        actual, whole = smaller(x), model(x)
    assert relative_error(actual, expected) < 1e-5
    assert relative_error(whole, expected) > 1e-4
    counts = [sum(p.numel() for p in network.parameters()) for network in (smaller, model)]
    assert counts[0] < counts[1]
    return model, smaller


@pytest.mark.parametrize("heads", [[1], [0, 2], [0, 1, 2]])
@pytest.mark.parametrize(
    "more",
    [{"reg_tokens": 1}, {"qk_norm": True, "init_values": 0.1}, {"qkv_bias": False, "proj_bias": False}],
    ids=["plain", "norms", "no biases"],
)
def test_pruned_heads_of_timm(more, heads):
    model, smaller = pruned("", heads, **more)
    attn = smaller.blocks[0].attn
    if len(heads) == 3:
        assert not hasattr(attn, "qkv")
    else:
        assert attn.num_heads == 3 - len(heads) and model.blocks[0].attn.num_heads == 3
        assert attn.qkv.weight.shape == (48 * (3 - len(heads)), 48) and attn.proj.weight.shape == (
            48,
            48 - 16 * len(heads),
        )


def test_pruned_heads_of_windows():
    _, smaller = pruned("swin_tiny_patch4_window7_224", [1])
    table = smaller.layers[0].blocks[0].attn.relative_position_bias_table
    assert table.shape[1] == 1


@pytest.mark.parametrize("name", ["va_vit_softmax_nano", "va_stm_softmax_nano"])
def test_pruned_heads_of_ours(name):
    pruned(name, [0])


def test_pruned_networks_train():
    smaller = explain.prune_heads(vit(), {"blocks.0.attn": [0], "blocks.2.attn": [0, 1, 2]})
    smaller(X).sum().backward()
    missing = {name for name, p in smaller.named_parameters() if p.grad is None}
    assert missing <= {f"blocks.2.norm1.{kind}" for kind in ("weight", "bias")}


def test_heads_that_cannot_be_pruned():
    with pytest.raises(
        ValueError, match=r"heads must name modules of VisionTransformer, there is no 'blocks\.9\.attn'"
    ):
        explain.prune_heads(vit(), {"blocks.9.attn": [0]})
    with pytest.raises(ValueError, match=r"heads of blocks\.0\.attn must lie in 0\.\.2, got \[3\]"):
        explain.prune_heads(vit(), {"blocks.0.attn": [3]})
    with pytest.raises(ValueError, match=r"cannot lose heads: it has norm"):
        explain.prune_heads(vit(scale_attn_norm=True), {"blocks.0.attn": [0]})
    with pytest.raises(ValueError, match="must have linear layers qkv and proj and a num_heads"):
        explain.prune_heads(vit(), {"blocks.0.mlp": [0]})


def test_directions_added_to_queries_and_keys():
    model = vit()
    direction, other = torch.randn(16), torch.randn(16)
    with torch.no_grad(), explain.edit(model, explain.steer({(1, 2): (direction, other), (0, 0): (None, other)})):
        actual = model(X)
    with torch.no_grad():
        model.blocks[1].attn.qkv.bias[32:48] += direction
        model.blocks[1].attn.qkv.bias[80:96] += other
        model.blocks[0].attn.qkv.bias[48:64] += other
        assert relative_error(actual, model(X)) < 1e-5
    swin, x = small("swin_tiny_patch4_window7_224")
    with (
        pytest.raises(ValueError, match="the scale of the scores of layer 0"),
        explain.edit(swin, explain.steer({(0, 0): (torch.randn(12), None)})),
    ):
        swin(x)


def test_local_mass_of_heads():
    uniform = torch.full((2, 20, 20), 1 / 20)
    inside = sum((min(i, 1) + min(3 - i, 1) + 1) * (min(j, 1) + min(4 - j, 1) + 1) for i in range(4) for j in range(5))
    torch.testing.assert_close(explain.local_mass(uniform, (4, 5)), torch.full((2,), inside / 400))
    assert (explain.local_mass(torch.eye(20)[None], (4, 5), radius=0) == 1).all()
    rings = explain.ring_profile(torch.eye(20)[None], (4, 5))
    assert rings[0, 0] == 1 and (rings[0, 1:] == 0).all()


def test_heads_that_attend_alike_lie_together():
    """Patterns of a plain transformer are its weights; heads of one kind are neighbours, whatever their windows."""
    pytest.importorskip("sklearn", reason="scikit-learn comes with the extra `explain`")
    model, x = small("vit_tiny_patch16_224")
    with torch.no_grad(), explain.capture(model) as record:
        model(x)
    found = explain.head_patterns(record, method="pca", side=4)
    assert found["points"].shape == (6, 2) and found["layer"].tolist() == [0] * 3 + [1] * 3
    torch.testing.assert_close(found["patterns"][4], record[1].probs[:, 0, 1, 1:, 1:].mean(0))
    near = torch.eye(16)
    far = torch.full((16, 16), 1 / 16)
    for layer in record:
        weights = torch.zeros(2, 3, 17, 17)
        weights[:, 0, 1:, 1:], weights[:, 1, 1:, 1:], weights[:, 2, 1:, 1:] = near, far, near * 0.9 + far * 0.1
        layer.raw["probs"] = weights
    points = explain.head_patterns(record, method="pca", side=4)["points"]
    distances = torch.cdist(points, points)
    assert distances[0, 2] < distances[0, 1] / 4 and distances[0, 3] < 1e-4  # the same head of the other layer
    with pytest.raises(ValueError, match="layers must have three heads together at least, got 0"):
        explain.head_patterns(record, layers=[7])
    with pytest.raises(ValueError, match="method must be one of pca, tsne, umap, got 'mds'"):
        explain.head_patterns(record, method="mds")


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "va_stm_pvt_nano"])
def test_patterns_of_windows_keep_their_mass(name):
    pytest.importorskip("sklearn", reason="scikit-learn comes with the extra `explain`")
    model, x = small(name)
    with torch.no_grad(), explain.capture(model) as record:
        model(x)
    found = explain.head_patterns(record, side=4)
    torch.testing.assert_close(found["patterns"].sum(2), torch.ones(len(found["points"]), 16), rtol=1e-4, atol=1e-4)
