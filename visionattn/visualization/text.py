"""Text on images: a font with the glyphs, or a fallback that any font can write; never empty boxes."""

import importlib.util
import os
import sys
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from PIL import ImageFont

__all__ = ["FONT_VARIABLE", "Font", "font_file", "legible", "shortened", "typeset"]

Font = ImageFont.FreeTypeFont
FONT_VARIABLE = "VISIONATTN_FONT"

# What fonts with Chinese, Japanese and Korean glyphs are called on the common systems: looked into before all others.
# fmt: off
_WIDE_FONTS = (
    "cjk", "notosanssc", "notosansjp", "notosanskr", "sourcehan", "wqy", "wenquanyi", "droidsansfallback", "unifont",
    "ipa", "takao", "nanum", "uming", "ukai", "msyh", "simsun", "simhei", "meiryo", "msgothic", "yugoth", "malgun",
    "pingfang", "hiragino", "applesdgothic", "arialunicode",
)
# fmt: on


def typeset(text: str, size: int, number: int | None = None) -> tuple[str, Font]:
    """A text as it can be drawn, and the font to draw it with.

    Args:
        text: For instance the name of a class.
        size: Height of the letters in pixels.
        number: The class number, which goes before a name that no font can write.
    """
    file = font_file(text)
    return (_line(text), _font(file, size)) if file else (legible(text, number), _font(_standard(), size))


def legible(text: str, number: int | None = None) -> str:
    """A text with characters that no font here has replaced by their code points.

    Args:
        text: For instance the name of a class.
        number: The class number, which goes before a name that needed this.
    """
    text = _line(text)
    if font_file(text):
        return text
    missing = [c for c in dict.fromkeys(text) if not _has(_standard(), c)]
    warnings.warn(
        "no font on this machine can write some class names; they are drawn as class numbers and code points. Install "
        f"a font with their characters (such as fonts-noto-cjk), or name its file in {FONT_VARIABLE}",
        stacklevel=1,  # one place, so that it is shown once
    )
    written = "".join(f" U+{ord(c):04X} " if c in missing else c for c in text)
    return " ".join(f"{'' if number is None else number} {written}".split())


def shortened(text: str, font: Font, width: float) -> str:
    """A text, truncated with dots to a number of pixels."""
    if font.getlength(text) <= width:
        return text
    text = text[: round(width)]
    while text and font.getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text}..." if text else ""


def font_file(text: str) -> Path | None:
    """The first font that has all characters of a text: of `VISIONATTN_FONT`, the standard one, or the system's."""
    # Fonts that have an A have all of ASCII; texts that differ only in their digits are looked up once.
    return _covering("A" + "".join(sorted({c for c in _line(text) if not c.isascii() and not c.isspace()})))


@cache
def _covering(characters: str) -> Path | None:
    return next((file for file in _fonts() if all(_has(file, c) for c in characters)), None)


def _line(text: str) -> str:
    """A text without line breaks and control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _fonts() -> Iterator[Path]:
    if chosen := os.environ.get(FONT_VARIABLE):
        yield Path(chosen)
    yield _standard()
    yield from _system_fonts()


@cache
def _standard() -> Path:
    """DejaVu Sans, packaged with matplotlib; found without importing it."""
    spec = importlib.util.find_spec("matplotlib")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("drawing text needs matplotlib's font: pip install matplotlib", name="matplotlib")
    return Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"


@cache
def _system_fonts() -> tuple[Path, ...]:
    """Font files of the system and the user, the most promising first."""
    home = Path.home()
    if sys.platform == "win32":
        roots = [Path(os.environ.get("WINDIR", "C:/Windows")) / "Fonts", home / "AppData/Local/Microsoft/Windows/Fonts"]
    elif sys.platform == "darwin":
        roots = [Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library/Fonts"]
    else:
        data = Path(os.environ.get("XDG_DATA_HOME") or home / ".local/share")
        roots = [Path("/usr/share/fonts"), Path("/usr/local/share/fonts"), data / "fonts", home / ".fonts"]
    files = [p for root in roots for p in sorted(root.rglob("*")) if p.suffix.lower() in (".ttf", ".otf", ".ttc")]
    return tuple(sorted(files, key=lambda file: not any(name in file.stem.lower() for name in _WIDE_FONTS)))


@cache
def _font(file: Path, size: int) -> Font:
    return ImageFont.truetype(str(file), size)


@cache
def _has(file: Path, character: str) -> bool:
    """Whether a font draws a character as something else than its sign for missing ones."""
    try:
        font = _font(file, 16)
        drawn, missing = font.getmask(character), font.getmask("\uffff")  # no font has this one
    except OSError:
        return False
    return drawn.size != missing.size or bytes(drawn) != bytes(missing)
