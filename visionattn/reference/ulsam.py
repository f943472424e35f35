"""ULSAM as the paper and the official code state it: a module for each subspace, one after the other."""

from typing import Any

import torch
from torch import nn


class Subspace(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_dws = nn.Conv2d(channels, channels, kernel_size=1, groups=channels)
        self.bn_dws = nn.BatchNorm2d(channels, momentum=0.9)
        self.conv_point = nn.Conv2d(channels, 1, kernel_size=1)
        self.bn_point = nn.BatchNorm2d(1, momentum=0.9)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = torch.relu(self.bn_dws(self.conv_dws(x)))
        out = torch.nn.functional.max_pool2d(out, kernel_size=3, stride=1, padding=1)
        out = torch.relu(self.bn_point(self.conv_point(out)))
        attention = out.flatten(2).softmax(dim=-1).reshape(out.shape)
        return attention * x + x


class NaiveULSAM(nn.Module):
    def __init__(self, channels: int, num_splits: int) -> None:
        super().__init__()
        self.subspaces = nn.ModuleList(Subspace(channels // num_splits) for _ in range(num_splits))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        groups = x.chunk(len(self.subspaces), dim=1)
        return torch.cat([subspace(group) for subspace, group in zip(self.subspaces, groups, strict=True)], dim=1)


def naive_of(module: Any) -> nn.Module:
    """The literal module with the weights of a `ULSAM`."""
    naive = NaiveULSAM(module.conv_dws.in_channels, module.num_splits)
    for key, value in module.state_dict().items():
        parts = value.chunk(module.num_splits) if value.ndim else [value] * module.num_splits
        for subspace, part in zip(naive.subspaces, parts, strict=True):
            subspace.state_dict()[key].copy_(part)
    return naive
