"""`visionattn explain`."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._common import add_device, use_device

if TYPE_CHECKING:
    import numpy as np
    import torch

SUMMARY = "show where a classifier looks: attention, relevance, class activation maps and gates over pictures"
EXAMPLES = (
    "photo.jpg --model vit_small_patch16_224 --method relevance,rollout --target 281",
    "photos/ --model davit_tiny --method attention --layer 0 --query 120,80 --heads all",
    "photo.jpg --model va_resnet10n_cbam.digits --method gates --out maps",
    "--model va_stm_swin_nano.digits --list",
)
_ENLARGED = 224  # pictures of smaller networks are drawn with at least so many pixels


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("inputs", nargs="*", help="pictures, or folders to search for pictures")
    parser.add_argument(
        "--model",
        required=True,
        metavar="NAME|FILE",
        help="name or file of a published checkpoint, hf-hub:ORG/NAME, or a pretrained network of timm's",
    )
    parser.add_argument("--checkpoint", metavar="NAME|FILE", help="weights in place of the published ones")
    parser.add_argument(
        "--method", nargs="+", default=["relevance"], metavar="NAME", help="see --list (default: relevance)"
    )
    parser.add_argument("--target", type=int, help="number of the class to explain (default: the predicted one)")
    parser.add_argument("--layer", type=int, help="attention: number of the layer (default: the last)")
    parser.add_argument(
        "--query",
        metavar="Y,X",
        help="attention: pixel of the network's input that looks (default: class token or mean)",
    )
    parser.add_argument(
        "--heads", default="mean", metavar="mean|all|0,2", help="attention: heads to show (default: their mean)"
    )
    parser.add_argument("--out", type=Path, default=Path("explanations"), help="folder (default: explanations)")
    parser.add_argument("--raw", action="store_true", help="also write the maps as numbers, an .npz for each picture")
    parser.add_argument(
        "--list", action="store_true", help="say which methods the network offers, and why not the rest"
    )
    add_device(parser, "cpu")


def run(options: argparse.Namespace) -> None:
    """Explains predictions."""
    if not options.inputs and not options.list:
        raise ValueError("name pictures or folders of pictures, or ask with --list what the network offers")
    query = None if options.query is None else _numbers(options.query, "--query", 2)
    if options.heads not in ("mean", "all"):
        _numbers(options.heads, "--heads")
    use_device(options.device)

    from visionattn.explain.offers import METHODS
    from visionattn.inference.loading import load_network
    from visionattn.utils.building import did_you_mean

    options.method = [name for text in options.method for name in text.split(",")]
    for name in options.method:
        if name not in METHODS:
            raise ValueError(f"unknown --method {name!r}{did_you_mean(name, METHODS)}; there are {', '.join(METHODS)}")
    network = load_network(options.model, options.checkpoint, options.device)
    if network.batch is None:
        raise ValueError(f"{options.model} is for {network.task}; visionattn explain takes classifiers")
    if options.target is not None and not 0 <= options.target < len(network.classes):
        raise ValueError(f"--target must lie in 0..{len(network.classes) - 1}, got {options.target}")
    if options.list:
        _list(network)
        return
    _explain(network, options, query)


def _numbers(text: str, option: str, count: int | None = None) -> tuple[int, ...]:
    """Parses comma-separated integers."""
    try:
        numbers = tuple(map(int, text.split(",")))
    except ValueError:
        numbers = ()
    if not numbers or (count is not None and len(numbers) != count):
        raise ValueError(f"{option} must be {count or 'some'} whole numbers with commas between them, got {text!r}")
    return numbers


def _list(network: Any) -> None:
    import numpy as np
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from visionattn.explain.offers import METHODS, methods

    x = network.batch([network.prepare(np.zeros((256, 256, 3), np.uint8), "a black picture")])
    table = Table("method", "offered", "what it shows, or why it is not offered")
    for name, reason in methods(network.classifier, x).items():
        table.add_row(name, "no" if reason else "yes", escape(reason or METHODS[name]))  # square brackets are no markup
    Console().print(table)


def _explain(network: Any, options: argparse.Namespace, query: tuple[int, ...] | None) -> None:
    import numpy as np

    from visionattn.explain import draw
    from visionattn.inference import find_images
    from visionattn.inference.pictures import list_pictures

    files = [file for path in map(Path, options.inputs) for file in (find_images(path) if path.is_dir() else [path])]
    options.out.mkdir(parents=True, exist_ok=True)
    for picture in list_pictures(files):
        x = network.batch([network.prepare(picture.read(), picture.name)])
        seen = _as_seen(x[0])
        stem = Path(picture.name).stem
        numbers: dict[str, Any] = {}
        for method in options.method:
            maps = _maps(network.classifier, x, method, options, query)
            numbers |= {f"{method} {label}".strip(): values.cpu().numpy() for label, values in maps.items()}
            drawn = [draw.overlay(seen, values.cpu()) for values in maps.values()]
            several = len(drawn) > 1
            result = draw.grid(drawn, list(maps), columns=min(len(drawn), 4)) if several else drawn[0]
            path = options.out / f"{stem}_{method}{'_grid' if several else ''}.png"
            _save(result, path)
            print(path)
        if options.raw:
            np.savez_compressed(options.out / f"{stem}.npz", **numbers)


def _as_seen(x: "torch.Tensor") -> "np.ndarray":
    """A network's input as an image: exactly the pixels it sees, stretched from black to white."""
    import numpy as np

    low, high = x.amin(), x.amax()
    scaled = ((x - low) / (high - low).clamp_min(1e-12) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    times = -(-_ENLARGED // min(scaled.shape[:2]))
    return np.repeat(np.repeat(scaled, times, 0), times, 1)


def _maps(
    model: Any, x: "torch.Tensor", method: str, options: argparse.Namespace, query: tuple[int, ...] | None
) -> "dict[str, torch.Tensor]":
    """The maps of one method, `(h, w)` each, with their labels; a single one has none."""
    import torch

    from visionattn import explain

    layer = -1 if options.layer is None else options.layer
    if method == "relevance":
        return {"": explain.relevance(model, x, options.target)[0]}
    if method == "attention-gradcam":
        return {"": explain.attention_grad_cam(model, x, options.target, layer=layer)[0]}
    if method in explain.CAMS:
        return {"": explain.cam(model, x, options.target, method=method)[0]}
    if method == "gates":
        spatial = {
            f"{name} {key}": factor[0].mean(0)
            for name, factors in explain.gates(model, x).items()
            for key, factor in factors.items()
            if factor.shape[2:] != (1, 1)
        }
        if not spatial:
            raise ValueError("the gates of this network are of channels, and have no place in the image")
        return spatial
    with torch.no_grad(), explain.capture(model, keep=("probs",)) as record:
        model(x)
    if method == "rollout":
        return {"": explain.rollout(record)[0]}
    if options.layer is not None and not 0 <= layer < len(record):
        raise ValueError(f"--layer must lie in 0..{len(record) - 1}, got {layer}")
    if query is None and options.heads == "mean":
        return {"": explain.raw(record, layer)[0]}
    chosen = layer if layer >= 0 else explain.spatial_layers(record)[layer].index
    if query is None and record.tokens.class_row is None:
        raise ValueError("--heads needs --query Y,X: the class of this network is read from no token of its own")
    at: Any = record.tokens.class_row if query is None else query
    heads = record.map(chosen, at)[0]
    if options.heads == "mean":
        return {"": heads.mean(0)}
    wanted = range(len(heads)) if options.heads == "all" else _numbers(options.heads, "--heads")
    if any(not 0 <= head < len(heads) for head in wanted):
        raise ValueError(f"--heads must lie in 0..{len(heads) - 1}, got {options.heads}")
    return {f"layer {chosen} head {head}": heads[head] for head in wanted}


def _save(picture: "np.ndarray", path: Path) -> None:
    from PIL import Image

    Image.fromarray(picture).save(path)
