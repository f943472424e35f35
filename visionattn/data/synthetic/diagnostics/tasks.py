"""The tasks: what is asked, how its scenes are made, and what can be got right by chance."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import cv2
import numpy as np

from visionattn.utils.arguments import check_choice

from .pictures import DIGITS, Pictures, load_pictures
from .scenes import CORRUPTIONS, MARK, Place, Scenes, blank, corrupt, draw, frame, free_places, stack

__all__ = ["TASKS", "VERSION", "Task"]

# Changes whenever scenes do, so that results of other scenes are not taken for those of these.
VERSION = 4

Way = list[tuple[int, int]]
Part = tuple[np.ndarray, int, list[Place], list[Place]]


@dataclass(frozen=True)
class Task:
    """A task that asks for one ability.

    Args:
        name: Its name.
        question: What is asked, in words.
        classes: How many answers there are.
        chance: Share that is right by knowing nothing but how often each answer comes.
        shortcut: Share that is right by recognising the objects without the ability asked for.
        compose: Makes a scene from `(split, number, rng, size, source, **difficulty)`.
        difficulty: Arguments that make it harder or easier, with their defaults.
        trained_on: The task whose networks answer it, if it only tests them otherwise.
        units: Names of the difficulty's arguments that count pixels, which grow with the scene.
    """

    name: str
    question: str
    classes: int
    chance: float
    shortcut: float
    compose: Callable[..., Part]
    difficulty: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    trained_on: str | None = None
    units: tuple[str, ...] = ()

    def make(
        self, split: str, count: int, *, size: int = 32, source: str = "digits", seed: int = 0, **harder: Any
    ) -> list[Scenes]:
        """Scenes, each a function of `(seed, split, task, number)`; those of a task that only tests come in groups.

        Args:
            split: `train` or `test`; no picture is in both.
            count: How many.
            size: Side of the scenes in pixels, at least 32; whatever counts pixels in the difficulty grows with it.
            source: A name in `SOURCES`.
            seed: Gives other scenes of the same pictures.
            **harder: Arguments of `difficulty`.

        Returns:
            The scenes, in one `Scenes` for each size that there is.

        Raises:
            ValueError: If an argument is unknown or out of range.
        """
        check_choice("split", split, ("train", "test"))
        for name in harder:
            check_choice(f"difficulty of {self.name}", name, self.difficulty)
        if size < 32 or count < 1:
            raise ValueError(f"size must be at least 32 and count at least 1, got size={size}, count={count}")
        own = {**self.difficulty, **harder}
        own |= {name: round(own[name] * size / 32) for name in self.units}
        number = [*TASKS].index(self.name)
        parts = []
        for index in range(count):
            rng = np.random.default_rng((seed, split == "test", number, index))
            parts.append(self.compose(split, index, rng, size, source, **own))
        sizes = sorted({part[0].shape[0] for part in parts})
        return [stack([part for part in parts if part[0].shape[0] == one]) for one in sizes]


def _pick(pictures: Pictures, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    at = rng.integers(len(pictures.classes))
    return pictures.ink[at], int(pictures.classes[at])


def _one_of(pictures: Pictures, label: int, rng: np.random.Generator) -> np.ndarray:
    """A picture of a class."""
    return pictures.ink[rng.choice(np.flatnonzero(pictures.classes == label))]


def _ink(rng: np.random.Generator) -> tuple[int, int, int]:
    """A grey to draw with."""
    grey = int(rng.integers(170, 256))
    return grey, grey, grey


def _clutter(
    split: str,
    index: int,
    rng: np.random.Generator,
    size: int,
    source: str,
    *,
    object_px: int,
    fragments: int,
    kinds: int,
) -> Part:
    """One whole digit among fragments of other objects. Places: the digit."""
    pictures = load_pictures(split, object_px, source)
    image = blank(size, rng)
    cut = object_px // 2
    for _ in range(fragments):
        ink, _ = _pick(pictures, rng)
        x, y = rng.integers(object_px - cut + 1, size=2)
        left, top = map(int, rng.integers(size - cut + 1, size=2))
        draw(image, ink[y : y + cut, x : x + cut], (left, top, cut), _ink(rng))
    label = int(rng.integers(kinds))
    ink = _one_of(_digits(split, object_px, source), label, rng)
    left, top = map(int, rng.integers(size - object_px + 1, size=2))
    image[top : top + object_px, left : left + object_px] //= 3
    place = (left, top, object_px)
    draw(image, ink, place, _ink(rng))
    return image, label, [place], [place]


def _digits(split: str, side: int, source: str) -> Pictures:
    return load_pictures(split, side, "digits")


def _pointer(
    split: str,
    index: int,
    rng: np.random.Generator,
    size: int,
    source: str,
    *,
    object_px: int,
    objects: int,
    kinds: int,
    gap: int,
    directions: int,
) -> Part:
    """Digits of different classes, one of which a red bar points to. Places: that one, then the others."""
    pictures = _digits(split, object_px, source)
    if objects > kinds:
        raise ValueError(f"objects must be at most kinds={kinds}, as all differ, got {objects}")
    labels = rng.permutation(kinds)[:objects]
    while True:
        image = blank(size, rng)
        places = free_places(objects, size, object_px, rng)
        for label, place in zip(labels, places, strict=True):
            draw(image, _one_of(pictures, label, rng), place, _ink(rng))
        if _point(image, places, gap, directions, rng):
            return image, int(labels[0]), places, places[:1]


def _point(image: np.ndarray, places: list[Place], gap: int, directions: int, rng: np.random.Generator) -> bool:
    """Draws a bar that points to the first object, unless it would point to another or leave the scene."""
    left, top, side = places[0]
    length, half = max(side // 2, 3), side // 8
    for direction in rng.permutation(directions):
        along = np.array([(1, 0), (-1, 0), (0, 1), (0, -1)][direction])
        middle = np.array([left, top]) + side // 2
        ends = middle + np.outer((side // 2 + gap, side // 2 + gap + length - 1), along)
        (x0, y0), (x1, y1) = ends.min(0) - half * abs(along[::-1]), ends.max(0) + 1 + half * abs(along[::-1])
        beside = 1 if along[0] else 0  # the axis that the bar does not run along
        clear = all(not -half <= middle[beside] - place[beside] < place[2] + half for place in places[1:])
        if clear and min(x0, y0) >= 0 and max(x1, y1) <= len(image):
            image[y0:y1, x0:x1] = MARK
            return True
    return False


def _neighbour(
    split: str,
    index: int,
    rng: np.random.Generator,
    size: int,
    source: str,
    *,
    object_px: int,
    rows: int,
    columns: int,
    kinds: int,
    gap: int,
) -> Part:
    """Rows of digits with one 5; asked is the digit on its left. In a column all differ. Places: row by row.

    The gap is wider than what a stem of convolutions sees at once.
    """
    pictures = _digits(split, object_px, source)
    image = blank(size, rng)
    wide, high = columns * object_px + (columns - 1) * gap, rows * (object_px + 1) - 1
    if rows > kinds or max(wide, high) > size:
        raise ValueError(
            f"rows must be at most kinds={kinds} and the digits fit into {size} px, got rows={rows}, which need "
            f"{wide}x{high} px"
        )
    others = [digit for digit in DIGITS if digit != 5][:kinds]
    labels = np.stack([rng.permutation(others)[:rows] for _ in range(columns)], axis=1)
    row, column = int(rng.integers(rows)), int(rng.integers(1, columns))
    labels[row, column] = 5
    left = int(rng.integers(size - wide + 1))
    tops = np.sort(rng.integers(size - high + 1, size=rows)) + np.arange(rows) * (object_px + 1)
    places = [(left + x * (object_px + gap), int(top), object_px) for top in tops for x in range(columns)]
    for label, place in zip(labels.flat, places, strict=True):
        draw(image, _one_of(pictures, label, rng), place, _ink(rng))
    asked = row * columns + column
    return image, int(labels[row, column - 1]), places, places[asked - 1 : asked + 1]


def _same(
    split: str, index: int, rng: np.random.Generator, size: int, source: str, *, object_px: int, objects: int
) -> Part:
    """Two framed objects among others: of one class or not. Classes in test scenes are in no training scene.

    Places: the framed ones, then the others.
    """
    kinds = np.arange(10 if source == "digits" else 20)
    held_out = kinds % 10 >= 7
    pictures = load_pictures(split, object_px, source)
    kinds = kinds[held_out if split == "test" else ~held_out]
    label = int(rng.integers(2))
    first, second = rng.permutation(kinds)[:2]
    chosen = [first, first if label else second, *rng.choice(kinds, objects - 2)]
    image = blank(size, rng)
    places = free_places(objects, size, object_px, rng, margin=2)
    for kind, place in zip(chosen, places, strict=True):
        draw(image, _one_of(pictures, kind, rng), place, _ink(rng))
    for place in places[:2]:
        frame(image, place)
    return image, label, places, places[:2]


def _count(
    split: str,
    index: int,
    rng: np.random.Generator,
    size: int,
    source: str,
    *,
    object_px: int,
    objects: int,
    most: int,
    kinds: int,
) -> Part:
    """How many of the class of the red digit there are among the others. Places: the red one, then the others."""
    pictures = _digits(split, object_px, source)
    label = int(rng.integers(most + 1))
    asked = int(rng.integers(kinds))
    others = np.array([digit for digit in DIGITS if digit != asked])
    chosen = [asked] * (1 + label) + [*rng.choice(others, objects - label)]
    image = blank(size, rng)
    places = free_places(objects + 1, size, object_px, rng)
    for number, (kind, place) in enumerate(zip(chosen, places, strict=True)):
        draw(image, _one_of(pictures, kind, rng), place, MARK if number == 0 else _ink(rng))
    return image, label, places, places[: 1 + label]


def _long_way(
    split: str, index: int, rng: np.random.Generator, size: int, source: str, *, cell: int, length: int, apart: int
) -> Part:
    """Two paths; two of their ends are marked: of one path or not. Places: the marked ends.

    Both paths are drawn before the answer, and the ends that may be marked are as far apart in both cases: neither the
    paths nor the distance of the marks tell anything.
    """
    label, grid = int(rng.integers(2)), size // cell
    while (found := _two_paths(grid, length, apart, rng)) is None:
        pass
    paths, own, crossed = found
    ends = own if label else crossed
    image, ink, middle = blank(size, rng), _ink(rng), cell // 2
    for path in paths:
        points = np.array(path) * cell + middle
        cv2.polylines(image, [points.astype(np.int32)], False, ink)
    places = [(int(x * cell), int(y * cell), cell) for x, y in ends]
    for left, top, _ in places:
        image[top + middle - 1 : top + middle + 2, left + middle - 1 : left + middle + 2] = MARK
    way = paths[0] if label else [*paths[0], *paths[1]]
    return image, label, places, [(int(x * cell), int(y * cell), cell) for x, y in way]


def _two_paths(grid: int, length: int, apart: int, rng: np.random.Generator) -> tuple[list[Way], Way, Way] | None:
    """Two ways over a grid, the ends of one, and two ends of both that are as far apart; none where that fails."""
    first = _walk(set(), grid, length, rng)
    second = _walk(set(first), grid, length, rng) if first else None
    if not first or not second:
        return None
    paths = [first, second]
    own = [[path[0], path[-1]] for path in paths]
    crossed = [[one, other] for one in own[0] for other in own[1]]
    fit = [(a, b) for a in own for b in crossed if _apart(*a) == _apart(*b) and _apart(*a)[1] >= apart]
    if not fit:
        return None
    chosen = fit[rng.integers(len(fit))]
    return (paths if chosen[0] is own[0] else paths[::-1]), *chosen


def _apart(one: tuple[int, int], other: tuple[int, int]) -> list[int]:
    """The shorter and the longer side of the box between two cells."""
    return sorted((abs(one[0] - other[0]), abs(one[1] - other[1])))


def _walk(taken: set[tuple[int, int]], grid: int, length: int, rng: np.random.Generator) -> Way | None:
    """A way of so many cells that touches neither itself nor what is taken, or none if it comes to a dead end."""
    x, y, step = map(int, rng.integers([grid, grid, 4]))
    path = [(x, y)]
    if _near((x, y), taken, None):
        return None
    while len(path) < length:
        turns = [step, *map(int, rng.permutation([(step + 1) % 4, (step + 3) % 4]))]
        for step in turns if rng.random() < 0.7 else turns[::-1]:
            new = (path[-1][0] + (1, 0, -1, 0)[step], path[-1][1] + (0, 1, 0, -1)[step])
            if all(0 <= at < grid for at in new) and not _near(new, {*taken, *path}, path[-1]):
                path.append(new)
                break
        else:
            return None
    return path


def _near(cell: tuple[int, int], taken: set[tuple[int, int]], last: tuple[int, int] | None) -> bool:
    """Whether a cell or one beside it is taken, but for the one that the way comes from."""
    x, y = cell
    around = {(x, y), (x + 1, y), (x - 1, y), (x, y + 1), (x, y - 1)} - {last}
    return bool(around & taken)


def _few(
    split: str, index: int, rng: np.random.Generator, size: int, source: str, *, object_px: int, examples: int
) -> Part:
    """One object at a random place; there are few pictures of each class to train with. Places: the object."""
    pictures = load_pictures(split, object_px, source)
    label = int(rng.integers(10))
    pictures = pictures.of(label if source == "digits" else 10 + label)
    ink, _ = _pick(pictures.first(examples) if split == "train" else pictures, rng)
    image = blank(size, rng)
    left, top = map(int, rng.integers(size - object_px + 1, size=2))
    draw(image, ink, (left, top, object_px), _ink(rng))
    return image, label, [(left, top, object_px)], [(left, top, object_px)]


def _shift(
    split: str,
    index: int,
    rng: np.random.Generator,
    size: int,
    source: str,
    *,
    object_px: int,
    fragments: int,
    scene: float,
    larger: float,
    **kinds: int,
) -> Part:
    """Clutter on larger scenes, every second time with a larger object, as dense as in training. Places: the digit."""
    grown = larger if index % 2 else 1.0
    fragments = round(fragments * (scene / grown) ** 2)
    own = {"object_px": round(object_px * grown), "fragments": fragments, **kinds}
    return _clutter(split, index, rng, round(size * scene), source, **own)


def _corruption(
    split: str,
    index: int,
    rng: np.random.Generator,
    size: int,
    source: str,
    *,
    severity: float,
    **clutter: int,
) -> Part:
    """Clutter with noise, blur or occlusion in turn. Places: the digit."""
    image, label, places, evidence = _clutter(split, index, rng, size, source, **clutter)
    if severity > 0:
        image = corrupt(image, CORRUPTIONS[index % 3], severity, places[0], rng)
    return image, label, places, evidence


_CLUTTER = {"object_px": 12, "fragments": 8, "kinds": 5}
TASKS = {
    task.name: task
    for task in (
        Task(
            "clutter",
            "name the whole digit among fragments",
            10,
            1 / 5,
            1 / 5,
            _clutter,
            _CLUTTER,
            units=("object_px",),
        ),
        Task(
            "pointer",
            "name the digit that the red bar points to",
            *(10, 1 / 4, 1 / 2, _pointer),
            {"object_px": 8, "objects": 2, "kinds": 4, "gap": 10, "directions": 2},
            units=("object_px", "gap"),
        ),
        Task(
            "neighbour",
            "name the digit to the left of the 5",
            *(10, 1 / 4, 1 / 2, _neighbour),
            {"object_px": 8, "rows": 2, "columns": 2, "kinds": 4, "gap": 14},
            units=("object_px", "gap"),
        ),
        Task(
            "same",
            "are the two framed objects of one class, one never seen in training",
            *(2, 0.5, 0.5, _same, {"object_px": 10, "objects": 3}),
            units=("object_px",),
        ),
        Task(
            "count",
            "how many digits are of the red one's class",
            *(4, 0.25, 0.25, _count, {"object_px": 9, "objects": 4, "most": 3, "kinds": 1}),
            units=("object_px",),
        ),
        Task(
            "long way",
            "are the two marks the ends of one path",
            *(2, 0.5, 0.61, _long_way, {"cell": 4, "length": 7, "apart": 3}),
            units=("cell",),
        ),
        Task(
            "few examples",
            "name the object, having seen 20 pictures of each class",
            *(10, 0.1, 0.1, _few, {"object_px": 24, "examples": 20}),
            units=("object_px",),
        ),
        Task(
            "shift",
            "clutter on scenes of one and a half times the side, with larger objects",
            *(10, 1 / 5, 1 / 5, _shift, {**_CLUTTER, "scene": 1.5, "larger": 7 / 6}),
            trained_on="clutter",
            units=("object_px",),
        ),
        Task(
            "corruption",
            "clutter under noise, blur and occlusion, unseen in training",
            *(10, 1 / 5, 1 / 5, _corruption, {**_CLUTTER, "severity": 0.75}),
            trained_on="clutter",
            units=("object_px",),
        ),
        Task(
            "far shift",
            "clutter on scenes of twice the side, with much larger objects",
            *(10, 1 / 5, 1 / 5, _shift, {**_CLUTTER, "scene": 2.0, "larger": 1.5}),
            trained_on="clutter",
            units=("object_px",),
        ),
    )
}
