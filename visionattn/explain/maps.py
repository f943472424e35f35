"""Attention as maps of the image: the rows of one layer, and their product over all layers (rollout).

Attention rollout: Quantifying Attention Flow in Transformers (ACL 2020, arXiv 2005.00928).

Official code: https://github.com/hila-chefer/Transformer-Explainability (MIT), file ViT_explanation_generator.py of
baselines/ViT; the fusions and the discarding of https://github.com/jacobgil/vit-explain (MIT), vit_rollout.py.

Differs from the official codes in:
- windowed and hierarchical networks: attention goes to the tokens that the positions say, and where the grid becomes
  coarser a token starts as the mean of those that it was made of;
- networks without a class token: the mean over the rows of the patches;
- discarding spares what the class token gets; rows are divided by their sums, for each image by itself.
  `rollout_matrix(legacy=True)` keeps vit-explain's quirks.

Golden: tests/golden/explain_rollout_*.npz.
"""

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from visionattn.utils.arguments import check_choice

from ._flow import Flow, regrid
from .layer import Layer
from .record import Record

__all__ = ["FUSIONS", "min_max", "raw", "rollout", "rollout_matrix", "spatial_layers", "upsample"]

FUSIONS = ("mean", "max", "min")


def raw(record: Record, layer: int = -1) -> torch.Tensor:
    """The attention of the token that the classifier reads in one layer, averaged over heads. `-> (B, H, W)`.

    Args:
        record: Of a forward pass.
        layer: Number of the attention; negative ones count among those with positions.

    Raises:
        ValueError: If there is no such attention, or it has no positions.
    """
    chosen = chosen_layer(record, layer)
    positions, prefix = record.positions(chosen.index), record.tokens.prefix
    flow = Flow(chosen.probs.detach().float(), positions, prefix)
    keys = torch.eye(flow.counts[1], device=chosen.probs.device).expand(len(record.images), -1, -1)
    return class_map(flow @ keys, record, positions.queries.grid, positions.keys.grid)


def rollout(
    record: Record, *, fusion: str = "mean", discard: float = 0.0, start: int = 0, class_row: int | None = None
) -> torch.Tensor:
    """The product over the layers of attention with a residual, `(mean_h A + I)` with rows of sum 1. `-> (B, H, W)`.

    Args:
        record: Of a forward pass.
        fusion: How heads become one: `mean`, `max` or `min`.
        discard: Share of each layer's smallest weights that is set to zero, from 0 up to but not including 1.
        start: The first layer of the product, counted among those with positions.
        class_row: Number of the extra token whose map it is; by default the one that the classifier reads.
    """
    check_choice("fusion", fusion, FUSIONS)
    _check_share(discard)
    layers = spatial_layers(record)
    if not 0 <= start < len(layers):
        raise ValueError(f"start must lie in 0..{len(layers) - 1}, got {start}")
    state = TokenMatrix(record, layers[start])
    for levels in levels_of(record, layers[start:]):
        state.add([(_one_head(record, layer, fusion, discard), layer) for layer in levels], normalise=True)
    return state.map(class_row)


def rollout_matrix(
    attention: torch.Tensor,
    *,
    fusion: str = "mean",
    discard: float = 0.0,
    start: int = 0,
    prefix: int = 1,
    legacy: bool = False,
) -> torch.Tensor:
    """Rollout of plain matrices. `(B, layers, heads, T, T) -> (B, T, T)`.

    Args:
        attention: Probabilities.
        fusion: As for `rollout`.
        discard: As there.
        start: As there.
        prefix: The first tokens, of which the first keeps all that it gets.
        legacy: As in vit-explain: the smallest weights of the whole matrix but its first entry are discarded, and
            columns are divided by the sums of the rows.
    """
    check_choice("fusion", fusion, FUSIONS)
    _check_share(discard)
    tokens = attention.shape[-1]
    identity = torch.eye(tokens, dtype=attention.dtype, device=attention.device)
    result = identity.expand(len(attention), -1, -1)
    for heads in attention[:, start:].unbind(1):
        fused = _fused(heads, fusion, 1)
        if discard:
            spared = torch.zeros(tokens, tokens, dtype=torch.bool, device=fused.device)
            spared[slice(1) if legacy else slice(None), : min(prefix, 1)] = True
            smallest = fused.flatten(1).topk(int(discard * tokens * tokens), largest=False).indices
            dropped = torch.zeros_like(fused.flatten(1), dtype=torch.bool).scatter_(1, smallest, True)
            fused = fused.masked_fill(dropped.view_as(fused) & ~spared, 0)
        fused = fused + identity
        total = fused.sum(-1)
        result = fused / (total.unsqueeze(1) if legacy else total.unsqueeze(2)) @ result
    return result


