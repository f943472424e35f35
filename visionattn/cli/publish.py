"""`visionattn publish`."""

import argparse
from pathlib import Path

from ._common import evaluate, load

SUMMARY = "turn a training checkpoint into a small file for others, evaluated and entered into a manifest"
EXAMPLES = ("quickstart work_dirs/quickstart/best_top1.pth --name va_resnet10n_cbam.digits --license apache-2.0",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("config", help="path or name of the config it was trained by")
    parser.add_argument("checkpoint", type=Path, help="the training checkpoint")
    parser.add_argument("--name", required=True, metavar="MODEL.TAG", help="the name under which timm finds it")
    parser.add_argument("--license", required=True, help="licence of the weights, such as apache-2.0")
    parser.add_argument("--origin", default="trained with this package", help="where the weights come from")
    parser.add_argument(
        "--out", type=Path, default=Path("checkpoints"), help="folder of the manifest (default: checkpoints)"
    )
    parser.add_argument(
        "--bits",
        type=int,
        choices=(8, 32),
        default=32,
        help="8 rounds matrices and kernels to a quarter of the size, before they are evaluated (default: 32)",
    )


def run(options: argparse.Namespace) -> None:
    """Evaluates a training checkpoint and publishes it."""
    from visionattn.checkpoints import publish, read_weights
    from visionattn.utils.quantization import pack, unpack

    options.cfg_options, options.launcher = {}, "none"
    options.work_dir = vars(options).get("work_dir")
    config = load(options, default_dir="work_dirs/{}-publish")
    config.model.backbone.model_name = options.name.partition(".")[0]
    weights = read_weights(options.checkpoint)
    # What is measured is what others will load.
    metrics, runner = evaluate(config, unpack(pack(weights)) if options.bits == 8 else weights)
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
