"""Parts shared by commands: options, the config and device of a run, and suggested next commands."""

import argparse
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._values import StoreSettings, format_setting

if TYPE_CHECKING:
    from mmengine.config import Config

__all__ = [
    "add_cfg_options",
    "add_config",
    "add_device",
    "add_own_data",
    "add_run_options",
    "command_line",
    "evaluate",
    "is_first_process",
    "leave",
    "load",
    "self_contained",
    "use_device",
]


def add_config(parser: argparse.ArgumentParser, optional: bool = False) -> None:
    """Declares the config and its overrides."""
    parser.add_argument(
        "config",
        nargs="?" if optional else None,
        help="path of a config, or the name of a packaged one (see `visionattn configs`)",
    )
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="a timm network in place of the config's, such as va_resnet18_cbam; with a tag, as in resnet50.tv_in1k, "
        "it begins with its pretrained weights",
    )
    add_cfg_options(parser)


def add_cfg_options(parser: argparse.ArgumentParser) -> None:
    """Declares `--cfg-options`."""
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=StoreSettings,
        default={},
        metavar="KEY=VALUE",
        help="change the config: nested keys with dots, lists as key=a,b or key=[a,b]; another train_cfg.max_epochs "
        "(or max_iters) stretches the schedules with it",
    )


def add_device(parser: argparse.ArgumentParser, default: str | None) -> None:
    """Declares `--device`."""
    parser.add_argument(
        "--device",
        default=default,
        help=f"where to compute: cpu, cuda, cuda:1, ... (default: {default or 'cuda if there is one, else cpu'})",
    )


def add_own_data(parser: argparse.ArgumentParser, required: bool) -> None:
    """Declares the options for one's own data: path, task, and whether to start from pretrained weights."""
    parser.add_argument(
        "--data",
        required=required,
        metavar="PATH",
        help="data of your own: a folder with one sub-folder of pictures a class, COCO's JSON, Pascal VOC's XML, "
        "YOLO's text labels, or pictures with masks",
    )
    parser.add_argument(
        "--task",
        choices=("classification", "detection", "instance", "segmentation"),
        help="what --data are for, where they serve several tasks",
    )
    parser.add_argument("--pretrained", action="store_true", help="with --data: start from the network's own weights")


def add_run_options(parser: argparse.ArgumentParser, optional_config: bool = False) -> None:
    """Declares the options shared by training and testing."""
    add_config(parser, optional_config)
    add_device(parser, None)
    parser.add_argument(
        "--launcher",
        choices=("none", "pytorch", "slurm"),
        default="none",
        help="how several processes were started, such as `torchrun --nproc-per-node 2 -m visionattn.cli train ...`",
    )


def load(options: argparse.Namespace, default_dir: str, needs: Sequence[str] = ()) -> "Config":
    """The config of a run; also stored in `options.loaded` for explaining errors.

    Args:
        options: With `config`, `cfg_options`, `work_dir` and `launcher`, and perhaps `model`.
        default_dir: Work folder if neither the options nor the config name one; `{}` stands for the config's name.
        needs: What the config must have.

    Raises:
        ValueError: If the config lacks any of that.
    """
    from visionattn.engine import load_config

    config = options.loaded = load_config(options.config, options.cfg_options, vars(options).get("model"))
    if missing := [name for name in needs if config.get(name) is None]:
        raise ValueError(f"{options.config} says nothing about {', '.join(missing)}, which this needs")
    config.work_dir = str(options.work_dir or config.get("work_dir") or default_dir.format(Path(config.filename).stem))
    config.launcher = options.launcher
    return config


def use_device(name: str | None, *, hide_others: bool = False) -> None:
    """Checks that a device is available, and makes it the current one.

    Args:
        name: `cpu`, `cuda` or `cuda:1`; none leaves the choice to whoever computes.
        hide_others: Whether `cpu` hides all GPUs from this process; it must not have asked for them yet.

    Raises:
        ValueError: If there is no such device.
    """
    if name is None or (name == "cpu" and not hide_others):
        return
    if name == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        return
    import torch

    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type != "cuda":
        raise ValueError(f"--device must be cpu, cuda or cuda:NUMBER, got {name!r}")
    if not torch.cuda.is_available():
        why = "no GPU or driver was found" if torch.version.cuda else "this PyTorch was built without CUDA"
        raise ValueError(f"--device {name}: {why}; use --device cpu")
    if device.index is not None:
        if device.index >= (count := torch.cuda.device_count()):
            raise ValueError(f"--device {name}: there are only {count} GPUs, cuda:0 to cuda:{count - 1}")
        torch.cuda.set_device(device)


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
    """A config's `model.backbone` with the arguments of the checkpoint it starts from, and without that name.

    Args:
        backbone: Arguments of timm.create_model, `model_name` among them, perhaps that of a checkpoint.
    """
    from visionattn.checkpoints import info

    name, dot, _ = backbone["model_name"].partition(".")
    facts = info(backbone["model_name"]) if dot and name.startswith("va_") else {}
    modifications = {"modifications": facts["modifications"]} if facts.get("modifications") else {}
    return {**facts.get("arguments", {}), **modifications, **backbone, "model_name": name}


def command_line(name: str, *arguments: Any, **options: Any) -> str:
    """A command as it can be pasted into a shell.

    Args:
        name: Name of the command.
        *arguments: Its arguments without names.
        **options: Its options by name; None, False and empty ones are left out.
    """
    words = ["visionattn", name, *map(str, arguments)]
    for key, value in options.items():
        if value is None or value is False or value == {}:
            continue
        words.append(f"--{key.replace('_', '-')}")
        if isinstance(value, dict):
            words += [format_setting(*pair) for pair in value.items()]
        elif value is not True:
            words.append(str(value))
    return shlex.join(words)


def is_first_process() -> bool:
    """Whether this is the first process of a launcher, or the only one."""
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"


def leave(options: argparse.Namespace) -> None:
    """Ends all processes together: one that ends while others still communicate with it may take them down."""
    if options.launcher != "none":
        import torch.distributed as dist
        from mmengine.dist import barrier

        barrier()
        dist.destroy_process_group()
