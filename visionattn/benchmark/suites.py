"""Which cases a run measures on each device, and how long that takes."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from visionattn.catalog import Card, cards

from .cases import Case, frontend_cases, mixer_cases, network_cases, plugin_cases, resnet_cases, window_cases

__all__ = ["SUITES", "Plan", "make_plan", "suite_cases"]

# Seconds that a row takes besides its timing: building, checking and counting, and rounds of what is slow.
_OVERHEAD = {"cpu": 2.0, "cuda": 2.0}
_COMPILING = 12.0

SUITES = ("plugins", "frontends", "mixers", "windows", "networks")
BOTH = ("NCHW", "NHWC")
# An early and a late stage of a ResNet-50, and a small map.
CPU_SHAPES = ((8, 256, 56, 56), (8, 1024, 14, 14), (4, 32, 14, 14))
GPU_SHAPES = ((128, 256, 56, 56), (128, 1024, 14, 14))
# Networks take minutes on the CPU.
CPU_RESNETS = ("cbam", "triplet")


@dataclass(frozen=True)
class Plan:
    """What a run will do.

    Args:
        suite: Name of what is run.
        device: `cpu` or `cuda`.
        rows: Each case and mode, the most important first.
        seconds: Of each contender in each row, on average.
        limit: Seconds after which no further row is begun.
        compilers: Seconds that compilers may take.
        loaded: Whether another process copies memory meanwhile.
    """

    suite: str
    device: str
    rows: list[tuple[Case, str]]
    seconds: float
    limit: float
    compilers: float
    loaded: bool = False

    def __str__(self) -> str:
        contenders = sum(2 + len(case.baselines) + len(case.compiled) for case, _ in self.rows)
        compiled = sum(len(case.compiled) for case, _ in self.rows)
        text = f"{len(self.rows)} rows, {contenders} contenders, {self.seconds:g} s each on average"
        if compiled:
            text += f"; {compiled} are compiled, in {self.compilers:g} s at most"
        if self.limit < float("inf"):
            text += f"; no row begins after {self.limit:g} s"
        return f"{text}; about {max(1, round(self.expected / 60))} min on a machine with nothing else to do"

    @property
    def expected(self) -> float:
        """The estimated time in seconds."""
        measuring = sum((3 + len(case.baselines)) * self.seconds + _OVERHEAD[self.device] for case, _ in self.rows)
        compiling = min(self.compilers, _COMPILING * sum(len(case.compiled) for case, _ in self.rows))
        return min(measuring + compiling, self.limit)


def make_plan(
    suite: str,
    device: str,
    cases: Sequence[Case],
    *,
    seconds: float,
    limit: float,
    compilers: float,
    loaded: bool = False,
) -> Plan:
    """Every mode of every case."""
    rows = [(case, mode) for case in cases for mode in case.modes]
    return Plan(suite, device, rows, seconds, limit, compilers, loaded)


def suite_cases(
    suite: str,
    device: str,
    *,
    plugins: Sequence[str] = (),
    mixers: Sequence[str] = (),
    shapes: Sequence[tuple[int, ...]] = (),
    layouts: Sequence[str] = BOTH,
) -> list[Case]:
    """The cases of a suite: in float32 on the CPU; on a GPU in bfloat16 first, with batches that fill it.

    Args:
        suite: One of `SUITES`, or `cpu` or `gpu` for all of them.
        device: `cpu` or `cuda`.
        plugins: Names of plug-ins; by default all on the CPU, one of each paper on a GPU.
        mixers: Names of mixers; by default all.
        shapes: Of the maps of plug-ins, or in the suite `mixers` of mixers.
        layouts: Of their maps.
    """
    given = shapes if suite == "mixers" else ()
    if device == "cpu":
        makers: dict[str, Callable[[], list[Case]]] = {
            "plugins": lambda: _cpu_plugins(plugins or _names(cards("plugin")), shapes or CPU_SHAPES, layouts),
            "frontends": lambda: _with_ours_compiled(frontend_cases()),
            "mixers": lambda: _with_ours_compiled(mixer_cases(mixers, given, batch=2)),
            "windows": lambda: _with_ours_compiled(window_cases()),
            "networks": lambda: [*network_cases(), *resnet_cases(CPU_RESNETS)],
        }
        chosen = SUITES if suite == "cpu" else (suite,)
        return [case for name in chosen for case in makers[name]()]
    half: dict[str, Any] = {"dtype": torch.bfloat16}
    names = plugins or _one_of_each_paper()
    resnets = [card.name for card in cards("plugin") if card.name in _one_of_each_paper() and "resnet" in card.hosts]
    early, *late = (() if given else shapes) or GPU_SHAPES
    # The largest maps in half precision come first, so that a limit of time cuts off the others.
    parts: list[tuple[str, Callable[[], list[Case]]]] = [
        (
            "plugins",
            lambda: plugin_cases(names, [early], layouts, modes=("f+b",), compiled=("ours", "official"), **half),
        ),
        ("plugins", lambda: plugin_cases(names, [early], layouts, modes=("fwd",), **half)),
        ("frontends", lambda: frontend_cases([(32, 3, 224, 224)], **half)),
        ("mixers", lambda: mixer_cases(mixers, given, batch=128, stages=2, **half)),
        ("windows", lambda: window_cases(((128, 56), (128, 28), (128, 14)), **half)),
        ("networks", lambda: resnet_cases(resnets, batch=128, check_batch=8, **half)),
        ("networks", lambda: network_cases(batch=128, check_batch=4, **half)),
        ("plugins", lambda: plugin_cases(names, late, layouts, **half)),
        ("plugins", lambda: plugin_cases(names, [early], layouts, modes=("f+b",))),
        ("mixers", lambda: mixer_cases(mixers, given, batch=32, stages=1)),
    ]
    return [case for name, make in parts if suite in (name, "gpu") for case in make()]


def _cpu_plugins(names: Sequence[str], shapes: Sequence[tuple[int, ...]], layouts: Sequence[str]) -> list[Case]:
    """With ours compiled, and the literal formula of one plug-in a paper in the first shape and layout.

    Compiling takes longer than measuring.
    """
    cases = _with_ours_compiled(plugin_cases(names, shapes, layouts))
    for at, case in enumerate(cases):
        first = case.shape == shapes[0] and case.layout == layouts[0]
        if first and case.name in _one_of_each_paper() and "official" in case.baselines:
            cases[at] = replace(case, compiled=("ours", "official"))
    return cases


def _with_ours_compiled(cases: Iterable[Case]) -> list[Case]:
    return [replace(case, compiled=("ours",)) for case in cases]


def _names(chosen: Iterable[Card]) -> list[str]:
    return [card.name for card in chosen if card.factory]


def _one_of_each_paper() -> list[str]:
    """Plug-ins with a literal formula; the first of those that share one."""
    first: dict[str, Card] = {}
    for card in cards("plugin"):
        if card.reference:
            first.setdefault(card.reference, card)
    return _names(first.values())
