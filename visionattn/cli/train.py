"""`visionattn train`."""

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ._common import add_own_data, add_run_options, command_line, is_first_process, leave, load, use_device

if TYPE_CHECKING:
    from mmengine.config import Config

    from visionattn.engine import Runner

SUMMARY = "train a network by a config or on data of your own, evaluate it and keep the best weights"
EXAMPLES = (
    "quickstart",
    "--data photos/ --model va_resnet50_cbam",
    "--data photos/ --model resnet50.a1_in1k --pretrained --cfg-options train_cfg.max_epochs=10",
    "quickstart --work-dir runs/a --cfg-options train_cfg.max_epochs=5 optim_wrapper.optimizer.lr=1e-3",
    "quickstart --resume",
    "quickstart --model va_resnet10n_triplet --amp",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    add_run_options(parser, optional_config=True)
    add_own_data(parser, required=False)
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
    """Trains with a config, then reports the result and what to do next."""
    if bool(options.data) == bool(options.config):
        raise ValueError("name a config, or data of your own by --data: one of the two")
    if (options.task or options.pretrained) and not options.data:
        raise ValueError("--task and --pretrained go with --data")
    if is_first_process():
        print(f"training  {options.config or options.data}", flush=True)
    use_device(options.device, hide_others=True)
    if options.data:
        _write_config(options)
    config = load(options, "work_dirs/{}", needs=("model", "train_dataloader", "train_cfg", "optim_wrapper"))
    work_dir = Path(config.work_dir)
    _make_room(work_dir, options)
    config.resume = options.resume is not None
    if options.resume not in (None, "auto"):
        config.load_from = options.resume
    elif config.resume and config.get("load_from"):
        # The config's own `load_from` is where the run starts; it resumes from what it has saved since.
        begun = (work_dir / "last_checkpoint").exists()
        config.resume, config.load_from = begun, None if begun else config.load_from
    if options.amp:
        config.optim_wrapper.type = "AutocastOptimWrapper"

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
        _summarise(options, runner, time.monotonic() - started)
    leave(options)


def _make_room(work_dir: Path, options: argparse.Namespace) -> None:
    """Backs up an earlier run in the work folder, or refuses to train there.

    Raises:
        ValueError: If there is one, and it is to be neither resumed nor backed up.
    """
    if options.resume is not None or not is_first_process() or not (work_dir / "last_checkpoint").exists():
        return
    if not options.fresh:
        raise ValueError(f"{work_dir} holds a run: --resume continues it, --fresh backs it up and starts over")
    from visionattn.engine import work_dir_lock

    aside = work_dir.with_name(f"{work_dir.name}-until-{time.strftime('%Y%m%d-%H%M%S')}")
    with work_dir_lock(work_dir):  # not while another process trains in it
        work_dir.rename(aside)
    print(f"the earlier run is now in {aside}")


def _write_config(options: argparse.Namespace) -> None:
    """Writes a config for the data, which replaces them in the options."""
    from visionattn.engine import first_process_does, join_processes
    from visionattn.engine.own_data import write_config

    if not options.model:
        raise ValueError("--data needs --model, such as --model va_resnet50_cbam")
    folder = options.work_dir or Path("work_dirs") / f"{Path(options.data).resolve().stem}-{options.model}"
    # Beside the folder of the run, which gets a copy with everything that it inherits.
    path = folder.with_name(f"{folder.name}.py")

    def write() -> None:
        _make_room(folder, options)  # before the config and the split are written anew
        if options.resume is not None and path.exists():
            return
        found = write_config(
            path, options.data, options.model, task=options.task, pretrained=options.pretrained, split_dir=folder
        )
        print(f"data      {found.layout}, split: {found.split}")
        print(f"config    {path}", flush=True)

    # All processes read what the first one writes, so that they are connected before there is a config.
    prefix = "env_cfg.dist_cfg."
    settings = {key.removeprefix(prefix): value for key, value in options.cfg_options.items() if key.startswith(prefix)}
    join_processes(options.launcher, **settings)
    first_process_does(write)
    options.config, options.work_dir, options.model = str(path), folder, None


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
    """The options that a command continuing this run must repeat."""
    names = ("model", "work_dir", "device", "cfg_options")
    return {name: getattr(options, name) for name in names}


def _summarise(options: argparse.Namespace, runner: "Runner", seconds: float) -> None:
    from visionattn.engine import training_summary

    lines = training_summary(runner, seconds)
    print()
    for heading, text in lines.items():
        print(f"{heading:9} {text}")
    if best := runner.message_hub.runtime_info.get("best_checkpoint"):
        weights = Path(runner.work_dir) / best
        kept = _kept(options)
        folder = kept.pop("work_dir")
        testing = {**kept, "work_dir": folder and f"{folder}-test"}
        print(f"next      {command_line('test', options.config, weights, **testing)}")
        print(f"          {command_line('predict', 'PICTURES', config=options.config, checkpoint=weights, **kept)}")
