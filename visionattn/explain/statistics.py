"""Statistics of attention heads: distance, entropy, deviation, attention on each token, offsets, sinks.

Teaching Matters: Investigating the Role of Supervision in Vision Transformers (CVPR 2023, arXiv 2212.03862). A token
is a sink if it gets more than ten times its share.

Official code: https://github.com/mwalmer-umd/vit_analysis (MIT), analysis/attention_metrics.py.

Differs from the official code in:
- any grid and any number of extra tokens; each image by itself;
- attention of the patches to the class token is read from its column, not from the first patch's;
- nothing of the caller's is changed.

Golden: tests/golden/explain_stats_*.npz.
"""

from collections.abc import Callable

import torch
from torch.nn import functional as F

from .record import Record

__all__ = ["AttentionStatistics", "aligned_map", "attention_statistics", "statistics"]

SINK = 10.0  # times the share of a token


def attention_statistics(attention: torch.Tensor, grid: tuple[int, int], prefix: int) -> dict[str, torch.Tensor]:
    """All statistics of probabilities `(B, layers, heads, T, T)` of T = prefix + H * W tokens, extra ones first.

    Args:
        attention: Probabilities.
        grid: `(H, W)`.
        prefix: Number of extra tokens; the first is the class token.

    Returns:
        `(B, layers, heads)` each, unless another shape is given:

        - `distance`: mean distance of a patch to what it attends to, on the unit square; `distance_patches` in patches;
        - `entropy` in nats, mean over the rows, and `entropy_normalised`, in 0..1;
        - `position_deviation`: how much the rows of the patches differ; `head_deviation` `(B, layers)`: the heads;
        - `patch_to_cls`: mean weight that patches give to the class token, if there is one;
        - `on_token` `(..., T)`: mean weight that each token gets; `sinks` `(..., T)`: those with ten times their share;
        - `aligned` `(..., 2H - 1, 2W - 1)`: mean attention around a patch, rows scaled to the sum 1;
        - `offset_y`, `offset_x` and `offset`: its centre of mass in -1..1.

    Raises:
        ValueError: If there are other numbers of tokens.
    """
    tokens, area = attention.shape[-1], grid[0] * grid[1]
    if attention.ndim != 5 or attention.shape[-2] != tokens or tokens != prefix + area:
        raise ValueError(
            f"attention must be (B, layers, heads, T, T) with T = {prefix} + {grid[0]} * {grid[1]}, got "
            f"{tuple(attention.shape)}"
        )
    patches = attention[..., prefix:, prefix:]
    entropy = torch.special.entr(attention).sum(-1).mean(-1)
    on_token = attention.mean(-2)
    rows = _unit_rows(patches)
    aligned = aligned_map(rows, grid)
    offset_y, offset_x = _centre(aligned)
    result = {
        "distance": _distance(rows, grid, unit=True),
        "distance_patches": _distance(rows, grid, unit=False),
        "entropy": entropy,
        "entropy_normalised": entropy / torch.tensor(float(tokens)).log(),
        "position_deviation": patches.std(-2).mean(-1),
        "head_deviation": patches.std(2, correction=min(1, attention.shape[2] - 1)).mean((-2, -1)),
        "on_token": on_token,
        "sinks": on_token > SINK / tokens,
        "aligned": aligned,
        "offset_x": offset_x,
        "offset_y": offset_y,
        "offset": torch.hypot(offset_x, offset_y),
    }
    if prefix:
        result["patch_to_cls"] = attention[..., prefix:, 0].mean(-1)
    return result


def aligned_map(patches: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """The mean of all rows, each shifted to centre its patch. `(..., P, P) -> (..., 2H - 1, 2W - 1)`."""
    height, width = grid
    rows = patches.reshape(-1, height, width, height, width)
    canvas = patches.new_zeros(len(rows), 2 * height - 1, 2 * width - 1)
    for i in range(height):
        for j in range(width):
            canvas[:, height - 1 - i : 2 * height - 1 - i, width - 1 - j : 2 * width - 1 - j] += rows[:, i, j]
    return (canvas / (height * width)).unflatten(0, patches.shape[:-2])


class AttentionStatistics:
    """Means of the statistics over a data set, in the protocol of torchmetrics: `update`, `compute`, `reset`.

    For networks whose tokens all see each other. Maps are not kept: what grows with the data is nothing.

    Args:
        select: Which numbers to keep of those that `attention_statistics` names; all without it.
    """

    def __init__(self, select: Callable[[str], bool] | None = None) -> None:
        self.select = select
        self.reset()

    def reset(self) -> None:
        """Resets the sums."""
        self.sums: dict[str, torch.Tensor] = {}
        self.images = 0

    def update(self, record: Record) -> None:
        """Adds the images of a record."""
        found = statistics(record)
        for name, values in found.items():
            if self.select is None or self.select(name):
                total = values.double().sum(0)
                self.sums[name] = self.sums[name] + total if name in self.sums else total
        self.images += len(record.images)

    def compute(self) -> dict[str, torch.Tensor]:
        """Means over the images, `(layers, heads)` and so on.

        Raises:
            ValueError: If there were no images.
        """
        if not self.images:
            raise ValueError("there is nothing to compute: call update(record) first")
        return {name: total / self.images for name, total in self.sums.items()}


def statistics(record: Record) -> dict[str, torch.Tensor]:
    """`attention_statistics` of a record of a plain transformer.

    Raises:
        ValueError: If its layers do not all see all tokens, or differ in their heads.
    """
    known = record.tokens
    layers = [layer for layer in record if layer.kind == "spatial"]
    tokens = None if known.grid is None else known.prefix + known.grid[0] * known.grid[1]
    full = [layer for layer in layers if layer.shape[1] == 1 and layer.shape[3] == layer.shape[4] == tokens]
    if not full or known.grid is None or len({layer.shape for layer in full}) > 1:
        raise ValueError(
            f"statistics are of networks whose tokens all see each other, not of {type(record.model).__name__}: use "
            "explain.HeadTable"
        )
    attention = torch.cat([layer.probs.detach().float() for layer in full], 1)
    return attention_statistics(attention, known.grid, known.prefix)


def _unit_rows(patches: torch.Tensor) -> torch.Tensor:
    """Rows normalised to sum 1 over the patches; rows without weight stay 0."""
    return F.normalize(patches, p=1, dim=-1, eps=torch.finfo(patches.dtype).tiny)


def _distance(rows: torch.Tensor, grid: tuple[int, int], *, unit: bool) -> torch.Tensor:
    """The mean distance over rows that sum to 1."""
    sides = [torch.arange(side, dtype=rows.dtype, device=rows.device) for side in grid]
    if unit:
        sides = [side / max(len(side) - 1, 1) for side in sides]
    places = torch.cartesian_prod(*sides)
    return (rows * torch.cdist(places, places)).sum(-1).mean(-1)


def _centre(aligned: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Centre of mass in -1..1 along both axes; 0 without mass."""
    mass = aligned.sum((-2, -1))
    rows, columns = (torch.linspace(-1, 1, side).to(aligned) for side in aligned.shape[-2:])
    safe = mass.clamp_min(torch.finfo(aligned.dtype).tiny)
    return (aligned.sum(-1) * rows).sum(-1) / safe, (aligned.sum(-2) * columns).sum(-1) / safe