def upsample(maps: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Maps enlarged to the size of the images, bilinearly. `(B, h, w) -> (B, H, W)`."""
    return F.interpolate(maps[:, None], tuple(size), mode="bilinear")[:, 0]


def min_max(maps: torch.Tensor) -> torch.Tensor:
    """Scales each map to 0..1; a constant map becomes 0."""
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    return (maps - low) / (high - low).clamp_min(torch.finfo(maps.dtype).tiny)


def spatial_layers(record: Record) -> list[Layer]:
    """The attentions of a record that were kept and have positions.

    Raises:
        ValueError: If there are none.
    """
    held = [layer for layer in record if layer.kind == "spatial" and "probs" in layer.raw and record.has(layer.index)]
    if not held:
        raise ValueError(f"{type(record.model).__name__} has no attention between places of the image: use explain.cam")
    return held


def chosen_layer(record: Record, layer: int) -> Layer:
    """An attention by its number; negative ones count among those with positions.

    Raises:
        ValueError: If there is no such attention.
    """
    layers = spatial_layers(record) if layer < 0 else [*record]
    if not -len(layers) <= layer < len(layers):
        raise ValueError(f"layer must lie in 0..{len(record) - 1}, or be negative and count from the last, got {layer}")
    return layers[layer]


def levels_of(record: Record, layers: Sequence[Layer]) -> list[list[Layer]]:
    """Attentions in groups: those of one module on several grids together, which see one map side by side."""
    groups: list[list[Layer]] = []
    for layer in layers:
        last = groups[-1][-1] if groups else None
        grids = {record.positions(each.index).queries.grid for each in (last, layer) if each is not None}
        if last is not None and last.path == layer.path and len(grids) > 1:
            groups[-1].append(layer)
        else:
            groups.append([layer])
    return groups


def class_map(
    rows: torch.Tensor,
    record: Record,
    grid: tuple[int, int],
    source: tuple[int, int],
    class_row: int | None = None,
) -> torch.Tensor:
    """The map of the token that the classifier reads. `(B, tokens, source tokens) -> (B, H, W)`.

    Args:
        rows: On a grid.
        record: Says which token that is.
        grid: Of the rows.
        source: Grid of the columns.
        class_row: Number of an extra token in its place.
    """
    known = record.tokens
    row = known.class_row if class_row is None else class_row
    if row is not None and not 0 <= row < max(known.prefix, 1):
        raise ValueError(f"class_row must lie in 0..{known.prefix - 1}, the extra tokens of this network, got {row}")
    area = grid[0] * grid[1]
    chosen = rows[:, :area].mean(1) if row is None else rows[:, area + row]
    return chosen[:, : source[0] * source[1]].unflatten(1, source)


class TokenMatrix:
    """The share of each token of the first grid in each token of the current one; initially the identity."""

    def __init__(self, record: Record, first: Layer) -> None:
        self.record, self.prefix = record, max(record.tokens.prefix, 0)
        grids = [record.positions(layer.index).keys.grid for layer in spatial_layers(record)]
        self.source = self.grid = max(grids, key=lambda grid: grid[0] * grid[1])
        count = self.source[0] * self.source[1] + self.prefix
        self.value = torch.eye(count, device=first.probs.device).expand(len(record.images), -1, -1)

    def add(self, levels: Sequence[tuple[torch.Tensor, Layer]], *, normalise: bool = False) -> None:
        """`R <- R + A R`, on the grid of the attention's queries; with `normalise` rows of `I + A` get the sum 1.

        Args:
            levels: Weights and their attention; several where a module attends on levels of one map, see `levels_of`,
                whose results are added up on the first grid.
            normalise: Whether rows are.
        """
        before, grid = self.value, self.grid
        self.grid = self.record.positions(levels[0][1].index).queries.grid
        self.value = regrid(before, grid, self.grid)
        total = self.value.new_ones(*self.value.shape[:2], 1)
        for weights, layer in levels:
            positions = self.record.positions(layer.index)
            flow = Flow(weights, positions, self.prefix)
            seen = regrid(before, grid, positions.keys.grid)
            self.value = self.value + regrid(flow @ seen, positions.queries.grid, self.grid)
            if normalise:
                taken = flow @ seen.new_ones(*seen.shape[:2], 1)
                total = total + regrid(taken, positions.queries.grid, self.grid)
        if normalise:
            self.value = self.value / total

    def matrix(self) -> torch.Tensor:
        """`(B, tokens, tokens of the first grid)`, the extra ones first, as transformers have them."""
        rows, columns = (grid[0] * grid[1] for grid in (self.grid, self.source))
        value = torch.cat((self.value[:, rows:], self.value[:, :rows]), 1)
        return torch.cat((value[..., columns:], value[..., :columns]), 2)

    def map(self, class_row: int | None = None) -> torch.Tensor:
        """The map of the token that the classifier reads, `(B, H, W)`."""
        return class_map(self.value, self.record, self.grid, self.source, class_row)


def _check_share(discard: float) -> None:
    if not 0 <= discard < 1:
        raise ValueError(f"discard must be at least 0 and below 1, got {discard}")


def _one_head(record: Record, layer: Layer, fusion: str, discard: float) -> torch.Tensor:
    """The weights of an attention with its heads fused and the smallest discarded, in their shape."""
    weights = layer.probs.detach().float()
    positions = record.positions(layer.index)
    if positions.shared:
        weights = _fused(weights, fusion, 2, keepdim=True).expand_as(weights)
    elif fusion != "mean":
        raise ValueError(f"fusion must be mean where heads see windows of their own, got {fusion!r}")
    return _without_smallest(weights, positions.keys.prefix == 0, discard) if discard else weights


def _fused(weights: torch.Tensor, fusion: str, axis: int, keepdim: bool = False) -> torch.Tensor:
    if fusion == "mean":
        return weights.mean(axis, keepdim)
    return weights.amax(axis, keepdim) if fusion == "max" else weights.amin(axis, keepdim)


def _without_smallest(weights: torch.Tensor, spared: torch.Tensor, share: float) -> torch.Tensor:
    """Sets a share of each head's smallest weights to zero, except for protected keys."""
    flat = weights.transpose(1, 2).flatten(2)
    smallest = flat.topk(int(share * flat.shape[2]), largest=False).indices
    dropped = torch.zeros_like(flat, dtype=torch.bool).scatter_(2, smallest, True)
    dropped = dropped.view_as(weights.transpose(1, 2)).transpose(1, 2)
    return weights.masked_fill(dropped & ~spared.unsqueeze(3), 0)
