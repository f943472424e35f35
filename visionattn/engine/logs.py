"""Log files and console of a run: JSON without NaN, no noise, and full disks reported."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import LoggerHook
from mmengine.registry import HOOKS, VISBACKENDS
from mmengine.visualization import LocalVisBackend

from visionattn.utils.files import replacing
from visionattn.utils.json_text import plain, to_json

__all__ = ["JsonLoggerHook", "JsonVisBackend", "naming", "tidy_handlers"]

# Messages of mmengine that help no one, warnings among them.
_NOISE = (
    "Exp name",
    "Distributed training is not used",
    '"FileClient" will be deprecated',
    '"HardDiskBackend" is the alias',
    "Reach the end of the dataloader",
)


@VISBACKENDS.register_module()
class JsonVisBackend(LocalVisBackend):
    """mmengine's local scalar files, with null for non-finite numbers."""

    def add_scalar(self, name: str, value: Any, step: int = 0, **kwargs: Any) -> None:
        """Appends one number."""
        with naming("the scalars"):
            super().add_scalar(name, plain(value), step, **kwargs)

    def add_scalars(
        self, scalar_dict: dict[str, Any], step: int = 0, file_path: str | None = None, **kwargs: Any
    ) -> None:
        """Appends a record of numbers."""
        with naming("the scalars"):
            super().add_scalars(plain(scalar_dict), step, file_path, **kwargs)


@HOOKS.register_module()
class JsonLoggerHook(LoggerHook):
    """mmengine's logger hook, with null for non-finite test scores."""

    def after_test_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        """Logs the scores and writes them to a file in the test's log folder."""
        batches = len(runner.test_dataloader)
        scores, text = runner.log_processor.get_log_after_epoch(runner, batches, "test", with_non_scalar=True)
        runner.logger.info(text)
        if is_main_process():
            with replacing(Path(runner.log_dir) / f"{runner.timestamp}.json") as temporary:
                temporary.write_text(to_json(scores))


def tidy_handlers(logger: logging.Logger) -> None:
    """Keeps records meant for files off the console, and ends the run if a log file can't be written."""
    for handler in logger.handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handleError = partial(_raise_error, handler.baseFilename)  # type: ignore[method-assign]
        elif type(handler) is logging.StreamHandler:
            handler.addFilter(_for_people)


def _for_people(record: logging.LogRecord) -> bool:
    text = record.getMessage()
    return not text.startswith(_NOISE) and (record.levelno >= logging.WARNING or text.count("\n") < 3)


def _raise_error(file: str, record: logging.LogRecord) -> None:
    """Re-raises the error that a handler's `handleError` is called for; logging would print a traceback."""
    error = sys.exc_info()[1]
    if error is not None:
        with naming(file):
            raise error


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Adds the file name to write errors, which errors of a full disk lack."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
