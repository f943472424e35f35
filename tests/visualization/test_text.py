"""Names in any script: drawn by a font that has their characters, or spelt out; never empty boxes."""

import warnings

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen

from visionattn.visualization import draw_classification, draw_confusion, draw_detections, draw_segmentation
from visionattn.visualization import text as module

IMAGE, MASK = np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64), np.uint8)
BOXES = np.array([[5, 5, 60, 60]])


@pytest.fixture(autouse=True)
def no_fonts_of_the_system(monkeypatch, tmp_path):
    """Only the standard font and those in a folder of the test's."""
    monkeypatch.setattr(module, "_system_fonts", lambda: tuple(sorted(tmp_path.glob("*.ttf"))))
    module._covering.cache_clear()
    yield
    module._covering.cache_clear()


def make_font(path, glyphs):
    """A font with a square for missing characters, and for each of these a bar as high as told."""

    def bar(height):
        pen = TTGlyphPen(None)
        pen.moveTo((100, 0))
        pen.lineTo((100, height))
        pen.lineTo((900, height))
        pen.lineTo((900, 0))
        pen.closePath()
        return pen.glyph()

    names = [".notdef", *(f"g{ord(c)}" for c in glyphs)]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(c): f"g{ord(c)}" for c in glyphs})
    builder.setupGlyf({".notdef": bar(1000), **{f"g{ord(c)}": bar(h) for c, h in glyphs.items()}})
    builder.setupHorizontalMetrics({name: (1000, 100) for name in names})
    builder.setupHorizontalHeader(ascent=1000, descent=-200)
    builder.setupNameTable({"familyName": path.stem, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)


def drawn(name):
    return (
        draw_classification(IMAGE, name),
        draw_segmentation(IMAGE, MASK, (name, "x")),
        draw_detections(IMAGE, BOXES, [0], None, None, (name,)),
    )


def test_names_that_no_font_has_are_spelt_out_with_one_warning():
    with pytest.warns(UserWarning, match="no font on this machine can write some class names"):
        pictures = [drawn("猫"), drawn("狗")]
    assert not any(np.array_equal(a, b) for a, b in zip(*pictures, strict=True))
    with pytest.warns(UserWarning):
        assert module.legible("猫 cat", 3) == "3 U+732B cat"
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("default")
        for _ in range(3):
            drawn("犬")
            drawn("鳥")
    assert len(seen) == 1


def test_a_font_of_the_system_that_has_the_characters_is_found(tmp_path, recwarn):
    letters = dict.fromkeys("Acat ", 300)
    make_font(tmp_path / "aaa.ttf", letters | {"犬": 400})
    make_font(tmp_path / "bbb.ttf", letters | {"猫": 500, "狗": 700})
    text, font = module.typeset("猫", 20, 3)
    assert text == "猫" and font.path.endswith("bbb.ttf")
    assert module.font_file("犬").stem == "aaa" and module.font_file("cat").stem == "DejaVuSans"
    pictures = [drawn("猫"), drawn("狗")]
    assert not any(np.array_equal(a, b) for a, b in zip(*pictures, strict=True))
    assert not recwarn.list


def test_a_font_can_be_named(tmp_path, monkeypatch):
    (tmp_path / "own").mkdir()
    make_font(tmp_path / "own" / "mine.ttf", {"A": 300, "猫": 500})
    monkeypatch.setenv(module.FONT_VARIABLE, str(tmp_path / "own" / "mine.ttf"))
    assert module.font_file("猫").stem == "mine"
    monkeypatch.setenv(module.FONT_VARIABLE, str(tmp_path / "missing.ttf"))
    module._covering.cache_clear()
    assert module.font_file("cat").stem == "DejaVuSans"


def test_line_breaks_and_control_characters_do_no_harm():
    assert module.typeset("a\nb\tc\x00d", 14)[0] == "a b c d"


def test_tables_spell_them_out_too(tmp_path):
    with pytest.warns(UserWarning, match="no font on this machine") as seen:
        draw_confusion(np.eye(3), ("猫", "$x^{", "_z"), tmp_path / "c.png")
    assert len(seen) == 1 and (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
