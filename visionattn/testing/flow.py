"""Drawings of how data flow through a mechanism: one line of text on its card becomes an SVG in one style.

    ((q | k) -> @ -> softmax | v) -> @ -> proj

Steps follow each other by `->`; `(a | b)` are branches that all get what comes before and whose results all go into
what comes behind. A step is the text in its box, or one of

- `+`, `*`, `@`: the sum, the product value by value, the product of matrices of what comes in;
- `.`: what comes in, unchanged;
- `<name>`: another input of the mechanism; `{name}`: learnt parameters. Nothing flows into these.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape

__all__ = ["Step", "draw_flow", "parse_flow", "steps"]

# Widths and heights of the drawing in its own units: about pixels.
_LETTER, _PADDING, _HEIGHT, _CIRCLE = 6.4, 7.0, 26.0, 22.0
_GAP, _ROW = 20.0, 12.0
# How far a drawing may shrink before it scrolls: its words must be read.
_SMALLEST = 0.7
_JOINS = {"+": "+", "*": "\u00d7", "@": "@"}
_SOFT = ("softmax", "sigmoid")


@dataclass(frozen=True)
class Step:
    """One box, circle or line.

    Args:
        text: What it says, or a symbol.
    """

    text: str

    @property
    def is_source(self) -> bool:
        """Whether nothing flows into it."""
        return self.text[0] in "<{"

    @property
    def size(self) -> tuple[float, float]:
        """Width and height."""
        if self.text == ".":
            return 0.0, 0.0
        if self.text in _JOINS:
            return _CIRCLE, _CIRCLE
        return len(self.label) * _LETTER + 2 * _PADDING, _HEIGHT

    @property
    def label(self) -> str:
        """The words in it."""
        return self.text[1:-1] if self.is_source else _JOINS.get(self.text, self.text)


@dataclass(frozen=True)
class _Branches:
    parts: tuple["_Series", ...]

    @property
    def size(self) -> tuple[float, float]:
        sizes = [part.size for part in self.parts]
        height = sum(max(height, _HEIGHT) for _, height in sizes) + _ROW * (len(sizes) - 1)
        return max(width for width, _ in sizes), height


@dataclass(frozen=True)
class _Series:
    parts: tuple["Step | _Branches", ...]

    @property
    def size(self) -> tuple[float, float]:
        sizes = [part.size for part in self.parts]
        return sum(width for width, _ in sizes) + _GAP * (len(sizes) - 1), max(height for _, height in sizes)


def parse_flow(text: str) -> _Series:
    """The steps and branches of a line.

    Raises:
        ValueError: If brackets do not match, a step is empty, or branches are none.
    """
    tokens = [token for token in re.split(r"(->|[()|])", text) if token.strip()]
    found, rest = _series([token.strip() for token in tokens], text)
    if rest:
        raise ValueError(f"flow {text!r}: {rest[0]!r} has nothing that it belongs to")
    return found


def steps(flow: _Series | _Branches | Step) -> Iterator[Step]:
    """All boxes, circles and lines of a flow, from left to right."""
    if isinstance(flow, Step):
        yield flow
    else:
        for part in flow.parts:
            yield from steps(part)


def draw_flow(text: str, title: str, inside: str, outside: str) -> str:
    """The drawing as SVG, in the colour of the text around it.

    Args:
        text: The flow.
        title: What it is, for those who do not see it.
        inside: Words in front of the first step: the map and its shape.
        outside: Words behind the last.

    Raises:
        ValueError: If the flow can't be read.
    """
    flow = _Series((Step(inside), *parse_flow(text).parts, Step(outside)))
    width, height = (side + 12 for side in flow.size)
    shapes: list[str] = []
    _draw(flow, 6.0, height / 2, shapes)
    body = "\n".join(shapes)
    return (
        f'<svg class="flow" xmlns="http://www.w3.org/2000/svg" role="img" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" style="min-width: {_SMALLEST * width:.0f}px" fill="none" stroke="currentColor" '
        f'font-size="11">\n'
        f"<title>{escape(title)}</title>\n{body}\n</svg>"
    )


def _series(tokens: list[str], text: str) -> tuple[_Series, list[str]]:
    parts: list[Step | _Branches] = []
    while True:
        if not tokens or tokens[0] in ("->", "|", ")"):
            raise ValueError(
                f"flow {text!r}: a step is empty {'at the end' if not tokens else f'before {tokens[0]!r}'}"
            )
        part: Step | _Branches
        if tokens[0] == "(":
            part, tokens = _branches(tokens[1:], text)
        else:
            part, tokens = Step(tokens[0]), tokens[1:]
        parts.append(part)
        if not tokens or tokens[0] != "->":
            return _Series(tuple(parts)), tokens
        tokens = tokens[1:]


def _branches(tokens: list[str], text: str) -> tuple[_Branches, list[str]]:
    parts = []
    while True:
        part, tokens = _series(tokens, text)
        parts.append(part)
        if not tokens or tokens[0] not in ("|", ")"):
            raise ValueError(f"flow {text!r}: a bracket is not closed")
        mark, tokens = tokens[0], tokens[1:]
        if mark == ")":
            if len(parts) < 2:
                raise ValueError(f"flow {text!r}: one branch needs no brackets")
            return _Branches(tuple(parts)), tokens


def _draw(flow: _Series, left: float, middle: float, shapes: list[str]) -> tuple[list[tuple[float, bool]], list[float]]:
    """Adds the shapes of a series whose lines run at a height.

    Returns:
        Where what comes in has to lead, and whether as an arrow; where what comes out stands. Heights at both ends.
    """
    entries: list[tuple[float, bool]] = []
    x, exits = left, [middle]
    for number, part in enumerate(flow.parts):
        width, height = part.size
        if isinstance(part, Step):
            wanted = [] if part.is_source else [(middle, part.text != ".")]
            leaving = [middle]
            _add_step(part, x, middle, shapes)
        else:
            wanted, leaving, top = [], [], middle - height / 2
            for branch in part.parts:
                own_width, own_height = branch.size
                row = max(own_height, _HEIGHT)
                indent = (width - own_width) / 2
                into, out = _draw(branch, x + indent, top + row / 2, shapes)
                # Lines lead past the narrower branches to the edges of the widest.
                shapes += [_line(x, y, x + indent, y, arrow) for y, arrow in into if indent]
                shapes += [_line(x + indent + own_width, y, x + width, y) for y in out if indent]
                wanted += [(y, arrow and not indent) for y, arrow in into]
                leaving += out
                top += row + _ROW
        if number:
            shapes += [_line(x - _GAP, a, x, b, arrow) for a in exits for b, arrow in wanted]
        else:
            entries = wanted
        exits = leaving
        x += width + _GAP
    return entries, exits


def _add_step(step: Step, x: float, y: float, shapes: list[str]) -> None:
    width, height = step.size
    if not width:
        return
    if step.text in _JOINS:
        shapes.append(f'<circle cx="{x + width / 2:.1f}" cy="{y:.1f}" r="{width / 2:.1f}"/>')
    elif not step.is_source:
        # Normalisations that make weights stand out by round ends.
        radius = height / 2 if any(word in step.text for word in _SOFT) else 3
        shapes.append(
            f'<rect x="{x:.1f}" y="{y - height / 2:.1f}" width="{width:.1f}" height="{height:.1f}" rx="{radius:.1f}"/>'
        )
    else:
        dashes = "4 3" if step.text[0] == "<" else "1.5 3"
        shapes.append(
            f'<rect x="{x:.1f}" y="{y - height / 2:.1f}" width="{width:.1f}" height="{height:.1f}" '
            f'stroke-dasharray="{dashes}"/>'
        )
    shapes.append(
        f'<text x="{x + width / 2:.1f}" y="{y + 4:.1f}" text-anchor="middle" fill="currentColor" stroke="none">'
        f"{escape(step.label)}</text>"
    )


def _line(x0: float, y0: float, x1: float, y1: float, arrow: bool = False) -> str:
    """A line, with a bend of its own on its way to another height, and a head of an arrow."""
    bend = (x0 + x1) / 2
    path = f"M{x0:.1f} {y0:.1f}" + (f"C{bend:.1f} {y0:.1f} {bend:.1f} {y1:.1f}" if y0 != y1 else "L")
    path += f" {x1:.1f} {y1:.1f}"
    if arrow:
        path += f"M{x1 - 5:.1f} {y1 - 3:.1f}L{x1:.1f} {y1:.1f}L{x1 - 5:.1f} {y1 + 3:.1f}"
    return f'<path d="{path}"/>'
