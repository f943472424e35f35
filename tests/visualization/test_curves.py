"""Curves: lines that can be told apart, and the best value by the metric's own direction."""

import cv2
import numpy as np
import pytest

from visionattn.visualization import curves


@pytest.fixture
def axes_of(monkeypatch, tmp_path):
    """Draws by a function and returns the figure's axes."""

    def draw(function, *args, **kwargs):
        kept = []
        monkeypatch.setattr(curves, "new_figure", lambda *a, new=curves.new_figure: kept.append(new(*a)) or kept[0])
        path = function(*args, tmp_path / "drawn.png", **kwargs)
        assert cv2.imread(str(path)).std() > 1
        return kept[0].axes

    return draw


def test_forty_lines_can_be_told_apart():
    styles = curves.line_styles(80)
    assert len({str(style) for style in styles}) == 80
    assert len({(style["color"], str(style["linestyle"])) for style in styles[:40]}) == 40
    for style in styles:  # no pastels: dark enough on white
        red, green, blue = bytes.fromhex(style["color"][1:])
        assert 0.299 * red + 0.587 * green + 0.114 * blue < 160


@pytest.mark.parametrize(("higher", "best"), [(True, "best 9"), (False, "best 4")])
def test_the_best_value_is_marked_by_its_direction(axes_of, higher, best):
    scores = {"my/rmse": [(1, 9.0), (2, 4.0), (3, float("nan")), (4, 7.0)]}
    axes = axes_of(
        curves.draw_learning_curve, {"loss": [(0.5, 2.0), (1.0, 1.0)]}, [], scores, higher_is_better=higher, unit="px"
    )
    assert [text.get_text() for text in axes[1].texts] == [best]
    assert axes[1].get_ylabel() == "my/rmse in px"


def test_without_evaluations_the_losses_are_drawn(axes_of):
    axes = axes_of(curves.draw_learning_curve, {"loss": [(1, 2.0)], "loss_cls": [(1, 1.0)]}, [(1, 0.1)], {})
    legend = [text.get_text() for text in axes[0].get_legend().get_texts()]
    assert legend == ["loss", "loss_cls", "learning rate"]


def test_precision_and_recall_name_every_class(axes_of):
    names = ("_hidden", "$x^{", *map(str, range(12)))
    values = np.linspace(1, 0, 11)[None].repeat(len(names), 0)
    (axes,) = axes_of(curves.draw_precision_recall, values, {"mean": values[0]}, names)
    assert len(axes.lines) == len(names) + 1
    legend = [text.get_text().strip() for text in axes.figure.legends[0].get_texts()]
    assert legend == ["_hidden", r"\$x^{", *map(str, range(12)), "mean"]
    assert axes_of(curves.draw_precision_recall, np.zeros((0, 11)), {}, ())
