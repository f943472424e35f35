"""The commands behind `visionattn ...` and tools/*.py."""

import argparse
import json
import os
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmengine.config import Config

__all__ = ["main"]


def main(command: str | None = None) -> None:
    """Runs a command with the arguments of the process.

    Args:
        command: Name of the command; taken from the arguments without it.
    """
    os.environ.setdefault("KMP_WARNINGS", "0")
    arguments = sys.argv[1:] if command is None else [command, *sys.argv[1:]]
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except (FileNotFoundError, ValueError) as error:
        if options.debug:
            raise
        # Errors of worker processes carry their whole traceback; its last line is the message.
        lines = [line for line in str(error).splitlines() if line.strip()]
        print(
            f"visionattn: error: {lines[-1] if 'Original Traceback' in str(error) else ' '.join(lines)}",
            file=sys.stderr,
        )
        sys.exit(2)


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show where an error came from")
    parser = argparse.ArgumentParser(
        prog="visionattn",
        description="Train, evaluate and use networks with visual attention.",
        epilog="`visionattn train quickstart` is a good start: it needs no data and takes a minute.",
    )
    commands = parser.add_subparsers(required=True, metavar="command")

    def add(name: str, run: Any, summary: str, *examples: str) -> argparse.ArgumentParser:
        lines = "\n".join(f"  visionattn {name} {example}".rstrip() for example in examples)
        sub = commands.add_parser(
            name,
            parents=[common],
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog=f"examples:\n{lines}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(run=run)
        return sub

    train = add(
        "train",
        _train,
        "train a network by a config, evaluate it and keep the best weights",
        "quickstart",
        "quickstart --work-dir runs/a --cfg-options train_cfg.max_epochs=5 optim_wrapper.optimizer.lr=1e-3",
        "quickstart --resume",
        "my_config.py --amp --cfg-options model.backbone.model_name=va_resnet18_cbam",
    )
    train.add_argument("config", help="path of a config, or the name of a packaged one (see `visionattn configs`)")
    train.add_argument(
        "--work-dir", type=Path, help="where checkpoints, logs and pictures go; work_dirs/<config> by default"
    )
    train.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="CHECKPOINT",
        help="go on from the last checkpoint in the work folder, or from this one",
    )
    train.add_argument(
        "--fresh", action="store_true", help="if the work folder holds a run, move it aside and start anew"
    )
    train.add_argument(
        "--amp", action="store_true", help="mixed precision: bfloat16 where the device has it, float16 elsewhere"
    )
    _add_run_options(train)

    test = add(
        "test",
        _test,
        "evaluate a checkpoint on the test set of a config",
        "quickstart work_dirs/quickstart/best_top1.pth",
        "quickstart va_resnet10n_cbam.digits --out metrics.json",
    )
    test.add_argument("config", help="path of a config, or the name of a packaged one")
    test.add_argument(
        "checkpoint", help="a training checkpoint, a published file, or the name of a packaged checkpoint"
    )
    test.add_argument("--work-dir", type=Path, help="where logs go; work_dirs/<config>-test by default")
    test.add_argument("--out", type=Path, help="write the metrics to this JSON file")
    _add_run_options(test)

    predict = add(
        "predict",
        _predict,
        "classify pictures; writes a table and the annotated pictures",
        "photo.jpg folder/ --model va_resnet10n_cbam.digits",
        "folder/ --config quickstart --checkpoint work_dirs/quickstart/best_top1.pth --out results",
    )
    predict.add_argument("inputs", nargs="+", type=Path, help="pictures, or folders to search for them")
    source = predict.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", help="name of a network with pretrained weights, any of timm's too")
    source.add_argument("--config", help="path or name of a config; needs --checkpoint")
    predict.add_argument("--checkpoint", type=Path, help="weights for --config")
    predict.add_argument(
        "--out", type=Path, default=Path("predictions"), help="folder for the results (default: predictions)"
    )
    predict.add_argument("--topk", type=int, default=5, help="how many classes to tell (default: 5)")
    predict.add_argument("--batch-size", type=int, default=1, help="above 1 all pictures must be prepared to one size")
    predict.add_argument("--device", default="cpu", help="where to compute: cpu, cuda, cuda:1, ... (default: cpu)")

    publish = add(
        "publish",
        _publish,
        "turn a training checkpoint into a small file for others, evaluated and entered into a manifest",
        "quickstart work_dirs/quickstart/best_top1.pth --name va_resnet10n_cbam.digits --license apache-2.0",
    )
    publish.add_argument("config", help="path or name of the config it was trained by")
    publish.add_argument("checkpoint", type=Path, help="the training checkpoint")
    publish.add_argument("--name", required=True, metavar="MODEL.TAG", help="the name under which timm shall find it")
    publish.add_argument("--license", required=True, help="licence of the weights, such as apache-2.0")
    publish.add_argument("--origin", default="trained with this package", help="where the weights come from")
    publish.add_argument(
        "--out", type=Path, default=Path("checkpoints"), help="folder of the manifest (default: checkpoints)"
    )

    bakeoff = add(
        "bakeoff",
        _bakeoff,
        "train several configs with several seeds and write a table that compares them; goes on where it stopped",
        "resnet10n_128-3e_fashion-mnist resnet10n-cbam_128-3e_fashion-mnist --seeds 0 1 --out results.md",
    )
    bakeoff.add_argument("configs", nargs="+", help="paths or names of configs, the baseline first")
    bakeoff.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="seeds of the runs (default: 0 1 2)")
    bakeoff.add_argument("--jobs", type=int, default=2, help="how many runs at a time (default: 2)")
    bakeoff.add_argument("--metric", default="top1", help="what to compare (default: top1)")
    bakeoff.add_argument("--work-dir", type=Path, default=Path("work_dirs/bakeoff"), help="where the runs go")
    bakeoff.add_argument("--title", default="Bake-off", help="heading of the table")
    bakeoff.add_argument("--out", type=Path, required=True, help="the table, a .md file; a .csv is written beside it")
    bakeoff.add_argument("--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="change all configs")

    benchmark = add(
        "benchmark",
        _benchmark,
        "compare the speed of plug-ins on the CPU with their papers' formulas written down literally",
        "--out docs/results/plugins-cpu.json",
        "--plugins cbam triplet --shapes 4x128x28x28 --seconds 0.3 --out cbam.json",
    )
    benchmark.add_argument("--plugins", nargs="+", help="names of plug-ins (default: all)")
    benchmark.add_argument(
        "--shapes",
        nargs="+",
        metavar="BxCxHxW",
        default=["8x256x56x56", "8x1024x14x14", "4x32x14x14"],
        help="shapes of the maps (default: an early and a late stage of a ResNet-50, and a small map)",
    )
    benchmark.add_argument("--layouts", nargs="+", choices=("NCHW", "NHWC"), default=["NCHW", "NHWC"])
    benchmark.add_argument(
        "--seconds", type=float, default=1.0, help="CPU time of each contender in each row, on average (default: 1)"
    )
    benchmark.add_argument(
        "--naive", type=Path, default=Path("tests/naive"), help="folder of the literal formulas (default: tests/naive)"
    )
    benchmark.add_argument("--out", type=Path, required=True, help="a .json file; a .md table is written beside it")

    cost = add(
        "cost",
        _cost,
        "count what each plug-in adds to a ResNet-50: parameters, multiplications, memory for the backward pass",
        "--out docs/results/plugins-cost.md",
    )
    cost.add_argument("--size", type=int, default=224, help="side of the picture (default: 224)")
    cost.add_argument("--out", type=Path, required=True, help="the table, a .md file; a .csv is written beside it")

    add("configs", _configs, "list the packaged configs", "")
    return parser


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    from mmengine.config import DictAction

    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=DictAction,
        default={},
        metavar="KEY=VALUE",
        help="change the config: nested keys with dots, lists as key=a,b or key=[a,b]",
    )
    parser.add_argument(
        "--launcher",
        choices=("none", "pytorch", "slurm"),
        default="none",
        help="how several processes were started, such as `torchrun --nproc-per-node 2 -m visionattn.cli train ...`",
    )


