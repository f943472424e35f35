"""Adapts schedules to a run that is shorter or longer than the one they were written for."""

from typing import Any

from mmengine.config import Config, ConfigDict

__all__ = ["stretch_schedule", "without_tiny_warmups"]

# Settings of mmengine's schedulers that count epochs or steps.
_POSITIONS = ("begin", "end", "T_max", "step_size", "total_steps", "milestones", "periods")


def stretch_schedule(config: Config, ratio: float) -> None:
    """Scales a config's schedules, and the start of its hooks, to the length of the run, in place.

    Args:
        config: A config of a run.
        ratio: The new length over the old one.
    """
    if schedulers := config.get("param_scheduler"):
        single = isinstance(schedulers, dict)
        stretched = [_stretch(scheduler, ratio) for scheduler in ([schedulers] if single else schedulers)]
        config.param_scheduler = stretched[0] if single else without_tiny_warmups(stretched)
    for hook in config.get("custom_hooks") or []:
        for key in ("begin_epoch", "begin_iter"):
            if key in hook:
                hook[key] = round(hook[key] * ratio)


def without_tiny_warmups(schedulers: list[Any], epoch_length: int | None = None) -> list[Any]:
    """Drops linear warm-ups of less than two steps, after which mmengine would not have raised the rate.

    Args:
        schedulers: As in a config.
        epoch_length: Steps of an epoch; without it schedulers that are converted from epochs to steps are all kept.
    """
    kept: list[Any] = []
    moved: dict[float, float] = {}  # what begins where a warm-up would have ended begins with it
    for scheduler in schedulers:
        begin, end = scheduler.get("begin", 0), scheduler.get("end")
        unit = epoch_length if scheduler.get("convert_to_iter_based") else 1
        if scheduler["type"] == "LinearLR" and end and unit and int(end * unit) - int(begin * unit) < 2:
            moved[end] = begin
        else:
            kept.append(ConfigDict({**scheduler, "begin": moved[begin]}) if begin in moved else scheduler)
    return kept


def _stretch(scheduler: ConfigDict, ratio: float) -> ConfigDict:
    exact = scheduler.get("convert_to_iter_based", False)

    def scaled(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [scaled(part) for part in value]
        return value * ratio if exact else max(round(value * ratio), min(value, 1))

    return ConfigDict({key: scaled(value) if key in _POSITIONS else value for key, value in scheduler.items()})
