"""`visionattn train`."""

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ._common import add_run_options, command_line, is_first_process, leave, load, use_device

if TYPE_CHECKING:
    from mmengine.config import Config

    from visionattn.engine import Runner

SUMMARY = "train a network by a config, evaluate it and keep the best weights"
EXAMPLES = (
    "quickstart",
    "quickstart --work-dir runs/a --cfg-options train_cfg.max_epochs=5 optim_wrapper.optimizer.lr=1e-3",
    "quickstart --resume",
    "quickstart --model va_resnet10n_triplet --amp",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    add_run_options(parser)
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


def run(options: argparse.Namespace) -> None:
    """Trains by a config, then says how good the result is and what to do next."""
    if is_first_process():
        print(f"training  {options.config}", flush=True)
    use_device(options.device, hide_others=True)
    config = load(options, "work_dirs/{}", needs=("model", "train_dataloader", "train_cfg", "optim_wrapper"))
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

    from ._header import choose_threads, describe_run

    runner = _build(config)
    started = time.monotonic()
    try:
        choose_threads(runner)
        header = describe_run(runner)  # in every process: building data loaders may take them all
        if runner.rank == 0:
            print(header, flush=True)
        runner.train()
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(_resumption(options, work_dir) if runner.rank == 0 else "") from error
    if runner.rank == 0:
        _summarise(options, config, work_dir, time.monotonic() - started)
    leave(options)


def _build(config: "Config") -> "Runner":
    from visionattn.engine import Runner

    try:
        return Runner.from_cfg(config)
    except OSError as error:
        backbone = config.model.get("backbone", {})
        if not backbone.get("pretrained") or error.errno:
            raise
        hint = f"to train from scratch: --model {backbone.model_name.partition('.')[0]}"
        raise FileNotFoundError(f"{' '.join(str(error).split())} ({hint})") from error


def _resumption(options: argparse.Namespace, work_dir: Path) -> str:
    if not (work_dir / "last_checkpoint").exists():
        return "no checkpoint has been saved yet"
    again = command_line("train", options.config, resume=True, **_kept(options), amp=options.amp)
    if options.launcher != "none":
        again = f"start it as before, with {again.partition(' ')[2]}"
    return f"to resume: {again}"


def _kept(options: argparse.Namespace) -> dict[str, object]:
    """What a command that goes on with this run must repeat."""
    names = ("model", "work_dir", "device", "cfg_options")
    return {name: getattr(options, name) for name in names}


def _summarise(options: argparse.Namespace, config: "Config", work_dir: Path, seconds: float) -> None:
    from visionattn.engine import draw_learning_curve, read_scalars

    saving = config.get("default_hooks", {}).get("checkpoint", {})
    metric = saving.get("save_best") or "top1"
    picture = draw_learning_curve(work_dir, metric)
    scores = [(record[metric], record["step"]) for record in read_scalars(work_dir)[1] if metric in record]
    best = work_dir / f"best_{metric.replace('/', '_')}.pth"
    print(f"\ntrained   {_duration(seconds)}")
    if scores:
        choose = min if saving.get("rule") == "less" else max
        score, step = choose(scores, key=lambda pair: pair[0])  # the first of equals is the one that was saved
        unit = "epoch" if config.train_cfg.get("by_epoch") else "iteration"
        print(f"score     {metric} {_score(scores[-1][0])} at the end, {_score(score)} at best ({unit} {step})")
    print(f"picture   {picture}")
    print(f"weights   {best if best.exists() else work_dir}")
    if best.exists():
        kept = _kept(options)
        folder = kept.pop("work_dir")
        testing = {**kept, "work_dir": folder and f"{folder}-test"}
        print(f"next      {command_line('test', options.config, best, **testing)}")
        print(f"          {command_line('predict', 'PICTURES', config=options.config, checkpoint=best, **kept)}")


def _score(value: float) -> str:
    return f"{100 * value:.2f} %" if 0 <= value <= 1 else f"{value:.4g}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