def _train(options: argparse.Namespace) -> None:
    config = _load(options, default_dir="work_dirs/{}")
    work_dir = Path(config.work_dir)
    config.resume = options.resume is not None
    if options.resume not in (None, "auto"):
        config.load_from = options.resume
    if options.amp:
        config.optim_wrapper.type = "AutocastOptimWrapper"
    if options.resume is None and _is_first_process() and (work_dir / "last_checkpoint").exists():
        if not options.fresh:
            raise ValueError(
                f"{work_dir} holds a run: --resume goes on with it, --fresh moves it aside and starts anew"
            )
        aside = work_dir.with_name(f"{work_dir.name}-until-{time.strftime('%Y%m%d-%H%M%S')}")
        work_dir.rename(aside)
        print(f"the earlier run is now in {aside}")

    from visionattn.engine import Runner

    runner = Runner.from_cfg(config)
    started = time.monotonic()
    runner.train()
    if runner.rank == 0:
        _summarise(options.config, config, work_dir, time.monotonic() - started)
    _leave(options)


def _summarise(name: str, config: "Config", work_dir: Path, seconds: float) -> None:
    from visionattn.engine import draw_learning_curve, read_scalars

    metric = config.default_hooks.checkpoint.get("save_best") or "top1"
    picture = draw_learning_curve(work_dir, metric)
    scores = [(r[metric], r["step"]) for r in read_scalars(work_dir)[1] if metric in r]
    best = work_dir / f"best_{metric.replace('/', '_')}.pth"
    print(f"\ntrained   {_duration(seconds)}")
    if scores:
        score, step = max(scores, key=lambda pair: pair[0])  # the first of equals is the one that was saved
        print(f"accuracy  {metric} {100 * scores[-1][0]:.2f} % at the end, {100 * score:.2f} % at best (epoch {step})")
    print(f"picture   {picture}")
    print(f"weights   {best if best.exists() else work_dir}")
    if best.exists():
        print(f"next      visionattn test {shlex.quote(name)} {best}")
        print(f"          visionattn predict PICTURES --config {shlex.quote(name)} --checkpoint {best}")


