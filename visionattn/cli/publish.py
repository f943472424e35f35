"""`visionattn publish`."""

import argparse
from pathlib import Path

from ._common import add_cfg_options, command_line, evaluate, load, self_contained

SUMMARY = "evaluate a training checkpoint and write it as one file that loads by its name, here or from the hub"
EXAMPLES = (
    "quickstart work_dirs/quickstart/best_top1.pth --name va_resnet10n_cbam.my_digits --license apache-2.0",
    "my_config.py best_top1.pth --name va_resnet50_cbam.my_photos --license mit --hub ORG/NAME",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("config", help="path or name of the config it was trained by")
    parser.add_argument("checkpoint", type=Path, help="the training checkpoint")
    parser.add_argument(
        "--name", required=True, metavar="MODEL.TAG", help="what it is called, such as va_resnet50_cbam.my_photos"
    )
    parser.add_argument("--license", required=True, help="licence of the weights, such as apache-2.0")
    parser.add_argument("--origin", default="trained with this package", help="where the weights come from")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("checkpoints"),
        help="folder of the file; found by name are those in ./checkpoints, the default, and in the folder that "
        "VISIONATTN_CHECKPOINTS names",
    )
    parser.add_argument(
        "--bits",
        type=int,
        choices=(4, 8, 32),
        default=32,
        help="8 rounds matrices and kernels to a quarter of the size, 4 to an eighth, before they are evaluated "
        "(default: 32)",
    )
    parser.add_argument(
        "--hub", metavar="ORG/NAME", help="also upload it to this repository of the Hugging Face hub, with a model card"
    )
    parser.add_argument("--private", action="store_true", help="with --hub: make a new repository private")
    add_cfg_options(parser)


def run(options: argparse.Namespace) -> None:
    """Evaluates a training checkpoint and publishes it."""
    from visionattn.checkpoints import describe_pipeline, publish, push_to_hub, read_weights
    from visionattn.utils.published import check_name, find_published
    from visionattn.utils.quantization import pack, unpack

    check_name(options.name)
    options.launcher = "none"
    options.work_dir = vars(options).get("work_dir")
    config = load(options, default_dir="work_dirs/{}-publish")
    # What the network was made of, in place of a checkpoint that it may have started from.
    config.model.backbone = {**self_contained(config.model.backbone), "model_name": options.name.partition(".")[0]}
    weights = read_weights(options.checkpoint)
    # What is measured is what others will load.
    metrics, runner = evaluate(config, weights if options.bits == 32 else unpack(pack(weights, options.bits)))
    dataset, task = runner.test_dataloader.dataset, runner.model
    preprocessor, pipeline = config.data_preprocessor, config.test_dataloader.dataset.get("pipeline", [])
    model = config.model.to_dict()
    alone = task.kind == "classification" and not (model.get("head") or model.get("frontend"))
    path = publish(
        task.backbone if alone else task,
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
            "command": command_line("test", options.config, options.name, cfg_options=options.cfg_options),
            "license": options.license,
            "origin": options.origin,
            "arguments": model["backbone"],
            **({} if alone else {"task_config": model}),
            "preprocessor": preprocessor.to_dict(),
            "pipeline": [step.to_dict() for step in pipeline],
            "palette": dataset.metainfo.get("palette"),
            **describe_pipeline(pipeline),
        },
        bits=options.bits,
    )
    print(f"published {path} ({path.stat().st_size / 1e6:.2f} MB): {metrics}")
    if options.hub:
        print(f"uploaded  {push_to_hub(path, options.hub, private=options.private)}")
    print(f"next      visionattn predict PICTURES --model {options.name if find_published(options.name) else path}")
