"""Sparsifiner: Learning Sparse Instance-Dependent Attention for Efficient Vision Transformers (CVPR 2023, 2303.13755).

Official code: https://github.com/lim142857/Sparsifiner (MIT), src/models/sparsifiner.py.

Differs from the official code in:
- any grid: the tables of the predictor, which belong to positions, are resized to it;
- class tokens are optional, and further extra tokens see everything and are always seen;
- attention dropout counts, where theirs is never applied; token pruning, which is off in theirs, is left out;
- the loss of the reconstruction is reported to `visionattn.ops.losses` and not handed out of the network.

Golden: tests/golden/sparsifiner_*.npz (outputs, input gradients, masks, coefficients).
"""

from collections.abc import Callable, Mapping
from math import ceil
from typing import Any

import torch
from torch.nn import functional as F

from visionattn.catalog import BlockContext, Card, Floor
from visionattn.ops import attention, masked_attention
from visionattn.ops._modes import needs_formula
from visionattn.ops.losses import Losses, add_loss
from visionattn.ops.query_tiles import in_tiles
from visionattn.utils.arguments import check_positive, pair

from ._connectivity import ConnectivityPredictor
from .softmax import SoftmaxAttention

__all__ = ["SparsifinerAttention"]

# Where at most one coefficient in so many is left, their maps are added up one by one: a product would grow like N^3.
_SPARSE = 16


