"""mmengine's Runner, mended where 0.10.7 fails with a current PyTorch or on a CPU, and quieter on the console."""

import logging
import os
import sys
from pathlib import Path
from typing import Any

import mmengine.runner
import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.model import MMDistributedDataParallel, is_model_wrapper
from torch import nn

from visionattn.data import check_dataset
from visionattn.models import check_state_dict
from visionattn.utils.files import read_checkpoint

from .checkpoint import latest_checkpoint

__all__ = ["Runner"]


class Runner(mmengine.runner.Runner):
    """mmengine's Runner with these differences.

    - Checkpoints are read as plain data only, and must fit the network exactly.
    - Several processes run on CPUs too (gloo), started by torchrun or by slurm.
    - The console shows what a person reads; the environment, the config and the list of hooks go to the log file.
    """

    @classmethod
    def from_cfg(cls, cfg: Config) -> "Runner":
        """Builds a runner, checking first what mmengine would only stumble over later.

        Raises:
            ValueError: If the warm-up is not shorter than the training.
        """
        _check_schedule(cfg)
        for loader in ("train_dataloader", "val_dataloader", "test_dataloader"):
            if isinstance(cfg.get(loader), dict):
                check_dataset(cfg[loader]["dataset"], f"{loader}.dataset")
        return super().from_cfg(cfg)

    def setup_env(self, env_cfg: dict[str, Any]) -> None:
        """Starts the process group on CPUs, where mmengine's way needs a GPU; the rest is mmengine's."""
        if self.distributed and not dist.is_initialized() and not torch.cuda.is_available():
            _join_cpu_group(self.launcher)
        super().setup_env(env_cfg)

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        """mmengine's logger, its long records kept to the file."""
        logger = super().build_logger(*args, **kwargs)
        for handler in logger.handlers:
            if type(handler) is logging.StreamHandler:
                handler.addFilter(_for_people)
        return logger

    def wrap_model(self, model_wrapper_cfg: dict[str, Any] | None, model: nn.Module) -> nn.Module:
        """Distributes the model; on CPUs without device numbers."""
        if self.distributed and not torch.cuda.is_available() and model_wrapper_cfg is None:
            return MMDistributedDataParallel(module=model, broadcast_buffers=False)
        return super().wrap_model(model_wrapper_cfg, model)

    def load_or_resume(self) -> None:
        """Goes on from the last checkpoint in the work folder if the run is to be resumed and none is named."""
        if self._resume and self._load_from is None and not self._has_loaded:
            latest = latest_checkpoint(self.work_dir)
            if latest is None:
                self.logger.info(f"Nothing to resume in {self.work_dir}: starting from the beginning")
                return
            self._load_from = str(latest)
        super().load_or_resume()

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
        self.call_hook("after_load_checkpoint", checkpoint=checkpoint)
        model = self.model.module if is_model_wrapper(self.model) else self.model
        check_state_dict(checkpoint["state_dict"], model)
        model.load_state_dict(checkpoint["state_dict"], strict=strict)
        self._has_loaded = True
        self.logger.info(f"Loaded {filename}")
        return checkpoint


_NOISE = ("Exp name", "Distributed training is not used")


def _for_people(record: logging.LogRecord) -> bool:
    text = record.getMessage()
    return record.levelno >= logging.WARNING or (text.count("\n") < 3 and not text.startswith(_NOISE))


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


def _join_cpu_group(launcher: str) -> None:
    if launcher == "slurm":
        os.environ.update(
            RANK=os.environ["SLURM_PROCID"],
            WORLD_SIZE=os.environ["SLURM_NTASKS"],
            LOCAL_RANK=os.environ["SLURM_LOCALID"],
            MASTER_PORT=os.environ.get("MASTER_PORT", "29500"),
            MASTER_ADDR=os.environ.get("MASTER_ADDR", os.environ["SLURM_LAUNCH_NODE_IPADDR"]),
        )
    elif launcher != "pytorch":
        raise ValueError(f"launcher must be 'none', 'pytorch' or 'slurm', got {launcher!r}")
    missing = [
        name for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ
    ]
    if missing:
        raise ValueError(
            f"launcher 'pytorch' needs {', '.join(missing)} in the environment: start with "
            f"`torchrun --nproc-per-node 2 {Path(sys.argv[0]).name} ...`"
        )
    dist.init_process_group("gloo")
