"""MoH: multi-head attention as mixture-of-head attention (ICML 2025, arXiv 2410.11842).

Official code: https://github.com/SkyworkAI/MoH (Apache-2.0), MoH-ViT/attention.py and MoH-DiT. The
attentions of MoH-ViT are TransNeXt's (arXiv 2311.17132); that of its first three stages is in `moh_aggregated`.

Differs from the official code in:
- any map: the biases of positions, there a table of one image size, are made for the map in the forward pass;
- the loss of balance is a scalar of its own, weighted, handed to the collector of the task; there, a list of the class
  that has to be emptied at each step;
- one matrix product gives all weights of the heads, in float32 or wider; heads that may not be mixed so (one shared,
  none routed), which fail there in the forward pass, are refused.

Golden: tests/golden/moh_attn_module_*.npz (outputs, input gradients, loss).
"""

from math import log
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from visionattn.catalog import BlockContext, Card
from visionattn.ops import attention
from visionattn.ops.losses import Losses
from visionattn.utils.arguments import pair
from visionattn.utils.factory import FactoryKwargs

from ._common import WINDOWS, split_heads
from ._cosine import CosineParts, log_position_bias
from ._head_routing import HeadRouting

__all__ = ["MixtureOfHeadAttention"]


class MixtureOfHeadAttention(HeadRouting, CosineParts):
    """Global attention in which each token uses some of the heads. `(B, H, W, C) -> (B, H, W, C)`.

    Any H, W >= 1. Official names of parameters; the plain form has those of softmax attention besides.

    Args:
        dim: Width C.
        num_heads: Heads, a divisor of `dim`.
        shared_heads: How many of them serve every token; by default a quarter, at least one.
        routed_heads: How many of the others serve each token; by default half of `num_heads`. 0 if all are shared.
        cosine: The attention of MoH-ViT's last stage: normed queries and keys, a learned query for each head, a
            temperature, and a bias of positions. Otherwise plain softmax attention, as in MoH-DiT.
        grid_size: With `cosine`: rows and columns of the map whose largest distances are the unit of positions; by
            default each map's own.
        balance_weight: Factor of the loss that keeps the load of the routed heads even; 0.01 in the paper.
        qkv_bias: Whether the projections to queries, keys and values have biases.
        attn_drop: Dropout of the attention weights.
        proj_drop: Dropout after the output projection.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: If `num_heads` does not divide `dim`, there are not so many heads of a kind, or `grid_size` is given
            without `cosine`.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        shared_heads: int | None = None,
        routed_heads: int | None = None,
        cosine: bool = False,
        grid_size: int | tuple[int, int] | None = None,
        balance_weight: float = 0.01,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        super().__init__(
            dim,
            num_heads=num_heads,
            shared_heads=shared_heads,
            routed_heads=routed_heads,
            balance_weight=balance_weight,
            **dd,
        )
        if grid_size is not None and not cosine:
            raise ValueError(f"grid_size is for cosine=True, got grid_size={grid_size}, cosine=False")
        self.cosine = cosine
        self.grid_size = None if grid_size is None else pair("grid_size", grid_size)
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **dd)
        if cosine:
            self.add_cosine_parts(num_heads, dim // num_heads, dd)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: torch.Tensor, losses: Losses | None = None) -> torch.Tensor:
        grid = (x.shape[1], x.shape[2])
        return self.forward_tokens(x.flatten(1, 2), grid, losses=losses).unflatten(1, grid)

    def forward_tokens(
        self, x: torch.Tensor, grid: tuple[int, int], prefix: int = 0, losses: Losses | None = None
    ) -> torch.Tensor:
        """Attention of tokens, `(B, prefix + H * W, C) -> (B, prefix + H * W, C)`.

        Args:
            x: The tokens, extra ones first.
            grid: `(H, W)` of the others.
            prefix: Number of extra tokens, to and from which positions have no bias.
            losses: Where the loss of balance goes in training; by default the open collector.
        """
        q, k, v = self._heads(x)
        dropout_p = self.attn_drop.p if self.training else 0.0
        if self.cosine:
            q, k = self._normed(q, k)
            out = attention(q, k, v, mask=self._bias(grid, prefix).to(q.dtype), scale=1.0, dropout_p=dropout_p)
        else:
            out = attention(q, k, v, dropout_p=dropout_p)
        gates = self.head_gates(x, losses).to(out.dtype)
        out = (out.unflatten(-1, (self.num_heads, -1)) * gates.unsqueeze(-1)).flatten(-2)
        return self.proj_drop(self.proj(out))

    def weights(self, x: torch.Tensor) -> torch.Tensor:
        """The attention weights times the head factors, `(B, num_heads, N, N)`, from `(B, H, W, C)`."""
        tokens = x.flatten(1, 2)
        q, k, _ = self._heads(tokens)
        if self.cosine:
            q, k = self._normed(q, k)
            rows = (q @ k.mT + self._bias((x.shape[1], x.shape[2]), 0)).softmax(-1)
        else:
            rows = (q @ k.mT * q.size(-1) ** -0.5).softmax(-1)
        return rows * self.head_gates(tokens, {}).to(rows.dtype).mT.unsqueeze(-1)

    def _heads(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values, `(B, num_heads, N, C / num_heads)` each."""
        return split_heads(self.qkv(x), self.num_heads)

    def _normed(self, q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries, including the scale of the scores, and keys."""
        length = log(k.shape[2])
        queries = (F.normalize(q, dim=-1) + self.query_embedding) * (F.softplus(self.temperature) * length)
        return queries.to(q.dtype), F.normalize(k, dim=-1)

    def _bias(self, grid: tuple[int, int], prefix: int) -> torch.Tensor:
        bias = log_position_bias(self.cpb_fc1, self.cpb_fc2, grid, grid, self.grid_size or grid).bias()
        return F.pad(bias, (prefix, 0, prefix, 0)) if prefix else bias


def _keywords(context: BlockContext) -> dict[str, Any]:
    """At least two heads: a single one leaves nothing to route."""
    return {"num_heads": max(context.num_heads, 2)}


CARD = Card(
    name="moh",
    title="MoH: mixture-of-head attention",
    kind="mixer",
    factory=MixtureOfHeadAttention,
    summary="softmax attention in which each token chooses some of the heads, and others serve all",
    flow="(((q | k) -> @ -> softmax | v) -> @ | router -> gates of the chosen heads) -> * -> proj",
    paper="arXiv:2410.11842",
    code="https://github.com/SkyworkAI/MoH",
    license="Apache-2.0",
    placement="in every block in place of attention",
    avoid="to save time: heads that a token does not choose get the factor 0, but are computed",
    pyramid=("nano", "micro", "tiny"),
    keywords=_keywords,
    cases={
        "": {"num_heads": 6},
        "cosine": {"num_heads": 6, "shared_heads": 2, "routed_heads": 2, "cosine": True},
        "no shared": {"num_heads": 4, "shared_heads": 0, "routed_heads": 2},
        "all shared": {"num_heads": 3, "shared_heads": 3, "routed_heads": 0},
    },
    floor=WINDOWS,
    cost="N^2",
    memory="N",
    keeps_weights=True,
    maps=True,
    discrete=True,
    reference="moh",
)
