"""What the commands of `visionattn ...` do; heavy imports wait until a command needs them."""

import argparse
import json
import os
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visionattn.utils.files import replacing

if TYPE_CHECKING:
    from mmengine.config import Config

__all__ = [
    "benchmark",
    "browse",
    "configs",
    "cost",
    "predict",
    "prepare_stamps",
    "publish",
    "roofline",
    "test",
    "train",
]


def train(options: argparse.Namespace) -> None:
    """Trains by a config, then says how good the result is and what to do next."""
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

    from .engine import Runner

    runner = Runner.from_cfg(config)
    started = time.monotonic()
    runner.train()
    if runner.rank == 0:
        _summarise(options.config, config, work_dir, time.monotonic() - started)
    _leave(options)


def _summarise(name: str, config: "Config", work_dir: Path, seconds: float) -> None:
    from .engine import draw_learning_curve, read_scalars

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


def test(options: argparse.Namespace) -> None:
    """Evaluates a checkpoint."""
    from .checkpoints import info, load, read_weights
    from .engine import draw_scores

    config = _load(options, default_dir="work_dirs/{}-test")
    path = Path(options.checkpoint)
    is_file = path.exists() or path.suffix in (".pth", ".pt", ".safetensors")
    if is_file:
        weights = read_weights(path)
    else:
        weights = load(options.checkpoint)
        config.model.backbone.update(info(options.checkpoint).get("arguments", {}))
    metrics, runner = _evaluate(config, weights)
    if runner.rank == 0:
        for name, value in metrics.items():
            print(f"{name:16} {value:.6f}")
        classes = runner.test_dataloader.dataset.metainfo["classes"]
        for picture in draw_scores(runner.test_evaluator.metrics, runner.work_dir, classes):
            print(f"{'picture':16} {picture}")
        if options.out:
            with replacing(options.out) as temporary:
                temporary.write_text(json.dumps(metrics, indent=2) + "\n")
    _leave(options)


def predict(options: argparse.Namespace) -> None:
    """Predicts on pictures."""
    from rich.console import Console
    from rich.progress import track
    from rich.table import Table

    from .engine import load_config
    from .inference import Predictor, find_images, save_predictions

    if options.config and not options.checkpoint:
        raise ValueError("--config needs --checkpoint")
    if options.topk < 1:
        raise ValueError(f"--topk must be at least 1, got {options.topk}")
    if not 0 <= options.score <= 1:
        raise ValueError(f"--score must lie in 0..1, got {options.score}")
    if options.out.exists():
        raise ValueError(f"--out {options.out} exists already; name another folder, so that nothing is overwritten")
    paths = find_images(options.inputs)
    how = {"device": options.device, "topk": options.topk, "score": options.score}
    if options.model:
        predictor = Predictor.from_name(options.model, **how)
    else:
        predictor = Predictor.from_config(load_config(options.config, options.cfg_options), options.checkpoint, **how)
    console = Console()
    shown = track(predictor(paths, options.batch_size), "predicting", len(paths), console=console)
    summaries = save_predictions(shown, options.out)
    table = Table("image", "prediction")
    for path, summary in summaries[:20]:
        table.add_row(str(path), summary)
    console.print(table)
    if len(summaries) > 20:
        console.print(f"... and {len(summaries) - 20} more")
    console.print(f"all of them in {options.out / 'predictions.csv'}, the annotated pictures beside it")


def prepare_stamps(options: argparse.Namespace) -> None:
    """Composes scenes of Tux Paint's stamps."""
    from rich.progress import track

    from visionattn.data.synthetic.objects import SYSTEM_FOLDER, prepare_stamps

    counts = {"train": options.train, "test": options.test}
    source = options.source or SYSTEM_FOLDER
    prepare_stamps(source, options.out, counts, options.size, options.seed, lambda numbers, what: track(numbers, what))
    print(f"{counts['train']} scenes to train and {counts['test']} to test are in {options.out}")


def publish(options: argparse.Namespace) -> None:
    """Evaluates a training checkpoint and publishes it."""
    from visionattn.utils.quantization import pack, unpack

    from .checkpoints import publish, read_weights

    options.cfg_options, options.launcher = {}, "none"
    options.work_dir = vars(options).get("work_dir")
    config = _load(options, default_dir="work_dirs/{}-publish")
    config.model.backbone.model_name = options.name.partition(".")[0]
    weights = read_weights(options.checkpoint)
    # What is measured is what others will load.
    metrics, runner = _evaluate(config, unpack(pack(weights)) if options.bits == 8 else weights)
    dataset, task = runner.test_dataloader.dataset, runner.model
    preprocessor = config.data_preprocessor
    path = publish(
        task.backbone if task.kind == "classification" else task,
        options.name,
        options.out,
        classes=dataset.metainfo["classes"],
        mean=tuple(value / 255 for value in preprocessor.mean),
        std=tuple(value / 255 for value in preprocessor.std),
        input_size=tuple(dataset[0]["inputs"].shape),
        facts={
            "task": task.kind,
            "dataset": type(dataset).__name__,
            "metrics": metrics,
            "config": options.config,
            "command": f"visionattn test {options.config} {options.name}",
            "license": options.license,
            "origin": options.origin,
        },
        bits=options.bits,
    )
    print(f"published {path} ({path.stat().st_size / 1e6:.2f} MB): {metrics}")


