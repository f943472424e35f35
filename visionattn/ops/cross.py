"""Gating a map by a score of each channel joined with a score of each position."""

import torch

from ._axis_rules import refuses_gates
from ._dispatch import has_kernel
from ._eager import traced

__all__ = ["cross_gate"]


def _refuses(x: torch.Tensor, channel: torch.Tensor, spatial: torch.Tensor, mode: str) -> str:
    return refuses_gates(x, (channel, spatial))


@has_kernel("axis", _refuses)
def cross_gate(x: torch.Tensor, channel: torch.Tensor, spatial: torch.Tensor, mode: str) -> torch.Tensor:
    """`x * (1 + sigmoid(channel * spatial))`, or with their sum, in the dtype and layout of `x`.

    While compiling or exporting, the plain formula is used: compilers fuse it.

    Args:
        x: Map, `(B, C, H, W)`.
        channel: `(B, C, 1, 1)`.
        spatial: `(B, 1, H, W)`.
        mode: `product` or `sum`.
    """
    channel, spatial = channel.to(x.dtype), spatial.to(x.dtype)
    if traced():
        return x * (1 + _JOIN[mode](channel, spatial).sigmoid())
    return _CrossGate.apply(x, channel, spatial, mode)


_JOIN = {"product": torch.mul, "sum": torch.add}


class _CrossGate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, channel, spatial, mode):
        gate = _JOIN[mode](channel, spatial, out=torch.empty_like(x)).sigmoid_()
        ctx.mode = mode
        ctx.save_for_backward(x, channel, spatial, gate)
        return torch.addcmul(x, x, gate)

    @staticmethod
    def backward(ctx, dy):
        x, channel, spatial, gate = ctx.saved_tensors
        d_score = dy * x
        if torch.is_grad_enabled():  # The saved gate would be a constant to a second derivative.
            gate = _JOIN[ctx.mode](channel, spatial).sigmoid()
            d_score = torch.ops.aten.sigmoid_backward(d_score, gate)
        else:
            torch.ops.aten.sigmoid_backward.grad_input(d_score, gate, grad_input=d_score)
        d_score = d_score.flatten(2)
        if ctx.mode == "product":
            # These orders of the operands suit both layouts; the transposed ones are up to six times as slow.
            d_channel = spatial.flatten(2) @ d_score.transpose(1, 2)
            d_spatial = channel.flatten(2).transpose(1, 2) @ d_score
        else:
            d_channel, d_spatial = d_score.sum(2), d_score.sum(1)
        return torch.addcmul(dy, dy, gate), d_channel.view(channel.shape), d_spatial.view(spatial.shape), None
