"""Positions of queries and keys against the closed formulas of each network."""

import pytest
import timm
import torch
from explained import fill, small
from torch.nn import functional as F

from visionattn import explain
from visionattn.models.families.va_mano import MANO
from visionattn.ops import balanced_bisection


def traced(name, size=None):
    model, x = small(name)
    if size is not None:
        x = torch.randn(2, 3, *size)
    with torch.no_grad(), explain.capture(model) as record:
        model(x)
    return model, record


def inputs_of_mixers(model, record, attribute):
    """The recorded mixers by path, and what those that have an attribute are given in a forward pass."""
    mixers, seen = {layer.path: model.get_submodule(layer.path) for layer in record}, {}
    hooks = [
        mixer.register_forward_pre_hook(lambda mixer, args, path=path: seen.update({path: args[0]}))
        for path, mixer in mixers.items()
        if hasattr(mixer, attribute)
    ]
    with torch.no_grad():
        model(record.images)
    for hook in hooks:
        hook.remove()
    return mixers, seen


def cells(places):
    """Rows and columns on the grid."""
    return (places.y * places.grid[0] - 0.5).round().long(), (places.x * places.grid[1] - 0.5).round().long()


def windows(height, width, side, shift=0):
    """Rows and columns of the tokens of each window of a rolled map, `(windows, side * side)`."""
    rows = (torch.arange(height)[:, None] + shift) % height
    columns = (torch.arange(width)[None] + shift) % width
    both = torch.stack((rows.expand(height, width), columns.expand(height, width))).float()
    parts = F.unfold(both[None], side, stride=side)[0].unflatten(0, (2, -1))
    return parts[0].T.long(), parts[1].T.long()


def test_shifted_windows_of_swin():
    model, record = traced("swin_tiny_patch4_window7_224")
    shifts = [block.shift_size[0] for stage in model.layers for block in stage.blocks]
    assert max(shifts) == 3
    for layer, shift in zip(record, shifts, strict=True):
        found = record.positions(layer.index)
        for places in (found.queries, found.keys):
            side = places.grid[0]
            assert places.grid == (side, side) and side in (24, 12, 6)
            rows, columns = windows(side, side, 6, shift)
            y, x = cells(places)
            assert (y == rows[None, :, None]).all() and (x == columns[None, :, None]).all()
            assert places.valid.all() and (places.prefix == -1).all() and places.spread.max() < 1e-4


def test_windows_of_davit_with_padding():
    _, record = traced("davit_tiny", (72, 56))
    first = next(layer for layer in record if layer.kind == "spatial")
    places = record.positions(first.index).keys
    assert places.grid == (18, 14)
    rows, columns = windows(21, 14, 7)  # 18 rows are padded to 21
    y, x = cells(places)
    inside = (rows < 18)[None, :, None].expand_as(places.valid)
    assert (places.valid == inside).all()
    assert (y == rows[None, :, None])[inside].all() and (x == columns[None, :, None])[inside].all()
    channel = next(layer for layer in record if layer.kind == "channel")
    with pytest.raises(ValueError, match=f"layer {channel.index} .* has no positions: its channel attention"):
        record.positions(channel.index)


def test_reduced_keys_of_twins():
    _, record = traced("twins_svt_small")
    grids = {layer.path: record.positions(layer.index) for layer in record}
    assert grids["blocks.0.0.attn"].queries.grid == (16, 16)
    reduced = grids["blocks.0.1.attn"]
    assert reduced.queries.grid == (16, 16) and reduced.keys.grid == (2, 2)
    assert (reduced.keys.index[0, 0, 0] == torch.arange(4)).all()
    assert (reduced.queries.index[0, 0, 0] == torch.arange(256)).all()


def test_shifted_windows_of_padded_maps():
    """Swin on a map that its windows do not divide: rolled, then padded."""
    model = fill(timm.create_model("swin_tiny_patch4_window7_224", num_classes=5, img_size=(100, 76), window_size=6,
        embed_dim=24, depths=(2, 2), num_heads=(2, 2)))  # fmt: skip
    with torch.no_grad(), explain.capture(model) as record:
        model(torch.randn(2, 3, 100, 76))
    shifts = [block.shift_size for stage in model.layers for block in stage.blocks]
    assert len(set(shifts)) > 1
    for layer, shift, (height, width) in zip(record, shifts, [(25, 19)] * 2 + [(13, 10)] * 2, strict=True):
        numbers = torch.arange(1.0, height * width + 1).view(height, width).roll((-shift[0], -shift[1]), (0, 1))
        numbers = F.pad(numbers, (0, -width % 6, 0, -height % 6))
        expected = F.unfold(numbers[None, None], 6, stride=6)[0].T.long() - 1  # padding is -1
        found = record.positions(layer.index)
        for places in (found.queries, found.keys):
            assert places.grid == (height, width) and (places.index == expected[None, :, None]).all()


