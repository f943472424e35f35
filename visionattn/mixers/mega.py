"""Mega: moving average equipped gated attention (ICLR 2023, arXiv 2209.10655).

Official code: https://github.com/facebookresearch/mega (MIT), fairseq/modules/moving_average_gated_attention.py and
exponential_moving_average.py. `layout="raster"` is that layer and loads its weights; `layout="grid"`, the form for
images, is ours: moving averages along the rows and along the columns, and attention in windows or of the whole map.

Differs from the official code in:
- the residual connection is left to the host: what comes out is the layer minus its input;
- sequences need not be whole chunks, and offsets beyond the table of biases count as its last ones;
- kernels are made anew in every call, where the official module keeps those of evaluation even if weights change.

Golden: tests/golden/mega_*.npz (official outputs and input gradients; the grid's of an independent implementation).
"""

from math import log
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from visionattn.catalog import BlockContext, Card
from visionattn.ops import merge_windows, partition_windows, widened
from visionattn.utils.arguments import check_choice, check_positive

from ._ema import DampedEMA, MultiHeadEMA
from ._gated_skeleton import GatedSkeleton
from ._sequence_norm import NORMS, sequence_norm

__all__ = ["MegaAttention", "MultiHeadEMA"]

_ATTENTIONS = ("softmax", "laplace", "relu2")


