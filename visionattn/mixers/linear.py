"""Linear attention: Transformers are RNNs (ICML 2020, arXiv 2006.16236).

Official code: https://github.com/idiap/fast-transformers (MIT), fast_transformers/attention/linear_attention.py. There
the projections belong to another layer; here they are one layer `qkv` and `proj`, as in softmax attention.

Differs from the official code in:
- sums over the keys are means, and the small number in the denominator is divided by as much: the same, but large maps
  stay within half precision.

Golden: none; the tests compare it with its formula and with the dense matrix in float64, outputs and gradients.
"""

import torch
from torch import nn
from torch.nn import functional as F

from visionattn.catalog import Card, Floor
from visionattn.utils.arguments import check_heads

from ._common import TokenMixer, split_heads

__all__ = ["LinearAttention"]


class LinearAttention(TokenMixer):
    """Attention with weights `f(q) f(k)`, f = elu + 1, over their sum. `(B, H, W, C) -> (B, H, W, C)`, any H, W >= 1.

    Keys and values are summed up once for all queries, so the cost is linear in the positions.

    Args:
        dim: Width C.
        num_heads: Heads, a divisor of `dim`.
        eps: Added to the sum of the weights.
        qkv_bias: Whether the projections to queries, keys and values have biases.
        proj_drop: Dropout after the output projection.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: If `num_heads` does not divide `dim` or `eps` is negative.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        eps: float = 1e-6,
        qkv_bias: bool = True,
        proj_drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        if not eps >= 0:
            raise ValueError(f"eps must be at least 0, got {eps}")
        self.num_heads = num_heads
        self.eps = eps
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, device=device, dtype=dtype)
        self.proj = nn.Linear(dim, dim, device=device, dtype=dtype)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward_tokens(self, x: torch.Tensor, grid: tuple[int, int], prefix: int = 0) -> torch.Tensor:
        """Attention of tokens, `(B, prefix + H * W, C) -> (B, prefix + H * W, C)`.

        Args:
            x: The tokens, extra ones first.
            grid: `(H, W)`, which makes no difference here.
            prefix: Number of extra tokens, likewise.
        """
        q, k, v = self._heads(x)
        count = k.shape[2]
        summary = (k / count).mT @ v
        total = q @ k.mean(2, keepdim=True).mT + self.eps / count
        return self.proj_drop(self.proj((q @ summary / total).transpose(1, 2).flatten(2)))

    def weights(self, x: torch.Tensor) -> torch.Tensor:
        """The attention weights, `(B, num_heads, N, N)`, of a map `(B, H, W, C)` or tokens `(B, N, C)`."""
        q, k, _ = self._heads(x.flatten(1, -2))
        scores = q @ k.mT
        return scores / (scores.sum(-1, keepdim=True) + self.eps)

    def _heads(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Features of queries and keys, and values, `(B, num_heads, N, C / num_heads)` each."""
        q, k, v = split_heads(self.qkv(x), self.num_heads)
        return F.elu(q) + 1, F.elu(k) + 1, v


CARD = Card(
    name="linear",
    title="Linear attention: Transformers are RNNs",
    kind="mixer",
    factory=LinearAttention,
    summary="attention with weights elu(q) + 1 times elu(k) + 1 in place of the softmax",
    flow="(q, elu + 1 | (k, elu + 1 | v) -> @) -> @ -> over the sum of weights -> proj",
    paper="arXiv:2006.16236",
    code="https://github.com/idiap/fast-transformers",
    license="MIT",
    placement="in every block in place of attention",
    avoid="where one key must stand out among many: weights of elu + 1 are flat beside those of a softmax",
    pyramid=("nano", "micro"),
    columnar=("nano", "tiny"),
    cases={"": {"num_heads": 3}},
    floor=Floor(10, 19, "k, v in, q in, o out: 4; back q, do in, dq out, k, v in, dk, dv out: 7; projections"),
    keeps_weights=True,
    maps=True,
    reference="linear",
)
