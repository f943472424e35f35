"""mmengine's Runner, fixed where 0.10.7 fails with a current PyTorch or on a CPU, and quieter on the console."""

import time
import zipfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import mmengine.runner
import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import is_main_process
from mmengine.logging import MMLogger
from mmengine.model import MMDistributedDataParallel, is_model_wrapper
from mmengine.runner import BaseLoop, EpochBasedTrainLoop
from torch import nn

from visionattn.data import check_dataset
from visionattn.models import check_state_dict
from visionattn.utils.files import read_checkpoint

from . import registration  # noqa: F401  (a config names types that must be known)
from .checks import check_batches
from .guard import guarded
from .lock import work_dir_lock
from .logs import tidy_handlers
from .processes import join_processes
from .resume import Schedule, changed_settings, latest_checkpoint, resume_hint, verify_checkpoint
from .schedule import without_tiny_warmups

__all__ = ["Runner"]


class Runner(mmengine.runner.Runner):
    """mmengine's Runner with the differences below.

    - Checkpoints are read as plain data only, verified, and must fit the network exactly.
    - A run resumes from the newest whole checkpoint; settings that have changed since are applied or refused.
    - One run trains in a work folder at a time; what ends it from outside ends it in one line.
    - Several processes run on CPUs too (gloo), started by torchrun or by slurm, and notice when one of them dies.
    - The console shows what a person reads; the environment, the config and the list of hooks go to the log file.

    Of mmengine's private names it uses `_load_from`, `_resume` and `_has_loaded` of the runner, and `_epoch` and
    `_iter` of the training loop.
    """

    @classmethod
    def from_cfg(cls, cfg: Config) -> "Runner":
        """Builds a runner after checks that mmengine would fail later.

        Raises:
            ValueError: If the warm-up is not shorter than the training.
        """
        _check_schedule(cfg)
        for loader in ("train_dataloader", "val_dataloader", "test_dataloader"):
            if isinstance(cfg.get(loader), dict):
                check_dataset(cfg[loader]["dataset"], f"{loader}.dataset")
        return super().from_cfg(cfg)

    def setup_env(self, env_cfg: dict[str, Any]) -> None:
        """Starts the process group on CPUs, for which mmengine requires a GPU; the rest is mmengine's."""
        if self.distributed and not torch.cuda.is_available():
            join_processes(self.launcher, **env_cfg.get("dist_cfg", {}))
        # Log folders, and loggers within a process, are named by the second: two starts in one would share theirs.
        name = Path(self.cfg.filename or "").stem
        while Path(self.work_dir, now := time.strftime("%Y%m%d_%H%M%S")).exists() or MMLogger.check_instance_created(
            f"{name}_{now}"
        ):
            time.sleep(0.05)
        super().setup_env(env_cfg)

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        """mmengine's logger, with long records in the file only."""
        logger = super().build_logger(*args, **kwargs)
        tidy_handlers(logger)
        return logger

    def wrap_model(self, model_wrapper_cfg: dict[str, Any] | None, model: nn.Module) -> nn.Module:
        """Wraps the model for distributed training; on CPUs without device indices."""
        if self.distributed and not torch.cuda.is_available() and model_wrapper_cfg is None:
            return MMDistributedDataParallel(module=model, broadcast_buffers=False)
        return super().wrap_model(model_wrapper_cfg, model)

    def build_train_loop(self, loop: BaseLoop | dict[str, Any]) -> BaseLoop:
        """mmengine's training loop, after a check that there are batches to train on."""
        built = super().build_train_loop(loop)
        check_batches(built.dataloader, self.model, self.world_size)
        return built

    def dump_config(self) -> None:
        """Does nothing yet: a refused run must not overwrite the config of the run that holds the folder."""

    def train(self) -> nn.Module:
        """Trains.

        Raises:
            ValueError: If another run holds the work folder, the settings do not go together, or the loss stays NaN.
            OSError: If files can't be written, or another process of the run or of its data loader has died.
        """
        lock = work_dir_lock(self.work_dir) if is_main_process() else nullcontext()
        with lock, guarded(self, lambda: resume_hint(self.work_dir)):
            super().dump_config()
            return super().train()

    def test(self) -> dict[str, float]:
        """Evaluates on the test set.

        Raises:
            ValueError: If the settings do not go together.
            OSError: If files can't be written, or another process of the run or of its data loader has died.
        """
        with guarded(self, lambda: "start it again"):
            super().dump_config()
            return super().test()

    def build_param_scheduler(self, scheduler: Any) -> Any:
        """Builds the schedulers, without warm-ups too short to raise the learning rate."""
        if isinstance(scheduler, list) and all(isinstance(part, dict) for part in scheduler):
            scheduler = without_tiny_warmups(scheduler, len(self.train_dataloader))
        return super().build_param_scheduler(scheduler)

    _load_from: str | None

    def load_or_resume(self) -> None:
        """Resumes from the newest intact checkpoint in the work folder if resuming without a named one."""
        if self._resume and self._load_from is None and not self._has_loaded:
            latest = latest_checkpoint(self.work_dir, self.logger.warning)
            if latest is None:
                self.logger.info(f"Nothing to resume in {self.work_dir}: starting from the beginning")
                return
            self._load_from = str(latest)
        elif self._load_from is not None and not self._has_loaded and zipfile.is_zipfile(self._load_from):
            verify_checkpoint(self._load_from)
        super().load_or_resume()

    def resume(self, filename: str, *args: Any, **kwargs: Any) -> None:
        """Resumes from a checkpoint of `AtomicCheckpointHook`.

        What the config says holds: learning rates, schedules and the length of an epoch that differ from those the
        checkpoint was saved with are applied as if the run had always had them, and logged.

        Raises:
            FileNotFoundError: If there is no such checkpoint.
            ValueError: If it can't be read, or the run has changed in a way that it can't be resumed with.
        """
        schedule = Schedule(self)
        checkpoint = self.load_checkpoint(filename, get_device())
        changed = changed_settings(self, checkpoint, filename)
        meta = checkpoint["meta"]
        epochs, iterations = meta["epoch"], meta["iter"]
        if isinstance(self.train_loop, EpochBasedTrainLoop):
            iterations = epochs * len(self.train_dataloader)
        self.train_loop._epoch, self.train_loop._iter = epochs, iterations
        if self.seed != meta["seed"] and self.cfg.get("randomness", {}).get("seed") is None:
            self.set_randomness(meta["seed"], deterministic=self.deterministic)
        self.message_hub.load_state_dict(checkpoint["message_hub"])
        self.optim_wrapper.load_state_dict(checkpoint["optimizer"])
        if changed:
            schedule.recompute(epochs, iterations)
            named = [f"{name} {old} -> {new}" for name, (old, new) in changed.items()]
            more = f" and {len(named) - 6} more" if len(named) > 6 else ""
            self.logger.warning(f"Resuming with changed settings: {', '.join(named[:6])}{more}")
        else:
            for scheduler, state in zip(
                self.param_schedulers or (), checkpoint.get("param_schedulers", ()), strict=True
            ):
                scheduler.load_state_dict(state)
        self._has_loaded = True
        self.logger.info(f"Resumed after epoch {epochs}, iteration {iterations}")

    def load_checkpoint(
        self, filename: str, map_location: Any = "cpu", strict: bool = True, **_: Any
    ) -> dict[str, Any]:
        """Loads a training checkpoint.

        Raises:
            FileNotFoundError: If there is none.
            ValueError: If it is damaged, holds code, or does not fit the network.
        """
        checkpoint = read_checkpoint(filename, map_location)
        if "state_dict" not in checkpoint or (self._resume and "optimizer" not in checkpoint):
            raise ValueError(f"{filename} is no checkpoint that a run can {'resume' if self._resume else 'start'} from")
        model = self.model.module if is_model_wrapper(self.model) else self.model
        check_state_dict(checkpoint["state_dict"], model)
        self.call_hook("after_load_checkpoint", checkpoint=checkpoint)
        model.load_state_dict(checkpoint["state_dict"], strict=strict)
        self._has_loaded = True
        self.logger.info(f"Loaded {filename}")
        return checkpoint


def _check_schedule(cfg: Config) -> None:
    train = cfg.get("train_cfg") or {}
    schedulers = cfg.get("param_scheduler") or []
    for scheduler in schedulers if isinstance(schedulers, list) else [schedulers]:
        by_epoch = scheduler.get("by_epoch", True)
        length = train.get("max_epochs" if by_epoch else "max_iters")
        latest = max(scheduler.get("begin", 0), scheduler.get("end", 0) if scheduler["type"] == "LinearLR" else 0)
        if length is not None and latest >= length:
            unit = "epochs" if by_epoch else "iterations"
            raise ValueError(
                f"{scheduler['type']} in param_scheduler reaches to {unit[:-1]} {latest}, but training lasts only "
                f"{length} {unit}"
            )
