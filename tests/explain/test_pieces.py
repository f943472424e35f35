"""Relevance through layers, areas that stand out, curves of deletion, regions, scores over data sets, sentences."""

import math

import pytest
import timm
import torch
from explained import fill, small
from torch import nn
from torch.nn import functional as F

from visionattn import explain
from visionattn.mixers import (
    AveragePool,
    DepthwiseConvMixer,
    FocusedLinearAttention,
    LargeKernelConvAttention,
    LinearAttention,
)
from visionattn.testing.fixtures import relative_error

X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Convolutions, norms, pooling and a sum: every rule has something to do."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.fc1, self.fc2 = nn.Linear(8 * 16, 12), nn.Linear(12, 5)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x)), inplace=True), 2)
        x = F.relu(x + self.bn2(self.conv2(x)))
        x = F.avg_pool2d(x, 4).flatten(1)
        return self.fc2(F.relu(self.fc1(x)))


def folded(conv, bn):
    return torch.nn.utils.fusion.fuse_conv_bn_eval(conv, bn)


def by_hand(model, x, target):
    """z+ and the shares of sums, layer by layer from behind, as written in the papers."""

    def back(a, layer, relevance, **options):
        kind = F.linear if isinstance(layer, nn.Linear) else F.conv2d
        up, down = layer.weight.clamp_min(0), layer.weight.clamp_max(0)
        parts = [(a.clamp_min(0).detach().requires_grad_(), up), (a.clamp_max(0).detach().requires_grad_(), down)]
        z = sum(kind(part, weight, **options) for part, weight in parts)
        z.backward((relevance / (z + 1e-6)).detach())
        return sum(part.detach() * part.grad for part, _ in parts)

    first, second = folded(model.conv1, model.bn1), folded(model.conv2, model.bn2)
    with torch.no_grad():
        z1 = first(x)
        a1, winners = F.max_pool2d(z1.relu(), 2, return_indices=True)
        branch = second(a1)
        total = a1 + branch
        pooled = F.avg_pool2d(total.relu(), 4)
        hidden = model.fc1(pooled.flatten(1)).relu()
        logits = model.fc2(hidden)
        relevance = torch.zeros_like(logits)
        relevance[:, target] = logits[:, target]
    relevance = back(hidden, model.fc2, relevance)
    relevance = back(pooled.flatten(1), model.fc1, relevance).view_as(pooled)
    share = total.relu() / (16 * pooled).repeat_interleave(4, 2).repeat_interleave(4, 3).clamp_min(1e-12)
    relevance = relevance.repeat_interleave(4, 2).repeat_interleave(4, 3) * share
    per_unit = torch.where(total.abs() > 1e-12, relevance / total, 0)
    relevance = a1 * per_unit + back(a1, second, branch * per_unit, padding=1)
    return back(x, first, F.max_unpool2d(relevance, winners, 2, output_size=z1.shape), padding=1)


def test_relevance_layer_by_layer():
    model = fill(Net())
    expected = by_hand(model, X[:, :, :32, :32], 3)
    actual = explain.lrp(model, X, 3, rule="alpha_beta", bias=False)
    assert relative_error(actual, expected) < 1e-3


@pytest.mark.parametrize(
    "options",
    [
        {"rule": "epsilon"},
        {"rule": "gamma", "gamma": 0.5},
        {"rule": "alpha_beta"},
        {"rule": "alpha_beta", "first": "w2"},
        {"rule": "gamma", "first": "box"},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["net", "resnet10t", "va_resnet10n_cbam", "va_resnet10n_se"])
def test_relevance_adds_up_to_the_score(name, options):
    if name != "net" and options["rule"] == "epsilon":
        options = {"rule": "gamma", "gamma": 0.1}  # without biases denominators of a deep network get too small
    model = fill(Net()) if name == "net" else small(name)[0]
    x = X.double()
    model = model.double()
    with torch.no_grad():
        score = model(x).amax(1)
    relevance = explain.lrp(model, x, **options, bias=False, epsilon=1e-12)
    assert relevance.shape == x.shape
    torch.testing.assert_close(relevance.sum((1, 2, 3)), score, rtol=1e-3, atol=1e-4)


def test_epsilon_without_biases_is_gradient_times_input():
    model = nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 900, 4, bias=False))
    x = X.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(x)[:, 1].sum(), x)
    torch.testing.assert_close(explain.lrp(model, X, 1), X * gradient, rtol=1e-2, atol=1e-3)


