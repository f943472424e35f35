"""What several commands share: options of configs and runs, building and evaluating a run."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._values import StoreSettings

if TYPE_CHECKING:
    from mmengine.config import Config

__all__ = [
    "add_cfg_options",
    "add_run_options",
    "evaluate",
    "is_first_process",
    "leave",
    "load",
    "self_contained",
]


def add_cfg_options(parser: argparse.ArgumentParser) -> None:
    """Declares `--cfg-options`."""
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=StoreSettings,
        default={},
        metavar="KEY=VALUE",
        help="change the config: nested keys with dots, lists as key=a,b or key=[a,b]",
    )


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Declares what training and testing share."""
    add_cfg_options(parser)
    parser.add_argument(
        "--launcher",
        choices=("none", "pytorch", "slurm"),
        default="none",
        help="how several processes were started, such as `torchrun --nproc-per-node 2 -m visionattn.cli train ...`",
    )


def load(options: argparse.Namespace, default_dir: str) -> "Config":
    """The config of a run.

    Args:
        options: With `config`, `cfg_options`, `work_dir` and `launcher`.
        default_dir: Work folder if neither the options nor the config name one; `{}` stands for the config's name.
    """
    from visionattn.engine import load_config

    config = load_config(options.config, options.cfg_options)
    config.work_dir = str(options.work_dir or config.get("work_dir") or default_dir.format(Path(config.filename).stem))
    config.launcher = options.launcher
    return config


def evaluate(config: "Config", weights: dict[str, Any]) -> tuple[dict[str, float], Any]:
    """Evaluates weights on a config's test set; returns the metrics and the runner."""
    from visionattn.engine import Runner

    if "pretrained" in config.model.get("backbone", {}):
        config.model.backbone.pretrained = False
    config.load_from = None
    runner = Runner.from_cfg(config)
    model = runner.model.module if hasattr(runner.model, "module") else runner.model
    model.load_weights(weights)
    return {name: float(value) for name, value in runner.test().items()}, runner


def self_contained(backbone: dict[str, Any]) -> dict[str, Any]:
    """A config's `model.backbone` with what the checkpoint that it starts from brings along, and without its name.

    Args:
        backbone: Arguments of timm.create_model, `model_name` among them, perhaps that of a checkpoint.
    """
    from visionattn.checkpoints import info

    name, dot, _ = backbone["model_name"].partition(".")
    facts = info(backbone["model_name"]) if dot and name.startswith("va_") else {}
    modifications = {"modifications": facts["modifications"]} if facts.get("modifications") else {}
    return {**facts.get("arguments", {}), **modifications, **backbone, "model_name": name}


def is_first_process() -> bool:
    """Whether this is the first of the processes that a launcher has started, or the only one."""
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"


def leave(options: argparse.Namespace) -> None:
    """Ends together: a process that ends while others still talk to it may take them down."""
    if options.launcher != "none":
        import torch.distributed as dist
        from mmengine.dist import barrier

        barrier()
        dist.destroy_process_group()
