"""A row of numbers for every head of any network, windowed and hierarchical ones included: a table, streamed."""

from typing import Any

import torch

from .layer import Layer
from .positions import Positions
from .record import Record
from .statistics import SINK

__all__ = ["HeadTable"]

NUMBERS = ("distance", "entropy", "entropy_normalised", "peak", "extra", "sinks")


class HeadTable:
    """Numbers of every head, the means over a data set, in the protocol of torchmetrics: `update`, `compute`, `reset`.

    Of each head, over the rows of the image's tokens (of extra tokens, where only these ask):

    - `distance`: mean distance between a token and what it attends to, in sides of the image; weights on extra tokens
      are left out and the rest scaled to the sum 1;
    - `entropy` in nats, and `entropy_normalised`: divided by its largest, the logarithm of the number of keys in reach;
    - `peak`: the largest weight of a row;
    - `extra`: the weight that goes to extra tokens (class token, registers);
    - `sinks`: how many keys of a window get more than ten times their share.

    Attention between channels has no distance and no extra tokens. `attention_statistics` has more, for plain
    transformers.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forgets everything."""
        self.sums: dict[tuple[int, str, str], torch.Tensor] = {}
        self.images = 0

    def update(self, record: Record) -> None:
        """Takes the images of a record with `probs` in.

        Raises:
            ValueError: If it is of a network with other layers or heads than those before.
        """
        batch = len(record.images)
        for layer in record:
            if "probs" not in layer.raw:
                continue
            placed = layer.kind == "spatial" and record.has(layer.index)
            numbers = _numbers(layer, record.positions(layer.index) if placed else None)
            total = numbers.double().mean(0) * batch
            key = (layer.index, layer.path, layer.kind)
            if self.images and (key not in self.sums or self.sums[key].shape != total.shape):
                raise ValueError(f"layer {layer.index} ({layer.path}) is not among those of the records before")
            self.sums[key] = self.sums[key] + total if key in self.sums else total
        self.images += batch

    def compute(self) -> list[dict[str, Any]]:
        """A row a head: `layer`, `path`, `kind`, `head` and the numbers; None for one that does not exist.

        Raises:
            ValueError: If there were no images.
        """
        if not self.images:
            raise ValueError("there is nothing to compute: call update(record) first")
        rows = []
        for (index, path, kind), total in self.sums.items():
            for head, values in enumerate((total / self.images).tolist()):
                row = {name: None if value != value else value for name, value in zip(NUMBERS, values, strict=True)}
                rows.append({"layer": index, "path": path, "kind": kind, "head": head, **row})
        return rows


def _numbers(layer: Layer, positions: Positions | None) -> torch.Tensor:
    """`(B, heads, numbers)`; NaN for one that does not exist."""
    probs = layer.probs.detach().float()  # (B, windows, heads, N, M)
    tiny = torch.finfo(probs.dtype).tiny
    distance = extra = torch.full_like(probs[..., 0], torch.nan)
    asking = torch.ones_like(probs[..., 0])
    reach = torch.full_like(asking, probs.shape[-1])
    if positions is not None:
        queries, keys = positions.queries, positions.keys
        of_image = queries.valid & (queries.prefix < 0)
        asking = (of_image if of_image.any() else queries.valid).expand_as(asking).to(probs)
        attended = keys.valid | (probs > 0).any(-2)  # some networks attend to their padding
        reach = attended.sum(-1, keepdim=True).expand_as(asking).to(probs)
        patches = (keys.valid & (keys.prefix < 0)).to(probs).unsqueeze(-2)
        between = torch.hypot(
            queries.y.unsqueeze(-1) * queries.span[0] - keys.y.unsqueeze(-2) * keys.span[0],
            queries.x.unsqueeze(-1) * queries.span[1] - keys.x.unsqueeze(-2) * keys.span[1],
        )
        weights = probs * patches
        distance = (weights * between).sum(-1) / weights.sum(-1).clamp_min(tiny)
        if not of_image.any():  # extra tokens stand nowhere
            distance = torch.full_like(distance, torch.nan)
        extra = (probs * (keys.prefix >= 0).unsqueeze(-2)).sum(-1)
    entropy = torch.special.entr(probs).sum(-1)
    rows = torch.stack((distance, entropy, entropy / reach.log().clamp_min(1e-6), probs.amax(-1), extra), -1)
    rows = torch.where(asking[..., None] > 0, rows, 0)
    # Over windows and rows; a head's rows that are padding ask for nothing.
    means = rows.sum((1, 3)) / asking.sum((1, 3)).clamp_min(1)[..., None]
    received = (probs * asking[..., None]).sum(-2) / asking.sum(-1, keepdim=True).clamp_min(1)
    sinks = (received > SINK / reach[..., :1]).float().sum(-1).mean(1)
    return torch.cat((means, sinks[..., None]), -1)
