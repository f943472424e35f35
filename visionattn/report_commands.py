"""The commands that write reports for docs/results, checkpoints/ and README.md."""

import argparse
import dataclasses
import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path

from .commands import publish

__all__ = ["declare"]


def declare(
    add: Callable[..., argparse.ArgumentParser], add_cfg_options: Callable[[argparse.ArgumentParser], None]
) -> None:
    """Declares the commands.

    Args:
        add: Called with name, function, summary and examples; returns the command's parser.
        add_cfg_options: Adds `--cfg-options` to a parser.
    """
    parser = add(
        "bakeoff",
        bakeoff,
        "train networks by one recipe with several seeds and report which differences are more than noise; goes on "
        "where it stopped",
        "--suite fashion-mnist --out docs/results/bakeoff.md",
        "--suite fashion-mnist --out docs/results/bakeoff.md --publish checkpoints",
        "my_baseline.py my_attention.py --seeds 0 1 2 3 --out results.md",
        "--smoke",
    )
    parser.add_argument("configs", nargs="*", help="paths or names of configs of classifiers, the baseline first")
    parser.add_argument("--suite", choices=("fashion-mnist", "mixers"), help="a bake-off of docs/results instead")
    parser.add_argument(
        "--smoke", action="store_true", help="the whole way in small, into a folder that is removed: train to publish"
    )
    parser.add_argument("--seeds", nargs="+", type=int, help="seeds of the runs (default: 0 1 2, or the suite's)")
    parser.add_argument("--jobs", type=int, default=2, help="how many runs at a time, on a thread each (default: 2)")
    parser.add_argument("--work-dir", type=Path, default=Path("work_dirs/bakeoff"), help="where the runs go")
    parser.add_argument("--title", help="heading of the report")
    parser.add_argument(
        "--out", type=Path, help="the report, a .md file; a .csv and two pictures are written beside it"
    )
    parser.add_argument(
        "--seconds", type=float, default=1.0, help="CPU time of each network in each timing, on average (default: 1)"
    )
    parser.add_argument(
        "--publish",
        type=Path,
        metavar="FOLDER",
        help="publish the first seed's last weights into this folder's manifest",
    )
    add_cfg_options(parser)

    parser = add(
        "cards",
        cards,
        "write the cards of the packaged checkpoints and README's table of them from the manifest",
        "",
    )
    parser.add_argument(
        "--manifest", type=Path, default=Path("checkpoints/manifest.json"), help="(default: checkpoints/manifest.json)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("checkpoints/README.md"), help="the cards (default: checkpoints/README.md)"
    )
    parser.add_argument(
        "--readme", type=Path, default=Path("README.md"), help="the page with the table (default: README.md)"
    )


def bakeoff(options: argparse.Namespace) -> None:
    """Trains networks by one recipe with several seeds, reports and publishes them."""
    from .comparison import SUITES, Suite, run_suite, smoke

    if options.jobs < 1:
        raise ValueError(f"--jobs must be at least 1, got {options.jobs}")
    if sum(map(bool, (options.configs, options.suite, options.smoke))) != 1:
        raise ValueError("name configs, or a --suite, or ask for --smoke: one of the three")
    if options.smoke:
        smoke(options.jobs, _publish_run)
        return
    if options.out is None or options.out.suffix != ".md":
        raise ValueError(f"--out must be a .md file, got {options.out}")
    if len(options.configs) == 1:
        raise ValueError(f"nothing to compare {options.configs[0]} with: name a baseline and at least one config more")
    suite = SUITES[options.suite] if options.suite else Suite("Bake-off", (options.configs,))
    changes = ["--cfg-options", *(f"{key}={value}" for key, value in options.cfg_options.items())]
    changes = changes if options.cfg_options else []
    print(
        run_suite(
            dataclasses.replace(
                suite,
                title=options.title or suite.title,
                seeds=options.seeds or suite.seeds,
                options={**suite.options, **options.cfg_options},
            ),
            " ".join([f"--suite {options.suite}" if options.suite else shlex.join(options.configs), *changes]),
            options.work_dir,
            options.out,
            jobs=options.jobs,
            seconds=options.seconds,
            publish=options.publish and partial(_publish_run, options.publish),
        )
    )


def _publish_run(folder: Path, config: str, checkpoint: Path, name: str, origin: str) -> None:
    facts = {
        "license": "apache-2.0",
        "origin": origin,
        "bits": 8,
        "out": folder,
        "work_dir": checkpoint.parent / "test",
    }
    publish(argparse.Namespace(config=config, checkpoint=checkpoint, name=name, **facts))


def cards(options: argparse.Namespace) -> None:
    """Writes what the manifest says for people."""
    from .checkpoints import write_cards, write_table

    if not options.manifest.is_file():
        raise FileNotFoundError(f"no manifest at {options.manifest}; run this in a checkout, or name it by --manifest")
    write_cards(options.manifest, options.out)
    print(write_table(options.manifest, options.readme))
    print(f"\nwritten into {options.readme}; the cards are in {options.out}")
