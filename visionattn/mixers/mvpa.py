"""MVPA: scores of content, of rows and of columns, each on its own (MVPFormer, arXiv 2506.20354).

Official code: https://github.com/IBM/multi-variate-parallel-transformer (Apache-2.0), layers/mvpa.py, for series of
channels: `SeriesMVPAttention`. The form for maps, `MVPAttention`, is ours.

Differs from the official code in:
- maps: rows and columns in the place of time and channels, offsets with signs, no causal order, and tables of its own
  that are read from the middle; theirs are read from the end, so an offset has another row for another length;
- series: no division by the number of the layer, no low-rank updates, no cross attention, whose offsets to the future
  read other rows than they should.

Golden: tests/golden/mvpa_*.npz, series of the official code, maps of an independent implementation.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from visionattn.catalog import BlockContext, Card
from visionattn.ops import attention
from visionattn.ops._autocast import wide
from visionattn.utils.arguments import check_heads, check_positive, pair
from visionattn.utils.factory import FactoryKwargs

from ._common import WINDOWS

__all__ = ["MVPAttention", "SeriesMVPAttention"]

# Tokens up to which scores of all pairs are held, which is quicker; beyond, positions become features.
_PAIRS_UP_TO = 256
Terms = tuple[torch.Tensor, torch.Tensor]


class MVPAttention(nn.Module):
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
        width = _kv_width(dim, num_heads, num_kv_heads)
        self.grid_size = pair("grid_size", grid_size)
        if window is not None and window < 0:
            raise ValueError(f"window must be at least 0 or None, got {window}")
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.window = window
        self.symmetric = symmetric
        self.q = nn.Linear(dim, dim, bias=False, **dd)
        self.k, self.v = (nn.Linear(dim, width, bias=False, **dd) for _ in range(2))
        for name, side in zip(("row", "col"), self.grid_size, strict=True):
            self.register_parameter(
                f"{name}_embed", nn.Parameter(torch.empty(side if symmetric else 2 * side - 1, dim, **dd))
            )
            self.add_module(f"{name}_proj", nn.Linear(dim, width, bias=False, **dd))
        for name in ("content", "row", "col"):
            self.register_parameter(f"bias_{name}", nn.Parameter(torch.empty(width, **dd)))
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim, bias=False, **dd)
        self.proj_drop = nn.Dropout(proj_drop)
        self.init_weights()

    def init_weights(self) -> None:
        """The official start: everything normal with 0.02, biases zero."""
        _init(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        grid = (x.shape[1], x.shape[2])
        return self.forward_tokens(x.flatten(1, 2), grid).unflatten(1, grid)

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
        v = _heads(self.v(x), self.num_heads, q.shape[3])
        if self.window is None and bias is None and x.shape[1] > _PAIRS_UP_TO:
            dropped = self.attn_drop.p if self.training else 0.0
            out = _by_features(q, k, v, terms, grid, prefix, dropped)
        else:
            rows = self._weights(q, k, terms, grid, prefix, bias)
            out = (self.attn_drop(rows) @ v).transpose(1, 2).flatten(2)
        return self.proj_drop(self.proj(out))

    def weights(self, x: torch.Tensor) -> torch.Tensor:
        """What each position takes from each, `(B, num_heads, N, N)`, from a map `(B, H, W, C)`."""
        grid = (x.shape[1], x.shape[2])
        q, k, terms = self._scored(x.flatten(1, 2), grid, 0)
        return self._weights(q, k, terms, grid, 0, None)

    def _scored(self, x: torch.Tensor, grid: tuple[int, int], prefix: int) -> tuple[torch.Tensor, torch.Tensor, Terms]:
        """Queries with the bias of content, keys, and the scores of positions of the queries of the map."""
        width = x.shape[2] // self.num_heads
        q = self.q(x).unflatten(-1, (self.num_heads, width)).transpose(1, 2)
        k = _heads(self.k(x), self.num_heads, width)
        u, *others = (_of_heads(b, self.num_heads, width) for b in (self.bias_content, self.bias_row, self.bias_col))
        here = q[:, :, prefix:].unflatten(2, grid)
        tables = [
            _of_heads(project(embed)[self._offsets(side, embed)], self.num_heads, width)
            for side, embed, project in (
                (grid[0], self.row_embed, self.row_proj),
                (grid[1], self.col_embed, self.col_proj),
            )
        ]
        return q + u.unsqueeze(-2), k, _position_scores(here, others, tables)

    def _offsets(self, side: int, embed: torch.Tensor) -> torch.Tensor:
        """Which row of a table the offset from each place to each has, `(side, side)`."""
        places = torch.arange(side, device=embed.device)
        offsets = places - places.unsqueeze(1)
        if self.symmetric:
            return offsets.abs().clamp(max=embed.shape[0] - 1)
        reach = embed.shape[0] // 2
        return offsets.clamp(-reach, reach) + reach

    def _weights(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        terms: Terms,
        grid: tuple[int, int],
        prefix: int,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        scores = q @ k.mT
        if self.window is not None:
            places = (torch.arange(side, device=q.device) for side in grid)
            down, across = ((place - place.unsqueeze(1)).abs() <= self.window for place in places)
            seen = down.view(grid[0], 1, grid[0], 1) & across.view(1, grid[1], 1, grid[1])
            seen = F.pad(seen.flatten(2).flatten(0, 1), (prefix, 0, prefix, 0), value=True)
            scores = scores * seen.to(scores.dtype)
        positions = _pairs(terms)
        positions = F.pad(positions, (prefix, 0, prefix, 0)) if prefix else positions
        scores = (scores + positions) * q.shape[3] ** -0.5
        scores = scores if bias is None else scores + bias
        return scores.softmax(-1, dtype=wide(scores)).to(q.dtype)


class SeriesMVPAttention(nn.Module):
    """The official attention of series of several channels, causal in time. `(B, T, K, C) -> (B, T, K, C)`.

    A token sees all channels of its time and of those before. Content counts up to `window` steps back, and everywhere
    for the last step; farther tokens are seen by their positions.

    Args:
        dim: Width C.
        num_heads: Heads, a divisor of `dim`.
        num_kv_heads: Heads of keys and values, a divisor of `num_heads`; all by default.
        window: Up to which offset of time content counts.
        attn_drop: Dropout of the attention weights.
        proj_drop: Dropout after the output projection.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: If the heads do not divide what they should, or `window` is negative.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        num_kv_heads: int | None = None,
        window: int = 10,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        width = _kv_width(dim, num_heads, num_kv_heads)
        if window < 0:
            raise ValueError(f"window must be at least 0, got {window}")
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.window = window
        self.q_attn = nn.Linear(dim, dim, bias=False, **dd)
        self.c_attn = nn.Linear(dim, 2 * width, bias=False, **dd)
        self.position_net, self.channel_net = (nn.Linear(dim, width, bias=False, **dd) for _ in range(2))
        self.attn_bias = nn.Parameter(torch.empty(3 * width, **dd))
        self.attn_drop = nn.Dropout(attn_drop)
        self.c_proj = nn.Linear(dim, dim, bias=False, **dd)
        self.proj_drop = nn.Dropout(proj_drop)
        _init(self)

    def forward(self, x: torch.Tensor, time_embed: torch.Tensor, channel_embed: torch.Tensor) -> torch.Tensor:
        """The series after attention.

        Args:
            x: `(B, T, K, C)`.
            time_embed: Table of offsets of time, shared by all layers, `(1, T, C)`; the last row is offset 0.
            channel_embed: Table of offsets of channels, `(1, K, C)`, likewise.

        Raises:
            ValueError: If the tables have other sizes.
        """
        times, channels, dim = x.shape[1:]
        for name, table, side in (("time_embed", time_embed, times), ("channel_embed", channel_embed, channels)):
            if table.shape != (1, side, dim):
                raise ValueError(f"{name} must be (1, {side}, {dim}) for this input, got {tuple(table.shape)}")
        width, heads = dim // self.num_heads, self.num_heads
        q = self.q_attn(x).flatten(1, 2).unflatten(-1, (heads, width)).transpose(1, 2)
        k, v = (_heads(part, heads, width) for part in self.c_attn(x.flatten(1, 2)).chunk(2, -1))
        u, *others = (_of_heads(part, heads, width) for part in self.attn_bias.chunk(3))
        step, place = torch.arange(times, device=x.device), torch.arange(channels, device=x.device)
        back = step.unsqueeze(1) - step
        offsets = ((times - 1 - back).clamp(max=times - 1), channels - 1 - (place.unsqueeze(1) - place).abs())
        embeds = (self.position_net(time_embed[0]), self.channel_net(channel_embed[0]))
        rows = [_of_heads(table[index], heads, width) for table, index in zip(embeds, offsets, strict=True)]
        terms = _position_scores(q.unflatten(2, (times, channels)), others, rows)
        seen = (back.abs() <= self.window) | (step.unsqueeze(1) == times - 1)
        by_token = [
            table.repeat_interleave(channels, 0).repeat_interleave(channels, 1)
            for table in (seen.to(q.dtype), back < 0)
        ]
        scores = ((q + u.unsqueeze(-2)) @ k.mT * by_token[0] + _pairs(terms)) * width**-0.5
        attn = scores.masked_fill(by_token[1], -torch.inf).softmax(-1, dtype=wide(scores)).to(q.dtype)
        out = (self.attn_drop(attn) @ v).transpose(1, 2).flatten(2)
        return self.proj_drop(self.c_proj(out)).view(x.shape)


