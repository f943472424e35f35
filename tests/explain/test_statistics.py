"""Statistics of heads, their importance and scores of maps: the fixtures and closed forms."""

import math

import pytest
import timm
import torch
from explained import small

from visionattn import explain
from visionattn.explain import heads, metrics
from visionattn.testing.fixtures import load, relative_error


@pytest.mark.parametrize("name", ["explain_stats_5x5", "explain_stats_reg_4x6"])
def test_statistics_as_the_reference(name):
    golden = load(name)
    settings = golden.meta["constructor"]
    actual = explain.attention_statistics(golden.arrays["attn"], tuple(settings["grid"]), settings["prefix"])
    expected = {key: value for key, value in golden.arrays.items() if key != "attn"}
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        if key == "sinks":
            assert torch.equal(actual[key].long(), value)
        else:
            torch.testing.assert_close(actual[key], value, rtol=1e-4, atol=1e-6)


def test_closed_forms():
    uniform = torch.full((1, 1, 1, 12, 12), 1 / 12)
    found = explain.attention_statistics(uniform, (3, 4), 0)
    assert found["entropy"].item() == pytest.approx(math.log(12)) and "patch_to_cls" not in found
    assert found["offset"].abs().item() < 1e-6 and not found["sinks"].any()
    right = torch.zeros(12, 12)
    for patch in range(12):
        right[patch, patch + 1 if patch % 4 < 3 else patch] = patch % 4 < 3  # the last column looks nowhere
    found = explain.attention_statistics(right.view(1, 1, 1, 12, 12), (3, 4), 0)
    assert found["offset_x"].item() == pytest.approx(1 / 3) and found["offset_y"].item() == 0
    assert found["distance_patches"].item() == pytest.approx(9 / 12) and found["entropy"].item() == 0


def test_streaming():
    model, x = small("vit_tiny_patch16_224")
    whole, parts = explain.AttentionStatistics(), explain.AttentionStatistics(lambda name: name == "entropy")
    for stream, batches in ((whole, [x]), (parts, x.split(1))):
        for batch in batches:
            with torch.no_grad(), explain.capture(model) as record:
                model(batch)
            stream.update(record)
    assert list(parts.compute()) == ["entropy"]
    torch.testing.assert_close(whole.compute()["entropy"], parts.compute()["entropy"], rtol=1e-5, atol=1e-5)
    parts.reset()
    with pytest.raises(ValueError, match=r"call update\(record\) first"):
        parts.compute()


def test_statistics_of_windows_are_refused():
    model, x = small("swin_tiny_patch4_window7_224")
    with torch.no_grad(), explain.capture(model) as record:
        model(x)
    with pytest.raises(ValueError, match="networks whose tokens all see each other"):
        explain.statistics(record)
    with pytest.raises(ValueError, match=r"T = 1 \+ 2 \* 2, got \(1, 1, 1, 4, 4\)"):
        explain.attention_statistics(torch.ones(1, 1, 1, 4, 4), (2, 2), 1)


def test_head_importance_as_the_reference():
    golden = load("explain_head_importance_vit_32")
    settings = {k: v for k, v in golden.meta["constructor"].items() if k not in ("prefix", "class")}
    model = timm.models.VisionTransformer(**settings).eval()
    model.load_state_dict(golden.state_dict)
    x, labels, arrays = golden.input, torch.tensor(golden.meta["labels"]), golden.arrays
    gradients = torch.stack(heads.gate_gradients(model, x, labels), 1)
    assert relative_error(gradients, arrays["out_0"]) < 1e-4
    assert relative_error(torch.stack(heads.head_importance(model, x, labels)), arrays["out_1"]) < 1e-4
    normalised = heads.head_importance(model, x, labels, normalise_layers=True)
    assert relative_error(torch.stack(normalised), arrays["out_2"]) < 1e-4
    assert relative_error(gradients.mean(0).abs(), arrays["out_3"]) < 1e-4
    assert relative_error(torch.stack(heads.ablation(model, x, labels)), arrays["out_4"]) < 1e-3
    with torch.no_grad(), explain.capture(model) as record:
        model(x)
    patches = torch.cat([layer.probs for layer in record], 1)[..., 1:, 1:]
    assert relative_error(heads.ring_profile(patches, (4, 4)), arrays["out_5"]) < 1e-4


def test_attention_iou_as_the_official_code():
    arrays = load("explain_attention_iou_7x9").arrays
    a, b, mask = arrays["a"], arrays["b"], arrays["mask"]
    torch.testing.assert_close(metrics.attention_iou(a, b), arrays["out_0"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(metrics.mask_score(a, mask), arrays["out_1"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(metrics.pointing_game(a, mask), arrays["point"])


def test_segmentation_scores_as_the_official_code():
    arrays = load("explain_segmentation_score_7x7").arrays
    found = metrics.segmentation_scores(arrays["map"], arrays["mask"])
    names = ("accuracy", "iou", "average_precision", "mass_iou", "f_measure", "mass_inside")
    for number, name in enumerate(names):
        torch.testing.assert_close(found[name], arrays[f"out_{number}"], rtol=1e-4, atol=1e-5)


def test_laplacians_as_the_reference():
    arrays = load("explain_lapeigvals_9").arrays
    before = arrays["causal"].clone()
    eigenvalues = explain.causal_laplacian(arrays["causal"])
    torch.testing.assert_close(eigenvalues, arrays["out_0"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(eigenvalues.topk(4).values, arrays["out_1"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(explain.laplacian_spectrum(arrays["vision"]), arrays["out_2"], rtol=1e-4, atol=1e-5)
    assert torch.equal(before, arrays["causal"])
    with pytest.raises(ValueError, match="at least two layers"):
        explain.causal_laplacian(before[:1])


def test_effective_rank():
    rank = explain.effective_rank(torch.randn(500, 3, generator=torch.Generator().manual_seed(0)) @ torch.eye(3, 8))
    assert rank["directions"].item() == 3 and rank["effective"].item() == pytest.approx(3, abs=0.05)


def test_maps_without_mass():
    a, empty = torch.ones(1, 2, 2), torch.zeros(1, 2, 2)
    assert metrics.attention_iou(a, 3 * a).item() == pytest.approx(1) and metrics.attention_iou(a, empty).item() == 0
    assert metrics.attention_iou(empty, empty).isnan().all()
    assert metrics.mass_in_mask(a, torch.eye(2)[None]).item() == 0.5
    with pytest.raises(ValueError, match="maps must not have negative values"):
        metrics.attention_iou(-a, a)
    with pytest.raises(ValueError, match=r"one shape \(B, H, W\), got \(1, 2, 2\) and \(2, 2\)"):
        metrics.mass_in_mask(a, a[0])
