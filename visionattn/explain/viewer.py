"""The interactive page: a click on a patch shows where every head looks, layer by layer.

One HTML file without network and library, made from a record: the picture, the attention of each layer as small whole
numbers, and the places of its queries and keys in the image, whatever windows lie between. `viewer.html` beside this
file is the page without data; its script says what the keys and the address's `#layer=2&patch=3,5` do.
"""

import html
import io
import json
from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from .draw import as_seen
from .layer import Layer
from .maps import spatial_layers
from .positions import Places
from .record import Record

__all__ = ["page"]

_TEMPLATE = Path(__file__).with_name("viewer.html")
_LOSSLESS = 128  # pictures up to so many pixels a side are stored as they are, larger ones as JPEG


def page(
    record: Record,
    *,
    image: int = 0,
    picture: np.ndarray | None = None,
    layers: Sequence[int] | None = None,
    title: str | None = None,
    note: str = "",
    limit: float = 16.0,
    channels: bool = False,
) -> str:
    """The page of one image as a text, to be written into a file that ends in `.html`.

        with torch.no_grad(), explain.capture(model, keep=("probs",)) as record:
            model(x)
        Path("page.html").write_text(explain.page(record), encoding="utf-8")

    A weight p of a row whose largest is m is kept as `round(255 * sqrt(p / m))`, beside m in float32: it is off by at
    most 0.4 % of m. Where the page would become too large that is 15 in place of 255, and at most 7 % of m.

    Args:
        record: Of a forward pass, with `probs`.
        image: Number of the image in its batch.
        picture: What the network saw, `(H, W, 3)` uint8 RGB in any resolution; by default made of the network's input.
        layers: Numbers of the attentions to show; by default all that are held and have positions.
        title: Of the page; by default the network's class.
        note: A line beneath it, such as what was predicted.
        limit: Largest size of the page in megabytes (16: what browsers open within a second).
        channels: Also hold queries and keys, which must be in the record, in eight bits: pointing at a key in a head's
            map then shows what each channel adds to their product.

    Raises:
        ValueError: If no attention has positions, an argument is out of range, or the page would become too large.
    """
    count = len(record.images)
    if not -count <= image < count:
        raise ValueError(f"image must lie in 0..{count - 1}, got {image}")
    if limit <= 0:
        raise ValueError(f"limit must be positive, got {limit}")
    placed = spatial_layers(record)
    if layers is not None:
        known = {layer.index: layer for layer in placed}
        if missing := [number for number in layers if number not in known]:
            held = ", ".join(map(str, known))
            raise ValueError(f"layers must be of those that are held and have positions, {held}, got {missing[0]}")
        placed = [known[number] for number in sorted(set(layers))]
    title = type(record.model).__name__ if title is None else title
    seen = as_seen(record.images[image]) if picture is None else picture
    content = {
        "title": title,
        "note": note,
        "size": list(record.images.shape[-2:]),
        "picture": _encoded(seen),
        "colours": _colours(),
        "prefix": record.tokens.prefix,
        "class": record.tokens.class_row,
    }
    size = 0.0
    for bits in (8, 4):
        shown = [_layer(layer, record, image, bits) | (_channels(layer, image) if channels else {}) for layer in placed]
        text = _filled({**content, "bits": bits, "layers": shown}, title)
        size = len(text.encode()) / 1e6
        if size <= limit:
            return text
    raise ValueError(
        f"the page would have {size:.1f} MB, limit is {limit:g}: choose fewer of its {len(placed)} layers (layers=), "
        "or raise limit"
    )


def _filled(content: dict[str, Any], title: str) -> str:
    # Nothing in the data can end the script element that holds them.
    data = json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")
    head, body = _TEMPLATE.read_text(encoding="utf-8").split("@@DATA@@")
    return head.replace("@@TITLE@@", html.escape(title)) + data + body


def _layer(layer: Layer, record: Record, image: int, bits: int) -> dict[str, Any]:
    positions = record.positions(layer.index)
    groups = 1 if positions.shared else layer.shape[2]  # heads that see windows of their own
    queries, keys = positions.queries, positions.keys
    probs = layer.probs[image % len(layer.probs)].detach().float()  # images may share one map
    largest = probs.amax(-1)
    top = 2**bits - 1
    codes = (top * (probs / largest.clamp_min(torch.finfo(probs.dtype).tiny)[..., None]).sqrt()).round().byte()
    flat = codes.flatten().cpu().numpy()
    if bits == 4:
        flat = np.append(flat, np.zeros(len(flat) % 2, np.uint8))
        flat = flat[0::2] | flat[1::2] << 4
    of_image = image % len(queries.index)
    return {
        "index": layer.index,
        "path": layer.path,
        "windows": layer.shape[1],
        "heads": layer.shape[2],
        "queries": layer.shape[3],
        "keys": layer.shape[4],
        "groups": groups,
        "queryGrid": list(queries.grid),
        "keyGrid": list(keys.grid),
        "lookup": _packed(_lookup(queries, of_image, groups, record.tokens.prefix), np.int32),
        "where": _packed(keys.index[of_image, :, :groups].transpose(0, 1).cpu().numpy(), np.int32),
        "largest": _packed(largest.cpu().numpy(), np.float32),
        "codes": _packed(flat, np.uint8),
    }


def _channels(layer: Layer, image: int) -> dict[str, Any]:
    """Queries and keys as whole numbers from -127 to 127, and the factor of each row."""
    found: dict[str, Any] = {"channels": layer.q.shape[-1]}
    for name, part in (("q", layer.q), ("k", layer.k)):
        rows = part[image % len(part)].detach().float()
        factor = rows.abs().amax(-1).clamp_min(torch.finfo(rows.dtype).tiny) / 127
        found[name] = _packed((rows / factor[..., None]).round().cpu().numpy(), np.int8)
        found[f"{name}Factor"] = _packed(factor.cpu().numpy(), np.float32)
    return found


def _lookup(queries: Places, image: int, groups: int, prefix: int) -> np.ndarray:
    """For every cell of the grid, and then every extra token, the query nearest to it, or -1. `(groups, cells)`."""
    height, width = queries.grid
    area = height * width
    table = np.full((groups, area + prefix), -1)
    for group in range(groups):
        index = queries.index[image, :, group].flatten().cpu().numpy()
        for number in range(len(index) - 1, -1, -1):  # the first of several holds
            if 0 <= index[number] < area + prefix:
                table[group, index[number]] = number
        cells = table[group, :area]
        known, empty = np.flatnonzero(cells >= 0), np.flatnonzero(cells < 0)
        if len(known) and len(empty):
            rows, columns = (np.abs(part[empty, None] - part[known]) for part in np.divmod(np.arange(area), width))
            cells[empty] = cells[known[np.maximum(rows, columns).argmin(1)]]
    return table


def _packed(values: np.ndarray, kind: type) -> str:
    """Little-endian bytes in base64."""
    return b64encode(np.ascontiguousarray(values, np.dtype(kind).newbyteorder("<")).tobytes()).decode()


def _encoded(picture: np.ndarray) -> str:
    kind, options = ("png", {}) if max(picture.shape[:2]) <= _LOSSLESS else ("jpeg", {"quality": 90})
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, kind, **options)
    return f"data:image/{kind};base64,{b64encode(buffer.getvalue()).decode()}"


def _colours() -> str:
    """Viridis, which can be read by colour-blind eyes and in grey: 256 colours, three bytes each."""
    from matplotlib import colormaps

    return _packed(np.rint(colormaps["viridis"](np.arange(256))[:, :3] * 255), np.uint8)
