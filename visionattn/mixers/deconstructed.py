"""Deconstructed attention: simpler forms of softmax attention, each without one of its properties (arXiv 2510.11602).

Official code: none found. The paper is about language; the forms without a causal order, `uniform` and `relu` (arXiv
2309.08586) are ours. `visionattn.models.families.va_deconstructed` has the networks, in which these stand in all or
some blocks, and the sources of queries and keys: static, random, fixed.

Differs from the official code in: not known.

Golden: tests/golden/deconstruct_*.npz, of an independent implementation of the same formulas.
"""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from visionattn.catalog import Card
from visionattn.ops import attention
from visionattn.ops._autocast import wide, without_autocast
from visionattn.utils.arguments import check_choice, check_heads, check_positive
from visionattn.utils.factory import FactoryKwargs

from ._common import WINDOWS, accept_split_qkv, split_heads

__all__ = ["DeconstructedAttention"]

_KINDS = ("softmax", "taylor", "relu", "self_gate", "uniform", "mlp", "external")
# These compare pairs of tokens, so they can take rotations and biases of pairs.
_PAIRWISE = ("softmax", "taylor", "relu", "external")
# Tokens over the squared width of a head from which the Taylor polynomial is computed from features.
_FEATURES_FROM = 1
Rotate = Callable[[torch.Tensor], torch.Tensor]


