"""The training runs of a comparison, each in its own folder, and the predictions of their networks."""

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from visionattn.checkpoints import read_weights
from visionattn.engine import Runner, latest_checkpoint, load_config, read_scalars
from visionattn.tasks import Classifier
from visionattn.utils.files import replacing

from .suites import MODEL

if TYPE_CHECKING:
    from mmengine.config import Config

__all__ = ["METRIC", "Run", "classifier", "run_all"]

METRIC = "top1"


@dataclass(frozen=True)
class Run:
    """One training run.

    Args:
        name: Path or name of its config.
        seed: Its seed.
        folder: Where runs lie; each has a folder of its own in it.
        options: Overrides of its config.

    Raises:
        ValueError: If the config is not of a classifier that is judged by `top1`.
    """

    name: str
    seed: int
    folder: Path
    options: dict[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        config = self.config
        if config.model.type != "Classifier" or METRIC not in config.test_evaluator.get("scores", {}):
            raise ValueError(f"a comparison compares classifiers by {METRIC}, but {self.name} is for another task")

    @property
    def config(self) -> "Config":
        return load_config(self.name, {**self.options, "randomness.seed": self.seed})

    @property
    def network(self) -> str:
        """The name of its network."""
        return self.config.model.backbone.model_name

    @property
    def label(self) -> str:
        """The label that distinguishes a run from the others: its network where that is overridden, or its config."""
        return self.options.get(MODEL) or Path(self.name).stem

    @property
    def work_dir(self) -> Path:
        return self.folder / self.label / f"seed{self.seed}"

    @property
    def finished(self) -> bool:
        """Whether its last epoch is trained and evaluated."""
        latest = latest_checkpoint(self.work_dir)
        return latest is not None and latest.name == f"epoch_{self.config.train_cfg.max_epochs}.pth"

    def train(self) -> None:
        """Trains in a separate process, resuming an earlier one; its output goes to `train.log`.

        It computes on one thread, so that sums come in one order however many cores there are and runs at a time.

        Raises:
            ChildProcessError: If training fails.
        """
        self.work_dir.mkdir(parents=True, exist_ok=True)
        config = self.work_dir / "comparison_config.py"
        with replacing(config) as temporary:
            temporary.write_text(self.config.pretty_text)
        command = [sys.executable, "-m", "visionattn.cli", "train", str(config), "--work-dir", str(self.work_dir)]
        log = self.work_dir / "train.log"
        with log.open("a") as file:
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            code = subprocess.run([*command, "--resume"], stdout=file, stderr=file, env=environment).returncode
        if code:
            raise ChildProcessError(f"{self.label} with seed {self.seed} failed; see {log}")

    def correct(self) -> np.ndarray:
        """Which test images the last weights classify correctly, in order; cached in `correct.npy`.

        Raises:
            ValueError: If their share is not what the run has logged.
        """
        path = self.work_dir / "correct.npy"
        if path.is_file():
            return np.load(path, allow_pickle=False)
        config = self.config
        model = classifier(config)
        model.load_weights(read_weights(latest_checkpoint(self.work_dir)))
        hits = []
        with torch.inference_mode():
            for batch in Runner.build_dataloader(config.test_dataloader):
                hits += [int(sample["preds"].argmax()) == int(sample["target"]) for sample in model.test_step(batch)]
        correct = np.array(hits)
        logged = read_scalars(self.work_dir)[1][-1][METRIC]
        # Pictures on the edge between two classes may fall either way with another number of threads.
        if abs(correct.mean() - logged) > 1e-3:
            raise ValueError(
                f"the weights in {self.work_dir} score {correct.mean():.4f}, but its log says {logged:.4f}"
            )
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.save(file, correct)
        return correct

    def losses(self) -> list[tuple[int, float]]:
        """Training steps and the mean losses up to them, as logged."""
        return [(record["step"], record["loss"]) for record in read_scalars(self.work_dir)[0]]


def classifier(config: "Config") -> Classifier:
    """The untrained classifier of a config, for evaluation."""
    model = {key: value for key, value in config.model.items() if key != "type"}
    model["backbone"] = {**model["backbone"], "pretrained": False}
    return Classifier(**model, data_preprocessor=config.get("data_preprocessor")).eval()


def run_all(runs: Sequence[Run], jobs: int) -> None:
    """Trains the runs that are not finished, several at a time, reporting each as it ends.

    Args:
        runs: The runs, first ones first.
        jobs: How many at a time, each on one thread.

    Raises:
        ChildProcessError: If a run fails; those behind it are not started.
    """
    pending = [run for run in runs if not run.finished]
    print(f"{len(runs) - len(pending)} of {len(runs)} runs are finished, {len(pending)} to go", flush=True)

    def train(run: Run) -> None:
        run.train()
        print(f"finished {run.label}, seed {run.seed}", flush=True)

    pool = ThreadPoolExecutor(jobs)
    try:
        list(pool.map(train, pending))
    finally:
        pool.shutdown(cancel_futures=True)
