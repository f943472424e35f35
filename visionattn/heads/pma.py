"""PMA of the Set Transformer (ICML 2019, arXiv 1810.00825): pooling by attention of learnt seeds.

Official code: https://github.com/juho-lee/set_transformer (MIT), modules.py.

Differs from the official code in: sets that seeds pooled lie side by side, so that a classifier can follow; `rff`, the
layer before the pooling that the paper has and the official code has not; a mask of tokens.

Golden: tests/golden/settransformer_pma_2x70x48_eval.npz (outputs, input gradients).
"""

import torch
from torch import nn
from torch.nn import functional as F

from visionattn.catalog import Card
from visionattn.mixers._mab import MultiheadAttentionBlock
from visionattn.utils.arguments import check_positive
from visionattn.utils.factory import FactoryKwargs

__all__ = ["PMAPool"]


class PMAPool(nn.Module):
    """Pools tokens by attention of learnt seeds, whatever their order. `(B, N, C) -> (B, num_seeds * C)`, any N >= 1.

    Stands where timm's vision transformers have their attention pooling: `model.attn_pool` of a network that was made
    with `global_pool="map"`; then the classifier takes `num_seeds * C` channels.

    Args:
        dim: Width C of the tokens.
        num_heads: Heads, a divisor of `dim`. The scale of the scores is `dim ** -0.5`, not that of a head.
        num_seeds: Results for each set.
        norm: Layer norms after both sums of the block.
        rff: Whether a linear layer and a ReLU come before, as in the paper.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: If `num_heads` does not divide `dim`, or `num_seeds` is below 1.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 4,
        num_seeds: int = 1,
        norm: bool = False,
        rff: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(num_seeds=num_seeds)
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        self.rff = nn.Linear(dim, dim, **dd) if rff else None
        self.S = nn.Parameter(torch.empty(1, num_seeds, dim, **dd))
        self.mab = MultiheadAttentionBlock(dim, dim, dim, num_heads=num_heads, norm=norm, **dd)
        self.init_weights()

    def init_weights(self) -> None:
        """The official start of the seeds."""
        nn.init.xavier_uniform_(self.S)

    @property
    def out_features(self) -> int:
        """Width of the result."""
        return self.S[0].numel()

    def forward(self, x: torch.Tensor, attn_mask: torch.Tensor | None = None) -> torch.Tensor:
        """The pooled tokens, those of each seed side by side.

        Args:
            x: `(B, N, C)`.
            attn_mask: Which tokens there are, booleans `(B, N)`; one of each picture at least, all if none.

        Raises:
            ValueError: If the tokens or the mask have another shape.
        """
        self._check(x, attn_mask)
        mask = None if attn_mask is None else attn_mask[:, None, None]
        out: torch.Tensor = self.mab(self.S.to(x.dtype), self._before(x), mask=mask)
        return out.flatten(1)

    def weights(self, x: torch.Tensor) -> torch.Tensor:
        """What each seed takes from each token, `(B, num_heads, num_seeds, N)`."""
        self._check(x, None)
        return self.mab.weights(self.S, self._before(x))

    def _before(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.rff is None else F.relu(self.rff(x))

    def _check(self, x: torch.Tensor, mask: torch.Tensor | None) -> None:
        width = self.S.shape[2]
        if x.ndim != 3 or x.shape[2] != width or not x.shape[1]:
            raise ValueError(f"x must be (B, tokens, {width}), at least one token, got {tuple(x.shape)}")
        if mask is not None and (mask.dtype != torch.bool or mask.shape != x.shape[:2]):
            raise ValueError(f"attn_mask must be bool {tuple(x.shape[:2])}, got {mask.dtype} {tuple(mask.shape)}")


CARD = Card(
    name="pma",
    title="PMA: pooling by multihead attention",
    kind="head",
    factory=PMAPool,
    summary="pools tokens by attention of learnt seeds, in place of their mean",
    paper="arXiv:1810.00825",
    code="https://github.com/juho-lee/set_transformer",
    license="MIT",
    placement="behind the last block, in front of the classifier",
    avoid="where data are few: a mean over the tokens has no parameters, the seeds bring a whole attention block",
    flow="({seeds} | feed-forward -> k and v) -> softmax attention, + seeds -> (. | linear, ReLU) -> +",
    cases={"": {"num_heads": 3}, "seeds": {"num_heads": 3, "num_seeds": 4, "norm": True, "rff": True}},
    maps=True,
    reference="set_transformer",
)
