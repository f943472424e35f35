"""Captured attention: outputs bit for bit the same, true gradients, probabilities that reproduce the output."""

from time import perf_counter

import pytest
import timm
import torch
from explained import OURS, TIMM, fill, small
from torch import nn

from visionattn import explain
from visionattn.profiling.peak_memory import peak_bytes

CHECKED = [*TIMM, *(f"va_stm_{mixer}_nano" for mixer in OURS), "va_vit_softmax_nano"]
# Heads are mixed between the probabilities and the values.
TALKING = ("cait",)


def check(model, x):
    with torch.no_grad():
        plain = model(x)
        with explain.capture(model) as record:
            assert torch.equal(model(x), plain)
    graded = model(x)
    score = graded[:, 3].sum()
    first = next(parameter for parameter in model.parameters() if parameter.requires_grad)
    expected = torch.autograd.grad(score, first)[0]
    with explain.capture(model) as with_graph:
        logits = model(x)
    assert torch.equal(logits, graded)
    with_graph.gradients(logits[:, 3].sum())
    assert len(with_graph) == len(record) > 0
    return record, with_graph, torch.autograd.grad(logits[:, 3].sum(), first)[0], expected


@pytest.mark.parametrize("name", CHECKED)
def test_outputs_are_the_same_and_gradients_true(name):
    model, x = small(name)
    record, graded, actual, expected = check(model, x)
    assert (actual - expected).abs().max() <= 1e-4 * expected.abs().max()
    for layer in graded:
        batch, windows, heads, rows, columns = layer.shape
        assert batch == len(x) and layer.probs.shape == layer.shape
        if layer.kind == "channel":
            continue
        assert layer.q.shape[:-1] == (batch, windows, heads, rows) and layer.k.shape[:-1][-1] == columns
        assert layer.grad.shape == layer.shape and layer.grad.abs().max() > 0
        torch.testing.assert_close(layer.probs.sum(-1), torch.ones(layer.shape[:-1]))
    for layer in record:
        if "v" in layer.raw and not name.startswith(TALKING):
            torch.testing.assert_close(layer.probs @ layer.v, layer.out, rtol=1e-4, atol=1e-5)
    assert all(layer.path in str(record) for layer in record)


def vit(**kwargs):
    arguments = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2, "num_classes": 5}
    return fill(timm.models.VisionTransformer(**arguments | kwargs))


def test_layers_and_parts_that_are_held():
    model, x = vit(), torch.randn(2, 3, 32, 32)
    with torch.no_grad(), explain.capture(model, layers=(0, -1), keep=("probs", "logits")) as record:
        model(x)
    assert [sorted(layer.raw) for layer in record] == [["logits", "probs"], [], ["logits", "probs"]]
    torch.testing.assert_close(record[0].logits.softmax(-1), record[0].probs)
    with pytest.raises(ValueError, match=r"layer 1 \(blocks.1.attn\) holds no probs: .* layers= and keep="):
        _ = record[1].probs
    with pytest.raises(ValueError, match="no gradient of its probs"):
        _ = record[0].grad
    with pytest.raises(IndexError, match=r"0\.\.2, got 3"):
        _ = record[3]
    with torch.no_grad(), explain.capture(model, reduce=lambda layer: layer.probs.mean().item()) as record:
        model(x)
    assert [layer.reduced for layer in record] == [pytest.approx(1 / 17)] * 3 and not record[0].raw


def test_gradients_of_other_parts_and_frozen_weights():
    model, x = vit(), torch.randn(2, 3, 32, 32)
    with explain.capture(model) as record:
        score = model(x)[:, 1].sum()
    record.gradients(score, of=("probs", "out"))
    # d/dA = d/dout v'
    torch.testing.assert_close(record[1].grad, record[1].grad_of("out") @ record[1].v.mT)
    with explain.capture(model.requires_grad_(False)) as frozen:
        score = model(x)[:, 1].sum()
    frozen.gradients(score)
    torch.testing.assert_close(frozen[1].grad, record[1].grad)


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "va_stm_davit_nano"])
def test_gradients_of_keys_and_of_what_lies_turned(name):
    """Of parts that a network has with rows as columns: as the chain rule gives them."""
    model, x = small(name)
    with explain.capture(model, keep=("probs", "logits", "q", "k", "v", "out")) as record:
        score = model(x)[:, 1].sum()
    record.gradients(score, of=("probs", "logits", "k", "v", "out"))
    turned = 0
    for layer in record:
        if "out" in layer.raw:
            torch.testing.assert_close(layer.grad, layer.grad_of("out") @ layer.v.mT, rtol=1e-3, atol=1e-6)
            torch.testing.assert_close(layer.grad_of("v"), layer.probs.mT @ layer.grad_of("out"), rtol=1e-3, atol=1e-6)
            turned += "out" in layer.turned
        if "swin" in name:  # it scales the queries, and adds to the scores
            torch.testing.assert_close(layer.grad_of("k"), layer.grad_of("logits").mT @ layer.q, rtol=1e-3, atol=1e-6)
            assert layer.grad_of("k").any()
    assert turned == (2 if "davit" in name else 0)


