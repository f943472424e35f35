"""The commands around weights: what there is, fetching and converting."""

import argparse
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from visionattn.checkpoints.conversion import Conversion
    from visionattn.checkpoints.layout import Layout

__all__ = ["declare"]

Add = Callable[..., argparse.ArgumentParser]


def declare(add: Add) -> None:
    """Declares the commands.

    Args:
        add: Called with name, function, summary and examples; returns the command's parser.
    """
    from mmengine.config import DictAction

    parser = add(
        "download",
        download,
        "fetch checkpoints into torch.hub's cache, verified; or list them",
        "--list",
        "va_stm_swin_tiny.in1k",
        "'va_stm_*_micro' 'va_twins_*' --jobs 4",
    )
    parser.add_argument("names", nargs="*", help="names, or patterns such as 'va_stm_*'")
    parser.add_argument("--list", action="store_true", help="show what fits in a table, and fetch nothing")
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time (default: 2)")
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds without a byte to give up after (30)")
    parser.add_argument("--attempts", type=int, default=5, help="how often to try a source that fails (default: 5)")

    parser = add(
        "convert",
        convert,
        "bring an author's, timm's or our file of weights under our keys, or back into another format",
        "RESNET50_CBAM_new_name_wrap.pth",
        "triplet.pth --to va_resnet50_triplet --model-kwargs plugin.type=triplet plugin.kernel_size=3",
        "va_resnet50_cbam-from-official-0a1b2c3d.safetensors --export official",
        "work_dirs/a/best_top1.pth --to va_twins_svt_small --export timm --out mine.safetensors",
    )
    parser.add_argument("file", type=Path, help="the weights")
    parser.add_argument("--to", metavar="NAME", help="the network they are for (default: the one that they fit)")
    parser.add_argument(
        "--model-kwargs",
        nargs="+",
        action=DictAction,
        default={},
        metavar="KEY=VALUE",
        help="arguments of the network: nested keys with dots",
    )
    parser.add_argument("--export", choices=("official", "timm"), help="write this format instead of ours")
    parser.add_argument(
        "--like",
        type=Path,
        metavar="FILE",
        help="any file of the official format and the same network, which shows how to lay it out and gives what our "
        "network does not have; not needed for what `convert` itself has made of an official file",
    )
    parser.add_argument("--out", type=Path, help="a folder (default: here); with --export a file")
    parser.add_argument(
        "--golden",
        type=Path,
        default=Path("tests/golden"),
        help="folder of recorded outputs to verify with, as a checkout has it (default: tests/golden)",
    )


def download(options: argparse.Namespace) -> None:
    """Fetches checkpoints, or lists them."""
    from . import checkpoints

    patterns = options.names or (["*"] if options.list else [])
    if not patterns:
        raise ValueError("say which checkpoints: names, patterns such as 'va_stm_*', or --list to see them")
    names = list(dict.fromkeys(name for pattern in patterns for name in checkpoints.list(pattern)))
    if options.list:
        from rich.console import Console

        # In a file or a pipe there is room for whole lines.
        console = Console(width=None if sys.stdout.isatty() else 200)
        console.print(_table(names))
        console.print("* as the authors report it")
        return
    if options.jobs < 1 or options.attempts < 1 or options.timeout <= 0:
        raise ValueError(
            f"--jobs and --attempts must be at least 1 and --timeout above 0, got {options.jobs}, "
            f"{options.attempts} and {options.timeout}"
        )
    _fetch_all(names, options)


def _fetch_all(names: list[str], options: argparse.Namespace) -> None:
    from concurrent.futures import ThreadPoolExecutor, wait

    from visionattn.utils.download import RetryPolicy, recorded_hash
    from visionattn.utils.progress import download_bars
    from visionattn.utils.weight_files import obtain

    from .checkpoints import info

    patience = RetryPolicy(options.timeout, options.attempts)
    stopped = threading.Event()

    def stoppable(show: Callable[[int, int | None], None]) -> Callable[[int, int | None], None]:
        def update(done: int, total: int | None) -> None:
            if stopped.is_set():
                raise KeyboardInterrupt
            show(done, total)

        return update

    with download_bars() as bar, ThreadPoolExecutor(options.jobs) as pool:
        running = {name: pool.submit(obtain, info(name), stoppable(bar(name)), patience) for name in names}
        try:
            wait(running.values())
        except KeyboardInterrupt:
            stopped.set()
            pool.shutdown(cancel_futures=True)
            raise
    missing = 0
    for name, future in running.items():
        try:
            path = future.result()
        except (FileNotFoundError, ValueError) as error:
            missing += 1
            print(f"{name}: {error}", file=sys.stderr)
            continue
        print(f"{name}: {path} ({_verdict(info(name), recorded_hash(path))})")
    if missing:
        raise ValueError(f"{missing} of {len(names)} could not be had; see above")


