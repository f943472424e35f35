"""`visionattn train`."""

import argparse
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ._common import add_run_options, is_first_process, leave, load

if TYPE_CHECKING:
    from mmengine.config import Config

SUMMARY = "train a network by a config, evaluate it and keep the best weights"
EXAMPLES = (
    "quickstart",
    "quickstart --work-dir runs/a --cfg-options train_cfg.max_epochs=5 optim_wrapper.optimizer.lr=1e-3",
    "quickstart --resume",
    "my_config.py --amp --cfg-options model.backbone.model_name=va_resnet18_cbam",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("config", help="path of a config, or the name of a packaged one (see `visionattn configs`)")
    parser.add_argument(
        "--work-dir", type=Path, help="where checkpoints, logs and pictures go; work_dirs/<config> by default"
    )
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="CHECKPOINT",
        help="resume from the last checkpoint in the work folder, or from this one",
    )
    parser.add_argument(
        "--fresh", action="store_true", help="if the work folder holds a run, back it up and start over"
    )
    parser.add_argument(
        "--amp", action="store_true", help="mixed precision: bfloat16 where the device has it, float16 elsewhere"
    )
    add_run_options(parser)


def run(options: argparse.Namespace) -> None:
    """Trains by a config, then says how good the result is and what to do next."""
    config = load(options, default_dir="work_dirs/{}")
    work_dir = Path(config.work_dir)
    config.resume = options.resume is not None
    if options.resume not in (None, "auto"):
        config.load_from = options.resume
    if options.amp:
        config.optim_wrapper.type = "AutocastOptimWrapper"
    if options.resume is None and is_first_process() and (work_dir / "last_checkpoint").exists():
        if not options.fresh:
            raise ValueError(f"{work_dir} holds a run: --resume continues it, --fresh backs it up and starts over")
        aside = work_dir.with_name(f"{work_dir.name}-until-{time.strftime('%Y%m%d-%H%M%S')}")
        work_dir.rename(aside)
        print(f"the earlier run is now in {aside}")

    from visionattn.engine import Runner

    runner = Runner.from_cfg(config)
    started = time.monotonic()
    runner.train()
    if runner.rank == 0:
        _summarise(options.config, config, work_dir, time.monotonic() - started)
    leave(options)


def _summarise(name: str, config: "Config", work_dir: Path, seconds: float) -> None:
    from visionattn.engine import draw_learning_curve, read_scalars

    metric = config.default_hooks.checkpoint.get("save_best") or "top1"
    picture = draw_learning_curve(work_dir, metric)
    scores = [(r[metric], r["step"]) for r in read_scalars(work_dir)[1] if metric in r]
    best = work_dir / f"best_{metric.replace('/', '_')}.pth"
    print(f"\ntrained   {_duration(seconds)}")
    if scores:
        score, step = max(scores, key=lambda pair: pair[0])  # the first of equals is the one that was saved
        unit = "epoch" if config.train_cfg.get("by_epoch") else "iteration"
        print(f"score     {metric} {100 * scores[-1][0]:.2f} % at the end, {100 * score:.2f} % at best ({unit} {step})")
    print(f"picture   {picture}")
    print(f"weights   {best if best.exists() else work_dir}")
    if best.exists():
        print(f"next      visionattn test {shlex.quote(name)} {best}")
        print(f"          visionattn predict PICTURES --config {shlex.quote(name)} --checkpoint {best}")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
