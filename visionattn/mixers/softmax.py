"""Plain softmax attention: every token to every token, the baseline of all mixers (ViT, ICLR 2021, arXiv 2010.11929).

Official code: https://github.com/google-research/vision_transformer (Apache-2.0), vit_jax/models_vit.py.

Differs from the official code in: queries, keys and values are one layer `qkv`, as in timm; `qk_norm` (arXiv
2302.05442) is an option.

Golden: none; the test compares it with timm's attention.
"""

from collections.abc import Callable

import torch
from torch import nn

from visionattn.catalog import Card
from visionattn.ops import attention
from visionattn.utils.arguments import check_heads
from visionattn.utils.factory import FactoryKwargs

from ._common import WINDOWS

__all__ = ["SoftmaxAttention"]


class SoftmaxAttention(nn.Module):
    """Multi-head attention of all tokens to all tokens. `(B, H, W, C) -> (B, H, W, C)`, any H, W >= 1.

    The names of its parameters are timm's: `qkv`, `proj`, `q_norm`, `k_norm`.

    Args:
        dim: Width C.
        num_heads: Heads, a divisor of `dim`.
        qkv_bias: Whether the projections to queries, keys and values have biases.
        qk_norm: Layer norms of the queries and keys of each head before their product.
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
        qkv_bias: bool = True,
        qk_norm: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **dd)
        self.q_norm, self.k_norm = (
            nn.LayerNorm(dim // num_heads, eps=1e-6, **dd) if qk_norm else nn.Identity() for _ in range(2)
        )
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        grid = (x.shape[1], x.shape[2])
        return self.forward_tokens(x.flatten(1, 2), grid).unflatten(1, grid)

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
            grid: `(H, W)`, which makes no difference here.
            prefix: Number of extra tokens, likewise.
            rotate: Rotates queries and keys `(B, num_heads, N, C / num_heads)` by their positions.
            bias: Added to the scores; broadcasts to `(B, num_heads, N, N)`.
        """
        q, k, v = self._heads(x)
        if rotate is not None:
            q, k = rotate(q), rotate(k)
        dropped = self.attn_drop.p if self.training else 0.0
        return self.proj_drop(self.proj(attention(q, k, v, mask=bias, dropout_p=dropped)))

    def weights(self, x: torch.Tensor) -> torch.Tensor:
        """What each token takes from each, `(B, num_heads, N, N)`, from a map `(B, H, W, C)` or tokens `(B, N, C)`."""
        q, k, _ = self._heads(x.flatten(1, -2))
        return (q @ k.mT * q.size(-1) ** -0.5).softmax(-1)

    def _heads(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values, `(B, num_heads, N, C / num_heads)` each."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.q_norm(q), self.k_norm(k), v


CARD = Card(
    name="softmax",
    title="Softmax attention",
    kind="mixer",
    factory=SoftmaxAttention,
    summary="attention of every token to every token",
    paper="arXiv:2010.11929",
    code="https://github.com/google-research/vision_transformer",
    license="Apache-2.0",
    placement="in every block",
    pyramid=("nano",),
    columnar=("nano", "tiny"),
    cases={"": {"num_heads": 3}, "qk_norm": {"num_heads": 3, "qk_norm": True}},
    floor=WINDOWS,
    cost="N^2",
    keeps_weights=True,
    maps=True,
)