class SparsifinerAttention(SoftmaxAttention):
    """Softmax attention to the keys that a cheap predictor selects. `(B, H, W, C) -> (B, H, W, C)`.

    Any H, W >= 1. Which keys are seen takes no gradient. The predictor learns in a phase of its own: with `reconstruct`
    on, training runs full attention and reports how far the prediction is from it, as loss `reconstruction`. With
    `keep_rate=1.0` it is softmax attention.

    Args:
        dim: Width C.
        num_heads: Heads, a divisor of `dim`.
        grid: Nominal height and width of the map.
        prefix_tokens: Extra tokens that the predictor knows, such as a class token; they see everything, but may be
            left out as keys. Further ones are always seen too.
        keep_rate: Share of the keys that each query sees, from above 0 to 1.
        score_threshold: In place of the share: queries see keys whose prediction is larger. Those that see none get 0.
        reduce_n: How many times fewer coefficients there are than tokens.
        reduce_c: How many times narrower the heads are in the predictor.
        coef_topk: How many of the largest coefficients count; none: those above `coef_threshold`.
        coef_threshold: Coefficients below count as 0 without `coef_topk`.
        basis_threshold: Entries of the shared maps below count as 0.
        share: Whether the predictor has one table in place of two.
        reconstruct: Whether training is the phase of the predictor.
        reconstruct_weight: Weight of its loss.
        qkv_bias: Whether the projections to queries, keys and values have biases.
        qk_norm: Layer norms of the queries and keys of each head before their product.
        attn_drop: Dropout of the attention weights.
        proj_drop: Dropout after the output projection.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: If an argument is out of range, or the grid is too small for a coefficient.
    """

    has_losses = True

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        grid: int | tuple[int, int] = (14, 14),
        prefix_tokens: int = 1,
        keep_rate: float = 0.25,
        score_threshold: float | None = None,
        reduce_n: int = 6,
        reduce_c: int = 2,
        coef_topk: int | None = 8,
        coef_threshold: float = 0.05,
        basis_threshold: float = 0.02,
        share: bool = False,
        reconstruct: bool = False,
        reconstruct_weight: float = 0.01,
        qkv_bias: bool = True,
        qk_norm: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            dim,
            num_heads=num_heads,
            qkv_bias=qkv_bias,
            qk_norm=qk_norm,
            attn_drop=attn_drop,
            proj_drop=proj_drop,
            device=device,
            dtype=dtype,
        )
        height, width = pair("grid", grid)
        check_positive(reduce_n=reduce_n, reduce_c=reduce_c)
        if coef_topk is not None:
            check_positive(coef_topk=coef_topk)
        if prefix_tokens < 0:
            raise ValueError(f"prefix_tokens must be at least 0, got {prefix_tokens}")
        if not 0 < keep_rate <= 1:
            raise ValueError(f"keep_rate must be above 0 and at most 1, got {keep_rate}")
        if not reconstruct_weight >= 0:
            raise ValueError(f"reconstruct_weight must be at least 0, got {reconstruct_weight}")
        if reduce_n > prefix_tokens + height * width:
            raise ValueError(
                f"reduce_n must be at most the number of tokens, {prefix_tokens + height * width} for grid "
                f"{height} x {width} and {prefix_tokens} extra ones, got {reduce_n}"
            )
        head = dim // num_heads
        if reduce_c > head:
            raise ValueError(f"reduce_c must be at most the width of a head, {head}, got {reduce_c}")
        self.keep_rate = keep_rate
        self.score_threshold = score_threshold
        self.coef_topk = coef_topk
        self.coef_threshold = coef_threshold
        self.basis_threshold = basis_threshold
        self.reconstruct = reconstruct
        self.reconstruct_weight = reconstruct_weight
        sizes = (head, num_heads, (height, width), prefix_tokens, reduce_n, reduce_c, share)
        self.mask_predictor = ConnectivityPredictor(*sizes, device, dtype)

    def forward(self, x: torch.Tensor, losses: Losses | None = None) -> torch.Tensor:
        grid = (x.shape[1], x.shape[2])
        return self.forward_tokens(x.flatten(1, 2), grid, losses=losses).unflatten(1, grid)

    def forward_tokens(
        self,
        x: torch.Tensor,
        grid: tuple[int, int],
        prefix: int = 0,
        *,
        rotate: Callable[[torch.Tensor], torch.Tensor] | None = None,
        bias: torch.Tensor | None = None,
        losses: Losses | None = None,
    ) -> torch.Tensor:
        """Attention of tokens, `(B, prefix + H * W, C) -> (B, prefix + H * W, C)`.

        Args:
            x: The tokens, extra ones first.
            grid: `(H, W)`.
            prefix: Number of extra tokens, the `prefix_tokens` of the predictor first.
            rotate: Rotates queries and keys `(B, num_heads, N, C / num_heads)` by their positions.
            bias: Added to the scores; broadcasts to `(B, num_heads, N, N)`.
            losses: Where the loss of the reconstruction is put: see `visionattn.ops.losses`.
        """
        q, k, v = self._heads(x)
        if rotate is not None:
            q, k = rotate(q), rotate(k)
        dropped = self.attn_drop.p if self.training else 0.0
        if self.training and self.reconstruct:
            out = attention(q, k, v, mask=bias, dropout_p=dropped)
            add_loss("reconstruction", self.reconstruct_weight * self._error(q, k, bias, grid, prefix), losses)
        elif self.keep_rate == 1 and self.score_threshold is None:
            out = attention(q, k, v, mask=bias, dropout_p=dropped)
        else:
            mask = self._mask(q, k, grid, prefix)
            # By number every query sees a key.
            empty = "raise" if self.score_threshold is None else "zero"
            out = masked_attention(q, k, v, mask, empty=empty, bias=bias, dropout_p=dropped)
        if self.training:
            # The predictor takes no part in the gradient, but data-parallel training waits for all parameters.
            out = out + 0 * sum(p.sum() for p in self.mask_predictor.parameters())
        return self.proj_drop(self.proj(out))

    def coefficients(self, x: torch.Tensor, grid: tuple[int, int] | None = None, prefix: int = 0) -> torch.Tensor:
        """The kept coefficients of each patch, `(B, num_heads, P, n)`, of a map or of tokens."""
        q, k, _ = self._heads(x.flatten(1, -2))
        return self._coefficients(q, k, self._known_grid(x, grid), prefix)

    def routes(self, x: torch.Tensor, grid: tuple[int, int] | None = None, prefix: int = 0) -> torch.Tensor:
        """The keys visible to each token, bool, `(B, num_heads, N, N)`, of a map or of tokens."""
        q, k, _ = self._heads(x.flatten(1, -2))
        return self._mask(q, k, self._known_grid(x, grid), prefix)

    def weights(self, x: torch.Tensor, grid: tuple[int, int] | None = None, prefix: int = 0) -> torch.Tensor:
        """The attention weights, `(B, num_heads, N, N)`; 0 for queries without keys."""
        return super().weights(x, grid, prefix).nan_to_num(0)

    def _known_grid(self, x: torch.Tensor, grid: tuple[int, int] | None) -> tuple[int, int]:
        if x.ndim == 4:
            return x.size(1), x.size(2)
        if grid is None:
            raise ValueError("tokens need their grid here, got grid=None")
        return grid

    def _known(self, x: torch.Tensor, prefix: int) -> tuple[torch.Tensor, int]:
        """The tokens that the predictor covers, and the number of extra tokens among them."""
        known = min(prefix, self.mask_predictor.prefix_tokens)
        return (x if known == prefix else torch.cat([x[:, :, :known], x[:, :, prefix:]], 2)), known

    def _coefficients(self, q: torch.Tensor, k: torch.Tensor, grid: tuple[int, int], prefix: int) -> torch.Tensor:
        (q, known), (k, _) = self._known(q, prefix), self._known(k, prefix)
        found = self.mask_predictor.coefficients(q, k, grid, known)
        if self.coef_topk is None:
            return found.where(found > self.coef_threshold, 0)
        best = found.topk(min(self.coef_topk, found.size(-1)), -1)
        return torch.zeros_like(found).scatter(-1, best.indices, best.values)

    def _mask(self, q: torch.Tensor, k: torch.Tensor, grid: tuple[int, int] | None, prefix: int) -> torch.Tensor:
        if grid is None:
            raise ValueError("weights of tokens need their grid here, got grid=None")
        with torch.no_grad():
            known = min(prefix, self.mask_predictor.prefix_tokens)
            basis = self.mask_predictor.table(self.mask_predictor.proj_back_n, grid, known).abs()
            basis = basis.where(basis > self.basis_threshold, 0).mT.contiguous()
            found = self._coefficients(q, k, grid, prefix)
            numbers = found[:, :, 0, 0].numel() * basis.size(1)
            seen = torch.cat(in_tiles(lambda _, some: self._seen(some, basis), (found,), numbers), 2)
            if known < prefix:
                front, patches = seen[..., :known], seen[..., known:]
                extra = seen.new_ones(*seen.shape[:-1], prefix - known)
                seen = torch.cat([front, extra, patches], -1)
            return F.pad(seen, (0, 0, prefix, 0), value=True)

    def _seen(self, coefficients: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
        """The keys that patches see, of those that the predictor knows, `(B, num_heads, n, N)`."""
        kept = self.coef_topk
        if kept is not None and kept * _SPARSE < coefficients.size(-1) and not needs_formula():
            best = coefficients.flatten(0, 2).topk(kept, -1)
            shares = best.values.to(basis.dtype)
            scores = F.embedding_bag(best.indices, basis, mode="sum", per_sample_weights=shares)
            scores = scores.view(*coefficients.shape[:3], -1)
        else:
            scores = coefficients @ basis
        if self.score_threshold is not None:
            return scores > self.score_threshold
        keys = scores.topk(ceil(self.keep_rate * scores.size(-1)), -1, sorted=False).indices
        return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, keys, torch.ones_like(keys, dtype=torch.bool))

    def _error(
        self, q: torch.Tensor, k: torch.Tensor, bias: torch.Tensor | None, grid: tuple[int, int], prefix: int
    ) -> torch.Tensor:
        """The mean squared error of the full prediction against the weights of the patches."""
        scores = q @ k.mT * q.size(-1) ** -0.5
        weights = (scores if bias is None else scores + bias).softmax(-1)[:, :, prefix:]
        (q, known), (k, _) = self._known(q, prefix), self._known(k, prefix)
        weights = torch.cat([weights[..., :known], weights[..., prefix:]], -1)
        basis = self.mask_predictor.table(self.mask_predictor.proj_back_n, grid, known)
        return F.mse_loss(self.mask_predictor.coefficients(q, k, grid, known) @ basis.mT, weights)


