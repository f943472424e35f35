"""CBAM as its authors wrote it down: one map after the other, every pool and product on its own."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

__all__ = ["NaiveCBAM"]


class _ChannelGate(nn.Module):
    """Scales the channels; the pools go through the MLP one by one."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, channels // reduction)
        self.fc2 = nn.Linear(channels // reduction, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        total = torch.zeros((), dtype=x.dtype, device=x.device)
        for pool in (F.avg_pool2d, F.max_pool2d):
            total = total + self.fc2(F.relu(self.fc1(pool(x, x.shape[2:], stride=x.shape[2:]).flatten(1))))
        return x * total.sigmoid()[:, :, None, None].expand_as(x)


class _SpatialGate(nn.Module):
    """Scales the positions by a convolution over the maximum and mean of their channels."""

    def __init__(self, kernel_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)
        self.bn = nn.BatchNorm2d(1, momentum=0.01)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = torch.cat((torch.max(x, 1)[0].unsqueeze(1), torch.mean(x, 1).unsqueeze(1)), dim=1)
        return x * self.bn(self.conv(pooled)).sigmoid()


class NaiveCBAM(nn.Module):
    """`(B, C, H, W) -> (B, C, H, W)`; takes the state dict of `visionattn.plugins.CBAM`.

    Args:
        channels: Width of the map.
        reduction: Divides it to the hidden width of the channel gate.
        kernel_size: Side of the convolution.
    """

    def __init__(self, channels: int, *, reduction: int = 16, kernel_size: int = 7) -> None:
        super().__init__()
        self.channel_gate = _ChannelGate(channels, reduction)
        self.spatial_gate = _SpatialGate(kernel_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.spatial_gate(self.channel_gate(x))


def naive_of(module: Any) -> nn.Module:
    """The literal module with the weights of a `CBAM`."""
    channels, hidden = module.channel_gate.fc1.in_features, module.channel_gate.fc1.out_features
    naive = NaiveCBAM(channels, reduction=channels // hidden, kernel_size=module.spatial_gate.conv.kernel_size[0])
    naive.load_state_dict(module.state_dict())
    return naive