def benchmark(options: argparse.Namespace) -> None:
    """Times plug-ins, mixers or networks against other implementations, and reports what was measured."""
    from . import benchmark as bench

    if (options.json is None) == (not options.records):
        raise ValueError("give either --json, the file of a new run, or --from, the files of earlier runs")
    base = bench.load(options.compare) if options.compare else None
    if options.records:
        records = {path: bench.load(path) for path in options.records}
    else:
        device = {"gpu": "cuda", "cpu": "cpu"}.get(options.suite, options.device)
        cases = bench.suite_cases(
            options.suite,
            device,
            plugins=options.plugins,
            shapes=[_shape(text) for text in options.shapes],
            layouts=options.layouts,
        )
        seconds = options.seconds or {"cpu": 0.5, "cuda": 0.1}[device]
        limit = options.limit or {"cpu": float("inf"), "cuda": 480.0}[device]
        plan = bench.make_plan(
            options.suite, device, cases, seconds=seconds, limit=limit, compilers=options.compile_seconds
        )
        records = {options.json: bench.run(plan, options.json)}
    for path, record in records.items():
        text = bench.write_report(record, path)
        if not options.records:
            print(text)
    if options.readme:
        text = bench.update_readme(options.readme.read_text(), list(records.values()))
        with replacing(options.readme) as temporary:
            temporary.write_text(text)
    if base is not None:
        lines = [line for record in records.values() for line in bench.compare(record, base)]
        _compare_speed(lines, options.fail_below)
    refused = [row for record in records.values() for row in record["rows"] if "refused" in row]
    if refused:
        sys.exit(f"visionattn: {len(refused)} rows were refused: their contenders disagree or failed")


def _shape(text: str) -> tuple[int, ...]:
    sides = text.split("x")
    if len(sides) != 4 or not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise ValueError(f"--shapes must be like 8x256x56x56, got {text}")
    return tuple(map(int, sides))


def _compare_speed(lines: list[tuple[str, float, tuple[float, float]]], fail_below: float | None) -> None:
    """Prints how fast the head is over the base, and ends with 1 if a row fell below the limit and its noise."""
    worse = 0
    for name, ratio, (low, high) in lines:
        regressed = fail_below is not None and ratio < min(fail_below, low)
        worse += regressed
        mark = "  REGRESSION" if regressed else "  slower than noise" if ratio < low else ""
        print(f"{ratio:6.2f}x (noise {low:.2f}-{high:.2f})  {name}{mark}")
    print(f"{len(lines)} rows in both records" + (f", {worse} regressed" if fail_below is not None else ""))
    if worse:
        sys.exit(1)


def roofline(options: argparse.Namespace) -> None:
    """Counts what the blocks move and compute."""
    import torch

    from visionattn.profiling.roofline import blocks, count, format_table

    if min(options.batch, options.bandwidth, options.peak) <= 0:
        raise ValueError("--batch, --bandwidth and --peak must be above 0")
    dtype = getattr(torch, options.dtype)
    chosen = [block for block in blocks(options.batch, 56) if not options.names or block.name in options.names]
    unknown = set(options.names) - {block.name for block in chosen}
    if unknown:
        known = ", ".join(block.name for block in blocks(1, 56))
        raise ValueError(f"unknown block {', '.join(sorted(unknown))}; there are: {known}")
    counted = [(block, count(block, dtype=dtype)) for block in chosen]
    text = format_table(counted, dtype.itemsize, options.bandwidth * 1e12, options.peak * 1e12)
    if options.out:
        with replacing(options.out) as temporary:
            temporary.write_text(text)
    print(text)


def cost(options: argparse.Namespace) -> None:
    """Counts what plug-ins add to a network."""
    from visionattn.profiling.cost import measure, write_table

    if options.size < 1:
        raise ValueError(f"--size must be at least 1, got {options.size}")
    print(write_table(measure(options.size), options.size, options.out))


def browse(options: argparse.Namespace) -> None:
    """Draws what the data pipeline feeds the network."""
    from PIL import Image

    from .engine import draw_samples, load_config

    if options.count < 1 or options.columns < 1:
        raise ValueError(f"--count and --columns must be at least 1, got {options.count} and {options.columns}")
    if options.out.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise ValueError(f"--out must end in .png or .jpg, got {options.out}")
    config = load_config(options.config, options.cfg_options)
    picture = Image.fromarray(draw_samples(config, options.split, options.count, options.columns))
    with replacing(options.out) as temporary:
        picture.save(temporary)
    print(f"{options.out}: {options.split} samples of {options.config}, {picture.width}x{picture.height} pixels")


def configs(options: argparse.Namespace) -> None:
    """Lists the packaged configs."""
    from .engine import list_configs

    print("\n".join(list_configs()))


def _load(options: argparse.Namespace, default_dir: str) -> "Config":
    from .engine import load_config

    config = load_config(options.config, options.cfg_options)
    config.work_dir = str(options.work_dir or config.get("work_dir") or default_dir.format(Path(config.filename).stem))
    config.launcher = options.launcher
    return config


def _evaluate(config: "Config", weights: dict[str, Any]) -> tuple[dict[str, float], Any]:
    from .engine import Runner

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
    """Leaves together: a process that ends while others still talk to it may take them down."""
    if options.launcher != "none":
        import torch.distributed as dist
        from mmengine.dist import barrier

        barrier()
        dist.destroy_process_group()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