def _keywords(context: BlockContext) -> Mapping[str, Any]:
    return {"grid": context.grid} if context.grid else {}


CARD = Card(
    name="sparsifiner",
    title="Sparsifiner: sparse instance-dependent attention",
    kind="mixer",
    factory=SparsifinerAttention,
    summary="softmax attention over the keys that a low-rank prediction of its weights finds large",
    flow="(((q | k) -> low-rank prediction -> pairs to keep | (q | k) -> @) -> softmax | v) -> @ -> proj",
    paper="arXiv:2303.13755",
    code="https://github.com/lim142857/Sparsifiner",
    license="MIT",
    placement="in every block in place of attention, with its weights; the predictor is trained first",
    avoid="to save time: the predictor scores all pairs, and has to learn in a phase of its own under full attention",
    columnar=("nano", "tiny"),
    keywords=_keywords,
    cases={
        "": {"num_heads": 3, "grid": (7, 7)},
        "thresholds": {"num_heads": 3, "grid": 4, "score_threshold": 0.05, "coef_topk": None, "share": True},
        "reconstruct": {"num_heads": 3, "grid": (5, 4), "reconstruct": True, "keep_rate": 0.5},
    },
    floor=Floor(12, 19, "q, k, v in, o out: 4; the predictor q, k in: 2; back q, k, v, do in, dq, dk, dv out: 7; rest"),
    cost="N^2",
    keeps_weights=True,
    maps=True,
    discrete=True,
    reference="sparsifiner",
)
