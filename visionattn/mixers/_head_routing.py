"""Routing of tokens to attention heads (MoH, arXiv 2410.11842)."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from visionattn.ops._autocast import wide, without_autocast
from visionattn.ops.losses import Losses, add_loss
from visionattn.utils.arguments import check_heads
from visionattn.utils.factory import FactoryKwargs

__all__ = ["HeadRouting"]


class HeadRouting(nn.Module):
    """The base of mixtures of heads: a factor for each token and head, most of them zero, and a load-balance loss.

    The first heads are shared by all tokens; of the others, each token is routed to a number. Two stages of weights:
    softmaxes within the shared and within the routed heads, and one that weighs the two groups.

    Args:
        dim: Width of the tokens.
        num_heads: Heads, a divisor of `dim`.
        shared_heads: How many of them serve every token; by default a quarter, at least one.
        routed_heads: How many of the others serve each token; by default half of `num_heads`. 0 if all are shared.
        balance_weight: Factor of the loss that keeps the load of the routed heads even.

    Raises:
        ValueError: If `num_heads` does not divide `dim`, or there are not so many heads of a kind.
    """

    has_losses = True
    wg: nn.Linear | None
    wg_0: nn.Linear | None
    wg_1: nn.Linear | None

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        shared_heads: int | None,
        routed_heads: int | None,
        balance_weight: float,
        **dd: Any,
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        shared = max(num_heads // 4, 1) if shared_heads is None else shared_heads
        routed = max(min(num_heads // 2, num_heads - shared), 0) if routed_heads is None else routed_heads
        _check(num_heads, shared, routed)
        if not balance_weight >= 0:
            raise ValueError(f"balance_weight must be at least 0, got {balance_weight}")
        given: FactoryKwargs = {"device": dd.get("device"), "dtype": dd.get("dtype")}
        self.num_heads = num_heads
        self.shared_heads = shared
        self.routed_heads = routed
        self.balance_weight = balance_weight
        self.wg = nn.Linear(dim, num_heads - shared, bias=False, **given) if routed else None
        self.wg_0 = nn.Linear(dim, 2, bias=False, **given) if routed and shared else None
        self.wg_1 = nn.Linear(dim, shared, bias=False, **given) if shared > 1 else None

    def head_gates(self, x: torch.Tensor, losses: Losses | None = None) -> torch.Tensor:
        """The factor of each head for each token, `(..., C) -> (..., num_heads)`, in float32 or wider.

        In training the loss of balance goes to `losses`, or else to the open collector. It is taken over the batch.
        """
        layers = [layer for layer in (self.wg_0, self.wg_1, self.wg) if layer is not None]
        with without_autocast(x):
            # Routing in half precision would tie heads.
            wider = wide(x)
            logits = F.linear(x.to(wider), torch.cat([layer.weight for layer in layers]).to(wider))
            parts = iter(logits.split([layer.out_features for layer in layers], dim=-1))
            groups = next(parts).softmax(-1) * 2 if self.wg_0 is not None else None
            gates = []
            if self.wg_1 is not None:
                gates.append(next(parts).softmax(-1) * self.shared_heads)
            elif self.shared_heads:
                gates.append(torch.ones_like(logits[..., :1]))
            if self.wg is not None:
                gates.append(self._routed_gates(next(parts).softmax(-1), losses))
            if groups is not None:
                gates = [gate * weight for gate, weight in zip(gates, groups.split(1, dim=-1), strict=True)]
            return torch.cat(gates, -1) if len(gates) > 1 else gates[0]

    def _routed_gates(self, shares: torch.Tensor, losses: Losses | None) -> torch.Tensor:
        """The largest probabilities of each token, scaled to its number of routed heads; the others are zero."""
        chosen = shares.detach().topk(self.routed_heads, dim=-1).indices
        mask = torch.zeros_like(shares).scatter(-1, chosen, 1.0)
        if self.training:
            count = shares.size(-1)
            mean_share, load = (t.flatten(0, -2).mean(0) for t in (shares, mask))
            add_loss("balance", self.balance_weight * (mean_share * load).mean() * count**2, losses)
        kept = shares * mask
        total = kept.sum(-1, keepdim=True).clamp_min(torch.finfo(kept.dtype).eps)
        return kept * (self.routed_heads / total)


def _check(num_heads: int, shared: int, routed: int) -> None:
    """Raises unless the numbers of shared and routed heads are valid."""
    given = f"got num_heads={num_heads}, shared_heads={shared}, routed_heads={routed}"
    if not 0 <= shared <= num_heads:
        raise ValueError(f"shared_heads must be 0 to num_heads, {given}")
    if not 0 <= routed <= num_heads - shared:
        raise ValueError(f"routed_heads must be 0 to num_heads - shared_heads, {given}")
    if routed == 0 and (shared < num_heads or shared == 1):
        raise ValueError(f"routed_heads=0 needs all heads shared, and at least two, {given}")
