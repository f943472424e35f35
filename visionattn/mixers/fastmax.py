"""FAST: factorizable attention for speeding up transformers (arXiv 2402.07901), whose attention is called Fastmax.

Official code: https://github.com/armingerami/fastmax (no licence), example.py for the PyTorch form.

Differs from the official code in:
- follows the PyTorch form, which is the paper's: the CUDA form divides by the squared norm, floored at 0.1, and divides
  the keys by a temperature, which cancels out if they are normalised; the temperature is left out;
- a pair of numbers of a token is one feature of order 2, not two, also to `attn_drop`; evaluation drops nothing;
- few tokens meet each other directly, as the features would take longer; half precision is computed in float32.

Golden: tests/golden/fastmax_*.npz (outputs, input gradients).
"""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from visionattn.catalog import Card
from visionattn.ops import polynomial_attention
from visionattn.utils.arguments import check_choice, check_heads
from visionattn.utils.factory import FactoryKwargs

from ._common import WINDOWS, TokenMixer, split_heads

__all__ = ["FastmaxAttention"]


class FastmaxAttention(TokenMixer):
    """Attention with weights `f(q k)` over their sum, `f(s) = 1 + s + s^2 / 2`. `(B, H, W, C) -> (B, H, W, C)`.

    Any H, W >= 1. The weights factorise: keys and values are summed up once for all queries, and the cost is linear in
    the positions. It pays with many narrow heads: d of 32 has 577 features at order 2.

    Args:
        dim: Width C.
        num_heads: Heads, a divisor of `dim`.
        order: Of the polynomial, 1 or 2.
        normalize: Whether queries, and keys, of each image and head are divided by the length of the longest. Without
            it, weights of order 1 may be negative and their sum near 0.
        lim: Length of the longest then.
        coefficients: a0, a1, a2 of `f(s) = a0 + a1 s + a2 s^2`; order 1 leaves a2 out.
        causal: Whether a token sees only those up to itself, row by row.
        qkv_bias: Whether the projections to queries, keys and values have biases.
        attn_drop: Dropout of the features of the highest order.
        proj_drop: Dropout after the output projection.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: If `num_heads` does not divide `dim`, `order` is neither 1 nor 2, or the polynomial can be negative.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        order: int = 2,
        normalize: bool = True,
        lim: float = 1.0,
        coefficients: Sequence[float] = (1.0, 1.0, 0.5),
        causal: bool = False,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        check_choice("order", order, (1, 2))
        if not lim > 0:
            raise ValueError(f"lim must be above 0, got {lim}")
        if len(coefficients) != 3:
            raise ValueError(f"coefficients must be three numbers, a0, a1 and a2, got {tuple(coefficients)}")
        self.coefficients = tuple(float(value) for value in coefficients[: order + 1])
        _check_positive(self.coefficients, lim if normalize else None)
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.order = order
        self.normalize = normalize
        self.lim = lim
        self.causal = causal
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **dd)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward_tokens(
        self,
        x: torch.Tensor,
        grid: tuple[int, int],
        prefix: int = 0,
        *,
        rotate: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Attention of tokens, `(B, prefix + H * W, C) -> (B, prefix + H * W, C)`.

        Args:
            x: The tokens, extra ones first.
            grid: `(H, W)`, which makes no difference here.
            prefix: Number of extra tokens, likewise.
            rotate: Rotates queries and keys `(B, num_heads, N, C / num_heads)` by their positions, before they are
                normalised.
        """
        q, k, v = self._heads(x, rotate)
        dropped = self.attn_drop.p if self.training else 0.0
        out = polynomial_attention(q, k, v, self.coefficients, causal=self.causal, dropout_p=dropped)
        return self.proj_drop(self.proj(out.transpose(1, 2).flatten(2)))

    def weights(self, x: torch.Tensor) -> torch.Tensor:
        """The attention weights, `(B, num_heads, N, N)`, of a map `(B, H, W, C)` or tokens `(B, N, C)`."""
        q, k, _ = self._heads(x.flatten(1, -2))
        scores = q @ k.mT
        rows = sum((a * scores**power for power, a in enumerate(self.coefficients)), start=torch.zeros_like(scores))
        rows = rows.tril() if self.causal else rows
        return rows / rows.sum(-1, keepdim=True)

    def _heads(
        self, x: torch.Tensor, rotate: Callable[[torch.Tensor], torch.Tensor] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values, `(B, num_heads, N, C / num_heads)` each."""
        q, k, v = split_heads(self.qkv(x), self.num_heads)
        if rotate is not None:
            q, k = rotate(q), rotate(k)
        if self.normalize:
            q, k = self._normalized(q), self._normalized(k)
        return q, k, v

    def _normalized(self, x: torch.Tensor) -> torch.Tensor:
        longest = torch.linalg.vector_norm(x, dim=-1, keepdim=True).amax(2, keepdim=True)
        return x * (self.lim / longest.clamp_min(torch.finfo(x.dtype).tiny))


def _check_positive(coefficients: Sequence[float], lim: float | None) -> None:
    """Raises if the polynomial of scores up to `lim ** 2`, or of any without one, can be negative."""
    a0, a1, a2 = (*coefficients, 0.0)[:3]
    far = a0 - abs(a1) * lim**2 + a2 * lim**4 if lim is not None else a0
    everywhere = a0 > 0 and a1**2 <= 4 * a0 * a2
    # A line that scores without limit go along is the official code's own default.
    if not everywhere and (a0 <= 0 or (len(coefficients) == 2 and far < 0) or len(coefficients) == 3):
        raise ValueError(
            "coefficients must keep the weights from being negative: a0 > 0, and a1^2 <= 4 a0 a2 at order 2 or "
            f"|a1| lim^2 <= a0 at order 1, got {tuple(coefficients)} with lim={lim}"
        )


CARD = Card(
    name="fastmax",
    title="Fastmax: factorizable attention",
    kind="mixer",
    factory=FastmaxAttention,
    summary="attention whose weights are a polynomial of the scores, which factorises, in place of the softmax",
    flow="((q | k) -> @ -> 1 + s + s^2/2, over their sum | v) -> @ -> proj",
    paper="arXiv:2402.07901",
    code="https://github.com/armingerami/fastmax",
    placement="in every block in place of attention",
    avoid="with wide heads: the features of order 2 grow with the square of a head's width, and tokens must be "
    "many more to pay for them",
    columnar=("nano", "tiny"),
    cases={
        "": {"num_heads": 6},
        "order 1": {"num_heads": 3, "order": 1, "lim": 0.9},
        "causal": {"num_heads": 6, "causal": True},
    },
    floor=WINDOWS,
    keeps_weights=True,
    maps=True,
    reference="fastmax",
)
