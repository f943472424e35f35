"""Raw attention, rollout, relevance and Grad-CAM of attention: the fixtures, and what must hold for any network."""

import pytest
import timm
import torch
from explained import fill, small
from torch import nn

from visionattn import explain
from visionattn.models.families.va_mano import MANO
from visionattn.testing.fixtures import load, relative_error


def network(golden):
    settings = {k: v for k, v in golden.meta["constructor"].items() if k not in ("prefix", "class")}
    settings["img_size"] = tuple(settings["img_size"])
    model = timm.models.VisionTransformer(**settings)
    model.load_state_dict(golden.state_dict)
    return model.eval()


@pytest.mark.parametrize("name", ["explain_relevance_vit_32", "explain_relevance_vit_reg_32x48"])
def test_relevance_as_the_official_code(name):
    golden = load(name)
    model, x, target = network(golden), golden.input, golden.meta["target"]
    with explain.capture(model) as record:
        logits = model(x)
    record.gradients(logits[:, target].sum())
    arrays = golden.arrays
    assert relative_error(logits, arrays["out_0"]) < 1e-5
    assert relative_error(torch.cat([layer.probs for layer in record], 1), arrays["attn"]) < 1e-5
    assert relative_error(torch.cat([layer.grad for layer in record], 1), arrays["grad"]) < 1e-4
    assert relative_error(explain.relevance_matrix(model, x, target)[0], arrays["out_1"]) < 1e-5
    relevance = explain.relevance(model, x, target)
    assert relative_error(relevance[0], arrays["out_2"]) < 1e-4
    assert relative_error(explain.min_max(explain.upsample(relevance, x.shape[-2:]))[0], arrays["out_3"]) < 1e-4
    assert relative_error(explain.attention_grad_cam(model, x, target)[0], arrays["out_4"]) < 1e-4


def test_rollout_as_the_official_codes():
    golden = load("explain_rollout_3x3")
    attention, arrays = golden.arrays["attn"], golden.arrays
    assert relative_error(explain.rollout_matrix(attention), arrays["out_0"]) < 1e-5
    assert relative_error(explain.rollout_matrix(attention, start=1), arrays["out_1"]) < 1e-5
    for number, fusion in enumerate(("mean", "max", "min"), 2):
        actual = explain.rollout_matrix(attention, fusion=fusion, discard=0.5, legacy=True)
        assert relative_error(actual, arrays[f"out_{number}"]) < 1e-5
    rows = explain.rollout_matrix(attention, fusion="max", discard=0.5).sum(-1)
    torch.testing.assert_close(rows, torch.ones_like(rows))


@pytest.mark.parametrize("discard", [0, 0.4])
@pytest.mark.parametrize("fusion", ["mean", "max"])
def test_rollout_of_a_record_is_that_of_its_matrices(fusion, discard):
    model, x = small("vit_tiny_patch16_224")
    with torch.no_grad(), explain.capture(model) as record:
        model(x)
    attention = torch.cat([layer.probs for layer in record], 1)
    expected = explain.rollout_matrix(attention, fusion=fusion, discard=discard)[:, 0, 1:].unflatten(1, (4, 4))
    actual = explain.rollout(record, fusion=fusion, discard=discard)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(explain.raw(record), attention[:, -1].mean(1)[:, 0, 1:].unflatten(1, (4, 4)))


HIERARCHICAL = [
    "swin_tiny_patch4_window7_224",
    "davit_tiny",
    "twins_svt_small",
    "va_stm_halonet_nano",
    "va_stm_boat_nano",
]


@pytest.mark.parametrize("name", HIERARCHICAL)
def test_windowed_networks(name):
    """Against the same rule with matrices (tokens x tokens) that are filled one weight at a time."""
    model, x = small(name)
    with explain.capture(model) as record:
        logits = model(x)
    record.gradients(logits[:, 3].sum())
    layers = [layer for layer in record if layer.kind == "spatial"]
    grid = record.positions(layers[0].index).queries.grid
    expected = torch.eye(grid[0] * grid[1], dtype=torch.float64)
    for layer in layers:
        found = record.positions(layer.index)
        matrix = dense((layer.probs * layer.grad).detach().relu(), found)
        seen = pooled(expected, grid, found.keys.grid)
        expected, grid = pooled(expected, grid, found.queries.grid) + matrix @ seen, found.queries.grid
    actual = explain.relevance(model, x, 3)
    assert actual.shape[0] == 2
    assert relative_error(actual[0].flatten(), expected.mean(0)) < 1e-4
    rolled = explain.rollout(record)
    torch.testing.assert_close(rolled.sum((1, 2)), torch.ones(2))  # every row is a distribution over the tokens


def dense(weights, found):
    rows, columns = found.queries.index[0], found.keys.index[0]
    counts = [places.grid[0] * places.grid[1] for places in (found.queries, found.keys)]
    matrix = torch.zeros(counts[0] + 1, counts[1] + 1, dtype=torch.float64)
    at = (rows[..., :, None].expand(weights.shape[1:]), columns[..., None, :].expand(weights.shape[1:]))
    matrix.index_put_(at, weights[0].double() / weights.shape[2], accumulate=True)  # padding: the last row and column
    return matrix[:-1, :-1]


