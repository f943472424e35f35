"""`visionattn predict`."""

import argparse
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._common import add_cfg_options, add_device, use_device

if TYPE_CHECKING:
    from visionattn.inference import FolderReport, Prediction

SUMMARY = "classify pictures and videos, detect objects in them or segment them; write tables and annotated pictures"
EXAMPLES = (
    "photo.jpg folder/ --model va_resnet10n_cbam.digits",
    "folder/ --config quickstart --checkpoint work_dirs/quickstart/best_top1.pth --out results",
    "folder/ --config quickstart-detection --checkpoint best_bbox_map.pth --score 0.3",
    "https://example.org/photo.jpg clip.mp4 --model va_resnet10n_cbam.digit_scenes_fcos",
    "- --model va_resnet10n_cbam.digits  # a picture from standard input",
)
_SHOWN = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument(
        "inputs",
        nargs="+",
        help="pictures, videos, folders to search for pictures, http(s) addresses of pictures, or - for standard input",
    )
    parser.add_argument(
        "--model",
        metavar="NAME|FILE",
        help="name or file of a published checkpoint, hf-hub:ORG/NAME, or a pretrained network of timm's; with "
        "--config the network that was trained in place of the config's",
    )
    parser.add_argument("--config", help="path or name of a config; needs --checkpoint")
    parser.add_argument(
        "--checkpoint",
        metavar="NAME|FILE",
        help="weights for --config, or for --model in place of the published ones; alone the same as --model",
    )
    parser.add_argument(
        "--out", type=Path, help="a new folder for the results (default: predictions, predictions-2, ...)"
    )
    parser.add_argument("--topk", type=int, help="classification: top-k classes to report (default: 5)")
    parser.add_argument("--score", type=float, help="detection: lowest score to report (default: 0.5)")
    parser.add_argument("--batch-size", type=int, default=1, help="pictures per forward pass (default: 1)")
    add_device(parser, "cpu")
    parser.add_argument(
        "--strict",
        action="store_true",
        help="stop at the first picture that can't be predicted, instead of skipping it",
    )
    parser.add_argument("--tables-only", action="store_true", help="write no annotated pictures and videos")
    add_cfg_options(parser)


def run(options: argparse.Namespace) -> None:
    """Predicts on pictures."""
    if options.config and not options.checkpoint:
        raise ValueError("--config needs --checkpoint")
    if not (options.model or options.checkpoint):
        raise ValueError("name a network: --model NAME|FILE, or --config CONFIG --checkpoint FILE")
    if options.cfg_options and not options.config:
        raise ValueError("--cfg-options changes a config: it needs --config")
    if options.topk is not None and options.topk < 1:
        raise ValueError(f"--topk must be at least 1, got {options.topk}")
    if options.score is not None and not 0 <= options.score <= 1:
        raise ValueError(f"--score must lie in 0..1, got {options.score}")
    if options.batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {options.batch_size}")
    if options.out is not None and options.out.exists():
        raise ValueError(f"--out {options.out} exists already; name another folder, so that no two runs mix")
    use_device(options.device)
    os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")  # broken pictures are reported by us
    inputs, total = _find(options.inputs)
    results: list[tuple[str, str]] = []
    with _orderly():
        try:
            report = _predict(_load(options), inputs, total, options, results)
        except _Terminated as stop:
            print(f"visionattn: terminated{f'; {stop}' if str(stop) else ''}", file=sys.stderr)
            sys.exit(143)
    _show(report, results)


def _find(inputs: Sequence[str]) -> tuple[list[str | Path], int]:
    """The inputs with folders expanded to their images, and the number of images."""
    from visionattn.inference import find_images
    from visionattn.inference.pictures import printable
    from visionattn.inference.video import VIDEO_SUFFIXES, frame_count
    from visionattn.inference.web import is_url

    found: list[str | Path] = []
    frames = 0
    for name in inputs:
        path = Path(name)
        if name == "-" or is_url(name):
            found.append(name)
        elif path.is_dir():
            found += find_images(path)
        elif path.exists():
            found.append(path)
            frames += max(frame_count(path) - 1, 0) if path.suffix.lower() in VIDEO_SUFFIXES else 0
        else:
            raise FileNotFoundError(f"no file or folder {printable(path)}")
    return found, len(found) + frames


def _load(options: argparse.Namespace) -> Any:
    from visionattn.inference import Predictor

    chosen = {name: value for name in ("topk", "score") if (value := getattr(options, name)) is not None}
    model, checkpoint = options.model, options.checkpoint
    if options.config:
        from visionattn.engine.config import load_config

        model = options.loaded = load_config(options.config, options.cfg_options, options.model, register=False)
    elif not model:
        model, checkpoint = checkpoint, None
    predictor = Predictor(model, checkpoint, device=options.device, **chosen)
    task = predictor.network.task
    for name, wanted in (("topk", "classification"), ("score", "detection")):
        if name in chosen and task != wanted:
            raise ValueError(f"--{name} is for {wanted}, but this network is for {task}")
    return predictor


def _predict(
    predictor: Any, inputs: Sequence[Any], total: int, options: argparse.Namespace, results: list[tuple[str, str]]
) -> "FolderReport":
    from rich.console import Console
    from rich.progress import Progress

    from visionattn.inference import predict_to_folder

    console = Console()
    with Progress(console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("predicting", total=total)

        def note(result: "Prediction") -> None:
            progress.advance(bar)
            if len(results) < _SHOWN:
                results.append((result.name, result.summary()))

        def skip(name: str, reason: str) -> None:
            progress.advance(bar)
            print(f"visionattn: skipped {name}: {reason}", file=sys.stderr)

        return predict_to_folder(
            predictor,
            inputs,
            options.out,
            batch_size=options.batch_size,
            strict=options.strict,
            pictures=not options.tables_only,
            on_result=note,
            on_skip=skip,
        )


def _show(report: "FolderReport", results: Sequence[tuple[str, str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from visionattn.inference.pictures import printable

    console = Console()
    table = Table("image", "prediction")
    for row in results:
        table.add_row(*map(Text, row))
    console.print(table)
    if report.count > len(results):
        print(f"... and {report.count - len(results)} more")
    skipped = f", {len(report.skipped)} skipped (skipped.csv)" if report.skipped else ""
    print(
        f"{report.count} predicted{skipped}; everything is in {printable(report.folder)}, the table in predictions.csv"
    )


class _Terminated(KeyboardInterrupt):
    """Raised on SIGTERM, handled like Ctrl-C."""


@contextmanager
def _orderly() -> Iterator[None]:
    """Writes the tables on SIGTERM as on Ctrl-C, and prints warnings in one line."""

    def terminate(number: int, frame: Any) -> None:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: print(f"visionattn: warning: {message}", file=sys.stderr)
            yield
    finally:
        signal.signal(signal.SIGTERM, before)