class MegaAttention(GatedSkeleton):
    """Gated attention with queries and keys from a moving average. `(B, H, W, C) -> (B, H, W, C)`, any H, W >= 1.

    The layer holds its own residual connection and gate, `x + u (h - x)`. **What comes out is that minus x**, for the
    residual connection of a host. There is one head, and no place for extra tokens: pool the mean.

    Args:
        dim: Width C.
        zdim: Width z of queries and keys, by default half of `dim`.
        hdim: Width e of values, by default twice `dim`.
        ndim: States of the moving average of each channel.
        attn: `softmax` of the scores times `zdim ** -0.5`; or, of the scores over the number of keys, `laplace`, the
            normal distribution that comes nearest to a squared ReLU, or `relu2`, that itself.
        window: Side of the windows that attention stays in; the last ones of a map are smaller. With `raster`: length
            of the official chunks. None: the whole map.
        max_window: Offsets between positions that have a bias of their own are smaller than this.
        update_gate: Whether there is u. Without it what comes out is h, an ordinary residual branch.
        layout: `grid`, or `raster`: the official layer on the rows one after the other.
        rel_pos: Of `raster`: `simple`, a bias for each offset; or `rotary`, from two vectors that turn with the
            position, `zdim` being even.
        norm: `layer`, `scale`, `rms` or `batch`.
        prenorm: Whether the norm stands in front of the layer, or behind its residual connection.
        bidirectional: Whether moving averages come from both ends.
        truncation: How many positions they count at most; none: all.
        attn_drop: Dropout of the attention weights.
        proj_drop: Dropout of h.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        dim: int,
        *,
        zdim: int | None = None,
        hdim: int | None = None,
        ndim: int = 16,
        attn: str = "softmax",
        window: int | None = None,
        max_window: int = 14,
        update_gate: bool = True,
        layout: str = "grid",
        rel_pos: str = "simple",
        norm: str = "layer",
        prenorm: bool = True,
        bidirectional: bool = True,
        truncation: int | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            dim, zdim=zdim, hdim=hdim, update_gate=update_gate, proj_drop=proj_drop, device=device, dtype=dtype
        )
        check_choice("attn", attn, _ATTENTIONS)
        check_choice("layout", layout, ("grid", "raster"))
        check_choice("rel_pos", rel_pos, ("simple", "rotary"))
        check_choice("norm", norm, NORMS)
        check_positive(max_window=max_window)
        if window is not None:
            check_positive(window=window)
        if rel_pos == "rotary" and (layout == "grid" or self.gamma.size(1) % 2):
            raise ValueError(f"rel_pos='rotary' needs layout='raster' and an even zdim, got {layout!r}, zdim={zdim}")
        self.attn = attn
        self.window = window
        self.layout = layout
        self.prenorm = prenorm
        self.attn_drop = nn.Dropout(attn_drop)
        self.norm = sequence_norm(norm, dim, device=device, dtype=dtype)

        def average(cls: Any) -> Any:
            options = {"ndim": ndim, "bidirectional": bidirectional, "truncation": truncation}
            return cls(dim, **options, device=device, dtype=dtype)

        if layout == "raster":
            self.move = average(MultiHeadEMA)
            self.rel_pos_bias = _RasterBias(rel_pos, self.gamma.size(1), max_window, device, dtype)
            self.register_load_state_dict_pre_hook(_from_official)
        else:
            self.ema_h, self.ema_w = average(DampedEMA), average(DampedEMA)
            self.omega = nn.Parameter(torch.randn(dim, device=device, dtype=dtype))
            table = torch.empty(2 * max_window - 1, 2 * max_window - 1, device=device, dtype=dtype)
            self.rel_bias = nn.Parameter(table)
            nn.init.normal_(self.rel_bias, std=0.02)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = super().forward(x)
        return out if self.prenorm else self.norm(x + out) - x

    def norm_in(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x) if self.prenorm else x

    def smooth(self, x: torch.Tensor) -> torch.Tensor:
        if self.layout == "raster":
            return self.move(x.flatten(1, 2)).view(x.shape)
        return F.silu(self.ema_w(x, 2) + self.ema_h(x, 1) + self.omega * x).to(x.dtype)

    def read(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        size = (q.size(1), q.size(2))
        if self.layout == "raster":
            q, k, v = (part.flatten(1, 2).unsqueeze(1) for part in (q, k, v))
        grid = (q.size(1), q.size(2))
        window = grid
        if self.window is not None:
            window = (min(self.window, grid[0]), min(self.window, grid[1]))
        queries, keys, values = (partition_windows(part, window) for part in (q, k, v))
        real = None
        if any(side % length for side, length in zip(grid, window, strict=True)):
            real = partition_windows(q.new_ones(q.shape[0], *grid, 1), window).mT  # (B * windows, 1, n)
        out = self._weights(queries, keys, self._bias(window), real) @ values
        return merge_windows(out, grid, window).reshape(q.shape[0], *size, -1)

    def weights(self, x: torch.Tensor) -> torch.Tensor:
        """The attention weights, `(B, 1, N, N)`, of a map `(B, H, W, C)`; zero across windows."""
        count = x.size(1) * x.size(2)
        values = torch.eye(count, device=x.device, dtype=x.dtype).view(1, *x.shape[1:3], count)
        return self.read(*self.queries_keys(x), values.expand(x.shape[0], -1, -1, -1)).flatten(1, 2).unsqueeze(1)

    def _weights(self, q: torch.Tensor, k: torch.Tensor, bias: torch.Tensor, real: torch.Tensor | None) -> torch.Tensor:
        """Attention weights in each window, `(B * windows, n, n)`; `real` marks tokens that are not padding."""
        if self.attn == "softmax":
            scores = q @ k.mT * q.size(-1) ** -0.5 + bias.to(q.dtype)
            if real is not None:
                scores = scores.masked_fill(real == 0, float("-inf"))
            return self.attn_drop(scores.softmax(-1))
        count = k.size(1) if real is None else real.sum(-1, keepdim=True)
        scores = q @ k.mT / count + bias.to(q.dtype)
        weights = scores.relu().square() if self.attn == "relu2" else _laplace(scores)
        return self.attn_drop(weights if real is None else weights * real)

    def _bias(self, window: tuple[int, int]) -> torch.Tensor:
        """The bias of each pair of positions of a window, `(n, n)`."""
        if self.layout == "raster":
            return self.rel_pos_bias(window[1])
        rows, columns = (_offsets(side, self.rel_bias) for side in window)
        by_row = self.rel_bias.index_select(0, rows.flatten()).view(*rows.shape, -1)
        pairs = by_row.index_select(2, columns.flatten()).unflatten(2, columns.shape)
        return pairs.permute(0, 2, 1, 3).reshape(window[0] * window[1], -1)


class _RasterBias(nn.Module):
    """The official biases of sequences, `(length, length)`.

    Args:
        kind: `simple` or `rotary`.
        zdim: Width of the queries and keys.
        longest: From which offset on biases are all the same.
    """

    def __init__(
        self,
        kind: str,
        zdim: int,
        longest: int,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.kind = kind
        if kind == "simple":
            self.rel_pos_bias = nn.Parameter(torch.empty(2 * longest - 1, device=device, dtype=dtype))
        else:
            self.alpha, self.beta = (nn.Parameter(torch.empty(1, zdim, device=device, dtype=dtype)) for _ in range(2))
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.02)

    def forward(self, length: int) -> torch.Tensor:
        if self.kind == "simple":
            offsets = _offsets(length, self.rel_pos_bias)
            return self.rel_pos_bias.index_select(0, offsets.flatten()).view(length, length)
        return self._rotated(self.alpha, length) @ self._rotated(self.beta, length).mT

    def _rotated(self, vector: torch.Tensor, length: int) -> torch.Tensor:
        """A vector rotated by each position, `(length, z)`; its halves are the two coordinates."""
        first, second = widened(vector).chunk(2, -1)
        half = first.size(-1)
        speed = torch.exp(torch.arange(half, device=vector.device) * (-log(10000) / half))
        angle = torch.arange(length, device=vector.device).unsqueeze(1) * speed
        cos, sin = angle.cos(), angle.sin()
        return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


def _offsets(length: int, table: torch.Tensor) -> torch.Tensor:
    """The table index of the bias of key j for query i, `(length, length)`, clamped to the table."""
    largest = table.size(0) // 2
    at = torch.arange(length, device=table.device)
    return (at - at.unsqueeze(1)).clamp(-largest, largest) + largest


def _laplace(x: torch.Tensor) -> torch.Tensor:
    """The normal distribution of mean sqrt(1/2) and variance 1 / (4 pi)."""
    return 0.5 * (1 + torch.erf((x - 0.707107) / (0.282095 * 2**0.5)))


def _from_official(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Renames official weights: their norm is nested in a module, and one buffer of the biases is empty."""
    state_dict.pop(f"{prefix}rel_pos_bias._float_tensor", None)
    inside = f"{prefix}norm.norm."
    for key in [key for key in state_dict if key.startswith(inside)]:
        state_dict[f"{prefix}norm.{key.removeprefix(inside)}"] = state_dict.pop(key)


def _keywords(context: BlockContext) -> dict[str, Any]:
    return {"window": 7, "max_window": 7}


CARD = Card(
    name="mega",
    title="Mega: moving average equipped gated attention",
    kind="mixer",
    factory=MegaAttention,
    summary="gated attention in windows on top of moving averages along all rows and columns",
    flow=(
        "norm -> (moving averages of rows and columns -> SiLU -> q and k | v) -> softmax attention in windows -> "
        "output gate -> update gate"
    ),
    paper="arXiv:2209.10655",
    code="https://github.com/facebookresearch/mega",
    license="MIT",
    placement="in every block in place of attention",
    avoid="on maps of a few hundred positions where time counts: scans along all rows and columns come before "
    "the attention",
    pyramid=("nano", "micro"),
    columnar=("nano", "tiny"),
    keywords=_keywords,
    cases={
        "": {"window": 3, "max_window": 3, "ndim": 4},
        "laplace, whole map": {"attn": "laplace", "ndim": 4},
        "raster": {"layout": "raster", "attn": "relu2", "window": 6, "rel_pos": "rotary", "ndim": 4},
    },
    cost="N w, plus N sqrt(N) or N log N for the moving averages",
    memory="N",
    maps=True,
    reference="mega",
)
