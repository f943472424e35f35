"""BiDAF (arXiv 1611.01603) as section 2.4 says it, with the features of all pairs side by side."""

from typing import Any

import torch
from torch import nn

__all__ = ["NaiveCoAttention", "naive_of"]


class NaiveCoAttention(nn.Module):
    """The output of `visionattn.heads.CoAttention`, with its weights."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.score = nn.Linear(module.score.in_features, 1)
        self.score.load_state_dict(module.score.state_dict())
        self.to(module.score.weight)
        self.c2q, self.q2c = module.c2q, module.q2c

    def forward(
        self,
        a: torch.Tensor,
        b: torch.Tensor,
        mask_a: torch.Tensor | None = None,
        mask_b: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        left, right = torch.broadcast_tensors(a.unsqueeze(2), b.unsqueeze(1))
        scores = self.score(torch.cat([left, right, left * right], -1)).squeeze(-1)
        seen = torch.ones_like(scores, dtype=torch.bool)
        if mask_a is not None:
            seen = seen & mask_a.bool()[:, :, None]
        if mask_b is not None:
            seen = seen & mask_b.bool()[:, None, :]
        scores = torch.where(seen, scores, torch.full_like(scores, -1e30))
        rows = scores.softmax(-1)
        to_all = scores.max(-1).values.softmax(-1)
        if not self.c2q:
            rows = torch.ones_like(rows) / b.shape[1]
        about = torch.einsum("bnm,bmd->bnd", rows, b)
        one = torch.einsum("bn,bnd->bd", to_all, a).unsqueeze(1).expand_as(a)
        parts = [a, about, a * about, a * one]
        return torch.cat(parts if self.q2c else parts[:3], -1), rows, to_all


def naive_of(module: Any) -> nn.Module:
    """The literal module with the weights of a `CoAttention`."""
    return NaiveCoAttention(module)