def test_gradients_need_a_score():
    model, x = vit(), torch.randn(1, 3, 32, 32)
    with explain.capture(model) as record:
        logits = model(x)
    with pytest.raises(ValueError, match=r"score must be one number .* got shape \(1, 5\), requires_grad=True"):
        record.gradients(logits)
    with pytest.raises(ValueError, match="none of the attentions holds logits"):
        record.gradients(logits.sum(), of="logits")


@pytest.mark.parametrize("name", ["vit", "swin_tiny_patch4_window7_224"])
def test_edited_probabilities(name):
    model, x = (vit(), torch.randn(2, 3, 32, 32)) if name == "vit" else small(name)
    with torch.no_grad():
        plain = model(x)
        with explain.capture(model, edit=lambda layer: layer.probs):
            torch.testing.assert_close(model(x), plain)
        with explain.capture(model, edit=lambda layer: layer.probs * (layer.index > 0)) as record:
            changed = model(x)
    assert not torch.allclose(changed, plain, atol=1e-3)
    assert not record[0].out.any() and record[1].out.any()


def test_autocast_and_checkpointing():
    model, x = vit(), torch.randn(2, 3, 32, 32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        plain = model(x)
        with explain.capture(model) as record:
            assert torch.equal(model(x), plain)
    assert len(record) == 3
    model.train()
    model.set_grad_checkpointing()
    with explain.capture(model) as record:
        logits = model(x)
    record.gradients(logits.sum())
    assert record[2].grad.any() and model.grad_checkpointing


def refused(message):
    return pytest.raises(ValueError, match=message)


def test_what_cannot_be_captured():
    model, x = vit(), torch.randn(1, 3, 32, 32)
    with refused("nothing was captured: call the network"), explain.capture(model):
        pass
    with refused(r"layers must lie in 0\.\.2: .* 3 attentions, got 7"), explain.capture(model, layers=[7]):
        model(x)
    with refused(r"keep must be of probs, .*, got weights"), explain.capture(model, keep=["weights"]):
        model(x)
    with refused(r"capture the eager model, model\._orig_mod"), explain.capture(torch.compile(model)):
        model(x)
    compiled = vit()
    compiled.blocks[1].compile()
    with refused(r"blocks\.1 is compiled, capture it eager"), explain.capture(compiled):
        compiled(x)
    compiled.blocks[1] = torch.compile(vit().blocks[1])
    with refused(r"blocks\.1 is compiled, capture it eager"), explain.capture(compiled):
        compiled(x)
    scripted = torch.jit.trace(model, x)
    with refused(r"a scripted network cannot be captured: it is"), explain.capture(scripted):
        scripted(x)
    plain = timm.create_model("resnet10t", num_classes=2).eval()
    with refused(r"ResNet has no attention .* use explain.cam"), torch.no_grad(), explain.capture(plain):
        plain(x)
    dropping = vit(attn_drop_rate=0.5).train()
    with refused(r"attention dropout must be off .* model.eval\(\)"), explain.capture(dropping):
        dropping(x)
    assert not model._forward_hooks
    encoder = nn.Sequential(nn.Conv2d(3, 8, 8, 8), nn.Flatten(2), nn.TransformerEncoderLayer(16, 2)).eval()
    with refused(r"inside nn\.MultiheadAttention cannot be captured"), explain.capture(encoder):
        encoder(x)


def test_no_more_is_held_than_was_asked_for():
    """Neither afterwards nor while the network runs, however deep it is."""
    model, x = vit(depth=12, patch_size=2).requires_grad_(False), torch.randn(1, 3, 32, 32)
    one = 4 * 2 * 257**2  # the weights of a layer in bytes
    plain = peak_bytes(lambda: model(x))
    records = []

    def captured(**kwargs):
        with torch.no_grad(), explain.capture(model, **kwargs) as record:
            model(x)
        records.append(record)

    def held():
        return sum(part.numel() * part.element_size() for layer in records.pop() for part in layer.raw.values())

    assert peak_bytes(lambda: captured(layers=(3,), keep=("probs",))) <= plain + 4 * one and held() == one
    assert peak_bytes(lambda: captured(layers=(-1,), keep=("probs",))) <= plain + 5 * one and held() == one
    assert peak_bytes(lambda: captured(keep=(), reduce=lambda layer: layer.probs.mean())) <= plain + 4 * one
    assert held() == 0
    assert peak_bytes(lambda: captured(keep=("probs",))) > 12 * one and held() == 12 * one


@pytest.mark.slow
def test_costs_at_most_two_and_a_half_forward_passes():
    model = timm.create_model("vit_small_patch16_224").eval()
    x, times = torch.randn(4, 3, 224, 224), {"plain": [], "captured": []}
    with torch.no_grad():
        for _ in range(7):
            start = perf_counter()
            model(x)
            times["plain"].append(perf_counter() - start)
            start = perf_counter()
            with explain.capture(model):
                model(x)
            times["captured"].append(perf_counter() - start)
    ratio = min(times["captured"]) / min(times["plain"])
    assert ratio <= 2.5, times