def _test(options: argparse.Namespace) -> None:
    from visionattn._files import replacing
    from visionattn.checkpoints import packaged_path, read_weights

    config = _load(options, default_dir="work_dirs/{}-test")
    path = Path(options.checkpoint)
    path = (
        path if path.exists() or path.suffix in (".pth", ".pt", ".safetensors") else packaged_path(options.checkpoint)
    )
    metrics, runner = _evaluate(config, read_weights(path))
    if runner.rank == 0:
        for name, value in metrics.items():
            print(f"{name:10} {value:.6f}")
        if options.out:
            with replacing(options.out) as temporary:
                temporary.write_text(json.dumps(metrics, indent=2) + "\n")
    _leave(options)


def _predict(options: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.progress import track
    from rich.table import Table

    from visionattn.inference import ImageClassifier, find_images, save_classifications

    if options.config and not options.checkpoint:
        raise ValueError("--config needs --checkpoint")
    if options.topk < 1:
        raise ValueError(f"--topk must be at least 1, got {options.topk}")
    if options.out.exists():
        raise ValueError(f"--out {options.out} exists already; name another folder, so that nothing is overwritten")
    paths = find_images(options.inputs)
    if options.model:
        classifier = ImageClassifier.from_name(options.model, options.device)
    else:
        classifier = ImageClassifier.from_config(options.config, options.checkpoint, options.device)
    console = Console()
    shown = track(classifier(paths, options.topk, options.batch_size), "predicting", len(paths), console=console)
    results = list(shown)
    # A folder under another name until all is written: a bad picture or a kill leaves no half of it.
    temporary = options.out.with_name(f".part-{os.getpid()}-{options.out.name}")
    temporary.mkdir(parents=True)
    save_classifications(results, temporary)
    temporary.rename(options.out)
    table = Table("image", "class", "probability")
    for result in results[:20]:
        table.add_row(str(result.path), result.labels[0], f"{100 * result.scores[0]:.1f} %")
    console.print(table)
    if len(results) > 20:
        console.print(f"... and {len(results) - 20} more")
    console.print(f"all of them in {options.out / 'predictions.csv'}, the annotated pictures beside it")


def _publish(options: argparse.Namespace) -> None:
    from visionattn.checkpoints import publish, read_weights

    options.cfg_options, options.launcher, options.work_dir = {}, "none", None
    config = _load(options, default_dir="work_dirs/{}-publish")
    config.model.backbone.model_name = options.name.partition(".")[0]
    metrics, runner = _evaluate(config, read_weights(options.checkpoint))
    dataset = runner.test_dataloader.dataset
    preprocessor = config.data_preprocessor
    path = publish(
        runner.model.backbone,
        options.name,
        options.out,
        classes=dataset.metainfo["classes"],
        mean=tuple(value / 255 for value in preprocessor.mean),
        std=tuple(value / 255 for value in preprocessor.std),
        input_size=tuple(dataset[0]["inputs"].shape),
        facts={
            "task": "classification",
            "dataset": type(dataset).__name__,
            "metrics": metrics,
            "config": options.config,
            "command": f"visionattn test {options.config} {options.name}",
            "license": options.license,
            "origin": options.origin,
        },
    )
    print(f"published {path} ({path.stat().st_size / 1e6:.2f} MB): {metrics}")


def _bakeoff(options: argparse.Namespace) -> None:
    from visionattn.engine.bakeoff import Run, run_all, write_table

    if options.jobs < 1:
        raise ValueError(f"--jobs must be at least 1, got {options.jobs}")
    runs = [Run(config, seed, options.work_dir) for config in options.configs for seed in options.seeds]
    run_all(runs, options.jobs, options.cfg_options)
    print(write_table(runs, options.metric, options.out, options.title))


def _benchmark(options: argparse.Namespace) -> None:
    from visionattn.benchmark import run
    from visionattn.plugins import PLUGINS

    shapes = []
    for text in options.shapes:
        sides = text.split("x")
        if len(sides) != 4 or not all(side.isdecimal() and int(side) > 0 for side in sides):
            raise ValueError(f"--shapes must be like 8x256x56x56, got {text}")
        shapes.append(tuple(map(int, sides)))
    names = options.plugins or list(PLUGINS)
    print(run(names, shapes, options.naive, options.out, seconds=options.seconds, layouts=options.layouts))


def _cost(options: argparse.Namespace) -> None:
    from visionattn.cost import measure, write_table

    if options.size < 1:
        raise ValueError(f"--size must be at least 1, got {options.size}")
    print(write_table(measure(options.size), options.size, options.out))


def _configs(options: argparse.Namespace) -> None:
    from visionattn.engine import list_configs

    print("\n".join(list_configs()))


def _load(options: argparse.Namespace, default_dir: str) -> "Config":
    from visionattn.engine import load_config

    config = load_config(options.config, options.cfg_options)
    config.work_dir = str(options.work_dir or config.get("work_dir") or default_dir.format(Path(config.filename).stem))
    config.launcher = options.launcher
    return config


def _evaluate(config: "Config", weights: dict[str, Any]) -> tuple[dict[str, float], Any]:
    from visionattn.engine import Runner

    if "pretrained" in config.model.get("backbone", {}):
        config.model.backbone.pretrained = False
    config.load_from = None
    runner = Runner.from_cfg(config)
    model = runner.model.module if hasattr(runner.model, "module") else runner.model
    model.load_weights(weights)
    return {name: float(value) for name, value in runner.test().items()}, runner


def _is_first_process() -> bool:
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"


def _leave(options: argparse.Namespace) -> None:
    if options.launcher != "none":
        import torch.distributed as dist

        dist.destroy_process_group()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


if __name__ == "__main__":
    main()
