"""Training runs of a second, built in the test's own process."""

import copy
import itertools
from typing import Any

from visionattn.engine import Runner, load_config

SMALL = {
    "train_dataloader.batch_size": 16,
    "train_dataloader.num_batch_per_epoch": 3,
    "val_dataloader.batch_size": 32,
    "val_dataloader.num_batch_per_epoch": 1,
    "train_cfg.max_epochs": 2,
    "default_hooks.logger.interval": 1,
}
_COUNT = itertools.count()


def small_runner(config: Any, work_dir: Any, resume: bool | str = False, **overrides: Any) -> Runner:
    """A runner of three steps an epoch; keys of overrides have `__` for dots.

    Args:
        config: The tiny config.
        work_dir: Its work folder.
        resume: Whether to resume, or from which checkpoint.
        **overrides: Of the config.
    """
    changes = {key.replace("__", "."): value for key, value in overrides.items()}
    cfg = load_config(config, SMALL | copy.deepcopy(changes))  # mmengine takes `_delete_` out of them
    cfg.work_dir, cfg.resume = str(work_dir), bool(resume)
    # Loggers of one name are one, and mmengine names them by the second.
    cfg.experiment_name = f"small-{next(_COUNT)}"
    if isinstance(resume, str):
        cfg.load_from = resume
    return Runner.from_cfg(cfg)


def said(capsys: Any) -> str:
    """What has come to the console, without colours."""
    captured = capsys.readouterr()
    return captured.out + captured.err