def _verdict(entry: dict[str, Any], found: str | None) -> str:
    if entry["sha256"]:
        return "verified"
    return f"its authors state no hash; it has sha256 {found}" if found else "its authors state no hash"


def convert(options: argparse.Namespace) -> None:
    """Converts a file of weights."""
    from rich.console import Console
    from rich.progress import track

    from visionattn.checkpoints.verifying import verify

    from .checkpoints import conversion, files

    if options.like and options.export != "official":
        raise ValueError("--like shows the official format: it goes with --export official")
    weights, layout = files.read_source(options.file)
    told, arguments, remembered = files.read_origin(options.file)
    searching = Console(stderr=True)
    done = conversion.convert(
        weights,
        layout,
        options.to or told,
        {**arguments, **options.model_kwargs},
        options.file.name,
        lambda names: track(names, "recognising", console=searching, disable=not searching.is_terminal),
    )
    how = ", ".join(f"{key}={value!r}" for key, value in done.arguments.items())
    print(f"{options.file}: {done.model}{f' with {how}' if how else ''}, in the {done.format} format")
    if options.export:
        _export(options, done, remembered)
        return
    print("\n".join(done.report()))
    if (verified := verify(done, options.golden)) is None:
        print("not verified: there is no recorded output of this network and format")
    else:
        print(f"verified: the official network's outputs in {verified[0]} come out, within {verified[1]:.0e}")
    path = conversion.save(done, options.out or Path())
    print(f"wrote {path}")
    overlay = {"file": str(path)}
    if classes := done.arguments.get("num_classes"):
        overlay["num_classes"] = classes
    if channels := done.arguments.get("in_chans"):
        overlay["input_size"] = (channels, 224, 224)
    how = f", {how}" if how else ""
    print(f"next  timm.create_model({done.model!r}, pretrained=True, pretrained_cfg_overlay={overlay}{how})")


def _export(options: argparse.Namespace, done: "Conversion", remembered: "Layout | None") -> None:
    from .checkpoints import conversion, files

    rest: dict[str, Any] = {}
    if options.like:
        rest, remembered = files.read_source(options.like)
    elif done.format == options.export == "official":
        remembered = done.traced.layout
    exported, layout, dropped = conversion.export(done, remembered, options.export)
    exported = {key: exported.get(key, rest.get(key)) for key in layout.shapes if key in exported or key in rest}
    path = options.out or Path(
        f"{done.model}-{options.export}.{'pth' if options.export == 'official' else 'safetensors'}"
    )
    if path.is_dir() or path.exists():
        raise ValueError(f"--out {path} exists already; name a new file")
    files.save_as(exported, layout, path)
    print(f"wrote {path}: {len(exported)} entries; converted back, they give the same weights")
    if left := [key for key in dropped if key not in exported]:
        some = f"{', '.join(left[:3])}{', ...' if len(left) > 3 else ''}"
        print(f"left out {len(left)} that our network lacks (load with strict=False): {some}")


def _table(names: list[str]) -> "Table":
    from rich.table import Column, Table

    from .checkpoints import info

    columns = [Column(title, no_wrap=True) for title in ("data", "score", "params", "MACs", "licence")]
    table = Table(Column("name", overflow="fold"), *columns, Column("where", overflow="fold"), box=None)
    for name in names:
        entry = info(name)
        table.add_row(
            name,
            entry["dataset"],
            _score(entry),
            f"{entry['params'] / 1e6:.2f} M",
            f"{entry['macs'] / 1e9:.3f} G",
            entry["license"] or "not stated",
            _where(entry),
        )
    return table


def _score(entry: dict[str, Any]) -> str:
    if not entry["metrics"]:
        return "not stated"
    metric, value = next(iter(entry["metrics"].items()))
    return f"{metric} {100 * value:.2f} %{'' if entry['reported_by'] == 'this package' else ' *'}"


def _where(entry: dict[str, Any]) -> str:
    from visionattn.utils.weight_files import find

    kinds = [source["kind"] for source in entry["sources"]]
    if "packaged" in kinds:
        return "packaged"
    try:
        found = find(entry)
    except ValueError as error:
        return str(error)
    if found:
        return str(found)
    return {"hub": "hub", "url": "download", "page": "by hand"}[kinds[0]]
