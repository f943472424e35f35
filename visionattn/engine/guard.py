"""Ends a run on a signal, a full disk or a dead process with one line that says how to resume it."""

import re
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import connection
from types import FrameType
from typing import Any

from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from .peers import PeerWatch
from .progress import ProgressHook

__all__ = ["guarded"]

_DEAD_WORKER = (
    "the data loader's worker process {} has died, often for want of memory: try fewer (train_dataloader.num_workers) "
    "or free memory; {}"
)


class _Terminated(SystemExit):
    """SIGTERM as an exception, so that partly written files are cleaned up."""


@contextmanager
def guarded(runner: Any, hint: Callable[[], str]) -> Iterator[None]:
    """A context in which a runner trains or evaluates.

    Args:
        runner: An mmengine runner.
        hint: What to add to messages, such as how to resume.

    Raises:
        ConnectionError: If another process of a distributed run has died.
        ChildProcessError: If a worker of a data loader has died.
        OSError: As it came, with the file and the hint in one text, if a file could not be read or written.
        KeyboardInterrupt: On SIGINT, with the hint.
        SystemExit: On SIGTERM, with 143, as shells have it.
    """
    with _exit_on_sigterm(), PeerWatch(runner.logger, hint) as peers:
        try:
            yield
        except (_Terminated, RuntimeError) as error:
            # An agent ends the others when one process has died, and communication with a dead one fails.
            if message := peers.message(wait=2.0):
                raise ConnectionError(message) from error
            if isinstance(error, _Terminated):
                _say(runner, f"Stopped by SIGTERM; {hint()}")
            elif dead := _dead_workers(error):
                raise ChildProcessError(_DEAD_WORKER.format(dead, hint())) from error
            raise
        except KeyboardInterrupt as error:
            raise KeyboardInterrupt(hint()) from error
        except (OSError, EOFError) as error:
            if dead := _cut_off_by(error):
                raise ChildProcessError(_DEAD_WORKER.format(dead, hint())) from error
            # Before the first step there is nothing to resume.
            started = "loop_stage" in runner.message_hub.runtime_info
            if isinstance(error, EOFError) or error.errno is None or not started:
                raise
            where = f": {error.filename}" if error.filename else ""
            raise type(error)(f"{error.strerror}{where}; {hint()}") from error
        finally:
            for hook in runner.hooks:
                if isinstance(hook, ProgressHook):
                    hook.close(runner)


def _dead_workers(error: RuntimeError) -> str:
    """The process numbers of the data loader's workers of which an error says that they have died, or ""."""
    found = re.search(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)", str(error))
    return found[1] if found else ""


def _cut_off_by(error: OSError | EOFError) -> str:
    """The process numbers of the data loader's workers that broke a connection by dying, or ""."""
    if not isinstance(error, ConnectionError | EOFError):
        return ""
    try:
        # The connection breaks a moment before the process counts as ended.
        for frame, _ in traceback.walk_tb(error.__traceback__):
            if isinstance(loader := frame.f_locals.get("self"), _MultiProcessingDataLoaderIter):
                ended = connection.wait([worker.sentinel for worker in loader._workers], timeout=5.0)
                dead = [worker for worker in loader._workers if worker.sentinel in ended]
                for worker in dead:
                    worker.join()
                return ", ".join(str(worker.pid) for worker in dead)
    except RuntimeError as died:  # the loader's own word, which comes by SIGCHLD whatever runs
        return _dead_workers(died)
    return ""


def _say(runner: Any, text: str) -> None:
    with suppress(OSError):  # the log may be what can't be written
        runner.logger.warning(text)


@contextmanager
def _exit_on_sigterm() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # only there Python takes signals
        yield
        return

    def terminate(number: int, frame: FrameType | None) -> None:
        raise _Terminated(128 + number)

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
