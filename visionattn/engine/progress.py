"""A live progress bar on a terminal; elsewhere mmengine's log lines with their ETA are enough."""

import logging
import sys
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

__all__ = ["ProgressHook"]


@HOOKS.register_module()
class ProgressHook(Hook):
    """Shows a progress bar if the console is a terminal; per-step lines then go to the log file only."""

    priority = "LOWEST"

    def __init__(self) -> None:
        self.bar: Progress | None = None

    def before_train(self, runner: Any) -> None:
        """Opens the bar over all iterations of the run."""
        self._open(runner, "train", runner.max_iters, runner.iter)

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Advances the bar."""
        if self.bar is not None:
            loss = torch.as_tensor((outputs or {}).get("loss", float("nan"))).detach().item()
            text = f"train, epoch {runner.epoch + 1}/{runner.max_epochs}, loss {loss:.3f}"
            self.bar.update(self.task, completed=runner.iter + 1, description=text)

    def after_train(self, runner: Any) -> None:
        """Closes the bar."""
        self.close(runner)

    def before_test(self, runner: Any) -> None:
        """Opens a bar over the test set."""
        self._open(runner, "test", len(runner.test_dataloader), 0)

    def after_test_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Advances the bar."""
        if self.bar is not None:
            self.bar.update(self.task, completed=batch_idx + 1)

    def after_test(self, runner: Any) -> None:
        """Closes the bar."""
        self.close(runner)

    def _open(self, runner: Any, what: str, total: int, done: int) -> None:
        if not (is_main_process() and sys.stdout.isatty()):
            return
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
        self.bar = Progress(TextColumn("{task.description}"), *columns)
        self.bar.start()
        self.task = self.bar.add_task(what, total=total, completed=done)
        # The bar has put itself in front of stdout: lines go above it only through there.
        for handler in _console(runner):
            handler.setStream(sys.stdout)
            handler.addFilter(_no_step)

    def close(self, runner: Any) -> None:
        """Releases the console; does nothing without a bar."""
        if self.bar is None:
            return
        self.bar.stop()
        self.bar = None
        for handler in _console(runner):
            handler.setStream(sys.stdout)
            handler.removeFilter(_no_step)


def _console(runner: Any) -> list[logging.StreamHandler]:
    return [handler for handler in runner.logger.handlers if type(handler) is logging.StreamHandler]


def _no_step(record: logging.LogRecord) -> bool:
    """Filters out per-step lines, which the bar shows."""
    text = record.getMessage()
    return not (text.startswith(("Epoch(", "Iter(")) and "eta:" in text)
