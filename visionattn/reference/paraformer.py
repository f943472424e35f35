"""ParaFormer's layer (arXiv 2303.00941), one attention after the other."""

from typing import Any

import torch
from torch import nn

from ._literal import Literal

__all__ = ["naive_of", "parallel_attention"]


def parallel_attention(module: Any, xa: torch.Tensor, xb: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The output of `visionattn.mixers.ParallelSelfCrossAttention` of tokens `(B, N, C)` without masks and dropout."""

    def attend(x: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            layer(t).unflatten(-1, (module.num_heads, -1)).transpose(1, 2)
            for layer, t in ((module.q, x), (module.k, source), (module.v, source))
        )
        weights = torch.softmax(q @ k.transpose(2, 3) / q.shape[-1] ** 0.5, -1)
        return (weights @ v).transpose(1, 2).flatten(2)

    def layer(x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = x + module.mlp(torch.cat([x, attend(x, x), attend(x, other)], -1))
        return out

    return layer(xa, xb), layer(xb, xa)


class _OfTwo(Literal):
    def forward(self, xa: torch.Tensor, xb: torch.Tensor) -> Any:  # type: ignore[override]
        formula: Any = self.formula
        return formula(self.module, xa, xb)


def naive_of(module: Any) -> nn.Module:
    """The literal module with the weights of a `ParallelSelfCrossAttention`."""
    formula: Any = parallel_attention
    return _OfTwo(formula, module)
