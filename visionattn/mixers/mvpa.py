"""MVPA: scores of content, of rows and of columns, each on its own (MVPFormer, arXiv 2506.20354).

Official code: https://github.com/IBM/multi-variate-parallel-transformer (Apache-2.0), layers/mvpa.py, for series of
channels, as in mvpa_series.py. The form for maps is ours.

Differs from the official code in: rows and columns in the place of time and channels, offsets with signs, no causal
order, and tables of its own that are read from the middle; theirs are read from the end, so that an offset has another
row for another length.

Golden: tests/golden/mvpa_grid_*.npz, of an independent implementation of the same formulas.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from visionattn.catalog import BlockContext, Card
from visionattn.ops._autocast import wide
from visionattn.ops._modes import needs_formula
from visionattn.ops.query_tiles import in_tiles
from visionattn.utils.arguments import pair
from visionattn.utils.factory import FactoryKwargs

from ._common import WINDOWS, TokenMixer
from ._mvpa import (
    Terms,
    attend_by_features,
    kv_width,
    position_scores,
    start_small,
    tables_by_head,
    tokens_by_head,
)

__all__ = ["MVPAttention"]


class MVPAttention(TokenMixer):
    """Attention with scores of content, row offset and column offset. `(B, H, W, C) -> (B, H, W, C)`, any H, W >= 1.

    `s = [(q + u) k + (q + v) r(dy) + (q + z) c(dx)] / sqrt(d)` with learnt tables `r` and `c`, u, v and z; offsets
    beyond the tables take their ends. Extra tokens have scores of content only.

    Args:
        dim: Width C.
        num_heads: Heads, a divisor of `dim`.
        num_kv_heads: Heads of keys and values, a divisor of `num_heads`; each serves several of the queries. All by
            default.
        grid_size: Height and width of the map that the tables reach across, or one number for both.
        window: Up to which offset of rows and of columns content counts; farther tokens have scores of positions only.
            None: everywhere.
        symmetric: Whether offsets have no signs.
        attn_drop: Dropout of the attention weights.
        proj_drop: Dropout after the output projection.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: If the heads do not divide what they should, or `grid_size` or `window` is too small.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        num_kv_heads: int | None = None,
        grid_size: int | Sequence[int] = 14,
        window: int | None = None,
        symmetric: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        width = kv_width(dim, num_heads, num_kv_heads)
        self.grid_size = pair("grid_size", grid_size)
        if window is not None and window < 0:
            raise ValueError(f"window must be at least 0 or None, got {window}")
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.window = window
        self.symmetric = symmetric
        self.q = nn.Linear(dim, dim, bias=False, **dd)
        self.k, self.v = (nn.Linear(dim, width, bias=False, **dd) for _ in range(2))
        rows, columns = (side if symmetric else 2 * side - 1 for side in self.grid_size)
        self.row_embed = nn.Parameter(torch.empty(rows, dim, **dd))
        self.col_embed = nn.Parameter(torch.empty(columns, dim, **dd))
        self.row_proj, self.col_proj = (nn.Linear(dim, width, bias=False, **dd) for _ in range(2))
        self.bias_content, self.bias_row, self.bias_col = (nn.Parameter(torch.empty(width, **dd)) for _ in range(3))
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim, bias=False, **dd)
        self.proj_drop = nn.Dropout(proj_drop)
        self.init_weights()

    def init_weights(self) -> None:
        """The official initialisation: weights normal with 0.02, biases zero."""
        start_small(self)

    def forward_tokens(
        self, x: torch.Tensor, grid: tuple[int, int], prefix: int = 0, *, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Attention of tokens, `(B, prefix + H * W, C) -> (B, prefix + H * W, C)`.

        Args:
            x: The tokens, extra ones first.
            grid: `(H, W)` of the others.
            prefix: Number of extra tokens.
            bias: Added to the scores; broadcasts to `(B, num_heads, N, N)`.
        """
        q, k, terms = self._scored(x, grid, prefix)
        v = tokens_by_head(self.v(x), self.num_heads, q.shape[3])
        dropped = self.attn_drop.p if self.training else 0.0
        if self.window is None and bias is None and (needs_formula() or q.device.type != "cpu"):
            return self.proj_drop(self.proj(attend_by_features(q, k, v, terms, grid, prefix, dropped)))

        def some_queries(some: slice, q: torch.Tensor, *terms: torch.Tensor) -> torch.Tensor:
            own = bias if bias is None or bias.shape[-2] == 1 else bias[..., some, :]
            return self.attn_drop(self._weights(some, q, k, terms, grid, prefix, own)) @ v

        numbers = q[:, :, :, 0].numel()  # scores of a query
        out = torch.cat(in_tiles(some_queries, (q, *terms), numbers, random=dropped > 0), 2)
        return self.proj_drop(self.proj(out.transpose(1, 2).flatten(2)))

    def weights(self, x: torch.Tensor) -> torch.Tensor:
        """The attention weights, `(B, num_heads, N, N)`, of a map `(B, H, W, C)`."""
        grid = (x.shape[1], x.shape[2])
        q, k, terms = self._scored(x.flatten(1, 2), grid, 0)
        return self._weights(slice(None), q, k, terms, grid, 0, None)

    def _scored(self, x: torch.Tensor, grid: tuple[int, int], prefix: int) -> tuple[torch.Tensor, torch.Tensor, Terms]:
        """Queries with the content bias, keys, and each query's scores with rows and with columns.

        The scores are `(B, heads, N, H)` and `(B, heads, N, W)`, and 0 for extra tokens.
        """
        width = x.shape[2] // self.num_heads
        q = self.q(x).unflatten(-1, (self.num_heads, width)).transpose(1, 2)
        k = tokens_by_head(self.k(x), self.num_heads, width)
        u, *others = (
            tables_by_head(b, self.num_heads, width) for b in (self.bias_content, self.bias_row, self.bias_col)
        )
        here = q[:, :, prefix:].unflatten(2, grid)
        tables = [
            tables_by_head(project(embed)[self._offsets(side, embed)], self.num_heads, width)
            for side, embed, project in (
                (grid[0], self.row_embed, self.row_proj),
                (grid[1], self.col_embed, self.col_proj),
            )
        ]
        down, across = (F.pad(one.flatten(2, 3), (0, 0, prefix, 0)) for one in position_scores(here, others, tables))
        return q + u.unsqueeze(-2), k, (down, across)

    def _offsets(self, side: int, embed: torch.Tensor) -> torch.Tensor:
        """The table row of the offset between each pair of positions, `(side, side)`."""
        places = torch.arange(side, device=embed.device)
        offsets = places - places.unsqueeze(1)
        if self.symmetric:
            return offsets.abs().clamp(max=embed.shape[0] - 1)
        reach = embed.shape[0] // 2
        return offsets.clamp(-reach, reach) + reach

    def _weights(
        self,
        some: slice,
        q: torch.Tensor,
        k: torch.Tensor,
        terms: tuple[torch.Tensor, ...],
        grid: tuple[int, int],
        prefix: int,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        """The attention weights of some queries, whose `q` and `terms` these are."""
        scores = q @ k.mT
        extra, here = scores.split([prefix, scores.shape[3] - prefix], -1)
        here = here.unflatten(-1, grid)
        if self.window is not None:
            down, across = (near[some] for near in _near(self.window, grid, prefix, q.device))
            here = here * (down.unsqueeze(-1) & across.unsqueeze(-2)).to(here.dtype)
        down, across = terms
        here = (here + down.unsqueeze(-1) + across.unsqueeze(-2)).flatten(3)
        scores = (torch.cat([extra, here], -1) if prefix else here) * q.shape[3] ** -0.5
        scores = scores if bias is None else scores + bias
        return scores.softmax(-1, dtype=wide(scores)).to(q.dtype)


def _near(window: int, grid: tuple[int, int], prefix: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Which rows and columns content of each token counts for, `(N, H)` and `(N, W)`; all for extra tokens."""
    places = torch.arange(grid[0] * grid[1], device=device)
    down, across = (
        (place.unsqueeze(1) - torch.arange(side, device=device)).abs() <= window
        for side, place in zip(grid, (places // grid[1], places % grid[1]), strict=True)
    )
    return F.pad(down, (0, 0, prefix, 0), value=True), F.pad(across, (0, 0, prefix, 0), value=True)


def _grid(context: BlockContext) -> dict[str, object]:
    return {"grid_size": context.grid} if context.grid else {}


CARD = Card(
    name="mvpa",
    title="MVPA: multi-variate parallel attention",
    kind="mixer",
    factory=MVPAttention,
    summary="attention with scores of content, of row offsets and of column offsets, each on its own",
    flow=(
        "(((q + u | k) -> @ | (q + v | {row offsets}) -> @ | (q + z | {column offsets}) -> @) -> + -> softmax | "
        "v) -> @ -> proj"
    ),
    paper="arXiv:2506.20354",
    code="https://github.com/IBM/multi-variate-parallel-transformer",
    license="Apache-2.0",
    placement="in every block in place of attention and of an encoding of positions",
    avoid="on large maps: two tables of offsets add to the scores of all pairs, which no fused attention takes",
    pyramid=("nano",),
    columnar=("nano", "tiny"),
    keywords=_grid,
    cases={
        "": {"num_heads": 3, "grid_size": 5},
        "window": {"num_heads": 4, "num_kv_heads": 2, "grid_size": (5, 3), "window": 2},
        "symmetric": {"num_heads": 3, "grid_size": 5, "symmetric": True},
    },
    floor=WINDOWS,
    cost="N^2",
    memory="N sqrt(N)",
    maps=True,
    reference="mvpa",
)