def _kv_width(dim: int, num_heads: int, num_kv_heads: int | None) -> int:
    """Width of keys and values of all their heads."""
    check_heads(dim, num_heads)
    heads = num_heads if num_kv_heads is None else num_kv_heads
    check_positive(num_kv_heads=heads)
    if num_heads % heads:
        raise ValueError(f"num_kv_heads must divide num_heads={num_heads}, got {heads}")
    return dim // num_heads * heads


def _init(module: nn.Module) -> None:
    for parameter in module.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.02)
        else:
            nn.init.zeros_(parameter)


def _of_heads(x: torch.Tensor, num_heads: int, width: int) -> torch.Tensor:
    """Features `(..., width of all)` by head, each as often as heads of queries share it: `(num_heads, ..., width)`."""
    parts = x.unflatten(-1, (-1, width)).movedim(-2, 0)
    return parts if parts.shape[0] == num_heads else parts.repeat_interleave(num_heads // parts.shape[0], 0)


def _heads(x: torch.Tensor, num_heads: int, width: int) -> torch.Tensor:
    """Tokens `(B, N, width of all)` as `(B, num_heads, N, width)`."""
    parts = x.unflatten(-1, (-1, width)).transpose(1, 2)
    return parts if parts.shape[1] == num_heads else parts.repeat_interleave(num_heads // parts.shape[1], 1)


def _position_scores(q: torch.Tensor, biases: Sequence[torch.Tensor], tables: Sequence[torch.Tensor]) -> Terms:
    """Scores of each position with the rows, and with the columns: `(B, heads, H, W, H)`, `(B, heads, H, W, W)`.

    Args:
        q: Queries, `(B, heads, H, W, d)`.
        biases: Added to them for rows and for columns, `(heads, d)`.
        tables: Of the offsets from each row to each and likewise of columns, `(heads, H, H, d)`, `(heads, W, W, d)`.
    """
    by_row, by_column = (q + bias.view(1, q.shape[1], 1, 1, -1) for bias in biases)
    return (
        torch.einsum("bhrcd,hrjd->bhrcj", by_row, tables[0]),
        torch.einsum("bhrcd,hcjd->bhrcj", by_column, tables[1]),
    )


def _pairs(terms: Terms) -> torch.Tensor:
    """The scores of positions of all pairs, `(B, heads, H W, H W)`."""
    return (terms[0].unsqueeze(-1) + terms[1].unsqueeze(-2)).flatten(4).flatten(2, 3)


def _by_features(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    terms: Terms,
    grid: tuple[int, int],
    prefix: int,
    dropout_p: float,
) -> torch.Tensor:
    """Attention in which the scores of positions are further features, so that no pairs are ever held.

    A query has its score with each row and each column, a key a 1 for its own.
    """
    places = torch.arange(grid[0] * grid[1], device=k.device)
    of_row, of_column = (
        place.unsqueeze(1) == torch.arange(side, device=k.device)
        for place, side in zip((places // grid[1], places % grid[1]), grid, strict=True)
    )
    own = F.pad(torch.cat([of_row, of_column], 1).to(k.dtype), (0, 0, prefix, 0))
    scored = F.pad(torch.cat(terms, -1).flatten(2, 3), (0, 0, prefix, 0))
    width, more = v.shape[3], own.shape[1]
    q, k = torch.cat([q, scored], -1), torch.cat([k, own.expand(*k.shape[:2], -1, -1)], -1)
    # PyTorch's fused form for the CPU wants values as wide as keys.
    out = attention(q, k, F.pad(v, (0, more)), scale=width**-0.5, dropout_p=dropout_p)
    return out.unflatten(-1, (v.shape[1], -1))[..., :width].flatten(2)


def _grid(context: BlockContext) -> dict[str, object]:
    return {"grid_size": context.grid} if context.grid else {}


CARDS = (
    Card(
        name="mvpa",
        title="MVPA: multi-variate parallel attention",
        kind="mixer",
        factory=MVPAttention,
        summary="attention with scores of content, of row offsets and of column offsets, each on its own",
        paper="arXiv:2506.20354",
        code="https://github.com/IBM/multi-variate-parallel-transformer",
        license="Apache-2.0",
        placement="in every block in place of attention and of an encoding of positions",
        columnar=("nano", "tiny"),
        keywords=_grid,
        cases={
            "": {"num_heads": 3, "grid_size": 5},
            "window": {"num_heads": 4, "num_kv_heads": 2, "grid_size": (5, 3), "window": 2},
            "symmetric": {"num_heads": 3, "grid_size": 5, "symmetric": True},
        },
        floor=WINDOWS,
        cost="N^2",
        maps=True,
        reference="mvpa",
    ),
    Card(
        name="mvpa_series",
        title="MVPA of series: time and channels",
        kind="mixer",
        factory=SeriesMVPAttention,
        summary="the official causal form of MVPA for series of several channels",
        paper="arXiv:2506.20354",
        code="https://github.com/IBM/multi-variate-parallel-transformer",
        license="Apache-2.0",
        placement="in transformers of time series; videos and strips of frames may be such",
        cost="N^2",
        further_inputs=("time_embed", "channel_embed"),
    ),
)