def test_epsilon_in_a_network_of_rectifiers_is_gradient_times_input():
    model, x = small("resnet10t")
    model, x = model.double(), x.double().requires_grad_()
    (gradient,) = torch.autograd.grad(model(x)[:, 4].sum(), x)
    actual = explain.lrp(model, x, 4, epsilon=1e-14)
    assert relative_error(actual, (x * gradient).detach()) < 1e-6


def test_networks_of_other_norms_and_activations():
    model, x = small("convnext_atto")
    relevance = explain.lrp(model, x)
    assert relevance.shape == x.shape and relevance.isfinite().all() and relevance.abs().sum() > 0
    groups = nn.Sequential(nn.GroupNorm(2, 4), nn.SiLU(), nn.Flatten(), nn.Linear(4 * 36, 3)).double()
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        score = groups(x)[:, 1]
    relevance = explain.lrp(groups, x, 1, bias=False, epsilon=1e-12)
    torch.testing.assert_close(relevance.sum((1, 2, 3)), score, rtol=1e-3, atol=1e-4)


def test_alpha_and_beta_differ_by_one():
    model = fill(Net()).double()
    both = explain.lrp(model, X.double(), 2, rule="alpha_beta", alpha=2.0, bias=False, epsilon=1e-12)
    assert (both < 0).any()
    with torch.no_grad():
        score = model(X.double())[:, 2]
    torch.testing.assert_close(both.sum((1, 2, 3)), score, rtol=1e-3, atol=1e-4)
    for arguments, message in (
        ({"rule": "z"}, "rule must be one of epsilon, gamma, alpha_beta, got 'z'"),
        ({"alpha": 0.5}, "alpha must be at least 1"),
        ({"first": "other"}, "first must be one of same, w2, box, got 'other'"),
    ):
        with pytest.raises(ValueError, match=message):
            explain.lrp(model, X.double(), **arguments)
    with pytest.raises(ValueError, match=r"call model\.eval\(\)"):
        explain.lrp(Net().train(), X)


def test_lrp_leaves_the_network_alone():
    model, x = small("va_resnet10n_cbam")
    with torch.no_grad():
        before = model(x)
    explain.lrp(model, x)
    with torch.no_grad():
        assert torch.equal(model(x), before)
    assert all(p.grad is None for p in model.parameters())


