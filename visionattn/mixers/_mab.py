"""The block that the Set Transformer is built of (arXiv 1810.00825)."""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from visionattn.ops import attention
from visionattn.utils.arguments import check_heads
from visionattn.utils.factory import FactoryKwargs

__all__ = ["MultiheadAttentionBlock"]


class MultiheadAttentionBlock(nn.Module):
    """Attention of one set to another: MAB. `(B, N, query_dim), (B, M, key_dim) -> (B, N, dim)`.

    The result is `o + relu(fc_o(o))` of `o = q + softmax(q k / sqrt(dim)) v`, with q the projected queries; layer norms
    may follow both sums. Its parameters have the official names.

    Args:
        query_dim: Width of the set that asks.
        key_dim: Width of the set that is asked.
        dim: Width of the result.
        num_heads: Heads, a divisor of `dim`.
        norm: Layer norms after both sums.
        residual: Whether there are sums at all; otherwise the result is the attention alone.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: If `num_heads` does not divide `dim`.
    """

    def __init__(
        self,
        query_dim: int,
        key_dim: int,
        dim: int,
        *,
        num_heads: int,
        norm: bool = False,
        residual: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.residual = residual
        self.fc_q = nn.Linear(query_dim, dim, **dd)
        self.fc_k = nn.Linear(key_dim, dim, **dd)
        self.fc_v = nn.Linear(key_dim, dim, **dd)
        self.ln0 = nn.LayerNorm(dim, **dd) if norm else None
        self.ln1 = nn.LayerNorm(dim, **dd) if norm else None
        self.fc_o = nn.Linear(dim, dim, **dd) if residual else None

    def forward(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        *,
        mask: torch.Tensor | None = None,
        rotate: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """The block.

        Args:
            queries: The set that asks; one of a batch of 1 asks every set of keys.
            keys: The set that is asked.
            mask: Added to the scores, or False where a key is not seen; broadcasts to `(B, num_heads, N, M)`.
            rotate: Rotates queries and keys of the heads by their positions.
        """
        # One product for all that the same set is projected to.
        if queries is keys:
            q, k, v = _project(queries, self.fc_q, self.fc_k, self.fc_v)
        else:
            (q,), (k, v) = _project(queries, self.fc_q), _project(keys, self.fc_k, self.fc_v)
        heads, k = self._heads(q), self._heads(k)
        if rotate is not None:
            heads, k = rotate(heads), rotate(k)
        if heads.size(0) != k.size(0):
            heads = heads.expand(k.size(0), -1, -1, -1)
        out = attention(heads, k, self._heads(v), mask=mask, scale=q.size(-1) ** -0.5)
        if self.fc_o is None:
            return out
        out = q + out
        if self.ln0 is not None:
            out = self.ln0(out)
        out = out + F.relu(self.fc_o(out))
        return out if self.ln1 is None else self.ln1(out)

    def weights(self, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """The attention weights, `(B, num_heads, N, M)`."""
        q, k = self._heads(self.fc_q(queries)), self._heads(self.fc_k(keys))
        return (q @ k.mT * (q.size(1) * q.size(3)) ** -0.5).softmax(-1)

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


def _project(x: torch.Tensor, *layers: nn.Linear) -> tuple[torch.Tensor, ...]:
    if len(layers) == 1:
        return (layers[0](x),)
    weight, bias = (torch.cat([getattr(layer, name) for layer in layers]) for name in ("weight", "bias"))
    return F.linear(x, weight, bias).chunk(len(layers), -1)
