"""Heads as points in a plane: those that attend alike lie close together.

How Does Attention Work in Vision Transformers? A Visual Analytics Attempt (IEEE VIS 2023, arXiv 2303.13731).

Official code: none was found.

Differs from the paper in: patterns come into the plane by principal components, t-SNE or UMAP, not through an
autoencoder that is trained for it.
"""

from collections.abc import Collection
from typing import Any

import torch

from visionattn.utils.arguments import check_choice, check_positive

from ._flow import Flow, regrid
from .joint_embedding import METHODS, projection
from .layer import Layer
from .maps import spatial_layers
from .record import Record

__all__ = ["head_patterns"]


def head_patterns(
    record: Record,
    *,
    method: str = "tsne",
    side: int = 8,
    layers: Collection[int] | None = None,
    seed: int = 0,
    **options: Any,
) -> dict[str, torch.Tensor]:
    """Places every head in a plane by its pattern: where it looks from where, the mean over the images.

    Patterns leave out extra tokens and lie on one grid, so that windows, reduced keys and stages can be compared.

    Args:
        record: Of a forward pass.
        method: `tsne`, `pca` (scikit-learn) or `umap` (the package umap-learn).
        side: Side of the common grid, 8 as most patterns are smooth: a pattern has `side ** 4` numbers.
        layers: Numbers of the attentions; all that have positions without it.
        seed: Of the projection.
        **options: Of the projection's class.

    Returns:
        `points` `(heads of all layers, 2)`, `layer` and `head` of each, and `patterns` `(heads, side ** 2, side ** 2)`.

    Raises:
        ValueError: If no attention has positions, fewer than three heads are chosen, or an argument is out of range.
        ModuleNotFoundError: If scikit-learn or umap-learn is not installed.
    """
    check_choice("method", method, METHODS)
    check_positive(side=side)
    chosen = [layer for layer in spatial_layers(record) if layers is None or layer.index in layers]
    found = [
        (layer.index, head, _pattern(record, layer, head, side)) for layer in chosen for head in range(layer.shape[2])
    ]
    if len(found) < 3:
        raise ValueError(f"layers must have three heads together at least, got {len(found)}")
    numbers, heads, patterns = zip(*found, strict=True)
    flat = torch.stack(patterns)
    points = projection(method, len(flat), seed, options).fit_transform(flat.flatten(1).double().cpu().numpy())
    return {
        "points": torch.as_tensor(points).float(),
        "layer": torch.tensor(numbers),
        "head": torch.tensor(heads),
        "patterns": flat,
    }


def _pattern(record: Record, layer: Layer, head: int, side: int) -> torch.Tensor:
    positions, prefix = record.positions(layer.index).of_head(head), record.tokens.prefix
    flow = Flow(layer.probs[:, :, head : head + 1].detach().float(), positions, prefix)
    cells = torch.eye(side * side, device=layer.probs.device)
    cells = torch.cat((cells, cells.new_zeros(prefix, side * side))).expand(len(record.images), -1, -1)
    seen = flow @ regrid(cells, (side, side), positions.keys.grid)
    return regrid(seen, positions.queries.grid, (side, side))[:, : side * side].mean(0)
