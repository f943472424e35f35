"""Neural Attention: a small network instead of the dot product of query and key (arXiv 2502.17206).

Official code: https://github.com/awayfromzel/neural-attention-research, Models/NeuralAttention.py of its vision part.

Differs from the official code in:
- the first layer of the score network is applied to queries and keys apart and the results are added, which is the same
  without a pair of each query and key side by side; keys are read for some of the queries at a time;
- `qkv` and `proj` have softmax attention's layout (theirs has the heads innermost): `to_native` reorders;
- at least two projected channels (theirs has none left for heads narrower than 64 by default).

Golden: tests/golden/neuralattention_*.npz.
"""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from visionattn.catalog import Card
from visionattn.ops.query_tiles import in_tiles
from visionattn.ops.recomputed import with_mask_recomputed
from visionattn.utils.arguments import check_heads
from visionattn.utils.factory import FactoryKwargs
from visionattn.utils.state_dict import StateDict

from ._common import WINDOWS, TokenMixer, split_heads

__all__ = ["NeuralAttention"]

# Scores' hidden values that are held at a time, in numbers: queries are taken in groups for that.
_HELD = 1 << 20


class NeuralAttention(TokenMixer):
    """Attention with scores from a three-layer network. `(B, H, W, C) -> (B, H, W, C)`, any H, W >= 1.

    The score of a query and a key is `w3 relu(w2 relu(w1 [q'; k'] + b1) + b2)` of their projections, one network for
    all heads. Time grows with N^2 times the square of the projected channels.

    Args:
        dim: Width C.
        num_heads: Heads, a divisor of `dim`.
        projection_dim: Channels that queries and keys of a head are projected to; by default a 32nd, at least 2.
        causal: Whether a token sees itself and those before it only.
        attn_drop: Dropout of the attention weights.
        proj_drop: Dropout after the output projection.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: If `num_heads` does not divide `dim` or `projection_dim` is below 2.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        projection_dim: int | None = None,
        causal: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        width = dim // num_heads
        p = max(2, width // 32) if projection_dim is None else projection_dim
        if p < 2:
            raise ValueError(f"projection_dim must be at least 2, got {p}")
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.causal = causal
        self.qkv = nn.Linear(dim, 3 * dim, bias=False, **dd)
        self.q_proj = nn.Linear(width, p, **dd)
        self.k_proj = nn.Linear(width, p, **dd)
        self.linear1 = nn.Linear(2 * p, p, **dd)
        self.linear2 = nn.Linear(p, p // 2, **dd)
        self.linear3 = nn.Linear(p // 2, 1, **dd)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim, bias=False, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward_tokens(self, x: torch.Tensor, grid: tuple[int, int], prefix: int = 0) -> torch.Tensor:
        """Attention of tokens, `(B, prefix + H * W, C) -> (B, prefix + H * W, C)`.

        Args:
            x: The tokens, extra ones first.
            grid: `(H, W)`, which makes no difference here.
            prefix: Number of extra tokens, likewise.
        """
        q, k, v = self._parts(x)
        out = self._in_tiles(lambda some, own: self.attn_drop(self._weights(some, own, k)) @ v, q)
        return self.proj_drop(self.proj(out.transpose(1, 2).flatten(2)))

    def weights(self, x: torch.Tensor) -> torch.Tensor:
        """The attention weights, `(B, num_heads, N, N)`, of a map `(B, H, W, C)` or tokens `(B, N, C)`."""
        q, k, _ = self._parts(x.flatten(1, -2))
        return self._in_tiles(lambda some, own: self._weights(some, own, k), q)

    @staticmethod
    def to_native(state_dict: StateDict, num_heads: int) -> StateDict:
        """Converts official names and channel order to ours.

        Args:
            state_dict: Of one module, without a prefix.
            num_heads: Its heads.
        """
        native = dict(state_dict)
        if "to_qkv.weight" in native:
            weight = native.pop("to_qkv.weight").unflatten(0, (-1, 3, num_heads))
            native["qkv.weight"] = weight.permute(1, 2, 0, 3).flatten(0, 2)
        if "W_out.weight" in native:
            native["proj.weight"] = native.pop("W_out.weight")
        return native

    def _parts(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The first layer's shares of queries and keys, `(B, heads, N, p)`, and values."""
        q, k, v = split_heads(self.qkv(x), self.num_heads)
        of_queries, of_keys = self.linear1.weight.chunk(2, 1)
        return F.linear(self.q_proj(q), of_queries, self.linear1.bias), F.linear(self.k_proj(k), of_keys), v

    def _in_tiles(self, function: Callable[..., torch.Tensor], q: torch.Tensor) -> torch.Tensor:
        parts = in_tiles(function, (q,), q.numel(), held=_HELD, random=self.training and self.attn_drop.p > 0)
        return torch.cat(parts, 2)

    def _weights(self, some: slice, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        hidden = with_mask_recomputed(_pairs, q, k)
        scores = self.linear3(with_mask_recomputed(F.relu, self.linear2(hidden))).squeeze(-1)
        if self.causal:
            places = torch.arange(k.shape[2], device=k.device)
            scores = scores.masked_fill(places > places[some].unsqueeze(1), float("-inf"))
        return scores.softmax(-1)


def _pairs(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    return F.relu(q.unsqueeze(3) + k.unsqueeze(2))  # (B, heads, rows, N, p)


CARD = Card(
    name="neural",
    title="Neural Attention",
    kind="mixer",
    factory=NeuralAttention,
    summary="attention with scores from a small network of query and key",
    flow="((projected q | projected k) -> network of each pair -> softmax | v) -> @ -> proj",
    paper="arXiv:2502.17206",
    code="https://github.com/awayfromzel/neural-attention-research",
    placement="in the first block in place of attention",
    avoid="beyond about a thousand tokens: each pair has a small network of its own in place of a product",
    columnar=("nano", "tiny"),
    cases={
        "": {"num_heads": 3},
        "wide": {"num_heads": 2, "projection_dim": 5},
        "causal": {"num_heads": 2, "projection_dim": 4, "causal": True},
    },
    floor=WINDOWS,
    cost="N^2",
    maps=True,
    reference="neural_attention",
)
