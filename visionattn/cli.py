"""The command line of `visionattn ...` and tools/*.py: what can be asked for."""

import argparse
import sys
from pathlib import Path
from typing import Any

from . import commands, report_commands, weights_commands

__all__ = ["main"]


def main(command: str | None = None) -> None:
    """Runs a command with the arguments of the process.

    Args:
        command: Name of the command; taken from the arguments without it.
    """
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
    subparsers = parser.add_subparsers(required=True, metavar="command")

    def add(name: str, run: Any, summary: str, *examples: str) -> argparse.ArgumentParser:
        lines = "\n".join(f"  visionattn {name} {example}".rstrip() for example in examples)
        sub = subparsers.add_parser(
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
        commands.train,
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
        commands.test,
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
        commands.predict,
        "classify pictures, find objects in them or segment them; writes a table and the annotated pictures",
        "photo.jpg folder/ --model va_resnet10n_cbam.digits",
        "folder/ --config quickstart --checkpoint work_dirs/quickstart/best_top1.pth --out results",
        "folder/ --config quickstart-detection --checkpoint best_bbox_map.pth --score 0.3",
    )
    predict.add_argument("inputs", nargs="+", type=Path, help="pictures, or folders to search for them")
    source = predict.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", help="name of a published checkpoint, or of a pretrained network of timm's")
    source.add_argument("--config", help="path or name of a config; needs --checkpoint")
    predict.add_argument("--checkpoint", type=Path, help="weights for --config")
    predict.add_argument(
        "--out", type=Path, default=Path("predictions"), help="folder for the results (default: predictions)"
    )
    predict.add_argument("--topk", type=int, default=5, help="classification: how many classes to tell (default: 5)")
    predict.add_argument(
        "--score", type=float, default=0.5, help="detection: leave out what scores less than this (default: 0.5)"
    )
    predict.add_argument(
        "--batch-size", type=int, default=1, help="to classify, all pictures must be prepared to one size above 1"
    )
    predict.add_argument("--device", default="cpu", help="where to compute: cpu, cuda, cuda:1, ... (default: cpu)")
    _add_cfg_options(predict)

    browse = add(
        "browse",
        commands.browse,
        "draw what a config's data pipeline feeds the network: pictures with their classes, boxes or masks",
        "quickstart --count 32 --columns 8",
        "quickstart --split test --out test.png",
    )
    browse.add_argument("config", help="path of a config, or the name of a packaged one")
    browse.add_argument("--split", choices=("train", "val", "test"), default="train")
    browse.add_argument("--count", type=int, default=16, help="how many samples (default: 16)")
    browse.add_argument("--columns", type=int, default=4, help="how many stand in a row (default: 4)")
    browse.add_argument("--out", type=Path, default=Path("browse.png"), help="the picture (default: browse.png)")
    _add_cfg_options(browse)

    stamps = add(
        "prepare-stamps",
        commands.prepare_stamps,
        "compose scenes of Tux Paint's stamps, cut-out photographs of eight classes, as a COCO data set with masks",
        "",
        "--source unpacked/usr/share/tuxpaint/stamps --train 500 --test 100 --out data/stamps-small",
    )
    stamps.add_argument(
        "--source", type=Path, help="folder of the stamps (default: where Debian's tuxpaint-stamps-default has them)"
    )
    stamps.add_argument("--out", type=Path, default=Path("data/stamps"), help="a new folder (default: data/stamps)")
    stamps.add_argument("--train", type=int, default=4000, help="how many scenes to train (default: 4000)")
    stamps.add_argument("--test", type=int, default=400, help="how many scenes to test (default: 400)")
    stamps.add_argument("--size", type=int, default=256, help="side of the pictures in pixels (default: 256)")
    stamps.add_argument("--seed", type=int, default=0, help="gives other scenes (default: 0)")

    publish = add(
        "publish",
        commands.publish,
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
    publish.add_argument(
        "--bits",
        type=int,
        choices=(8, 32),
        default=32,
        help="8 rounds matrices and kernels to a quarter of the size, before they are evaluated (default: 32)",
    )

    report_commands.declare(add, _add_cfg_options)

    benchmark = add(
        "benchmark",
        commands.benchmark,
        "compare the speed of plug-ins, mixers or networks on the CPU with other implementations of the same weights",
        "--out docs/results/plugins-cpu.json",
        "--plugins cbam triplet --shapes 4x128x28x28 --seconds 0.3 --out cbam.json",
    )
    benchmark.add_argument(
        "--suite",
        choices=("plugins", "mixers", "networks", "windows"),
        default="plugins",
        help="plugins: against their papers' formulas written down literally (default); mixers: against timm's "
        "modules, or literal formulas; networks: against timm's; windows: focused linear attention against windows",
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
        commands.cost,
        "count what each plug-in adds to a ResNet-50: parameters, multiplications, memory for the backward pass",
        "--out docs/results/plugins-cost.md",
    )
    cost.add_argument("--size", type=int, default=224, help="side of the picture (default: 224)")
    cost.add_argument("--out", type=Path, required=True, help="the table, a .md file; a .csv is written beside it")

    add("configs", commands.configs, "list the packaged configs", "")
    weights_commands.declare(add)
    return parser


def _add_cfg_options(parser: argparse.ArgumentParser) -> None:
    from mmengine.config import DictAction

    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=DictAction,
        default={},
        metavar="KEY=VALUE",
        help="change the config: nested keys with dots, lists as key=a,b or key=[a,b]",
    )


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    _add_cfg_options(parser)
    parser.add_argument(
        "--launcher",
        choices=("none", "pytorch", "slurm"),
        default="none",
        help="how several processes were started, such as `torchrun --nproc-per-node 2 -m visionattn.cli train ...`",
    )


if __name__ == "__main__":
    main()
