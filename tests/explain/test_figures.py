"""Figures for papers, and inputs as pictures."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from visionattn import explain
from visionattn.explain.head_table import NUMBERS


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)


def test_a_figure_has_input_maps_and_a_colour_bar(image):
    maps = {"one": torch.rand(4, 6), "two": 3 * torch.rand(8, 12)}
    drawn = explain.figure(image, maps, title="A cat", label="weight", outline=(5, 5, 20, 30), smooth=False)
    *panels, bar = drawn.axes
    assert [axis.get_title() for axis in panels] == ["input", "one", "two"]
    assert [len(axis.get_images()) for axis in panels] == [1, 2, 2]
    assert all(len(axis.patches) == 1 for axis in panels)
    assert drawn._suptitle.get_text() == "A cat" and bar.get_ylabel() == "weight"
    low, high = (float(function([m.min(), m.max()])) for function, m in ((min, maps["one"]), (max, maps["two"])))
    low = min(low, float(maps["two"].min()))
    assert bar.get_ylim() == pytest.approx((low, high))  # one scale for both
    assert {tuple(axis.get_images()[1].get_clim()) for axis in panels[1:]} == {(low, high)}
    for kind, start in (("png", b"\x89PNG"), ("pdf", b"%PDF")):
        buffer = io.BytesIO()
        drawn.savefig(buffer, format=kind, dpi=100)
        assert buffer.getvalue().startswith(start)


def test_the_map_lies_where_it_belongs(image):
    """The lower right quarter of the map is the lower right quarter of its panel."""
    plain = np.zeros_like(image)
    drawn = explain.figure(plain, {"map": torch.tensor([[0.0, 0.0], [0.0, 1.0]])}, smooth=False, opacity=1.0)
    buffer = io.BytesIO()
    drawn.savefig(buffer, format="png", dpi=100)
    pixels = np.asarray(Image.open(buffer).convert("RGB")).astype(int)
    panel = drawn.axes[1].get_window_extent()
    left, right = round(panel.x0), round(panel.x1)
    top, bottom = (len(pixels) - round(edge) for edge in (panel.y1, panel.y0))
    inside = pixels[top:bottom, left:right]
    yellow = np.zeros(pixels.shape[:2], bool)
    yellow[top:bottom, left:right] = abs(inside - [253, 231, 37]).sum(2) < 12
    dark = abs(inside - [68, 1, 84]).sum(2) < 12
    found = np.argwhere(yellow)
    assert found.min(0) == pytest.approx(((top + bottom) / 2, (left + right) / 2), abs=2)
    assert found.max(0) == pytest.approx((bottom, right), abs=2)
    assert yellow.sum() == pytest.approx(dark.sum() / 3, rel=0.06)


def test_a_region_is_outlined(image):
    mask = np.zeros((40, 60), bool)
    mask[10:20, 10:30] = True
    for outline, count in ((mask, 1), (np.ones_like(mask), 0)):
        drawn = explain.figure(image, {"map": torch.rand(4, 6)}, outline=outline)
        assert len(drawn.axes[0].collections) == count


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"maps": {}}, "at least one"),
        ({"maps": {"a": torch.rand(1, 4, 6)}}, r"maps \(h, w\), at least one"),
        ({"maps": {"a": torch.rand(4, 6)}, "opacity": 2}, r"opacity must lie in 0\.\.1, got 2"),
    ],
)
def test_mistakes(image, arguments, message):
    with pytest.raises(ValueError, match=message):
        explain.figure(image, **arguments)


def test_inputs_as_pictures():
    picture = torch.randint(0, 256, (3, 5, 7), dtype=torch.uint8)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
    x = (picture / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    assert (explain.as_seen(x, mean, std) == picture.permute(1, 2, 0).numpy()).all()
    stretched = explain.as_seen(x)
    assert stretched.min() == 0 and stretched.max() == 255
    assert explain.as_seen(x[:1]).shape == (5, 7, 3)


def test_numbers_of_heads():
    """A panel a number, a cell a head; what does not exist is left out of the scale."""
    rows = [
        {"layer": layer, "head": head, **{name: layer + 10 * head for name in NUMBERS}}
        for layer, heads in ((0, 2), (3, 4))
        for head in range(heads)
    ]
    rows[0]["distance"] = None
    drawn = explain.heads_figure(rows, ["distance", "entropy_normalised"], title="a network")
    panels = [axis for axis in drawn.axes if axis.get_title()]
    assert [axis.get_title() for axis in panels] == ["distance", "entropy normalised"]
    first, second = (np.ma.filled(axis.images[0].get_array(), np.nan) for axis in panels)
    expected = np.array([[0, 10, np.nan, np.nan], [3, 13, 23, 33]])
    np.testing.assert_array_equal(second, expected)
    assert np.isnan(first[0, 0]) and first[0, 1] == 10
    assert [tick.get_text() for tick in panels[0].get_yticklabels()] == ["0", "3"]
    for wrong in ((rows, ["length"]), ([], ["entropy"]), (rows, [])):
        with pytest.raises(ValueError, match=r"rows must be of HeadTable\.compute and numbers of distance, entropy"):
            explain.heads_figure(*wrong)
