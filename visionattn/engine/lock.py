"""Allows one run per work folder."""

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has no POSIX locks
    fcntl = None  # type: ignore[assignment]

__all__ = ["work_dir_lock"]


@contextmanager
def work_dir_lock(work_dir: str | Path) -> Iterator[None]:
    """Prevents other processes from training in a folder; the lock ends with the process, however it dies.

    A POSIX lock belongs to the process alone: the workers of its data loaders do not inherit it. Where the file system
    has no locks, there is none.

    Raises:
        ValueError: If a run in another process holds the folder.
    """
    folder = Path(work_dir)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+") as file:
        if fcntl is not None:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    file.seek(0)
                    raise ValueError(
                        f"{folder} is in use by another run ({file.read().strip()}): choose another work folder "
                        "(--work-dir), or stop that run"
                    ) from error
            else:
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
                file.flush()
        yield