def test_windows_and_reduced_keys_of_twins_with_padding():
    _, record = traced("twins_svt_small", (72, 56))
    grids = {layer.path: record.positions(layer.index) for layer in record}
    rows, columns = windows(21, 14, 7)  # 18 rows are padded to 21
    keys = grids["blocks.0.0.attn"].keys
    expected = torch.where(rows < 18, rows * 14 + columns, -1)
    assert keys.grid == (18, 14) and (keys.index == expected[None, :, None]).all()
    reduced = grids["blocks.0.1.attn"]
    assert reduced.queries.grid == (18, 14) and (reduced.queries.index[:, 0] == torch.arange(252)).all()
    assert reduced.keys.grid == (2, 1) and (reduced.keys.index[:, 0] == torch.arange(2)).all()


@pytest.mark.parametrize("size", [(64, 96), (72, 56)], ids=["even", "odd"])
def test_clusters_of_boat(size):
    """Keys are the tokens of the cluster that the mixer makes, and of its sibling's near end."""
    model, record = traced("va_stm_boat_nano", size)
    checked = 0
    mixers, seen = inputs_of_mixers(model, record, "cluster_size")
    for layer in (layer for layer in record if layer.path in seen):
        mixer, x = mixers[layer.path], seen[layer.path]
        tokens = x.shape[1] * x.shape[2]
        q = mixer.qkv(x).view(2, tokens, 3, mixer.num_heads, -1)[:, :, 0].transpose(1, 2)
        settings = {name: getattr(mixer, name) for name in ("cluster_size", "iterations", "temperature")}
        order = balanced_bisection(q, **settings)
        found = record.positions(layer.index)
        for image, head in ((0, 0), (1, mixer.num_heads - 1)):
            clusters = [[token for token in cluster if token < tokens] for cluster in order[image, head].tolist()]
            slots = order[image, head].tolist()
            for number, cluster in enumerate(clusters):
                near = slots[number ^ 1] if len(slots) > 1 else []
                near = near[: mixer.overlap] if number % 2 == 0 else near[len(near) - mixer.overlap :]
                keys, queries = (part.index[image, number, head].tolist() for part in (found.keys, found.queries))
                assert sorted(key for key in keys if key >= 0) == sorted(cluster + [t for t in near if t < tokens])
                assert sorted(query for query in queries if query >= 0) == sorted(cluster)
                checked += len(slots) > 1
    assert checked > 10


def multipole(size, **kwargs):
    """A narrow network of multipole attention on three levels and on two, with its images captured."""
    arguments = {"window_size": 4, "levels": (3, 2), "patch_size": 2, "num_classes": 5, "img_size": size}
    model = fill(MANO((24, 48), (1, 1), (2, 3), **arguments | kwargs))
    with torch.no_grad(), explain.capture(model) as record:
        model(torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0)))
    return record


