"""`visionattn explain`."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._common import add_device, use_device
from ._heads import show_heads

if TYPE_CHECKING:
    import torch

    from visionattn.explain import Record
    from visionattn.inference import Subject

SUMMARY = (
    "show where a network looks: attention, relevance, class activation maps, gates; statistics, a page to click in"
)
EXAMPLES = (
    "photo.jpg --model vit_small_patch16_224 --method relevance,rollout --target 281",
    "photos/ --model davit_tiny --method attention --layer 0 --query 120,80 --heads all",
    "photo.jpg --model va_resnet10n_cbam.digits --method gates --out maps",
    "photo.jpg --model va_stm_swin_nano.digits --html page.html",
    "scene.png --model va_resnet10n_cbam.digit_scenes_fcos --method gates --box 1",
    "photos/ --model va_stm_swin_nano.digits --statistics --csv heads.csv",
    "--model va_stm_swin_nano.digits --list",
)
_DOTS = 200  # an inch, of figures without vectors


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("inputs", nargs="*", help="pictures, or folders to search for pictures")
    parser.add_argument(
        "--model",
        required=True,
        metavar="NAME|FILE",
        help="name or file of a published checkpoint, hf-hub:ORG/NAME, a pretrained network of timm's, or a config; of "
        "any task",
    )
    parser.add_argument(
        "--checkpoint", metavar="NAME|FILE", help="weights of a config, or in place of the published ones"
    )
    parser.add_argument(
        "--method",
        nargs="+",
        default=[],
        metavar="NAME",
        help="see --list (default: relevance, if neither --html nor --statistics is given)",
    )
    parser.add_argument("--target", type=int, help="number of the class to explain (default: the predicted one)")
    parser.add_argument("--box", type=int, default=0, help="detection: which object, from the best on (default: 0)")
    parser.add_argument(
        "--region",
        metavar="Y0,X0,Y1,X1",
        help="segmentation: only pixels of the class inside, in the network's input (default: all)",
    )
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
    parser.add_argument("--format", choices=("png", "pdf", "svg"), default="png", help="of the figures (default: png)")
    parser.add_argument("--raw", action="store_true", help="also write the maps as numbers, an .npz for each picture")
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="write a page to click in, of one picture: where every head looks"
    )
    parser.add_argument("--layers", metavar="0,3,8-11", help="--html: layers to show (default: all)")
    parser.add_argument(
        "--limit", type=float, default=16.0, metavar="MB", help="--html: largest size of the page (default: 16)"
    )
    parser.add_argument(
        "--channels", action="store_true", help="--html: also hold queries and keys, to see which channels match"
    )
    parser.add_argument(
        "--statistics", action="store_true", help="print a table of numbers of every head, the means over the pictures"
    )
    parser.add_argument("--csv", type=Path, metavar="FILE", help="--statistics: also write the table as CSV")
    parser.add_argument(
        "--picture", type=Path, metavar="FILE", help="--statistics: also draw it, .png, .pdf or .svg: layers by heads"
    )
    parser.add_argument("--list", action="store_true", help="say what the network offers, and why not the rest")
    add_device(parser, "cpu")


def run(options: argparse.Namespace) -> None:
    """Explains predictions."""
    if not options.inputs and not options.list:
        raise ValueError("name pictures or folders of pictures, or ask with --list what the network offers")
    for name in ("csv", "picture"):
        if getattr(options, name) and not options.statistics:
            raise ValueError(f"--{name} is of --statistics: give both")
    if options.picture and options.picture.suffix not in (".png", ".pdf", ".svg"):
        raise ValueError(f"--picture must end in .png, .pdf or .svg, got {options.picture}")
    if (options.layers or options.channels) and not options.html:
        raise ValueError("--layers and --channels are for --html; --layer is for --method attention")
    query = None if options.query is None else _numbers(options.query, "--query", 2)
    options.region = None if options.region is None else _numbers(options.region, "--region", 4)
    options.layers = None if options.layers is None else _ranges(options.layers)
    if options.heads not in ("mean", "all"):
        _numbers(options.heads, "--heads")
    use_device(options.device)

    from visionattn.explain.offers import METHODS
    from visionattn.inference.loading import load_network
    from visionattn.utils.building import did_you_mean

    options.method = [name for text in options.method for name in text.split(",")]
    if not (options.method or options.html or options.statistics):
        options.method = ["relevance"]
    for name in options.method:
        if name not in METHODS:
            raise ValueError(f"unknown --method {name!r}{did_you_mean(name, METHODS)}; there are {', '.join(METHODS)}")
    network = load_network(options.model, options.checkpoint, options.device)
    if options.target is not None and not 0 <= options.target < len(network.classes):
        raise ValueError(f"--target must lie in 0..{len(network.classes) - 1}, got {options.target}")
    for name, given, task in (
        ("box", options.box != 0, "detection"),
        ("region", options.region is not None, "segmentation"),
    ):
        if given and network.task != task:
            raise ValueError(f"--{name} is for {task}, but this network is for {network.task}")
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


def _ranges(text: str) -> tuple[int, ...]:
    """Whole numbers and ranges of them, such as `0,3,8-11`."""
    found: list[int] = []
    for part in text.split(","):
        ends = part.split("-")
        if len(ends) > 2 or not all(end.isdecimal() for end in ends):
            raise ValueError(f"--layers must be numbers and ranges such as 0,3,8-11, got {text!r}")
        found += range(int(ends[0]), int(ends[-1]) + 1)
    return tuple(found)


def _list(network: Any) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from visionattn.explain.offers import METHODS, methods
    from visionattn.inference.explaining import whole_network

    reasons = methods(*whole_network(network))
    rows = {name: (reason, METHODS[name]) for name, reason in reasons.items()}
    rows["--html"] = (reasons["rollout"], "a page to click in: where every head looks, layer by layer")
    rows["--statistics"] = (reasons["attention"], "distance, entropy, peaks and sinks of every head")
    table = Table("method", "offered", "what it shows, or why it is not offered")
    for name, (reason, shown) in rows.items():
        table.add_row(name, "no" if reason else "yes", escape(reason or shown))  # square brackets are no markup
    Console().print(table)


def _explain(network: Any, options: argparse.Namespace, query: tuple[int, ...] | None) -> None:
    from visionattn.explain import HeadTable, heads_figure
    from visionattn.inference import find_images
    from visionattn.inference.explaining import subject
    from visionattn.inference.pictures import list_pictures

    files = [file for path in map(Path, options.inputs) for file in (find_images(path) if path.is_dir() else [path])]
    if options.html and len(files) != 1:
        raise ValueError(f"--html shows one picture, got {len(files)}")
    table = HeadTable()
    chosen = {"target": options.target, "box": options.box, "region": options.region}
    for picture in list_pictures(files):
        explained = subject(network, picture, **chosen)
        if options.method:
            _draw(explained, Path(picture.name).stem, options, query)
        if options.html or options.statistics:
            record = _record(explained, options.channels)
            if options.statistics:
                table.update(record)
            if options.html:
                _write_page(explained, record, options)
    if options.statistics:
        show_heads(rows := table.compute(), options.csv)
        if options.picture:
            _save(heads_figure(rows, title=str(options.model)), options.picture)


def _record(explained: "Subject", channels: bool) -> "Record":
    import torch

    from visionattn import explain

    keep = ("probs", "q", "k") if channels else ("probs",)
    with torch.no_grad(), explain.capture(explained.network, keep=keep) as record:
        explained.network(explained.x)
    return record


def _draw(explained: "Subject", stem: str, options: argparse.Namespace, query: tuple[int, ...] | None) -> None:
    """A figure for each method, and the numbers."""
    import numpy as np

    from visionattn import explain
    from visionattn.utils.files import replacing

    numbers: dict[str, Any] = {}
    for method in options.method:
        maps = _maps(explained.network, explained.x, method, options, query, explained.target)
        numbers |= {f"{method} {label}".strip(): values.detach().cpu().numpy() for label, values in maps.items()}
        several = len(maps) > 1
        drawn = explain.figure(
            explained.seen,
            {label or method: values for label, values in maps.items()},
            title=f"{options.model}: {explained.title}" + (f", {method}" if several else ""),
            label="gate" if method == "gates" else "weight" if method in ("attention", "rollout") else method,
            outline=explained.outline,
        )
        name = method.replace(":", "-")  # not every file system has colons
        path = options.out / f"{stem}_{name}{'_grid' if several else ''}.{options.format}"
        _save(drawn, path)
    if options.raw:
        with replacing(options.out / f"{stem}.npz") as temporary:
            np.savez_compressed(temporary, **numbers)


def _save(figure: Any, path: Path) -> None:
    from visionattn.utils.files import replacing

    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=_DOTS)
    print(path)


def _write_page(explained: "Subject", record: "Record", options: argparse.Namespace) -> None:
    from visionattn import explain
    from visionattn.utils.files import replacing

    text = explain.page(
        record,
        picture=explained.seen,
        layers=options.layers,
        title=str(options.model),
        note=explained.title,
        limit=options.limit,
        channels=options.channels,
    )
    with replacing(options.html) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(f"{options.html} ({len(text.encode()) / 1e6:.1f} MB): open it in a browser")


def _maps(
    model: Any,
    x: "torch.Tensor",
    method: str,
    options: argparse.Namespace,
    query: tuple[int, ...] | None,
    target: int,
) -> "dict[str, torch.Tensor]":
    """The maps of one method, `(h, w)` each, with their labels; a single one has none."""
    import torch

    from visionattn import explain

    layer = -1 if options.layer is None else options.layer
    if method == "relevance":
        return {"": explain.relevance(model, x, target)[0]}
    if method == "attention-gradcam":
        return {"": explain.attention_grad_cam(model, x, target, layer=layer)[0]}
    if method in explain.CAMS:
        return {"": explain.cam(model, x, target, method=method)[0]}
    if method in explain.ATTRIBUTIONS:
        return {"": explain.attribution(model, x, target, method=method)[0]}
    if method == "gates":
        return {name: factor[0] for name, factor in explain.spatial_gates(model, x).items()}
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
