"""What we want to reach, and what a record says about it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from .record import label

__all__ = ["GOALS", "Goal", "Reading", "Verdict", "judge"]

Row = dict[str, Any]


class Reading(NamedTuple):
    """What a row says.

    Args:
        value: What was measured.
        bound: The least that is wanted.
        noise: The factor that noise may put on the value.
        most: Whether the bound is the most, not the least.
    """

    value: float
    bound: float
    noise: float = 1.0
    most: bool = False

    @property
    def met(self) -> bool:
        return self.value <= self.bound if self.most else self.value >= self.bound

    @property
    def within_noise(self) -> bool:
        """Whether noise could be why it is not met."""
        return not self.met and not self.most and self.value * self.noise >= self.bound


@dataclass(frozen=True)
class Goal:
    """One goal, for each row that it names.

    Args:
        name: Its number in the plan.
        text: What is wanted, in words.
        device: `cpu` or `cuda`.
        rows: Which rows it is about.
        read: What such a row says; None if it lacks the contender.
    """

    name: str
    text: str
    device: str
    rows: Callable[[Row], bool]
    read: Callable[[Row], Reading | None]


@dataclass(frozen=True)
class Verdict:
    """What a row says about a goal; without a row, that there is none."""

    goal: Goal
    row: str = ""
    reading: Reading | None = None

    @property
    def met(self) -> bool:
        return self.reading is not None and self.reading.met


def judge(record: dict[str, Any]) -> Iterator[Verdict]:
    """Every goal of the record's device on every row that it names; of a full run, also the goals without a row."""
    rows = [row for row in record["rows"] if "contenders" in row]
    full = record.get("suite") in ("cpu", "gpu")
    for goal in GOALS:
        if goal.device == record["device"]["kind"]:
            readings = [(label(row), goal.read(row)) for row in rows if goal.rows(row)]
            verdicts = [Verdict(goal, name, reading) for name, reading in readings if reading is not None]
            yield from verdicts or ([Verdict(goal)] if full else [])


def _ahead(least: float, rival: str | None = None) -> Callable[[Row], Reading | None]:
    """How many times as fast as a rival, the reference by default."""

    def read(row: Row) -> Reading | None:
        theirs = row["contenders"].get(rival or row["reference"])
        return theirs and Reading(theirs["ratio"]["p50"], least, row["noise"]["p90"])

    return read


def _kept(most: float) -> Callable[[Row], Reading | None]:
    """Memory kept for the backward pass over the reference's."""

    def read(row: Row) -> Reading | None:
        ours, theirs = (row["contenders"][name].get("kept") for name in ("ours", row["reference"]))
        return Reading(ours / theirs, most, most=True) if ours is not None and theirs else None

    return read


def _floor(forward: float, backward: float) -> Callable[[Row], Reading | None]:
    """Share of the floor; of both passes together, what follows from the shares wanted of each."""

    def read(row: Row) -> Reading | None:
        share, floor = row["contenders"]["ours"].get("floor_share"), row.get("floor")
        if share is None:
            return None
        if row["mode"] == "fwd":
            return Reading(share, forward)
        total = floor["forward"] + floor["backward"]
        return Reading(share, total / (floor["forward"] / forward + floor["backward"] / backward))

    return read


def _first_call(most: float) -> Callable[[Row], Reading | None]:
    """Seconds of the first call, in which kernels are compiled."""

    def read(row: Row) -> Reading | None:
        seconds = row["contenders"]["ours"].get("first_call")
        return None if seconds is None else Reading(seconds, most, most=True)

    return read


def _rows(suite: str, *names: str, mode: str = "", layout: str = "", sides: tuple[int, ...] = (56,)) -> Any:
    """Rows of a suite, all of them or some; the side of the map says which stage of a network they stand for."""

    def match(row: Row) -> bool:
        return (
            row["suite"] == suite
            and (not names or row["name"] in names)
            and mode in ("", row["mode"])
            and layout in ("", row["layout"])
            and row["shape"][2] in sides
        )

    return match


def _in_half(match: Callable[[Row], bool]) -> Callable[[Row], bool]:
    return lambda row: row["dtype"] == "bfloat16" and match(row)


