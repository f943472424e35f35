"""A comparison from training to publishing."""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from visionattn.checkpoints import write_cards
from visionattn.engine import latest_checkpoint

from .report import write_report
from .results import collect
from .runs import Run, run_all
from .suites import SUITES, Suite

__all__ = ["run_suite", "smoke"]

# Config, checkpoint, name and origin of what is to be published.
Publisher = Callable[[str, Path, str, str], None]


def run_suite(
    suite: Suite,
    what: str,
    work_dir: Path,
    out: Path,
    *,
    jobs: int,
    seconds: float,
    publish: Publisher | None = None,
) -> str:
    """Trains what is not finished yet, seed by seed, then writes the report and publishes the first seed's weights.

    Args:
        suite: What to compare.
        what: How the command line names it.
        work_dir: Where the runs go, or lie already.
        out: The report, a `.md` file.
        jobs: How many runs at a time.
        seconds: As in `collect`.
        publish: Evaluates and publishes the weights of a run; without it nothing is published.

    Returns:
        The report.
    """
    groups = [[[_run(suite, name, seed, work_dir) for seed in suite.seeds] for name in group] for group in suite.groups]
    networks = [runs for group in groups for runs in group]
    # Seed by seed, so that a comparison that was stopped has whole seeds to compare.
    run_all([run for runs in zip(*networks, strict=True) for run in runs], jobs)
    seeds = " ".join(map(str, suite.seeds))
    text = write_report(
        collect(groups, seconds),
        suite.seeds,
        out,
        title=suite.title,
        remarks=suite.remarks,
        command=f"visionattn compare {what} --seeds {seeds} --out {out}",
    )
    for run, *_ in networks if publish else ():
        assert publish is not None
        origin = f"trained with this package, `visionattn compare {what}`, seed {run.seed}"
        publish(run.name, latest_checkpoint(run.work_dir), f"{run.network}.{suite.tag}", origin)
    return text


def _run(suite: Suite, name: str, seed: int, folder: Path) -> Run:
    config, options = suite.config(name)
    return Run(config, seed, folder, options)


def smoke(jobs: int, publish: Callable[[Path, str, Path, str, str], None]) -> None:
    """Goes the whole way with small networks and data, into a folder that is removed.

    Args:
        jobs: How many runs at a time.
        publish: As in `run_suite`, with the folder of the manifest first.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        report = folder / "comparison.md"
        print(
            run_suite(
                SUITES["smoke"],
                "--smoke",
                folder / "runs",
                report,
                jobs=jobs,
                seconds=0.02,
                publish=partial(publish, folder / "checkpoints"),
            )
        )
        print(write_cards(folder / "checkpoints", folder / "checkpoints" / "README.md"))
        for path in (report, *sorted(folder.glob("*.png")), *sorted((folder / "checkpoints").iterdir())):
            print(f"{path.name}: {path.stat().st_size:,} bytes")
