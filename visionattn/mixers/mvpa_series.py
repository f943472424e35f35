"""MVPA of series of several channels: scores of content, time and channel, each on its own (arXiv 2506.20354).

Official code: https://github.com/IBM/multi-variate-parallel-transformer (Apache-2.0), layers/mvpa.py.

Differs from the official code in: no division by the number of the layer, no low-rank updates, no cross attention,
whose offsets to the future read other rows than they should.

Golden: tests/golden/mvpa_[12]x*.npz, of the official code.
"""

import torch
from torch import nn

from visionattn.catalog import Card
from visionattn.ops._autocast import wide
from visionattn.utils.factory import FactoryKwargs

from ._mvpa import (
    kv_width,
    of_pairs,
    position_scores,
    start_small,
    tables_by_head,
    tokens_by_head,
)

__all__ = ["SeriesMVPAttention"]


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
        width = kv_width(dim, num_heads, num_kv_heads)
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
        start_small(self)

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
        k, v = (tokens_by_head(part, heads, width) for part in self.c_attn(x.flatten(1, 2)).chunk(2, -1))
        u, *others = (tables_by_head(part, heads, width) for part in self.attn_bias.chunk(3))
        step, place = torch.arange(times, device=x.device), torch.arange(channels, device=x.device)
        back = step.unsqueeze(1) - step
        offsets = ((times - 1 - back).clamp(max=times - 1), channels - 1 - (place.unsqueeze(1) - place).abs())
        embeds = (self.position_net(time_embed[0]), self.channel_net(channel_embed[0]))
        rows = [tables_by_head(table[index], heads, width) for table, index in zip(embeds, offsets, strict=True)]
        terms = position_scores(q.unflatten(2, (times, channels)), others, rows)
        seen = (back.abs() <= self.window) | (step.unsqueeze(1) == times - 1)
        by_token = [
            table.repeat_interleave(channels, 0).repeat_interleave(channels, 1)
            for table in (seen.to(q.dtype), back < 0)
        ]
        scores = ((q + u.unsqueeze(-2)) @ k.mT * by_token[0] + of_pairs(terms)) * width**-0.5
        attn = scores.masked_fill(by_token[1], -torch.inf).softmax(-1, dtype=wide(scores)).to(q.dtype)
        out = (self.attn_drop(attn) @ v).transpose(1, 2).flatten(2)
        return self.proj_drop(self.c_proj(out)).view(x.shape)


CARD = Card(
    name="mvpa_series",
    title="MVPA of series: time and channels",
    kind="mixer",
    factory=SeriesMVPAttention,
    summary="the official causal form of MVPA for series of several channels",
    flow=(
        "(((q | k) -> @ | (q | <time_embed>) -> @ | (q | <channel_embed>) -> @) -> + -> causal softmax | v) -> @ "
        "-> proj"
    ),
    paper="arXiv:2506.20354",
    code="https://github.com/IBM/multi-variate-parallel-transformer",
    license="Apache-2.0",
    placement="in transformers of time series; videos and strips of frames may be such",
    avoid="on pictures: it looks back along series of several channels; for maps there is `mvpa`",
    cost="N^2",
    further_inputs=("time_embed", "channel_embed"),
)
