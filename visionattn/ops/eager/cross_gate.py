"""The gate of channels and positions, which saves one map for the backward pass besides the input."""

from collections.abc import Callable
from typing import Any

import torch

from ._function import EagerFunction, Tensors

__all__ = ["CrossGate"]

_JOIN: dict[str, Callable[..., torch.Tensor]] = {"product": torch.mul, "sum": torch.add}


class CrossGate(EagerFunction):
    """`x * (1 + sigmoid(channel * spatial))`, or with their sum; also returns the sigmoid."""

    @staticmethod
    def compute(
        x: torch.Tensor, channel: torch.Tensor, spatial: torch.Tensor, mode: str
    ) -> tuple[torch.Tensor, torch.Tensor]:
        gate = _JOIN[mode](channel, spatial, out=torch.empty_like(x)).sigmoid_()
        return torch.addcmul(x, x, gate), gate

    @staticmethod
    def gradients(ctx: Any, dy: torch.Tensor) -> Tensors:
        x, channel, spatial, gate = ctx.saved_tensors
        d_score = dy * x
        torch.ops.aten.sigmoid_backward.grad_input(d_score, gate, grad_input=d_score)
        d_score = d_score.flatten(2)
        if ctx.settings == ("product",):
            # These orders of the operands suit both layouts; the transposed ones are up to six times as slow.
            d_channel = spatial.flatten(2) @ d_score.transpose(1, 2)
            d_spatial = channel.flatten(2).transpose(1, 2) @ d_score
        else:
            d_channel, d_spatial = d_score.sum(2), d_score.sum(1)
        return torch.addcmul(dy, dy, gate), d_channel.view(channel.shape), d_spatial.view(spatial.shape)
