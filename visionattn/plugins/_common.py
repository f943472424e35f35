"""Parts that several plug-ins share."""

from collections.abc import Callable

import torch
from torch import nn

__all__ = ["StripGates"]


class StripGates(nn.Module):
    """Turns the means of the rows and of the columns into a gate for each row and each column of every channel.

    Both strips go through one narrow convolution and its normalisation as one strip, so the statistics are joint.

    Args:
        channels: Width of the map.
        hidden: Width between the two convolutions.
        bias: Whether the convolutions have biases.
        act: Class of the activation after the normalisation.
    """

    def __init__(
        self,
        channels: int,
        hidden: int,
        *,
        bias: bool,
        act: Callable[[], nn.Module],
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.conv1 = nn.Conv2d(channels, hidden, 1, bias=bias, **dd)
        self.bn1 = nn.BatchNorm2d(hidden, **dd)
        self.act = act()
        self.conv_h = nn.Conv2d(hidden, channels, 1, bias=bias, **dd)
        self.conv_w = nn.Conv2d(hidden, channels, 1, bias=bias, **dd)

    def reset_parameters(self) -> None:
        """PyTorch's default start, which is the authors' too."""
        for layer in (self.conv1, self.bn1, self.conv_h, self.conv_w):
            layer.reset_parameters()

    def gates(self, rows: torch.Tensor, columns: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`(B, C, H, 1), (B, C, 1, W)` of means to the same shapes of gates between 0 and 1."""
        strips = torch.cat((rows, columns.transpose(2, 3)), dim=2)
        strips = self.act(self.bn1(self.conv1(strips)))
        rows, columns = strips.split((rows.shape[2], columns.shape[3]), dim=2)
        return self.conv_h(rows).sigmoid(), self.conv_w(columns.transpose(2, 3)).sigmoid()