@pytest.mark.parametrize("down", ["conv", "avg_pool"])
@pytest.mark.parametrize("size", [(64, 32), (50, 38)], ids=["even", "odd"])
def test_levels_of_mano(size, down):
    """Every level of a map is an attention of its own, in windows of its own grid, padded where that is odd."""
    record = multipole(size, down=down)
    sides = [tuple(-(-side // step) for side in size) for step in (2, 4, 8, 4, 8)]
    assert sides[1:3] == ([(13, 10), (7, 5)] if size == (50, 38) else [(16, 8), (8, 4)])
    for layer, (height, width) in zip(record, sides, strict=True):
        found = record.positions(layer.index)
        rows, columns = windows(-(-height // 4) * 4, -(-width // 4) * 4, 4)
        inside = ((rows < height) & (columns < width))[None, :, None].expand_as(found.keys.valid)
        for places in (found.queries, found.keys):
            assert places.grid == (height, width) and (places.valid == inside).all() and places.spread.max() < 1e-4
            y, x = cells(places)
            assert (y == rows[None, :, None])[inside].all() and (x == columns[None, :, None])[inside].all()
    picture = record.map(2, query=(size[0] - 1, size[1] - 1))  # the last token of the coarsest level, and its window
    height, width = sides[2]
    assert picture.shape == (2, 2, height, width)
    corner = picture[..., height - 1 - (height - 1) % 4 :, width - 1 - (width - 1) % 4 :]
    torch.testing.assert_close(corner.sum((2, 3)), torch.ones(2, 2))


def test_extra_tokens():
    _, record = traced("cait_xxs24_224")
    last = record.positions(-1)
    assert last.queries.prefix.flatten().tolist() == [0] * last.queries.prefix.numel()
    assert last.keys.index[0, 0, 0].tolist() == [16, *range(16)]


def test_grid_attention_of_maxvit():
    _, record = traced("maxvit_pico_rw_256", (256, 256))
    for layer in list(record)[:6]:
        places = record.positions(layer.index).keys
        side = places.grid[0]
        y, x = cells(places)
        if ".attn_block." in layer.path:  # windows of 8 x 8
            rows, columns = windows(side, side, 8)
        else:  # 8 x 8 tokens, as far apart as there are windows
            step = side // 8
            first = torch.arange(step)
            tokens = torch.arange(8) * step
            rows = (first[:, None, None, None] + tokens[:, None]).expand(step, step, 8, 8).reshape(-1, 64)
            columns = (first[:, None, None] + tokens).expand(step, step, 8, 8).reshape(-1, 64)
        assert (y == rows[None, :, None]).all() and (x == columns[None, :, None]).all()


def test_routed_regions_of_biformer():
    """Keys are the tokens of the regions that the mixer says it routes to, also where no query sees the first one."""
    model, record = traced("va_stm_biformer_nano", (64, 96))
    mixers, seen = inputs_of_mixers(model, record, "routing")
    grids = set()
    for layer in (layer for layer in record if layer.path in seen and layer.shape[1] > 1):
        found, route = record.positions(layer.index), mixers[layer.path].routing(seen[layer.path])
        tokens = found.queries.index[:, :, 0]
        expected = torch.stack([part[regions].flatten(1) for part, regions in zip(tokens, route, strict=True)])
        assert (found.keys.index == expected[:, :, None]).all() and found.keys.grid == found.queries.grid
        grids.add(found.queries.grid)
    assert grids == {(32, 48), (16, 24)}


@pytest.mark.parametrize("size", [(64, 96), (72, 56)], ids=["even", "odd"])
@pytest.mark.parametrize("mixer", ["swin", "twins", "davit", "halonet", "boat", "pvt", "softmax", "mano", "star"])
def test_ours(mixer, size):
    """Every query once; every key is a token of the map, and halos and padding reach beyond it."""
    _, record = traced(f"va_stm_{mixer}_nano", size)
    for layer in (layer for layer in record if layer.kind == "spatial"):
        found = record.positions(layer.index)
        area = found.queries.grid[0] * found.queries.grid[1]
        index = found.queries.index.transpose(1, 2).flatten(2)
        held = index.sort(-1).values[..., -area:]
        assert (held == torch.arange(area)).all() and ((index >= 0).sum(-1) == area).all()
        assert found.keys.valid.all() or mixer not in ("pvt", "softmax")
        assert found.keys.spread.max() < 1e-3


def test_map_of_a_query():
    _, record = traced("swin_tiny_patch4_window7_224")
    picture = record.map(0, query=(50, 20))
    assert picture.shape == (2, 2, 24, 24)
    window = picture[..., 12:18, 0:6]  # row 12 and column 5 of the grid
    torch.testing.assert_close(window.sum((-2, -1)), torch.ones(2, 2))
    assert picture.sum() == pytest.approx(4)
    torch.testing.assert_close(window.flatten(2), record[0].probs[:, 8, :, 0 * 6 + 5])
    assert record.map(0, query=(50, 20), upsample=True).shape == (2, 2, 96, 96)
    with pytest.raises(ValueError, match=r"query must lie inside the image of 96 x 96 pixels, got \(96, 3\)"):
        record.map(0, query=(96, 3))
    with pytest.raises(ValueError, match="there is no token 0"):
        record.map(0, query=0)


@pytest.mark.parametrize(
    ("name", "step"), [("va_stm_swin_nano", 2), ("va_vit_softmax_nano", 4), ("twins_svt_small", 4), ("mano", 8)]
)
def test_every_pixel_is_that_of_the_cell_which_holds_it(name, step):
    """Also where the image was padded to whole cells, or cropped to them."""
    size = (50, 38)
    record = multipole(size) if name == "mano" else traced(name, size)[1]
    found = record.positions(2 if name == "mano" else 0)
    height, width = found.queries.grid
    cropped = name.startswith("twins")
    assert found.queries.grid == tuple(side // step if cropped else -(-side // step) for side in size)
    index = found.queries.index.transpose(1, 2).flatten(2)
    for y, x in ((0, 0), (49, 37), (27, 3), (28, 4), (31, 15), (32, 16), (39, 31), (40, 32), (47, 36)):
        window, row = found.find((y, x), size)
        token = found.queries.index[0, window[0, 0], 0, row[0, 0]]
        assert token == min(y // step, height - 1) * width + min(x // step, width - 1), (y, x)
    assert index.max() == height * width - 1
    large = record.map(2 if name == "mano" else 0, query=(0, 0), upsample=True)
    assert large.shape[2:] == size and (large.sum() > 0)


def test_map_of_the_class_token():
    _, record = traced("vit_tiny_patch16_224")
    torch.testing.assert_close(record.map(1, query=0).flatten(2), record[1].probs[:, 0, :, 0, 1:])
    torch.testing.assert_close(record.map(1, query=(63, 0)).flatten(2), record[1].probs[:, 0, :, 13, 1:])


def test_tracing_leaves_the_network_as_it_was():
    model, record = traced("davit_tiny")
    model.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    record.positions(0)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_attention_that_is_computed_in_pieces_without_gradients():
    """Skipped blocks make other pieces when the network is differentiated: a sentence, no wrong places."""
    model = timm.create_model("va_vit_sparge_nano").eval()
    with torch.no_grad(), explain.capture(model) as record:
        model(torch.randn(1, 3, 96, 96))
    with pytest.raises(ValueError, match=r"cannot be traced: \d+ attentions in place of \d+ when it is differentiated"):
        record.has(0)
