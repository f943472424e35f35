"""Heads by the names that configs use: from one feature map to logits."""

import torch
from torch import nn

from .registry import HEADS

__all__ = ["FCNHead", "PooledHead"]


@HEADS.register_module()
def FCNHead(in_channels: int, num_classes: int) -> nn.Module:
    """torchvision's two convolutions, for the auxiliary loss of segmentors. `(B, C, H, W) -> (B, K, H, W)`."""
    from torchvision.models.segmentation.fcn import FCNHead

    return FCNHead(in_channels, num_classes)


@HEADS.register_module()
class PooledHead(nn.Module):
    """Mean over the map, dropout, and one linear layer. `(B, C, H, W) -> (B, K)`.

    Args:
        in_channels: Channels of the map.
        num_classes: Classes.
        drop_rate: Share of channels that are dropped in training.
    """

    def __init__(self, in_channels: int, num_classes: int, drop_rate: float = 0.0) -> None:
        super().__init__()
        self.drop = nn.Dropout(drop_rate)
        self.linear = nn.Linear(in_channels, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.drop(x.mean((2, 3))))
