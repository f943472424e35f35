"""Optimised and Efficient attention: no projections of values, or of keys either (arXiv 2403.01643).

There is no official code to be had; the formulas are the paper's. Super attention, which also aligns the values by a
matrix of tokens by tokens, is not in this file.

Differs from the official code in: not known; biases are optional.

Golden: tests/golden/optimisedattn_*.npz and kvfreeattn_*.npz (of an independent implementation).
"""

import torch
from torch import nn

from visionattn.catalog import Card
from visionattn.ops import attention
from visionattn.utils.arguments import check_heads
from visionattn.utils.factory import FactoryKwargs

from ._common import WINDOWS

__all__ = ["KeyValueFreeAttention"]


class KeyValueFreeAttention(nn.Module):
    """Softmax attention whose values are the channels of the input. `(B, H, W, C) -> (B, H, W, C)`, any H, W >= 1.

    A head's values, and without `key_proj` its keys, are its share of the channels, so a layer before should mix these.

    Args:
        dim: Width C.
        num_heads: Heads, a divisor of `dim`.
        key_proj: Whether keys are projected (the paper's Optimised attention) or not (its Efficient attention).
        bias: Whether the projections have biases.
        attn_drop: Dropout of the attention weights.
        proj_drop: Dropout after the output projection.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: If `num_heads` does not divide `dim`.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        key_proj: bool = False,
        bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.wq = nn.Linear(dim, dim, bias=bias, **dd)
        self.wk = nn.Linear(dim, dim, bias=bias, **dd) if key_proj else nn.Identity()
        self.attn_drop = nn.Dropout(attn_drop)
        self.wo = nn.Linear(dim, dim, bias=bias, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        grid = (x.shape[1], x.shape[2])
        return self.forward_tokens(x.flatten(1, 2), grid).unflatten(1, grid)

    def forward_tokens(self, x: torch.Tensor, grid: tuple[int, int], prefix: int = 0) -> torch.Tensor:
        """Attention of tokens, `(B, prefix + H * W, C) -> (B, prefix + H * W, C)`.

        Args:
            x: The tokens, extra ones first.
            grid: `(H, W)`, which makes no difference here.
            prefix: Number of extra tokens, likewise.
        """
        q, k, v = (self._heads(part) for part in (self.wq(x), self.wk(x), x))
        q, k, v = q, k.to(q.dtype), v.to(q.dtype)  # autocast leaves the input as it is
        return self.proj_drop(self.wo(attention(q, k, v, dropout_p=self.attn_drop.p if self.training else 0.0)))

    def weights(self, x: torch.Tensor) -> torch.Tensor:
        """What each token takes from each, `(B, num_heads, N, N)`, from a map `(B, H, W, C)` or tokens `(B, N, C)`."""
        tokens = x.flatten(1, -2)
        q, k = self._heads(self.wq(tokens)), self._heads(self.wk(tokens))
        return (q @ k.mT * q.size(-1) ** -0.5).softmax(-1)

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        """Each head's channels, `(B, num_heads, N, C / num_heads)`."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


CARD = Card(
    name="kv_free",
    title="Efficient and Optimised Attention: You Need to Pay Better Attention",
    kind="mixer",
    factory=KeyValueFreeAttention,
    summary="attention whose values, and keys, are the channels of the input",
    paper="arXiv:2403.01643",
    placement="in every block in place of attention",
    columnar=("nano", "tiny"),
    cases={"": {"num_heads": 3}, "key_proj": {"num_heads": 4, "key_proj": True, "bias": False}},
    floor=WINDOWS,
    cost="N^2",
    maps=True,
    reference="super_attention",
)
