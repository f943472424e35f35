"""`visionattn download`."""

import argparse
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

SUMMARY = "download checkpoints into torch.hub's cache and verify them, or list them"
EXAMPLES = ("--list", "va_stm_swin_tiny.in1k", "'va_stm_*_micro' 'va_twins_*' --jobs 4")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("names", nargs="*", help="names, or patterns such as 'va_stm_*'")
    parser.add_argument("--list", action="store_true", help="list matching checkpoints instead of downloading them")
    parser.add_argument("--jobs", type=int, default=2, help="downloads at a time (default: 2)")
    parser.add_argument(
        "--timeout", type=float, default=30.0, help="give up after this many seconds without data (default: 30)"
    )
    parser.add_argument("--attempts", type=int, default=5, help="attempts per source (default: 5)")


def run(options: argparse.Namespace) -> None:
    """Downloads checkpoints, or lists them."""
    from visionattn import checkpoints

    patterns = options.names or (["*"] if options.list else [])
    if not patterns:
        raise ValueError("name checkpoints, or patterns such as 'va_stm_*'; --list shows them")
    names = list(dict.fromkeys(name for pattern in patterns for name in checkpoints.list(pattern)))
    if options.list:
        from rich.console import Console

        # In a file or a pipe there is room for whole lines.
        console = Console(width=None if sys.stdout.isatty() else 200)
        console.print(_table(names))
        console.print(
            "* reported by the authors. no hash: the first file's sha256 is recorded and checked from then on"
        )
        return
    if options.jobs < 1 or options.attempts < 1 or options.timeout <= 0:
        raise ValueError(
            f"--jobs and --attempts must be at least 1 and --timeout above 0, got {options.jobs}, "
            f"{options.attempts} and {options.timeout}"
        )
    _fetch_all(names, options)


def _fetch_all(names: list[str], options: argparse.Namespace) -> None:
    from concurrent.futures import ThreadPoolExecutor, wait

    from visionattn.checkpoints import info
    from visionattn.utils.download import RetryPolicy
    from visionattn.utils.locate import locate
    from visionattn.utils.progress import download_bars

    retry = RetryPolicy(options.timeout, options.attempts)
    stopped = threading.Event()

    def stoppable(show: Callable[[int, int | None], None]) -> Callable[[int, int | None], None]:
        def update(done: int, total: int | None) -> None:
            if stopped.is_set():
                raise KeyboardInterrupt
            show(done, total)

        return update

    with download_bars() as bar, ThreadPoolExecutor(options.jobs) as pool:
        running = {name: pool.submit(locate, name, stoppable(bar(name)), retry) for name in names}
        try:
            wait(running.values())
        except KeyboardInterrupt:
            stopped.set()
            pool.shutdown(cancel_futures=True)
            raise
    missing = 0
    for name, future in running.items():
        try:
            path, _ = future.result()
        except (FileNotFoundError, ValueError) as error:
            missing += 1
            print(f"{name}: {error}", file=sys.stderr)
            continue
        print(f"{name}: {path} ({_verdict(info(name))})")
    if missing:
        raise ValueError(f"{missing} of {len(names)} failed to download; see above")


def _verdict(entry: dict[str, Any]) -> str:
    from visionattn.utils.download import recorded_hash
    from visionattn.utils.weight_files import cache_dir

    if entry.get("sources") is None or entry["sha256"]:
        return "verified"
    found = recorded_hash(cache_dir() / entry["file"])
    return f"its authors state no hash; recorded sha256 {found}" if found else "its authors state no hash"


def _table(names: list[str]) -> "Table":
    from rich.markup import escape
    from rich.table import Column, Table

    from visionattn.checkpoints import info

    columns = [Column(title, no_wrap=True) for title in ("data", "score", "params", "MACs", "licence")]
    table = Table(Column("name", overflow="fold"), *columns, Column("where", overflow="fold"), box=None)
    for name in names:
        entry = info(name)
        row = (
            name,
            entry["dataset"],
            _score(entry),
            f"{entry['params'] / 1e6:.2f} M",
            f"{entry['macs'] / 1e9:.3f} G",
            entry["license"] or "not stated",
            _where(name, entry),
        )
        table.add_row(*map(escape, row))  # square brackets are no markup
    return table


def _score(entry: dict[str, Any]) -> str:
    if not entry["metrics"]:
        return "not stated"
    metric, value = next(iter(entry["metrics"].items()))
    return f"{metric} {100 * value:.2f} %{'' if entry['reported_by'] == 'this package' else ' *'}"


def _where(name: str, entry: dict[str, Any]) -> str:
    from visionattn.utils.published import find_published
    from visionattn.utils.weight_files import find

    if "sources" not in entry:  # published by the user
        return str(find_published(name))
    kinds = [source["kind"] for source in entry["sources"]]
    if "packaged" in kinds:
        return "packaged"
    try:
        found = find(entry)
    except ValueError as error:
        return str(error)
    if found:
        return str(found)
    where = {"hub": "hub", "url": "download", "page": "by hand"}[kinds[0]]
    return where if entry["sha256"] else f"{where}, no hash"
