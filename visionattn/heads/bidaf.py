"""BiDAF: bidirectional attention between two sets of tokens (ICLR 2017, arXiv 1611.01603).

Official code: https://github.com/allenai/bi-att-flow (Apache-2.0, TensorFlow), basic/model.py. There the sets are a
text and a question; here any two, such as patches of two pictures, or of a picture and words.

Differs from the official code in: the score of a pair is computed without the features of all pairs side by side; of
its score functions there is the paper's only; no dropout of the score's input.

Golden: tests/golden/bidaf_*.npz, of an independent implementation of the same formulas.
"""

import torch
from torch import nn
from torch.nn import functional as F

from visionattn.catalog import Card
from visionattn.ops._autocast import wide
from visionattn.utils.arguments import check_positive
from visionattn.utils.factory import FactoryKwargs

__all__ = ["CoAttention"]

# The official score of what is masked: a row without any token left is uniform, not undefined.
_MASKED = -1e30


class CoAttention(nn.Module):
    """Fuses two sets of tokens by attention. `(B, N, C), (B, M, C) -> (B, N, 4 C)`, or `3 C` without `q2c`.

    A pair has the score `w [a; b; a b] + w0`. Each token of the first set takes a mean of the second by the softmax of
    its scores; one mean of the first, by the softmax of each token's highest score, goes to all. The result is
    `[a; its mean; a * its mean; a * the one mean]`; a linear layer usually follows.

    Args:
        dim: Width C of both sets.
        c2q: Whether the mean of the second set is by attention; otherwise it is a plain one.
        q2c: Whether the result has the last part.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: If `dim` is below 1.
    """

    def __init__(
        self,
        dim: int,
        *,
        c2q: bool = True,
        q2c: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(dim=dim)
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        self.c2q = c2q
        self.q2c = q2c
        self.score = nn.Linear(3 * dim, 1, **dd)

    @property
    def out_features(self) -> int:
        """Width of the result."""
        return self.score.in_features // 3 * (4 if self.q2c else 3)

    def forward(
        self,
        a: torch.Tensor,
        b: torch.Tensor,
        mask_a: torch.Tensor | None = None,
        mask_b: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The fused tokens, the attention of `a` to `b`, and the attention over `a`.

        Args:
            a: `(B, N, C)`.
            b: `(B, M, C)`.
            mask_a: Which tokens of `a` there are, booleans `(B, N)`; all if none.
            mask_b: Likewise of `b`, `(B, M)`.

        Returns:
            `(B, N, 4 C)`, `(B, N, M)` and `(B, N)`.

        Raises:
            ValueError: If the sets or masks do not fit each other.
        """
        self._check(a, b, mask_a, mask_b)
        dtype = a.dtype
        scores = self._scores(a, b)
        if mask_b is not None:
            scores = scores.masked_fill(~mask_b.bool().unsqueeze(1), _MASKED)
        if mask_a is not None:
            scores = scores.masked_fill(~mask_a.bool().unsqueeze(2), _MASKED)
        rows = scores.softmax(-1).to(dtype)
        to_all = scores.amax(-1).softmax(-1).to(dtype)
        if not self.c2q:
            rows = torch.full_like(rows, 1 / b.shape[1])
        about = rows @ b
        parts = [a, about, a * about]
        if self.q2c:
            parts.append(a * (to_all.unsqueeze(1) @ a))
        return torch.cat(parts, -1), rows, to_all

    def _scores(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        w_a, w_b, w_both = self.score.weight.chunk(3, 1)
        own = F.linear(a, w_a, self.score.bias) + F.linear(b, w_b).mT
        scores = own + (a * w_both) @ b.mT
        return scores.to(wide(scores))

    def _check(
        self, a: torch.Tensor, b: torch.Tensor, mask_a: torch.Tensor | None, mask_b: torch.Tensor | None
    ) -> None:
        width = self.score.in_features // 3
        for name, tokens in (("a", a), ("b", b)):
            if tokens.ndim != 3 or tokens.shape[0] != a.shape[0] or tokens.shape[2] != width or not tokens.shape[1]:
                raise ValueError(
                    f"{name} must be ({a.shape[0]}, tokens, {width}), at least one token, got {tuple(tokens.shape)}"
                )
        for name, mask, tokens in (("mask_a", mask_a, a), ("mask_b", mask_b, b)):
            if mask is not None and mask.shape != tokens.shape[:2]:
                raise ValueError(f"{name} must be {tuple(tokens.shape[:2])}, got {tuple(mask.shape)}")


CARD = Card(
    name="bidaf",
    title="BiDAF: bi-directional attention flow between two sets of tokens",
    kind="head",
    factory=CoAttention,
    summary="tokens of two sets, each with what the other says about it",
    flow=(
        "(. | (. | <b>) -> scores of pairs -> (softmax over b -> mean of b | max, softmax over a -> mean of a)) "
        "-> products with a, concat"
    ),
    paper="arXiv:1611.01603",
    code="https://github.com/allenai/bi-att-flow",
    license="Apache-2.0",
    placement="behind two encoders, in front of a linear layer to their width; in `PairRelationViT(..., fuse=True)`",
    avoid="with one set of tokens, which then has nothing to be compared with, or with two long ones: the scores "
    "of all pairs are formed",
    cost="N^2",
    further_inputs=("b",),
    maps=True,
    reference="bidaf",
)
