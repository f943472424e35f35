"""`visionattn predict`."""

import argparse
from pathlib import Path

from ._common import add_cfg_options, add_device, use_device

SUMMARY = "classify pictures, detect objects in them or segment them; write a table and the annotated pictures"
EXAMPLES = (
    "photo.jpg folder/ --model va_resnet10n_cbam.digits",
    "folder/ --config quickstart --checkpoint work_dirs/quickstart/best_top1.pth --out results",
    "folder/ --config quickstart-detection --checkpoint best_bbox_map.pth --score 0.3",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("inputs", nargs="+", type=Path, help="pictures, or folders to search for them")
    parser.add_argument(
        "--model",
        help="name of a published checkpoint, or of a pretrained network of timm's; with --config the network that was "
        "trained in place of the config's",
    )
    parser.add_argument("--config", help="path or name of a config; needs --checkpoint")
    parser.add_argument("--checkpoint", type=Path, help="weights for --config")
    parser.add_argument(
        "--out", type=Path, default=Path("predictions"), help="folder for the results (default: predictions)"
    )
    parser.add_argument("--topk", type=int, default=5, help="classification: top-k classes to report (default: 5)")
    parser.add_argument("--score", type=float, default=0.5, help="detection: lowest score to report (default: 0.5)")
    parser.add_argument(
        "--batch-size",
        type=int,
        default=1,
        help="pictures per forward pass (default: 1); above 1, pictures to classify must be prepared to one size",
    )
    add_device(parser, "cpu")
    add_cfg_options(parser)


def run(options: argparse.Namespace) -> None:
    """Predicts on pictures."""
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import track
    from rich.table import Table

    from visionattn.engine import load_config
    from visionattn.inference import Predictor, find_images, save_predictions

    if not (options.config or options.model):
        raise ValueError("name a network: --model NAME, or --config CONFIG with --checkpoint FILE")
    if bool(options.config) != bool(options.checkpoint):
        raise ValueError("--config and --checkpoint go together: the weights of a network that the config describes")
    if options.topk < 1:
        raise ValueError(f"--topk must be at least 1, got {options.topk}")
    if not 0 <= options.score <= 1:
        raise ValueError(f"--score must lie in 0..1, got {options.score}")
    if options.out.exists():
        raise ValueError(f"--out {options.out} exists already; name another folder, so that nothing is overwritten")
    use_device(options.device)
    paths = find_images(options.inputs)
    how = {"device": options.device, "topk": options.topk, "score": options.score}
    if options.config:
        config = options.loaded = load_config(options.config, options.cfg_options, options.model)
        predictor = Predictor.from_config(config, options.checkpoint, **how)
    else:
        predictor = Predictor.from_name(options.model, **how)
    console = Console()
    shown = track(predictor(paths, options.batch_size), "predicting", len(paths), console=console)
    summaries = save_predictions(shown, options.out)
    table = Table("image", "prediction")
    for path, summary in summaries[:20]:
        table.add_row(escape(str(path)), escape(summary))
    console.print(table)
    if len(summaries) > 20:
        console.print(f"... and {len(summaries) - 20} more")
    console.print(f"all of them in {escape(str(options.out / 'predictions.csv'))}, the annotated pictures beside it")