def pooled(matrix, old, new):
    if old == new:
        return matrix
    cells = matrix.view(new[0], old[0] // new[0], new[1], old[1] // new[1], -1)
    return cells.mean((1, 3)).flatten(0, 1)


def test_heads_may_change_places_and_zero_gradients_give_the_identity():
    golden = load("explain_relevance_vit_32")
    model, x = network(golden), golden.input
    before = explain.relevance(model, x, 2)
    order = torch.tensor([2, 0, 1])
    with torch.no_grad():
        for block in model.blocks:
            qkv = block.attn.qkv
            for value in (qkv.weight, qkv.bias):
                value.copy_(value.unflatten(0, (3, 3, -1))[:, order].flatten(0, 2))
            block.attn.proj.weight.copy_(block.attn.proj.weight.unflatten(1, (3, -1))[:, order].flatten(1))
    torch.testing.assert_close(explain.relevance(model, x, 2), before)
    matrix = explain.relevance_matrix(model, x, lambda logits: 0 * logits[:, 0])
    assert torch.equal(matrix[0], torch.eye(17)) and (explain.relevance_matrix(model, x) >= 0).all()


def test_each_image_by_itself():
    model, x = small("vit_tiny_patch16_224")
    both = explain.relevance(model, x, [1, 7])
    torch.testing.assert_close(both[1:], explain.relevance(model, x[1:], 7))


@pytest.mark.parametrize("layer", [9, -3])
def test_layers_out_of_range(layer):
    model, x = small("vit_tiny_patch16_224")
    with explain.capture(model) as record:
        model(x)
    for run in (lambda: explain.raw(record, layer), lambda: explain.attention_grad_cam(model, x, 1, layer=layer)):
        with pytest.raises(ValueError, match=rf"layer must lie in 0\.\.1, or be negative and count .*, got {layer}"):
            run()


class SharedAttention(nn.Module):
    """Three heads whose queries and keys are learnt, not made of the tokens."""

    num_heads = 3

    def __init__(self):
        super().__init__()
        self.q, self.k = (nn.Parameter(torch.randn(1, 3, 17, 8)) for _ in range(2))

    def forward(self, x, **kwargs):
        v = x.unflatten(2, (3, -1)).transpose(1, 2)
        return ((self.q @ self.k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2)


def test_images_that_share_attention():
    """Attention that does not depend on the image: one map for all, one gradient for all."""
    model, x = small("vit_tiny_patch16_224")
    x = x.repeat(3, 1, 1, 1)[:5]  # by the number of images only do others tell images from heads
    for block in model.blocks:
        block.attn = SharedAttention()
    with torch.no_grad(), explain.capture(model) as record:
        model(x)
    assert record[0].shape == (1, 1, 3, 17, 17)
    maps = explain.rollout(record)
    assert maps.shape == (5, 4, 4) and torch.equal(maps[0], maps[1])
    with pytest.raises(ValueError, match="the images share the attention of layer 0 and so its gradient: give one"):
        explain.relevance(model, x, 1)
    assert explain.relevance(model, x[:1], 1).shape == (1, 4, 4)


def test_bad_arguments():
    model, x = small("vit_tiny_patch16_224")
    with torch.no_grad(), explain.capture(model) as record:
        model(x)
    with pytest.raises(ValueError, match=r"target must lie in 0\.\.9, got 10"):
        explain.relevance(model, x, 10)
    with pytest.raises(ValueError, match="one for each of 2 images"):
        explain.relevance(model, x, [1, 2, 3])
    with pytest.raises(ValueError, match="fusion must be one of mean, max, min, got 'sum'"):
        explain.rollout(record, fusion="sum")
    with pytest.raises(ValueError, match="discard must be at least 0 and below 1, got 1"):
        explain.rollout(record, discard=1)
    with pytest.raises(ValueError, match=r"start must lie in 0\.\.1, got 2"):
        explain.rollout(record, start=2)
    with pytest.raises(ValueError, match=r"class_row must lie in 0\.\.0, .* got 1"):
        explain.rollout(record, class_row=1)


@pytest.mark.parametrize("size", [(32, 16), (34, 22)], ids=["even", "odd"])
def test_levels_of_one_map_are_added_up(size):
    """Multipole attention: a coarse token is the mean of those it covers, and all of them get what it takes."""
    model = fill(MANO((24,), (1,), (2,), window_size=4, levels=(3,), patch_size=2, num_classes=5, img_size=size))
    x = torch.randn(2, 3, *size)
    with torch.no_grad(), explain.capture(model) as record:
        model(x)
    sides = [tuple(-(-side // step) for side in size) for step in (2, 4, 8)]
    rows, columns = (part.flatten() for part in torch.meshgrid(*map(torch.arange, sides[0]), indexing="ij"))
    total = torch.eye(len(rows)).expand(2, -1, -1)
    for layer, (height, width) in zip(record, sides, strict=True):
        step = 2**layer.index
        covered = torch.zeros(height * width, len(rows))
        covered[rows // step * width + columns // step, torch.arange(len(rows))] = 1
        matrix = torch.zeros(2, height * width, height * width)
        tiles = -(-width // 4)
        for row in range(height * width):
            for column in range(height * width):
                (y, x0), (v, u) = divmod(row, width), divmod(column, width)
                if (y // 4, x0 // 4) == (v // 4, u // 4):
                    window = y // 4 * tiles + x0 // 4
                    inside = [a % 4 * 4 + b % 4 for a, b in ((y, x0), (v, u))]
                    matrix[:, row, column] = layer.probs[:, window, :, inside[0], inside[1]].mean(1)
        total = total + covered.T @ matrix @ (covered / covered.sum(1, keepdim=True))
    expected = (total / total.sum(2, keepdim=True)).mean(1).unflatten(1, sides[0])
    torch.testing.assert_close(explain.rollout(record), expected)
    assert explain.relevance(model, x, 1).shape == (2, *sides[0])
