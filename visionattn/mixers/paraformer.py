"""ParaFormer: parallel attention for efficient feature matching (AAAI 2023, arXiv 2303.00941), its layer and encoder.

There is no official code; this follows the paper. Chosen here, as the paper leaves it open: the layer's network sees
the tokens, their self and their cross attention, and its result is added; all networks have two layers and a ReLU.

Differs from the paper in: the U-shaped form with pooling between layers, and the matching after them, are left out.

Golden: tests/golden/paraformer_*.npz, made from the equations (outputs, a directional derivative).
"""

from typing import Any

import torch
from torch import nn

from visionattn.catalog import Card
from visionattn.ops import attention
from visionattn.ops._modes import needs_formula
from visionattn.utils.arguments import check_heads, check_positive
from visionattn.utils.factory import FactoryKwargs

from ._common import WINDOWS

__all__ = ["ParallelSelfCrossAttention", "WavePositionEncoder"]


class ParallelSelfCrossAttention(nn.Module):
    """Attention of two sets to themselves and to each other at once, with one query, key and value per token.

    `(B, M, C), (B, N, C) -> (B, M, C), (B, N, C)`; or maps `(B, H, W, C)`, of any sizes. Swapping the sets swaps the
    results. The residual is inside: do not add another.

    Args:
        dim: Width C.
        num_heads: Heads, a divisor of `dim`.
        hidden_ratio: Width of the hidden layer of the network that puts both attentions together, in widths C.
        qkv_bias: Whether the projections to queries, keys and values have biases.
        attn_drop: Dropout of the attention weights.
        proj_drop: Dropout of what is added to the tokens.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: If `num_heads` does not divide `dim` or `hidden_ratio` is below 1; in forward, if the sets or masks
            do not fit each other.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 4,
        hidden_ratio: int = 2,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        check_positive(hidden_ratio=hidden_ratio)
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.q, self.k, self.v = (nn.Linear(dim, dim, bias=qkv_bias, **dd) for _ in range(3))
        self.mlp = _network(3 * dim, hidden_ratio * dim, dim, **dd)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(
        self,
        xa: torch.Tensor,
        xb: torch.Tensor,
        mask_a: torch.Tensor | None = None,
        mask_b: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The layer.

        Args:
            xa: One set, `(B, M, C)` or `(B, H, W, C)`.
            xb: The other, `(B, N, C)` or `(B, H', W', C)`.
            mask_a: False for tokens of the first set that nobody sees, `(B, M)`; one must be left.
            mask_b: The same for the second.
        """
        a, b = self._tokens(xa, xb)
        masks = [_key_mask(name, mask, x) for name, mask, x in (("mask_a", mask_a, a), ("mask_b", mask_b, b))]
        tokens, length = torch.cat([a, b], 1), a.size(1)
        q, k, v = (self._heads(layer(tokens)) for layer in (self.q, self.k, self.v))
        (qa, qb), (ka, kb), (va, vb) = (t.split((length, b.size(1)), 2) for t in (q, k, v))
        dropped = self.attn_drop.p if self.training else 0.0
        own = [attention(qa, ka, va, mask=masks[0], dropout_p=dropped)]
        own.append(attention(qb, kb, vb, mask=masks[1], dropout_p=dropped))
        other = [attention(qa, kb, vb, mask=masks[1], dropout_p=dropped)]
        other.append(attention(qb, ka, va, mask=masks[0], dropout_p=dropped))
        mixed = torch.cat([tokens, torch.cat(own, 1), torch.cat(other, 1)], 2)
        out = tokens + self.proj_drop(self.mlp(mixed))
        return out[:, :length].reshape(xa.shape), out[:, length:].reshape(xb.shape)

    def weights(self, xa: torch.Tensor, xb: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The weights of self and of cross attention, as two matrices over both sets.

        `(B, num_heads, M + N, M + N)` each, the first set first: the blocks on the diagonal are self attention, the
        others cross attention, and the rest is 0.
        """
        a, b = self._tokens(xa, xb)
        tokens = torch.cat([a, b], 1)
        q, k = self._heads(self.q(tokens)), self._heads(self.k(tokens))
        scores = q @ k.mT * q.size(-1) ** -0.5
        second = torch.arange(tokens.size(1), device=tokens.device) >= a.size(1)
        same = second.unsqueeze(0) == second.unsqueeze(1)
        own, other = (scores.masked_fill(~seen, -torch.inf).softmax(-1) for seen in (same, ~same))
        return own, other

    def _tokens(self, xa: torch.Tensor, xb: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        for name, x in (("xa", xa), ("xb", xb)):
            if x.ndim not in (3, 4) or x.size(-1) != self.q.in_features:
                raise ValueError(
                    f"{name} must be tokens (B, N, {self.q.in_features}) or a map (B, H, W, {self.q.in_features}), "
                    f"got {tuple(x.shape)}"
                )
        if xa.size(0) != xb.size(0):
            raise ValueError(f"xa and xb must have the same batch, got {tuple(xa.shape)} and {tuple(xb.shape)}")
        return xa.flatten(1, -2), xb.flatten(1, -2)

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class WavePositionEncoder(nn.Module):
    """Adds positions to tokens as the phase of a wave with a token-dependent amplitude. `(B, N, C) -> (B, N, C)`.

    `x + F([A cos t; A sin t])` with networks `A` of the token, `t` of its position and `F`.

    Args:
        dim: Width C.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: If `dim` is below 1.
    """

    def __init__(self, dim: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        check_positive(dim=dim)
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        self.amplitude = _network(dim, dim, dim, **dd)
        self.phase = _network(2, dim, dim, **dd)
        self.fuse = _network(2 * dim, dim, dim, **dd)

    def forward(self, x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """The tokens with their positions.

        Args:
            x: `(B, N, C)`.
            position: x and y of each token, `(B, N, 2)`, in whatever unit.
        """
        if position.size(-1) != 2:
            raise ValueError(f"position must have shape (B, N, 2), got {tuple(position.shape)}")
        amplitude, phase = self.amplitude(x), self.phase(position)
        out: torch.Tensor = x + self.fuse(torch.cat([amplitude * phase.cos(), amplitude * phase.sin()], -1))
        return out


def _network(width: int, hidden: int, out: int, **dd: Any) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden, **dd), nn.ReLU(), nn.Linear(hidden, out, **dd))


def _key_mask(name: str, mask: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor | None:
    if mask is None:
        return None
    if mask.shape != x.shape[:2] or mask.dtype != torch.bool:
        raise ValueError(f"{name} must be bool of shape {tuple(x.shape[:2])}, got {mask.dtype} {tuple(mask.shape)}")
    if not (needs_formula() or mask.is_meta) and (empty := int((~mask.any(1)).sum())):
        raise ValueError(f"{name} leaves no token of {empty} of the sets")
    return mask[:, None, None]


CARD = Card(
    name="paraformer",
    title="ParaFormer: parallel self and cross attention",
    kind="mixer",
    factory=ParallelSelfCrossAttention,
    summary="attention of two sets of tokens to themselves and to each other at once, by the same projections",
    flow=(
        "(. | (. | own q, k, v -> softmax attention | (own q | <xb> -> its k and v) -> softmax attention) -> "
        "concat -> MLP) -> +"
    ),
    paper="arXiv:2303.00941",
    placement="between the features of two pictures, in place of alternating self and cross attention",
    avoid="with one picture: it matches the features of two",
    floor=WINDOWS,
    cost="N^2",
    maps=True,
    further_inputs=("xb",),
    reference="paraformer",
)
