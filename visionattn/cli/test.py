"""`visionattn test`."""

import argparse
from pathlib import Path

from ._common import add_run_options, evaluate, leave, load, use_device

SUMMARY = "evaluate a checkpoint on the test set of a config"
EXAMPLES = (
    "quickstart work_dirs/quickstart/best_top1.pth",
    "quickstart va_resnet10n_cbam.digits --out metrics.json",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    add_run_options(parser)
    parser.add_argument("checkpoint", help="name of a checkpoint, a published file, or a training checkpoint")
    parser.add_argument("--work-dir", type=Path, help="where logs go; work_dirs/<config>-test by default")
    parser.add_argument("--out", type=Path, help="write the metrics to this JSON file; what has no value is null")


def run(options: argparse.Namespace) -> None:
    """Evaluates a checkpoint."""
    from visionattn.checkpoints import load as load_weights
    from visionattn.engine import draw_scores
    from visionattn.utils.files import replacing
    from visionattn.utils.json_text import to_json
    from visionattn.utils.locate import find_checkpoint

    use_device(options.device, hide_others=True)
    config = load(options, "work_dirs/{}-test", needs=("model", "test_dataloader", "test_cfg", "test_evaluator"))
    _, facts = find_checkpoint(options.checkpoint)
    if facts is not None:
        config.model.backbone.update(facts.get("arguments", {}))
        if facts.get("modifications") and not config.model.get("attach"):
            config.model.backbone.modifications = facts["modifications"]
    metrics, runner = evaluate(config, load_weights(options.checkpoint))
    if runner.rank == 0:
        for name, value in metrics.items():
            print(f"{name:16} {value:.6f}")
        classes = runner.test_dataloader.dataset.metainfo["classes"]
        for picture in draw_scores(runner.test_evaluator.metrics, runner.log_dir, classes):
            print(f"{'picture':16} {picture}")
        if options.out:
            with replacing(options.out) as temporary:
                temporary.write_text(to_json(metrics, indent=2) + "\n", encoding="utf-8")
    leave(options)
