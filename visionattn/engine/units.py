"""The meaning of a metric's numbers: direction, unit, and how they are printed."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["MetricInfo", "metric_info"]

FRACTION = "fraction"


@dataclass(frozen=True)
class MetricInfo:
    """Direction and unit of a metric.

    Args:
        name: As it is reported, `top1` or `bbox/map`.
        better: `greater` or `less`; None if neither is known.
        unit: `fraction` is printed in percent, any other unit behind the number (`px`); empty for a plain number.

    Raises:
        ValueError: If `better` is something else.
    """

    name: str
    better: str | None = None
    unit: str = ""

    def __post_init__(self) -> None:
        if self.better not in ("greater", "less", None):
            raise ValueError(f"metric {self.name!r}: better must be 'greater' or 'less', got {self.better!r}")

    def format(self, value: float | None) -> str:
        """Formats a number; `n/a` if there was nothing to measure."""
        if value is None or math.isnan(value):
            return "n/a"
        if self.unit == FRACTION:
            return f"{100 * value:.2f} %"
        number = f"{value:.2f}" if abs(value) >= 1 or value == 0 else f"{value:.4g}"
        return f"{number} {self.unit}".rstrip()

    def improves(self, value: float, best: float | None) -> bool:
        """Whether a value is better than the best so far; NaN never is."""
        if math.isnan(value) or best is None or math.isnan(best):
            return not math.isnan(value)
        return value < best if self.better == "less" else value > best

    def best(self, points: Sequence[tuple[int, float]]) -> tuple[int, float] | None:
        """The first best pair of (step, value); None if all values are NaN."""
        best = None
        for step, value in points:
            if self.improves(value, best[1] if best else None):
                best = (step, value)
        return best


def metric_info(metrics: Iterable[Any], name: str) -> MetricInfo | None:
    """Finds out what a reported number means.

    Args:
        metrics: Those of an evaluator. `TorchMetrics` know their own; any other may have the attributes
            `higher_is_better` and `unit`.
        name: The number's name.

    Returns:
        None if no metric reports a number of this name.
    """
    for metric in metrics:
        if hasattr(metric, "info"):
            info = metric.info(name)
        elif metric.prefix in (None, "", name.partition("/")[0]):
            info = describe(metric, name)
        else:
            info = None
        if info is not None:
            return info
    return None


def describe(metric: Any, name: str, better: str | None = None, unit: str | None = None) -> MetricInfo:
    """Direction and unit from the attributes of torchmetrics' classes, if not given."""
    if better is None:
        better = {True: "greater", False: "less", None: None}.get(getattr(metric, "higher_is_better", None))
    if unit is None:
        bounds = getattr(metric, "plot_lower_bound", None), getattr(metric, "plot_upper_bound", None)
        unit = FRACTION if bounds == (0, 1) else getattr(metric, "unit", "")
    return MetricInfo(name, better, unit)
