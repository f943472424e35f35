"""Runs in Weights & Biases and MLflow: one line of a config each.

mmengine's backends of these were written for older versions: the one of W&B ends a run by a function that is gone, and
counts steps by itself, so that curves of resumed runs do not fit; the one of MLflow writes plain files, which it no
longer takes, and copies the work folder. These two log scalars and settings, under the run's own steps.
"""

from abc import abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dist import master_only
from mmengine.registry import VISBACKENDS
from mmengine.visualization import BaseVisBackend

__all__ = ["MLflowBackend", "WandbBackend"]

# MLflow's limits: the length of a setting, and how many are sent at once.
_LONGEST, _AT_ONCE = 500, 100


class _Tracker(BaseVisBackend):
    """A tracker that is connected when there is first something to log."""

    def __init__(self, save_dir: str) -> None:
        super().__init__(save_dir)
        self._run: Any = None

    @property
    def experiment(self) -> Any:
        """The tracker's own object."""
        if self._run is None:
            Path(self._save_dir).mkdir(parents=True, exist_ok=True)
            self._run = self._init_env()
        return self._run

    @abstractmethod
    def _init_env(self) -> Any: ...

    @abstractmethod
    def _log(self, values: dict[str, float], step: int) -> None: ...

    @master_only
    def add_scalar(self, name: str, value: Any, step: int = 0, **kwargs: Any) -> None:
        """Logs one number."""
        self.add_scalars({name: value}, step)

    @master_only
    def add_scalars(
        self, scalar_dict: dict[str, Any], step: int = 0, file_path: str | None = None, **kwargs: Any
    ) -> None:
        """Logs numbers of one step; what is none, such as a confusion matrix, is left out."""
        values = {name: float(value) for name, value in scalar_dict.items() if name != "step" and _is_number(value)}
        if values:
            self._log(values, int(scalar_dict.get("step", step)))


@VISBACKENDS.register_module()
class WandbBackend(_Tracker):
    """Weights & Biases; needs the extra `[trackers]`.

    Args:
        save_dir: Folder of the run; given by the visualizer.
        **settings: Arguments of `wandb.init`, such as `project`, `name`, `mode="offline"`.
    """

    def __init__(self, save_dir: str, **settings: Any) -> None:
        super().__init__(save_dir)
        self.settings = settings

    def _init_env(self) -> Any:
        import wandb

        run = wandb.init(**{"dir": self._save_dir, **self.settings})
        # Scores of an evaluation come with the step of training, after later ones may have been logged.
        run.define_metric("*", step_metric="step")
        return run

    @master_only
    def add_config(self, config: Config, **kwargs: Any) -> None:
        """Logs the settings of the run."""
        self.experiment.config.update(config.to_dict(), allow_val_change=True)

    def _log(self, values: dict[str, float], step: int) -> None:
        self.experiment.log({**values, "step": step})

    def close(self) -> None:
        """Ends the run."""
        if self._run is not None:
            self._run.finish()
            self._run = None


@VISBACKENDS.register_module()
class MLflowBackend(_Tracker):
    """MLflow; needs the extra `[trackers]`.

    Args:
        save_dir: Folder of the run; given by the visualizer.
        experiment: Name of the experiment.
        tracking_uri: Address of a server or a database; an SQLite file in the folder without it.
        name: Of the run; MLflow makes one up without it.
    """

    def __init__(
        self, save_dir: str, experiment: str = "visionattn", tracking_uri: str | None = None, name: str | None = None
    ) -> None:
        super().__init__(save_dir)
        self.title, self.address, self.name = experiment, tracking_uri, name

    def _init_env(self) -> Any:
        import mlflow

        folder = Path(self._save_dir).absolute()
        mlflow.set_tracking_uri(self.address or f"sqlite:///{folder / 'mlflow.db'}")
        if self.address is None and mlflow.get_experiment_by_name(self.title) is None:
            mlflow.create_experiment(self.title, artifact_location=(folder / "artifacts").as_uri())
        mlflow.set_experiment(self.title)
        mlflow.start_run(run_name=self.name)
        return mlflow

    @master_only
    def add_config(self, config: Config, **kwargs: Any) -> None:
        """Logs the settings of the run, cut where MLflow takes no more."""
        settings = {key: str(value)[:_LONGEST] for key, value in _flat(config.to_dict()).items()}
        items = list(settings.items())
        for first in range(0, len(items), _AT_ONCE):
            self.experiment.log_params(dict(items[first : first + _AT_ONCE]))

    def _log(self, values: dict[str, float], step: int) -> None:
        self.experiment.log_metrics({name.replace(":", "_"): value for name, value in values.items()}, step=step)

    def close(self) -> None:
        """Ends the run."""
        if self._run is not None:
            self._run.end_run()
            self._run = None


def _is_number(value: Any) -> bool:
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return value.ndim == 0
    return isinstance(value, (int, float, np.number))


def _flat(settings: Any, above: str = "") -> dict[str, Any]:
    """Nested settings by dotted names; empty ones as themselves."""
    if isinstance(settings, dict) and settings:
        pairs: Any = settings.items()
    elif isinstance(settings, (list, tuple)) and any(isinstance(value, dict) for value in settings):
        pairs = enumerate(settings)
    else:
        return {above: settings}
    found: dict[str, Any] = {}
    for key, value in pairs:
        found |= _flat(value, f"{above}.{key}" if above else str(key))
    return found