class DeconstructedAttention(nn.Module):
    """Attention or one of its simpler forms. `(B, H, W, C) -> (B, H, W, C)`, any H, W >= 1.

    Args:
        dim: Width C.
        num_heads: Heads, a divisor of `dim`.
        kind: The form. With scores `s = q k / sqrt(d)` of pairs of tokens:
            `softmax`: plain attention;
            `taylor`: `1 + s + s^2 / 2` instead of `exp(s)`; its cost is linear in the tokens where there are many;
            `relu`: `relu(s)` over the number of tokens, not normalised otherwise;
            `self_gate`: each token has one score, of its own query and key, `silu(q) k / sqrt(d)`; all get the same
            mean of the values, with the softmax of these scores;
            `uniform`: all get the plain mean of the values;
            `mlp`: no mixing of tokens, a gated MLP with as many weights;
            `external`: as `softmax`, but with queries and keys of other tokens, `source`.
        hidden: Hidden width of `mlp`; by default `4 * dim / 3`.
        qkv_bias: Whether queries, keys and values have biases.
        attn_drop: Dropout of the attention weights of pairs.
        proj_drop: Dropout of the result.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: If `num_heads` does not divide `dim`, or `kind` or `hidden` is unknown or too small.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        kind: str = "taylor",
        hidden: int | None = None,
        qkv_bias: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        check_choice("kind", kind, _KINDS)
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.kind = kind
        if kind == "mlp":
            hidden = max(round(4 * dim / 3), 1) if hidden is None else hidden
            check_positive(hidden=hidden)
            self.gate, self.up = (nn.Linear(dim, hidden, bias=False, **dd) for _ in range(2))
            self.down = nn.Linear(hidden, dim, bias=False, **dd)
        elif kind == "uniform":
            self.v = nn.Linear(dim, dim, bias=qkv_bias, **dd)
        else:
            self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **dd)
            accept_split_qkv(self)
        if kind != "mlp":
            self.proj = nn.Linear(dim, dim, **dd)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: torch.Tensor, source: torch.Tensor | None = None) -> torch.Tensor:
        """The map after mixing.

        Args:
            x: `(B, H, W, C)`.
            source: What queries and keys come from with `kind='external'`, of the same shape or of a batch of one.
        """
        grid = (x.shape[1], x.shape[2])
        source = source if source is None else source.flatten(1, -2)
        return self.forward_tokens(x.flatten(1, 2), grid, source=source).unflatten(1, grid)

    def forward_tokens(
        self,
        x: torch.Tensor,
        grid: tuple[int, int],
        prefix: int = 0,
        *,
        source: torch.Tensor | None = None,
        rotate: Rotate | None = None,
        bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Mixes tokens, `(B, prefix + H * W, C) -> (B, prefix + H * W, C)`.

        Args:
            x: The tokens, extra ones first.
            grid: `(H, W)`, which makes no difference here.
            prefix: Number of extra tokens, likewise.
            source: Tokens that queries and keys come from, with `kind='external'`: `(B or 1, prefix + H * W, C)`.
            rotate: Rotates queries and keys `(B, num_heads, N, C / num_heads)` by their positions.
            bias: Added to the scores; broadcasts to `(B, num_heads, N, N)`.

        Raises:
            ValueError: If `source` is missing, not asked for or of another shape, or a kind that does not compare
                pairs is given `rotate` or `bias`.
        """
        self._check(x, source)
        if self.kind not in _PAIRWISE and (rotate is not None or bias is not None):
            raise ValueError(
                f"kind={self.kind!r} compares no pairs of tokens and can take neither rotations nor biases"
            )
        if self.kind == "mlp":
            return self.proj_drop(self.down(F.silu(self.gate(x)) * self.up(x)))
        if self.kind == "uniform":  # the mean of the values is the value of the mean
            mean = x.mean(1, keepdim=True, dtype=wide(x)).to(x.dtype)
            return self.proj_drop(self.proj(self.v(mean)).expand_as(x))
        q, k, v = self._heads(x, source, rotate)
        if self.kind == "self_gate":
            pooled = (self._token_weights(q, k).unsqueeze(-2) @ v).transpose(1, 2).flatten(2)
            return self.proj_drop(self.proj(pooled).expand_as(x))
        if self.kind in ("softmax", "external"):
            dropped = self.attn_drop.p if self.training else 0.0
            return self.proj_drop(self.proj(attention(q, k, v, mask=bias, dropout_p=dropped)))
        features = self.kind == "taylor" and bias is None and q.shape[2] >= _FEATURES_FROM * q.shape[3] ** 2
        if features and not (self.training and self.attn_drop.p):
            out = _taylor_by_features(q, k, v)
        else:
            out = self.attn_drop(self._pair_weights(q, k, bias)) @ v
        return self.proj_drop(self.proj(out.transpose(1, 2).flatten(2)))

    def weights(self, x: torch.Tensor, source: torch.Tensor | None = None) -> torch.Tensor:
        """The attention weights, `(B, num_heads, N, N)`, of a map `(B, H, W, C)` or tokens `(B, N, C)`.

        Args:
            x: The map or the tokens.
            source: As for `forward`.

        Raises:
            ValueError: If the kind mixes no tokens, or `source` does not fit.
        """
        x, source = x.flatten(1, -2), source if source is None else source.flatten(1, -2)
        self._check(x, source)
        batch, count = x.shape[:2]
        if self.kind == "mlp":
            raise ValueError("kind='mlp' mixes no tokens: there are no weights")
        if self.kind == "uniform":
            return x.new_full((batch, self.num_heads, count, count), 1 / count)
        q, k, _ = self._heads(x, source, None)
        if self.kind == "self_gate":
            return self._token_weights(q, k).unsqueeze(-2).expand(-1, -1, count, -1)
        return self._pair_weights(q, k, None).expand(batch, -1, -1, -1)

    def _check(self, x: torch.Tensor, source: torch.Tensor | None) -> None:
        if (source is not None) != (self.kind == "external"):
            raise ValueError(f"source must be given with kind='external' only; kind is {self.kind!r}, source {source}")
        if source is not None and (source.shape[1:] != x.shape[1:] or source.shape[0] not in (1, x.shape[0])):
            raise ValueError(
                f"source must have the shape of x, {tuple(x.shape)} as tokens, or a batch of one, got "
                f"{tuple(source.shape)}"
            )

    def _heads(
        self, x: torch.Tensor, source: torch.Tensor | None, rotate: Rotate | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values, `(B, num_heads, N, C / num_heads)` each; the first two of `source`."""
        if source is None:
            q, k, v = split_heads(self.qkv(x), self.num_heads)
        else:
            width = x.shape[-1]
            parts = self.qkv.weight.split((2 * width, width))
            biases = (None, None) if self.qkv.bias is None else self.qkv.bias.split((2 * width, width))
            qk = F.linear(source, parts[0], biases[0]).unflatten(-1, (2, self.num_heads, -1))
            q, k = qk.permute(2, 0, 3, 1, 4).unbind(0)
            v = F.linear(x, parts[1], biases[1]).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        if rotate is not None:
            q, k = rotate(q), rotate(k)
        if q.shape[0] != v.shape[0]:
            q, k = (part.expand(v.shape[0], -1, -1, -1) for part in (q, k))
        return q, k, v

    def _pair_weights(self, q: torch.Tensor, k: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        scores = (q * q.size(-1) ** -0.5) @ k.mT
        scores = scores if bias is None else scores + bias
        if self.kind == "relu":
            return F.relu(scores) / scores.size(-1)
        scores = scores.to(wide(scores))
        if self.kind != "taylor":
            return scores.softmax(-1).to(q.dtype)
        rows = scores * (scores / 2 + 1) + 1
        return (rows / rows.sum(-1, keepdim=True)).to(q.dtype)

    @staticmethod
    def _token_weights(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        """The softmax of each token's score with itself, `(B, num_heads, N)`."""
        scores = (F.silu(q) * k).sum(-1, dtype=wide(q)) * q.size(-1) ** -0.5
        return scores.softmax(-1).to(q.dtype)


def _taylor_by_features(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """The same as with the polynomial of all pairs, from sums over the keys: time and memory grow with N d^2.

    `1 + s + s^2 / 2` is the product of `[1, x, x_i x_j / sqrt(2)]` of a query and a key, where `x` is over `d ** 0.25`.
    """
    dtype, width, count = q.dtype, q.size(-1), k.size(2)
    with without_autocast(q):
        q, k, v = (part.to(wide(part)) for part in (q, k, v))
        q, k = q * width**-0.25, k * width**-0.25
        # One more value of 1 sums up the weights. Means in place of sums stay small.
        v = F.pad(v, (0, 1), value=1.0) / count
        q_2, k_2 = ((x.unsqueeze(-1) * x.unsqueeze(-2)).flatten(-2) for x in (q, k))
        sums = v.sum(2, keepdim=True) + q @ (k.mT @ v) + q_2 @ (k_2.mT @ v / 2)
        out = sums[..., :-1] / sums[..., -1:]
    return out.to(dtype)


CARD = Card(
    name="deconstructed",
    title="Deconstructed attention: simpler forms, each without one of attention's properties",
    kind="mixer",
    factory=DeconstructedAttention,
    summary="attention with its softmax, its pairs or its mixing simplified away: null models for comparisons",
    flow="((q | k) -> @ -> simplified weights | v) -> @ -> proj",
    paper="arXiv:2510.11602",
    placement="in all blocks, or in every other one in turn with attention",
    avoid="to get the best network: these are null models that show what softmax attention owes to which of its parts",
    columnar=("nano", "tiny"),
    cases={
        "": {"num_heads": 3},
        **{kind: {"num_heads": 3, "kind": kind} for kind in ("softmax", "relu", "self_gate", "uniform", "mlp")},
    },
    floor=WINDOWS,
    cost="N",
    keeps_weights=True,
    maps=True,
    reference="deconstructed",
)
