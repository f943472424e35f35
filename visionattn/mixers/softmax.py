"""Plain softmax attention: every token to every token, the baseline of all mixers (ViT, ICLR 2021, arXiv 2010.11929).

Official code: https://github.com/google-research/vision_transformer (Apache-2.0), vit_jax/models_vit.py.

Differs from the official code in: queries, keys and values are one layer `qkv`, as in timm; `qk_norm` (layer norms:
arXiv 2302.05442, cosines: 2111.09883), the width of heads and sparse attention (see `mixers/sparge.py`) are options.

Golden: none; the test compares it with timm's attention.
"""

from collections.abc import Callable, Mapping
from math import log
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from visionattn.catalog import Card
from visionattn.ops import BlockMap, attention, masked_attention, pair_mask
from visionattn.utils.arguments import check_choice, check_heads, check_positive
from visionattn.utils.factory import FactoryKwargs

from ._common import WINDOWS, TokenMixer, split_heads

__all__ = ["SoftmaxAttention"]


class SoftmaxAttention(TokenMixer):
    """Multi-head attention of all tokens to all tokens. `(B, H, W, C) -> (B, H, W, C)`, any H, W >= 1.

    The names of its parameters are timm's: `qkv`, `proj`, `q_norm`, `k_norm`.

    Args:
        dim: Width C.
        num_heads: Heads, a divisor of `dim` without `head_dim`.
        head_dim: Width of a head; `dim / num_heads` if None.
        qkv_bias: Whether the projections to queries, keys and values have biases.
        qk_norm: Layer norms of the queries and keys of each head before their product; `cosine`: the scores are cosines
            times a factor that each head learns, from 10 on and at most 100.
        attn_drop: Dropout of the attention weights.
        proj_drop: Dropout after the output projection.
        sparse: Arguments of `visionattn.ops.BlockMap`, such as `{"topk": 0.5}`: only keys of chosen blocks are seen.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: If `num_heads` does not divide `dim`, or another argument is out of range.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        head_dim: int | None = None,
        qkv_bias: bool = True,
        qk_norm: bool | str = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        sparse: Mapping[str, Any] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if head_dim is None:
            check_heads(dim, num_heads)
            head_dim = dim // num_heads
        check_positive(num_heads=num_heads, head_dim=head_dim)
        check_choice("qk_norm", qk_norm, (False, True, "cosine"))
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.sparse = None if sparse is None else BlockMap(**sparse)
        if self.sparse is not None:
            self.sparse.check_heads(num_heads)
        self.qkv = nn.Linear(dim, 3 * num_heads * head_dim, bias=qkv_bias, **dd)
        self.q_norm: nn.Module
        self.k_norm: nn.Module
        if qk_norm == "cosine":
            self.q_norm, self.k_norm = Cosine(num_heads, head_dim, **dd), Cosine()
        else:
            self.q_norm, self.k_norm = (
                nn.LayerNorm(head_dim, eps=1e-6, **dd) if qk_norm else nn.Identity() for _ in range(2)
            )
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(num_heads * head_dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward_tokens(
        self,
        x: torch.Tensor,
        grid: tuple[int, int],
        prefix: int = 0,
        *,
        rotate: Callable[[torch.Tensor], torch.Tensor] | None = None,
        bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attention of tokens, `(B, prefix + H * W, C) -> (B, prefix + H * W, C)`.

        Args:
            x: The tokens, extra ones first.
            grid: `(H, W)`, which makes a difference to `sparse` only.
            prefix: Number of extra tokens, likewise: they see everything and are always seen.
            rotate: Rotates queries and keys `(B, num_heads, N, C / num_heads)` by their positions.
            bias: Added to the scores; broadcasts to `(B, num_heads, N, N)`.
        """
        q, k, v = self._heads(x)
        if rotate is not None:
            q, k = rotate(q), rotate(k)
        dropped = self.attn_drop.p if self.training else 0.0
        if self.sparse is None:
            out = attention(q, k, v, mask=bias, dropout_p=dropped)
        else:
            seen, queries, keys = self.sparse.choose(q, k, grid, prefix)
            out = masked_attention(
                q, k, v, seen, queries=queries, keys=keys, prefix=prefix, bias=bias, dropout_p=dropped
            )
        return self.proj_drop(self.proj(out))

    def weights(self, x: torch.Tensor, grid: tuple[int, int] | None = None, prefix: int = 0) -> torch.Tensor:
        """The attention weights, `(B, num_heads, N, N)`, of a map `(B, H, W, C)` or tokens `(B, N, C)`.

        Args:
            x: The map or the tokens, extra ones first.
            grid: Of tokens `(H, W)`, where that makes a difference.
            prefix: Number of extra tokens.

        Raises:
            ValueError: If there are tokens without a grid, and it makes a difference.
        """
        q, k, _ = self._heads(x.flatten(1, -2))
        scores = q @ k.mT * q.size(-1) ** -0.5
        mask = self._mask(q, k, self._grid(x, grid), prefix)
        return (scores if mask is None else scores.masked_fill(~mask, float("-inf"))).softmax(-1)

    def routes(self, x: torch.Tensor) -> torch.Tensor:
        """Which blocks of keys each block of queries of a map `(B, H, W, C)` sees with `sparse`, bool,
        `(B, num_heads, query blocks, key blocks)`.

        Raises:
            ValueError: If attention is not sparse.
        """
        if self.sparse is None:
            raise ValueError(f"only sparse attention has routes: build {type(self).__name__} with sparse={{...}}")
        q, k, _ = self._heads(x.flatten(1, 2))
        return self.sparse.choose(q, k, (x.size(1), x.size(2)))[0]

    def _grid(self, x: torch.Tensor, grid: tuple[int, int] | None) -> tuple[int, int] | None:
        return (x.size(1), x.size(2)) if x.ndim == 4 else grid

    def _mask(self, q: torch.Tensor, k: torch.Tensor, grid: tuple[int, int] | None, prefix: int) -> torch.Tensor | None:
        """The mask of visible keys for each query; None: all."""
        if self.sparse is None:
            return None
        if grid is None:
            raise ValueError("weights of tokens need their grid here, got grid=None")
        return pair_mask(*self.sparse.choose(q, k, grid, prefix), prefix)

    def _heads(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values, `(B, num_heads, N, C / num_heads)` each."""
        q, k, v = split_heads(self.qkv(x), self.num_heads)
        return self.q_norm(q), self.k_norm(k), v


class Cosine(nn.Module):
    """Vectors of length 1, those of queries times their head's factor. `(B, num_heads, N, d) -> (B, num_heads, N, d)`.

    The factor makes up for the scale of scores, `d ** -0.5`, so that they are cosines times `exp(logit_scale)`.

    Args:
        num_heads: Heads of queries; none for keys.
        head_dim: Width d of a head.
        device: Of the parameters.
        dtype: Of the parameters.
    """

    def __init__(
        self,
        num_heads: int = 0,
        head_dim: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.root = head_dim**0.5
        self.logit_scale = None
        if num_heads:
            self.logit_scale = nn.Parameter(torch.full((num_heads, 1, 1), log(10), device=device, dtype=dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.normalize(x, dim=-1)
        if self.logit_scale is None:
            return x
        return x * (self.root * self.logit_scale.clamp_max(log(100)).exp()).to(x.dtype)


CARD = Card(
    name="softmax",
    title="Softmax attention",
    kind="mixer",
    factory=SoftmaxAttention,
    summary="attention of every token to every token",
    flow="((q | k) -> @ -> softmax | v) -> @ -> proj",
    paper="arXiv:2010.11929",
    code="https://github.com/google-research/vision_transformer",
    license="Apache-2.0",
    placement="in every block",
    avoid="on large maps: time grows with the square of N, and patches of 4 in a picture of 448 pixels are 12,544",
    pyramid=("nano",),
    columnar=("nano", "tiny"),
    cases={
        "": {"num_heads": 3},
        "qk_norm": {"num_heads": 3, "qk_norm": True},
        "cosine": {"num_heads": 2, "head_dim": 5, "qk_norm": "cosine"},
    },
    floor=WINDOWS,
    cost="N^2",
    memory="N",
    keeps_weights=True,
    maps=True,
)