def literal_saliency(image, patch, nearest, c):
    """One scale, written out: loops over pairs of patches."""
    height, width = image.shape
    padded = F.pad(image[None, None], (patch // 2,) * 4, mode="replicate")[0, 0]
    cut = {(i, j): padded[i : i + patch, j : j + patch] for i in range(height) for j in range(width)}
    result = torch.zeros(height, width)
    for (i, j), own in cut.items():
        found = []
        for (y, x), other in cut.items():
            if (i, j) != (y, x):
                place = math.hypot(i - y, j - x) / max(height, width)
                found.append((own - other).square().mean().sqrt().item() / (1 + c * place))
        result[i, j] = 1 - math.exp(-sum(sorted(found)[:nearest]) / min(nearest, len(found)))
    return result


def test_context_saliency_as_its_formula():
    image = torch.rand(6, 8)
    image = (image - image.min()) / (image.max() - image.min())
    plain = literal_saliency(image, 3, 10, 3.0)
    plain = (plain - plain.min()) / (plain.max() - plain.min())
    places = torch.cartesian_prod(torch.arange(6.0), torch.arange(8.0)) / 8
    away = torch.cdist(places, places[(plain > 0.8).flatten()]).amin(1).view(6, 8)
    expected = plain * (1 - away).clamp_min(0)
    expected = (expected - expected.min()) / (expected.max() - expected.min())
    actual = explain.context_saliency(image[None], patch=3, nearest=10, scales=(1.0,))[0]
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)


def test_areas_and_not_pixels_stand_out():
    noise = 0.1 * torch.rand(1, 40, 40, generator=torch.Generator().manual_seed(0))
    noise[0, 8:16, 24:32] += torch.rand(8, 8, generator=torch.Generator().manual_seed(1)).round()
    area = explain.context_saliency(noise)[0]
    assert area[8:16, 24:32].mean() > 3 * area[24:].mean() and area.max() == 1
    assert (explain.context_saliency(torch.ones(1, 9, 9)) == 0).all()
    model, x = small("va_resnet10n_cbam")
    found = explain.salient_relevance(model, x, 3, size=24)
    assert found.shape == (2, 64, 64) and found.min() >= 0 and found.max() <= 1 and found.std() > 0.01
    with pytest.raises(ValueError, match="patch must be a positive odd number, got 4"):
        explain.context_saliency(noise, patch=4)


class Inside(nn.Module):
    """Class 1 is what is bright in a corner."""

    def forward(self, x):
        bright = x[:, :, :8, :8].mean((1, 2, 3))
        return torch.stack((torch.zeros_like(bright), 4 * bright), 1)


def test_deletion_and_insertion():
    x = 0.2 * torch.rand(2, 3, 32, 32)
    x[:, :, :8, :8] += 1
    right, wrong = torch.zeros(2, 4, 4), torch.zeros(2, 4, 4)
    right[:, 0, 0], wrong[:, 3, 3] = 1, 1
    good, bad = (explain.deletion_insertion(Inside(), x, maps, 1, steps=16) for maps in (right, wrong))
    assert (good["deletion"] < bad["deletion"]).all() and (good["insertion"] > bad["insertion"]).all()
    with torch.no_grad():
        whole, mean = (Inside()(part).softmax(1)[:, 1] for part in (x, x.mean((2, 3), keepdim=True).expand_as(x)))
    for result in (good, bad):
        torch.testing.assert_close(result["deletion_curve"][:, 0], whole)
        torch.testing.assert_close(result["deletion_curve"][:, -1], mean)
        torch.testing.assert_close(result["insertion_curve"][:, -1], whole)
    after = good["deletion_curve"][:, 4]  # the corner is gone after a sixteenth, what was smoothed of it a bit later
    torch.testing.assert_close(after, mean, rtol=0.1, atol=0.1)
    logit = explain.deletion_insertion(Inside(), x, right, lambda out: out[:, 1], steps=1, deleted="zero", start="zero")
    torch.testing.assert_close(logit["deletion"], Inside()(x)[:, 1] / 2)
    torch.testing.assert_close(logit["insertion"], Inside()(x)[:, 1] / 2)
    assert explain.deletion_insertion(Inside(), x, right)["deletion_curve"].shape == (2, 21)
    with pytest.raises(ValueError, match="deleted must be one of mean, blur, zero, got 'noise'"):
        explain.deletion_insertion(Inside(), x, right, deleted="noise")
    with pytest.raises(ValueError, match=r"maps must be \(B, h, w\) for 2 images, got \(1, 4, 4\)"):
        explain.deletion_insertion(Inside(), x, right[:1])


def test_scores_over_a_data_set():
    maps, masks = torch.rand(6, 5, 5), (torch.rand(6, 5, 5) > 0.5).float()
    maps[4] = 0  # without mass
    scores = explain.MeanScores(
        mass=explain.mass_in_mask, pointing=explain.pointing_game, segmentation=explain.segmentation_scores
    )
    with pytest.raises(ValueError, match="there is nothing to compute"):
        scores.compute()
    for part in (slice(0, 4), slice(4, 6)):
        scores.update(maps[part], masks[part])
    found = scores.compute()
    every = explain.mass_in_mask(maps, masks)
    torch.testing.assert_close(found["mass"], every.nanmean().double().view(1))
    assert scores.missing["mass"] == 1 and scores.missing["pointing"] == 0
    torch.testing.assert_close(
        found["segmentation_iou"], explain.segmentation_scores(maps, masks)["iou"].double().mean(0)
    )
    mean, deviation = scores.bootstrap(2000)["mass"]
    known = every[~every.isnan()].double()
    assert abs(mean - known.mean()) < 0.02 and abs(deviation - known.std(correction=0) / 5**0.5) < 0.03
    scores.reset()
    scores.update(maps[:1], masks[:1])
    torch.testing.assert_close(scores.compute()["mass"], every[:1].double())
    with pytest.raises(ValueError, match="at least one function by name"):
        explain.MeanScores()


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_attention_of_a_region(name):
    model, x = small(name)
    with torch.no_grad(), explain.capture(model) as record:
        model(x)
    side = x.shape[-1]
    whole = explain.region_attention(record, 0, torch.ones(side, side, dtype=torch.bool))
    grid = record.positions(0).queries.grid
    cell = side // grid[0]
    rows = [record.map(0, (y * cell + cell // 2, z * cell + cell // 2)) for y in range(grid[0]) for z in range(grid[1])]
    torch.testing.assert_close(whole, torch.stack(rows).mean(0))
    corner = torch.zeros(2, side, side, dtype=torch.bool)
    corner[0, :cell, :cell] = corner[1, -cell:, :cell] = True
    found = explain.region_attention(record, 0, corner)
    torch.testing.assert_close(found[0], rows[0][0])
    torch.testing.assert_close(found[1], rows[-grid[1]][1])
    with pytest.raises(ValueError, match="region must hold the centre of at least one token"):
        explain.region_attention(record, 0, torch.zeros(side, side, dtype=torch.bool))


def test_regions_knocked_out():
    """In a plain transformer as by numbers of tokens; in windows nothing of one region reaches the other."""
    model, x = small("vit_tiny_patch16_224")
    with torch.no_grad(), explain.capture(model) as record:
        model(x)
    right = torch.zeros(64, 64, dtype=torch.bool)
    right[:, 32:] = True
    numbers = [1 + 4 * y + z for y in range(4) for z in (2, 3)]
    others = [number for number in range(1, 17) if number not in numbers]
    for rows, columns, same in ((0, right, ([0], numbers)), (~right, right, (others, numbers))):
        with torch.no_grad(), explain.edit(model, explain.knock_out_regions(record, rows, columns)):
            actual = model(x)
        with torch.no_grad(), explain.edit(model, explain.knock_out(*same)):
            torch.testing.assert_close(actual, model(x))
    swin, x = small("swin_tiny_patch4_window7_224")
    with torch.no_grad(), explain.capture(swin) as plain:
        swin(x)
    right = torch.zeros(96, 96, dtype=torch.bool)
    right[:, 48:] = True
    cut = explain.knock_out_regions(plain, ~right, right)
    with torch.no_grad(), explain.edit(swin, cut) as record:
        swin(x)
    seen = []
    for layer in record:
        for total in (record, plain):
            found = explain.region_attention(total, layer.index, ~right)
            seen.append(found[..., found.shape[-1] // 2 :].sum().item())
    assert not any(seen[::2]) and any(seen[1::2])


def test_box_encoded_again():
    model, x = small("resnet10t")
    whole = torch.tensor([[0, 0, 64, 64]] * 2)
    with torch.no_grad():
        torch.testing.assert_close(explain.reencode(model, x, whole), model(x))
        part = F.interpolate(x[:, :, 10:42, 20:52], (64, 64), mode="bilinear", antialias=True)
        torch.testing.assert_close(explain.reencode(model, x, torch.tensor([[20, 10, 52, 42]] * 2)), model(part))
    with pytest.raises(ValueError, match="boxes must lie inside 64 x 64 pixels and not be empty"):
        explain.reencode(model, x, torch.tensor([[0, 0, 64, 65]] * 2))


def test_class_after_an_edited_mask():
    model = fill(
        timm.models.VisionTransformer(img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3, num_classes=5)
    )
    everything = explain.reclassify(model, X, torch.ones(2, 4, 4, dtype=torch.bool))
    assert everything["kept"].all() and everything["change"].abs().max() < 1e-5
    some = torch.zeros(2, 4, 4, dtype=torch.bool)
    some[:, :2] = True
    edited = explain.reclassify(model, X, some)
    with torch.no_grad():
        torch.testing.assert_close(edited["after"], explain.masked_forward(model, X, some).softmax(1))
        torch.testing.assert_close(edited["before"] + edited["change"], edited["after"])


def test_sinks_leave_a_record():
    model, x = small("vit_tiny_patch16_224")
    with torch.no_grad(), explain.capture(model) as record:
        out = model(x)
    before = record[0].probs.clone()
    explain.filter_sinks(record, times=1.2)
    after = record[0].probs
    sinks = (before.mean(-2, keepdim=True) > 1.2 / 17).expand_as(before)
    assert sinks.any() and (after[sinks] == 0).all()
    torch.testing.assert_close(after.sum(-1), torch.ones(after.shape[:-1]))
    with torch.no_grad():
        assert torch.equal(out, model(x))
    assert explain.raw(record, 0).shape == (2, 4, 4)


def test_a_map_in_a_sentence():
    spot = torch.zeros(9, 12)
    spot[1, 2] = 1
    assert explain.describe(spot, label="a cat") == (
        "For a cat, half of the weight lies on 1 % of the image; the upper left ninth holds most, 100 %."
    )
    assert "on 50 % of the image; the" in explain.describe(torch.ones(7, 7)[:, :6] + 0)
    middle = torch.zeros(10, 10)
    middle[4:6, 4:6] = 1
    assert "the middle ninth holds most, 100 %" in explain.describe(middle)
    assert explain.describe(torch.zeros(3, 3)) == "For the prediction, the map is empty."
    with pytest.raises(ValueError, match="without negative values"):
        explain.describe(-spot)


MIXERS = {
    "lkca": lambda: LargeKernelConvAttention(8, grid_size=5, groups="heads", num_heads=2),
    "pool": lambda: AveragePool(8),
    "dwconv": lambda: DepthwiseConvMixer(8, kernel_size=5, bias=False),
    "flatten": lambda: FocusedLinearAttention(8, num_heads=2, grid_size=(5, 7)),
    "flatten in windows": lambda: FocusedLinearAttention(8, num_heads=2, grid_size=3, window_size=3),
}


@pytest.mark.parametrize("name", MIXERS)
def test_weights_make_the_output(name):
    mixer = fill(MIXERS[name]())
    x = torch.randn(2, 5, 7, 8)
    with torch.no_grad():
        weights = mixer.weights(x)
        assert weights.shape[0] == 2 and weights.shape[2:] == (35, 35)
        if name.startswith("flatten"):
            mixer.dwc.weight.zero_(), mixer.dwc.bias.zero_()
            values, end = mixer.qkv(x).chunk(3, 3)[2], mixer.proj
        elif name == "dwconv":
            values = mixer.dw_input_proj(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            end = lambda y: mixer.dw_out_proj(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # noqa: E731
        else:
            values, end = (mixer.v(x), mixer.proj) if name == "lkca" else (x, nn.Identity())
        heads = values.flatten(1, 2).unflatten(2, (weights.shape[1], -1)).transpose(1, 2)
        expected = end((weights @ heads).transpose(1, 2).flatten(2).unflatten(1, (5, 7)))
        torch.testing.assert_close(expected, mixer(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name, heads",
    [("va_stm_linear_nano", None), ("va_stm_lkca_nano", None), ("va_stm_pool_nano", 1), ("va_vit_linear_nano", None)],
)
def test_weights_of_a_network(name, heads):
    model, x = small(name)
    with torch.no_grad():
        before = model(x)
    found = explain.mixer_weights(model, x)
    assert found and all(part.shape[0] == 2 and part.shape[2] == part.shape[3] for part in found.values())
    assert heads is None or {part.shape[1] for part in found.values()} == {heads}
    names = dict(model.named_modules())
    assert set(found) <= set(names)
    with torch.no_grad():
        assert torch.equal(model(x), before)
    if "linear" in name:
        first = next(iter(found))
        assert isinstance(names[first], LinearAttention)
        torch.testing.assert_close(found[first].sum(-1), torch.ones(found[first].shape[:-1]), rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match=r"has no mixers that say their weights: use explain\.capture"):
        explain.mixer_weights(small("resnet10t")[0], x)
