"""`visionattn compare`."""

import argparse
import shlex
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from . import publish
from ._common import add_cfg_options
from ._values import format_setting

SUMMARY = (
    "train networks by one recipe with several seeds and report which differences are significant; continues an "
    "interrupted comparison"
)
EXAMPLES = (
    "--suite diagnostics --out docs/results/diagnostics.md",
    "--suite diagnostics --rows cbam swin --tasks pointer neighbour --out results.md",
    "--suite diagnostics --scale large --dry-run",
    "--suite diagnostics --smoke",
    "--suite fashion-mnist --out docs/results/comparison.md",
    "--suite fashion-mnist --out docs/results/comparison.md --publish checkpoints",
    "my_baseline.py my_attention.py --seeds 0 1 2 3 --out results.md",
    "--smoke",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("configs", nargs="*", help="paths or names of configs of classifiers, the baseline first")
    parser.add_argument(
        "--suite",
        choices=("diagnostics", "backbones-digits", "backbones-fashion-mnist", "fashion-mnist", "mixers"),
        help="a predefined comparison, whose results are in docs/results; diagnostics: which mechanism brings which "
        "ability, on generated tasks",
    )
    parser.add_argument(
        "--scale", choices=("small", "large"), default="small", help="diagnostics: for two CPU cores, or for a GPU"
    )
    parser.add_argument(
        "--rows", nargs="+", default=[], help="diagnostics: mechanisms, or all (default: one of each kind of mixer)"
    )
    parser.add_argument("--tasks", nargs="+", default=[], help="diagnostics: tasks (default: all of the scale)")
    parser.add_argument("--minutes", type=float, help="diagnostics: start no training later than this")
    parser.add_argument(
        "--again",
        type=int,
        metavar="COUNT",
        help="diagnostics: train so many finished rows a second time and say whether their answers are the same",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="diagnostics: build every network without memory, train nothing"
    )
    parser.add_argument(
        "--smoke",
        action="store_true",
        help="everything from training to publishing at a small scale, in a temporary folder",
    )
    parser.add_argument("--seeds", nargs="+", type=int, help="seeds of the runs (default: 0 1 2, or the suite's)")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, with one thread each (default: 2)")
    parser.add_argument(
        "--work-dir",
        type=Path,
        default=Path("work_dirs/compare"),
        help="where the runs go (default: work_dirs/compare)",
    )
    parser.add_argument("--title", help="heading of the report")
    parser.add_argument(
        "--out", type=Path, help="the report, a .md file; a .csv and two pictures are written beside it"
    )
    parser.add_argument(
        "--seconds", type=float, default=1.0, help="CPU seconds per network and timing, on average (default: 1)"
    )
    parser.add_argument(
        "--publish",
        type=Path,
        metavar="FOLDER",
        help="publish the last weights of the first seed in this folder",
    )
    add_cfg_options(parser)


def run(options: argparse.Namespace) -> None:
    """Trains networks with one recipe and several seeds, reports and publishes them."""
    from dataclasses import replace

    from visionattn.comparison import SUITES, Suite, run_suite, smoke

    if options.jobs < 1:
        raise ValueError(f"--jobs must be at least 1, got {options.jobs}")
    if options.suite == "diagnostics":
        _run_diagnostics(options)
        return
    given = (options.rows, options.tasks, options.dry_run, options.minutes is not None, options.again is not None)
    if any(given) or options.scale != "small":
        raise ValueError("--scale, --rows, --tasks, --minutes, --again and --dry-run are for --suite diagnostics")
    if sum(map(bool, (options.configs, options.suite, options.smoke))) != 1:
        raise ValueError("name configs, or a --suite, or ask for --smoke: one of the three")
    if options.smoke:
        smoke(options.jobs, _publish_run)
        return
    if options.out is None or options.out.suffix != ".md":
        raise ValueError(f"--out must be a .md file, got {options.out}")
    if len(options.configs) == 1:
        raise ValueError(f"nothing to compare {options.configs[0]} with: name a baseline and at least one config more")
    suite = SUITES[options.suite] if options.suite else Suite("Comparison", (options.configs,))
    changes = [format_setting(*pair) for pair in options.cfg_options.items()]
    asked = ["--suite", options.suite] if options.suite else options.configs
    print(
        run_suite(
            replace(
                suite,
                title=options.title or suite.title,
                seeds=options.seeds or suite.seeds,
                options={**suite.options, **options.cfg_options},
            ),
            shlex.join([*asked, *(["--cfg-options", *changes] if changes else [])]),
            options.work_dir,
            options.out,
            jobs=options.jobs,
            seconds=options.seconds,
            publish=options.publish and partial(_publish_run, options.publish),
        )
    )


def _run_diagnostics(options: argparse.Namespace) -> None:
    from visionattn.comparison.diagnostics import dry_run, run_diagnostics, train_again

    if options.configs or options.publish or options.title or options.cfg_options:
        raise ValueError("--suite diagnostics takes no configs, --title, --publish or --cfg-options")
    if options.dry_run:
        print(dry_run(options.scale, options.rows, options.tasks, options.seeds or ()))
        return
    facts: dict[str, Any] = {"rows": options.rows, "tasks": options.tasks, "seeds": options.seeds or ()}
    if not options.smoke:
        if options.out is None or options.out.suffix != ".md":
            raise ValueError(f"--out must be a .md file, got {options.out}")
        folders, facts["scale"] = (options.out, options.work_dir / "diagnostics"), options.scale
        if options.again is not None:
            print(train_again(*folders, options.again, **facts))
            return
        print(run_diagnostics(*folders, jobs=options.jobs, minutes=options.minutes, **facts))
        return
    facts["rows"] = options.rows or ["cbam", "swin", "linear"]
    with tempfile.TemporaryDirectory() as name:
        out = Path(name) / "diagnostics.md"
        facts |= {"jobs": options.jobs, "minutes": options.minutes, "scale": "smoke"}
        print(run_diagnostics(out, Path(name) / "runs", **facts))
        for path in sorted(out.parent.glob("diagnostics*")):
            print(f"{path.name}: {path.stat().st_size:,} bytes")


def _publish_run(folder: Path, config: str, checkpoint: Path, name: str, origin: str) -> None:
    facts: dict[str, Any] = {
        "cfg_options": {},
        "hub": None,
        "license": "apache-2.0",
        "origin": origin,
        "bits": 8,
        "out": folder,
        "work_dir": checkpoint.parent / "test",
    }
    publish.run(argparse.Namespace(config=config, checkpoint=checkpoint, name=name, **facts))