Wish = tuple[str, str, Callable[[Row], bool], Callable[[Row], Reading | None]]
_ALL_STAGES, _NETWORK = (56, 28, 14), (224,)
_STRIPS = ("coord", "ela_t", "ela_b", "ela_s", "ela_l")
_CPU: tuple[Wish, ...] = (
    ("P6", "triplet keeps <= 0.4 of official", _rows("plugins", "triplet", mode="f+b"), _kept(0.4)),
    ("P6", "ULSAM keeps <= 0.4 of official", _rows("plugins", "ulsam", mode="f+b"), _kept(0.4)),
    ("P6", "FLatten keeps <= 0.4 of official", _rows("mixers", "FLatten", mode="f+b", sides=_ALL_STAGES), _kept(0.4)),
    ("P6", "BOAT keeps <= 0.35 of official", _rows("mixers", "BOAT", mode="f+b", sides=_ALL_STAGES), _kept(0.35)),
    ("P6", "DaViT channels keep <= 0.3 of timm", _rows("mixers", "DaViT channels", mode="f+b"), _kept(0.3)),
    ("P6", "BiFormer keeps <= 0.5 of official", _rows("mixers", "BiFormer", mode="f+b"), _kept(0.5)),
    ("P7", "triplet >= 5x official", _rows("plugins", "triplet", mode="fwd"), _ahead(5.0)),
    ("P7", "triplet >= 2.2x official", _rows("plugins", "triplet", mode="f+b"), _ahead(2.2)),
    ("P7", "CBAM >= 1.7x official, NCHW", _rows("plugins", "cbam", mode="fwd", layout="NCHW"), _ahead(1.7)),
    ("P7", "CBAM >= 1.25x official, NHWC", _rows("plugins", "cbam", mode="fwd", layout="NHWC"), _ahead(1.25)),
    ("P7", "CBAM >= 1x official", _rows("plugins", "cbam", mode="f+b"), _ahead(1.0)),
    ("P7", "ULSAM >= 5x official, NCHW", _rows("plugins", "ulsam", mode="fwd", layout="NCHW"), _ahead(5.0)),
    ("P7", "ULSAM >= 2.2x official, NHWC", _rows("plugins", "ulsam", mode="fwd", layout="NHWC"), _ahead(2.2)),
    ("P7", "ULSAM >= 1x official", _rows("plugins", "ulsam", mode="f+b"), _ahead(1.0)),
    ("P7", "DaViT channels >= 2.5x timm, stage 1", _rows("mixers", "DaViT channels"), _ahead(2.5)),
    ("P7", "DaViT channels >= 1.5x timm, stage 2", _rows("mixers", "DaViT channels", sides=(28,)), _ahead(1.5)),
    ("P7", "BiFormer >= 1.4x official", _rows("mixers", "BiFormer", mode="fwd"), _ahead(1.4)),
    ("P7", "BiFormer >= 2x official", _rows("mixers", "BiFormer", mode="f+b"), _ahead(2.0)),
    ("P7", "BOAT >= 1.3x official", _rows("mixers", "BOAT", sides=_ALL_STAGES), _ahead(1.3)),
    (
        "P7",
        "Twins, FLatten >= 1x their references",
        _rows("mixers", "Twins local", "Twins global", "FLatten", sides=_ALL_STAGES),
        _ahead(1.0),
    ),
)
_GPU: tuple[Wish, ...] = (
    ("P1", "plug-ins >= 0.70 of the floor, 0.60 backward", _rows("plugins"), _floor(0.70, 0.60)),
    ("P1", "mixers >= 0.70 of the floor, 0.60 backward", _rows("mixers"), _floor(0.70, 0.60)),
    ("P2", "triplet >= 7x official", _rows("plugins", "triplet", mode="f+b"), _ahead(7.0)),
    ("P2", "CBAM, strips >= 2.5x official", _rows("plugins", "cbam", *_STRIPS, mode="f+b"), _ahead(2.5)),
    ("P2", "ULSAM >= 3.5x official", _rows("plugins", "ulsam", mode="f+b"), _ahead(3.5)),
    (
        "P2",
        "triplet, ULSAM >= 1.2x compiled official",
        _rows("plugins", "triplet", "ulsam", mode="f+b"),
        _ahead(1.2, "compiled"),
    ),
    (
        "P2",
        "CBAM, strips >= 0.95x compiled official",
        _rows("plugins", "cbam", *_STRIPS, mode="f+b"),
        _ahead(0.95, "compiled"),
    ),
    ("P3", "ResNet-50 with triplet >= 2x", _rows("resnet50", "va_resnet50_triplet", sides=_NETWORK), _ahead(2.0)),
    ("P3", "ResNet-50 with CBAM >= 1.35x", _rows("resnet50", "va_resnet50_cbam", sides=_NETWORK), _ahead(1.35)),
    ("P3", "ResNet-50 with SE >= 0.92x without", _rows("resnet50", "seresnet50"), _ahead(0.92, "none")),
    ("P4", "BiFormer >= 8x official", _rows("mixers", "BiFormer", mode="f+b"), _ahead(8.0)),
    (
        "P4",
        "windows >= 1.3x PyTorch's attention and copies",
        _rows("mixers", "Twins local", "DaViT windows", sides=(56, 28)),
        _ahead(1.3, "torch"),
    ),
    (
        "P4",
        "Twins, DaViT >= 1.05x timm",
        _rows("networks", "va_twins_svt_small", "va_twins_pcpvt_small", "va_davit_tiny", sides=_NETWORK),
        _ahead(1.05),
    ),
    ("P5", "FLatten >= 4x official", _rows("mixers", "FLatten", mode="f+b", sides=(56, 28)), _ahead(4.0)),
    ("P5", "FLatten >= 1x windows", _rows("windows", sides=(56, 28)), _ahead(1.0)),
    ("P6", "triplet, ULSAM keep <= 0.4", _rows("plugins", "triplet", "ulsam", mode="f+b"), _kept(0.4)),
    ("P6", "FLatten keeps <= 0.4", _rows("mixers", "FLatten", mode="f+b", sides=(56, 28)), _kept(0.4)),
    ("P6", "BOAT keeps <= 0.35", _rows("mixers", "BOAT", mode="f+b", sides=(56, 28)), _kept(0.35)),
    ("P9", "first call <= 5 s", _rows("plugins"), _first_call(5.0)),
    ("P9", "first call <= 5 s", _rows("mixers"), _first_call(5.0)),
)
# Kernels are judged in the precision that networks are trained in.
GOALS = (
    *(Goal(name, text, "cpu", rows, read) for name, text, rows, read in _CPU),
    *(Goal(name, text, "cuda", _in_half(rows), read) for name, text, rows, read in _GPU),
)
