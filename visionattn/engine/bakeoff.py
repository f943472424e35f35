"""Training several configs with several seeds and setting the results side by side."""

import csv
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from visionattn._files import read_checkpoint, replacing

from .checkpoint import latest_checkpoint
from .config import load_config
from .report import read_scalars

__all__ = ["Run", "run_all", "write_table"]


@dataclass(frozen=True)
class Run:
    """One training run.

    Args:
        config: Path or name of its config.
        seed: Its seed.
        folder: Where runs lie; each has a folder of its own in it.
    """

    config: str
    seed: int
    folder: Path

    @property
    def work_dir(self) -> Path:
        return self.folder / Path(self.config).stem / f"seed{self.seed}"

    @property
    def finished(self) -> bool:
        """Whether its last epoch is trained and evaluated."""
        latest = latest_checkpoint(self.work_dir)
        return latest is not None and latest.name == f"epoch_{load_config(self.config).train_cfg.max_epochs}.pth"

    def train(self, threads: int, options: Sequence[str]) -> None:
        """Trains it in a process of its own, from where an earlier one stopped; its output goes to `train.log`.

        Raises:
            RuntimeError: If training fails.
        """
        self.work_dir.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "visionattn.cli", "train", self.config, "--work-dir", str(self.work_dir)]
        command += ["--resume", "--cfg-options", f"randomness.seed={self.seed}", *options]
        log = self.work_dir / "train.log"
        with log.open("a") as file:
            environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
            code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=environment).returncode
        if code:
            raise RuntimeError(f"{self.config} with seed {self.seed} failed; see {log}")

    def result(self, metric: str) -> float:
        """The metric after the last epoch."""
        return read_scalars(self.work_dir)[1][-1][metric]

    def params(self) -> int:
        """Number of trained values of its network."""
        state = read_checkpoint(latest_checkpoint(self.work_dir))["state_dict"]
        statistics_of_norms = ("running_mean", "running_var", "num_batches_tracked")
        return sum(value.numel() for key, value in state.items() if not key.endswith(statistics_of_norms))


def run_all(runs: Sequence[Run], jobs: int, options: Sequence[str] = ()) -> None:
    """Trains what is not finished yet, some at a time, telling of each as it ends.

    Args:
        runs: The runs.
        jobs: How many at a time; the processor cores are shared between them.
        options: Further `--cfg-options` for all.
    """
    pending = [run for run in runs if not run.finished]
    print(f"{len(runs) - len(pending)} of {len(runs)} runs are finished, {len(pending)} to go")
    threads = max((os.cpu_count() or 1) // jobs, 1)

    def train(run: Run) -> None:
        run.train(threads, options)
        print(f"finished {Path(run.config).stem}, seed {run.seed}", flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(train, pending))


def write_table(runs: Sequence[Run], metric: str, path: Path, title: str) -> str:
    """Writes the results as Markdown to `path` and as CSV beside it.

    Args:
        runs: Finished runs; the first one's config is the baseline.
        metric: What to compare, higher is better.
        path: A `.md` file.
        title: Its heading.

    Returns:
        The Markdown text.
    """
    configs = list(dict.fromkeys(run.config for run in runs))
    seeds = sorted({run.seed for run in runs})
    results = {(run.config, run.seed): run.result(metric) for run in runs}
    first = {config: next(run for run in runs if run.config == config) for config in configs}
    rows = []
    for config in configs:
        scores = [100 * results[config, seed] for seed in seeds]
        paired = [100 * (results[config, seed] - results[configs[0], seed]) for seed in seeds]
        rows.append(
            {
                "network": load_config(config).model.backbone.model_name,
                "params": first[config].params(),
                **{f"seed {seed}": f"{score:.2f}" for seed, score in zip(seeds, scores, strict=True)},
                "mean": f"{statistics.mean(scores):.2f}",
                "against the first row": f"{statistics.mean(paired):+.2f}" if config != configs[0] else "",
                "config": config,
            }
        )
    names = list(rows[0])
    lines = [f"# {title}", "", f"{metric} in % after the last epoch, on the test set.", "", f"| {' | '.join(names)} |"]
    lines += [f"|{'---|' * len(names)}", *(f"| {' | '.join(str(value) for value in row.values())} |" for row in rows)]
    seeds_text = " ".join(map(str, seeds))
    lines += ["", f"Made by `visionattn bakeoff {' '.join(configs)} --seeds {seeds_text} --out {path}`.", ""]
    with replacing(path.with_suffix(".csv")) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
    with replacing(path) as temporary:
        temporary.write_text("\n".join(lines))
    return "\n".join(lines)
