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
        "compare the speed of plug-ins, mixers and networks with other implementations of the same weights",
        "--suite cpu --json docs/results/cpu.json         # all that runs on one CPU thread, 15 minutes",
        "--suite gpu --json docs/results/gpu.json         # all GPU rows, under 9 minutes",
        "--plugins cbam triplet --shapes 4x128x28x28 --seconds 0.3 --json cbam.json",
        "--suite mixers --json new.json --compare old.json --fail-below 0.9",
        "--from docs/results/*.json --readme README.md    # tables and pictures of earlier runs, made anew",
    )
    benchmark.add_argument(
        "--suite",
        choices=("plugins", "mixers", "windows", "networks", "cpu", "gpu"),
        default="plugins",
        help="plugins: against their papers' formulas written down literally, and timm's and fightingcv-attention's "
        "layers (default); mixers: against timm's modules, or literal formulas; windows: focused linear attention "
        "against windows; networks: against timm's, or with literal formulas inside; cpu, gpu: all of them there",
    )
    benchmark.add_argument("--json", type=Path, help="the record of a new run; tables and pictures go beside it")
    benchmark.add_argument(
        "--from", dest="records", nargs="+", type=Path, default=[], help="report on these records and run nothing"
    )
    benchmark.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to run (default: cpu)")
    benchmark.add_argument("--plugins", nargs="+", default=[], help="names of plug-ins (default: all)")
    benchmark.add_argument(
        "--shapes",
        nargs="+",
        metavar="BxCxHxW",
        default=[],
        help="shapes of the plug-ins' maps (default: an early and a late stage of a ResNet-50; on the CPU also a small "
        "map)",
    )
    benchmark.add_argument("--layouts", nargs="+", choices=("NCHW", "NHWC"), default=["NCHW", "NHWC"])
    benchmark.add_argument(
        "--seconds",
        type=float,
        help="of each contender in each row, on average (default: 0.5 of CPU time, 0.1 on a GPU)",
    )
    benchmark.add_argument(
        "--limit", type=float, help="seconds after which no row begins (default: 480 on a GPU, none on the CPU)"
    )
    benchmark.add_argument(
        "--compile-seconds", type=float, default=150.0, help="that compilers may take in all (default: 150)"
    )
    benchmark.add_argument("--readme", type=Path, help="renew the speed tables between its two marks")
    benchmark.add_argument("--compare", type=Path, help="an earlier record: print how much faster each row became")
    benchmark.add_argument(
        "--fail-below", type=float, help="with --compare: end with 1 if a row is slower than this and than noise"
    )

    roofline = add(
        "roofline",
        commands.roofline,
        "count what each block moves through memory and computes, and how fast it could be",
        "",
        "triplet cbam ops.axis_pools --batch 64 --dtype float32 --bandwidth 1.9 --peak 312",
    )
    roofline.add_argument("names", nargs="*", help="plug-ins, mixers and ops.FUNCTION (default: all)")
    roofline.add_argument("--batch", type=int, default=128, help="images (default: 128)")
    roofline.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    roofline.add_argument(
        "--bandwidth", type=float, default=3.0, help="of the memory, TB/s read and written (default: 3.0, an H100)"
    )
    roofline.add_argument("--peak", type=float, default=798.0, help="of products, TFLOP/s (default: 798, an H100)")
    roofline.add_argument("--out", type=Path, help="write the table here, too")

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
