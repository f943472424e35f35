"""Efficient local attention as its paper writes it down: one gate after the other, each multiplied onto the map."""

from typing import Any

import torch
from torch import nn

__all__ = ["NaiveEfficientLocalAttention"]


class NaiveEfficientLocalAttention(nn.Module):
    """`(B, C, H, W) -> (B, C, H, W)`; takes the state dict of `visionattn.plugins.EfficientLocalAttention`.

    Args:
        channels: Width, a multiple of `group_size` and `norm_groups`.
        kernel_size: Length of the convolution.
        group_size: Channels in each group of the convolution.
        norm_groups: Groups of the normalisation.
    """

    def __init__(self, channels: int, *, kernel_size: int = 7, group_size: int = 8, norm_groups: int = 16) -> None:
        super().__init__()
        groups = channels // group_size
        self.conv = nn.Conv1d(channels, channels, kernel_size, padding=kernel_size // 2, groups=groups, bias=False)
        self.gn = nn.GroupNorm(norm_groups, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = self.gn(self.conv(x.mean(3))).sigmoid()
        columns = self.gn(self.conv(x.mean(2))).sigmoid()
        return x * rows[..., None] * columns[:, :, None]


def naive_of(module: Any) -> nn.Module:
    """The literal module with the weights of an `EfficientLocalAttention`."""
    conv = module.conv
    naive = NaiveEfficientLocalAttention(
        conv.in_channels,
        kernel_size=conv.kernel_size[0],
        group_size=conv.in_channels // conv.groups,
        norm_groups=module.gn.num_groups,
    )
    naive.load_state_dict(module.state_dict())
    return naive
