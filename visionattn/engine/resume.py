"""Chooses the checkpoint that a run resumes from, and handles settings changed since."""

import re
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mmengine.hooks import EMAHook
from mmengine.runner import EpochBasedTrainLoop

from visionattn.utils.files import read_checkpoint

__all__ = [
    "POINTER",
    "Schedule",
    "changed_settings",
    "latest_checkpoint",
    "resume_hint",
    "run_settings",
    "verify_checkpoint",
]

POINTER = "last_checkpoint"
_NAME = re.compile(r"(epoch|iter)_(\d+)\.pth")


def verify_checkpoint(path: str | Path) -> None:
    """Reads a training checkpoint and compares each part with its CRC, which a memory-mapped load skips.

    A changed bit is found unless it changes nothing that is read, such as the padding between the parts.

    Raises:
        FileNotFoundError: If there is no such file.
        PermissionError: If it may not be read.
        ValueError: If it is truncated or a bit of it has changed.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # a flipped bit in a header may come out as anything
        raise ValueError(f"{path} is damaged or truncated: {error}") from error
    if damaged is not None:
        raise ValueError(f"{path} is damaged: the checksum of its part {damaged} does not match")
    read_checkpoint(path)  # PyTorch reads some headers that Python passes over


def latest_checkpoint(work_dir: str | Path, report: Callable[[str], Any] = lambda _: None) -> Path | None:
    """The newest intact checkpoint of the run in a folder; the previous one if the last is damaged or missing.

    Args:
        work_dir: Folder of the run.
        report: Called with what is wrong with the checkpoints that were passed over.

    Returns:
        None if the run has not saved any.

    Raises:
        ValueError: If it has, but none can be read.
    """
    folder = Path(work_dir)
    pointer = folder / POINTER
    named = pointer.read_text(errors="replace").strip() if pointer.is_file() else ""
    last = _NAME.fullmatch(named)
    problems = []
    if last and not (folder / named).is_file():
        problems.append(f"{folder / named} is missing")
    for path in _newest_first(folder, last):
        try:
            verify_checkpoint(path)
        except (ValueError, OSError) as error:
            problems.append(str(error))
            continue
        for problem in problems:
            report(f"{problem}; resuming from {path.name} instead")
        return path
    if problems:
        raise ValueError(f"no checkpoint in {folder} can be resumed from: {'; '.join(problems)}")
    return None


def resume_hint(work_dir: str | Path) -> str:
    """The end of a message that says how to resume the run in a folder."""
    pointer = Path(work_dir) / POINTER
    if not pointer.is_file():
        return f"no checkpoint has been saved in {work_dir} yet"
    return f"--resume resumes from {Path(work_dir) / pointer.read_text(errors='replace').strip()}"


def _newest_first(folder: Path, last: re.Match[str] | None) -> list[Path]:
    """The checkpoints up to the last one; later ones belong to a run that was resumed from an earlier one."""
    found = []
    for path in folder.glob("*.pth"):
        name = _NAME.fullmatch(path.name)
        if name and (last is None or (name[1] == last[1] and int(name[2]) <= int(last[2]))):
            found.append((int(name[2]), path))
    return [path for _, path in sorted(found, reverse=True)]


def run_settings(runner: Any) -> dict[str, Any]:
    """The settings on which epochs, samples, schedules and optimiser state in a checkpoint depend, as plain data."""
    loader = runner.train_dataloader
    settings = {
        "processes": runner.world_size,
        "samples": len(loader.dataset),
        "batches an epoch": len(loader),
        "train_dataloader.batch_size": loader.batch_size,
        "loop": type(runner.train_loop).__name__,
        "optimizer": type(runner.optim_wrapper.optimizer).__name__,
    }
    for key in ("optim_wrapper", "param_scheduler", "train_cfg", "auto_scale_lr"):
        settings.update(_flat(key, runner.cfg.get(key)))
    return settings


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _flat(f"{name}.{key}", part)
    elif isinstance(value, list | tuple):
        for index, part in enumerate(value):
            yield from _flat(f"{name}.{index}", part)
    else:
        yield name, value if isinstance(value, int | float | str | None) else repr(value)


def changed_settings(runner: Any, checkpoint: dict[str, Any], name: str) -> dict[str, tuple[Any, Any]]:
    """The settings that differ between a checkpoint and the run that is to resume from it: name -> (old, new).

    Raises:
        ValueError: If the run can't take the checkpoint over with them.
    """
    new = run_settings(runner)
    old = checkpoint["meta"].get("settings", new)
    keys = [*new, *(key for key in old if key not in new)]
    changed = {key: (old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)}
    for reason in _objections(runner, checkpoint, changed):
        raise ValueError(
            f"cannot resume from {name}: {reason}. Undo the change, or start a new run from its weights (load_from)"
        )
    return changed


def _objections(runner: Any, checkpoint: dict[str, Any], changed: dict[str, tuple[Any, Any]]) -> Iterator[str]:
    """Changes that make resuming impossible."""
    meta = checkpoint["meta"]
    if "loop" in changed:
        old, new = changed["loop"]
        yield f"it was trained by {old}, this run (train_cfg) by {new}"
    if "optimizer" in changed:
        old, new = changed["optimizer"]
        yield f"it was trained with {old}, this run (optim_wrapper.optimizer) with {new}"
    groups = (runner.optim_wrapper.optimizer.param_groups, checkpoint["optimizer"]["param_groups"])
    if len({tuple(len(group["params"]) for group in side) for side in groups}) > 1:
        yield "this run groups its parameters differently (optim_wrapper.paramwise_cfg)"
    seed = runner.cfg.get("randomness", {}).get("seed")
    if seed is not None and seed != meta["seed"]:
        yield f"its randomness.seed is {meta['seed']}, this run's {seed}"
    if "ema_state_dict" in checkpoint and not any(isinstance(hook, EMAHook) for hook in runner.hooks):
        yield "it holds averaged weights, but this run has no EMAHook (custom_hooks)"
    by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
    done, end = (meta["epoch"], runner.max_epochs) if by_epoch else (meta["iter"], runner.max_iters)
    if done > end:
        name = "max_epochs" if by_epoch else "max_iters"
        yield f"it has been trained for {done} {name[4:]}, this run's train_cfg.{name} is {end}"
    if not by_epoch:
        old, new = (_samples_per_iteration(changed, run_settings(runner), side) for side in (0, 1))
        if old != new:
            yield f"a run by iterations needs as many samples in each: processes x batch_size was {old}, and is {new}"
    if changed and any(getattr(schedule, "need_val_args", False) for schedule in runner.param_schedulers or ()):
        yield f"{next(iter(changed))} has changed, and a schedule that follows the scores cannot be recomputed"


def _samples_per_iteration(changed: dict[str, tuple[Any, Any]], new: dict[str, Any], side: int) -> str:
    """The samples per iteration, before (side 0) or now (1)."""
    names = ("processes", "train_dataloader.batch_size", "samples")
    processes, batch, samples = (changed[name][side] if name in changed else new[name] for name in names)
    return f"{processes * (batch or 1)} of {samples}"


class Schedule:
    """Learning rates and other scheduled values of a newly built run, before it resumes.

    A resumed run takes them from its checkpoint. If its settings have changed, they must come from the settings: they
    are recomputed, step by step from the start, as if the run had always had these settings.
    """

    def __init__(self, runner: Any) -> None:
        self.runner = runner
        self.groups = [
            {key: value for key, value in group.items() if key != "params"}
            for group in runner.optim_wrapper.param_groups
        ]

    def recompute(self, epochs: int, iterations: int) -> None:
        """Sets all values to those after these epochs and iterations; schedulers must not have been stepped."""
        for group, own in zip(self.runner.optim_wrapper.param_groups, self.groups, strict=True):
            group.update(own)
        schedulers = self.runner.param_schedulers or ()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected call of `scheduler.step")
            for iteration in range(1, iterations + 1):
                _step(schedulers, by_epoch=False)
                if epochs and iteration % (iterations // epochs) == 0:
                    _step(schedulers, by_epoch=True)


def _step(schedulers: Any, by_epoch: bool) -> None:
    for scheduler in schedulers:
        if scheduler.by_epoch == by_epoch:
            scheduler.step()
