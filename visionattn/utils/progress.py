"""Progress bars for downloads, on a terminal only."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec

__all__ = ["download_bars"]


@contextmanager
def download_bars() -> Iterator[Callable[[str], Callable[[int, int | None], None]]]:
    """Yields a function that creates a bar for a title and returns a callback for the bytes received.

    Without rich, which weights can do without, nothing is shown.
    """
    if find_spec("rich") is None:
        yield lambda title: lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    console = Console(stderr=True)
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bars:

        def bar(title: str) -> Callable[[int, int | None], None]:
            task = None

            def update(done: int, total: int | None) -> None:
                nonlocal task
                if task is None:
                    task = bars.add_task(title, total=total)
                bars.update(task, completed=done, total=total)

            return update

        yield bar
