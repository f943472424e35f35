"""Probabilistic attention: probabilistic attention for interactive segmentation (NeurIPS 2021, arXiv 2106.15338).

Official code: https://github.com/apple/ml-probabilistic-attention (Apple's sample code licence),
probabilisticattention.py. It is a function, here `visionattn.ops.mixture_attention` with all its options. The module
puts the projections of softmax attention around it, which it is without steps: it takes over the weights of any ViT.

Differs from the official code in:
- the prior makes up for the lengths of the keys, not for those of the values, so that attention without known values
  is softmax attention whatever the precision of the values;
- precisions of each token and priors of keys or values go together (the official shapes only fit for one number);
- an image without known values keeps its own, whatever other images of the batch know;
- means of keys without a prior have the floor that those of values have.

Golden: tests/golden/probattn_*.npz (official outputs, input gradients).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from visionattn.catalog import BlockContext, Card
from visionattn.ops import attention, mixture_attention, mixture_weights, widened
from visionattn.utils.arguments import check_heads
from visionattn.utils.factory import FactoryKwargs

from ._common import WINDOWS, split_heads

__all__ = ["ProbabilisticAttention"]

Rotate = Callable[[torch.Tensor], torch.Tensor]


class ProbabilisticAttention(nn.Module):
    """Attention whose keys move towards the queries, and values towards known ones. `(B, H, W, C) -> (B, H, W, C)`.

    Any H, W >= 1. With `key_iters=0`, without `learn_precision` and without known values it is softmax attention. The
    steps can be switched on in a trained network, by the attributes of the same names.

    Args:
        dim: Width C.
        num_heads: Heads, a divisor of `dim`.
        key_iters: Steps that move the keys. Each makes a map of all pairs.
        theta: Precision of the keys' own place: the larger, the less they move. None: they become means of queries.
        learn_precision: Whether the precision of a key is `d ** -0.5` times the exponential of a projection of its
            token, which is zero at first.
        value_iters: Steps that move the values where some are known.
        value_precision: Of the values.
        value_theta: As `theta`.
        qkv_bias: Whether the projections to queries, keys and values have biases.
        attn_drop: Dropout of the attention weights.
        proj_drop: Dropout after the output projection.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        key_iters: int = 0,
        theta: float | None = 1.0,
        learn_precision: bool = False,
        value_iters: int = 1,
        value_precision: float = 1.0,
        value_theta: float | None = 1.0,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        for name, steps in (("key_iters", key_iters), ("value_iters", value_iters)):
            if steps < 0:
                raise ValueError(f"{name} must be at least 0, got {steps}")
        for name, precision in (("theta", theta), ("value_precision", value_precision), ("value_theta", value_theta)):
            if precision is not None and not precision > 0:
                raise ValueError(f"{name} must be above 0, got {precision}")
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.key_iters = key_iters
        self.theta = theta
        self.value_iters = value_iters
        self.value_precision = value_precision
        self.value_theta = value_theta
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **dd)
        self.precision = nn.Linear(dim, num_heads, **dd) if learn_precision else None
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)
        self.init_weights()

    def init_weights(self) -> None:
        """Initialises all precisions equally."""
        if self.precision is not None:
            nn.init.zeros_(self.precision.weight)
            nn.init.zeros_(self.precision.bias)

    def forward(
        self, x: torch.Tensor, values: torch.Tensor | None = None, known: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The map after attention.

        Args:
            x: `(B, H, W, C)`.
            values: Values that are known at some positions, such as clicks of a user, `(B, H, W, C)`, heads side by
                side as `qkv` makes them.
            known: Where they are, `(B, H, W)`: 0 or 1, False or True.
        """
        grid = (x.shape[1], x.shape[2])
        if values is not None and known is not None:
            values, known = values.flatten(1, -2), known.flatten(1)
        return self.forward_tokens(x.flatten(1, 2), grid, values=values, known=known).unflatten(1, grid)

    def forward_tokens(
        self,
        x: torch.Tensor,
        grid: tuple[int, int],
        prefix: int = 0,
        *,
        values: torch.Tensor | None = None,
        known: torch.Tensor | None = None,
        rotate: Rotate | None = None,
        bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attention of tokens, `(B, prefix + H * W, C) -> (B, prefix + H * W, C)`.

        Args:
            x: The tokens, extra ones first.
            grid: `(H, W)`, which makes no difference here.
            prefix: Number of extra tokens, likewise.
            values: Known values, `(B, prefix + H * W, C)`.
            known: Where they are, `(B, prefix + H * W)`.
            rotate: Rotates queries and keys `(B, num_heads, N, C / num_heads)` by their positions, before keys move.
            bias: The logarithm of a prior, added to the scores; broadcasts to `(B, num_heads, N, N)`.

        Raises:
            ValueError: If only one of `values` and `known` is given, or they do not have the shape of the tokens.
        """
        _check(x, values, known)
        q, k, v = self._heads(x, rotate)
        dropped = self.attn_drop.p if self.training else 0.0
        if self.key_iters == 0 and self.precision is None and values is None:
            return self.proj_drop(self.proj(attention(q, k, v, mask=bias, dropout_p=dropped)))
        given: dict[str, Any] = {}
        if values is not None and known is not None:
            given["values"] = values.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            given["known"] = known.unsqueeze(1)
            given["value_iters"], given["value_prior"] = self.value_iters, self.value_theta
        out = mixture_attention(
            q,
            k,
            v,
            self._precision(x, q),
            self.value_precision,
            magnitude="keys",
            bias=bias,
            key_iters=self.key_iters,
            key_prior=self.theta,
            dropout_p=dropped,
            **given,
        )
        return self.proj_drop(self.proj(out.transpose(1, 2).flatten(2)))

    def weights(self, x: torch.Tensor) -> torch.Tensor:
        """The attention weights, `(B, num_heads, N, N)`, of a map `(B, H, W, C)` or tokens `(B, N, C)`."""
        x = x.flatten(1, -2)
        q, k, _ = self._heads(x, None)
        precision = self._precision(x, q)
        return mixture_weights(q, k, precision, magnitude="keys", key_iters=self.key_iters, key_prior=self.theta)

    def _precision(self, x: torch.Tensor, q: torch.Tensor) -> float | torch.Tensor:
        """The precision of each key, `(B, num_heads, N)`, or of all keys."""
        scale = float(q.shape[-1] ** -0.5)
        return scale if self.precision is None else widened(self.precision(x)).mT.exp() * scale

    def _heads(self, x: torch.Tensor, rotate: Rotate | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values, `(B, num_heads, N, C / num_heads)` each."""
        q, k, v = split_heads(self.qkv(x), self.num_heads)
        return (q, k, v) if rotate is None else (rotate(q), rotate(k), v)


def _check(x: torch.Tensor, values: torch.Tensor | None, known: torch.Tensor | None) -> None:
    if (values is None) != (known is None):
        there, missing = ("values", "known") if known is None else ("known", "values")
        raise ValueError(f"values and known must come together, got {there} without {missing}")
    if values is not None and known is not None and (values.shape != x.shape or known.shape != x.shape[:2]):
        raise ValueError(
            f"values and known must have the shapes {tuple(x.shape)} and {tuple(x.shape[:2])} of the tokens, got "
            f"{tuple(values.shape)} and {tuple(known.shape)}"
        )


def _keywords(context: BlockContext) -> dict[str, Any]:
    return {"key_iters": 1}


CARD = Card(
    name="probabilistic",
    title="Probabilistic attention",
    kind="mixer",
    factory=ProbabilisticAttention,
    summary="attention as a mixture of Gaussians: its keys adapt to the queries, known values spread",
    flow="((q | k, moved towards the queries) -> @ -> softmax | v) -> @ -> proj",
    paper="arXiv:2106.15338",
    code="https://github.com/apple/ml-probabilistic-attention",
    license="Apple Sample Code",
    placement="in every block in place of attention; networks here move the keys once",
    avoid="without known values such as clicks and without steps of the keys: it is softmax attention then",
    columnar=("nano", "tiny"),
    keywords=_keywords,
    cases={
        "": {"num_heads": 3, "key_iters": 2},
        "no steps": {"num_heads": 3},
        "precisions": {"num_heads": 3, "key_iters": 1, "learn_precision": True, "theta": None},
    },
    floor=WINDOWS,
    cost="N^2",
    keeps_weights=True,
    maps=True,
    reference="probabilistic",
)
