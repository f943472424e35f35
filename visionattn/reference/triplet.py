"""Triplet attention as its authors wrote it down: three permuted copies, each gated on its own, then the mean."""

from typing import Any

import torch
from torch import nn

__all__ = ["NaiveTripletAttention"]


class _Gate(nn.Module):
    """Scales a tensor by a sigmoid of one convolution over the maximum and mean of its second dimension."""

    def __init__(self, kernel_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)
        self.bn = nn.BatchNorm2d(1, momentum=0.01)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = torch.cat((x.max(1, keepdim=True).values, x.mean(1, keepdim=True)), dim=1)
        return x * self.bn(self.conv(pooled)).sigmoid()


class NaiveTripletAttention(nn.Module):
    """`(B, C, H, W) -> (B, C, H, W)`; takes the state dict of `visionattn.plugins.TripletAttention`.

    Args:
        channels: Not used: nothing depends on the width.
        kernel_size: Side of the three convolutions.
        no_spatial: Leave the third branch out.
    """

    def __init__(self, channels: int, *, kernel_size: int = 7, no_spatial: bool = False) -> None:
        super().__init__()
        self.cw = _Gate(kernel_size)
        self.hc = _Gate(kernel_size)
        self.hw = None if no_spatial else _Gate(kernel_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        cw = self.cw(x.permute(0, 2, 1, 3).contiguous()).permute(0, 2, 1, 3).contiguous()
        hc = self.hc(x.permute(0, 3, 2, 1).contiguous()).permute(0, 3, 2, 1).contiguous()
        return (cw + hc) / 2 if self.hw is None else (self.hw(x) + cw + hc) / 3


def naive_of(module: Any) -> nn.Module:
    """The literal module with the weights of a `TripletAttention`."""
    naive = NaiveTripletAttention(1, kernel_size=module.cw.conv.kernel_size[0], no_spatial=module.hw is None)
    naive.load_state_dict(module.state_dict())
    return naive
