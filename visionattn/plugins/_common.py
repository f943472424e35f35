"""Parts that several plug-ins share."""

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from visionattn.catalog import Floor
from visionattn.ops import plane_conv, strip_conv
from visionattn.ops.pointwise_conv import pointwise_conv
from visionattn.utils.arguments import check_odd
from visionattn.utils.factory import FactoryKwargs

__all__ = ["ONE_POOL", "Matrix", "PlaneGate", "PointwiseConv", "StripGates"]

ONE_POOL = Floor(3, 4, "all pools are of x: R, then R and W; back R dy, R x, then R dy, W dx")


class Matrix(nn.Module):
    """A linear layer without bias; not an `nn.Linear`, whose bias timm's EfficientNets would zero."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The initialisation of a linear layer."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight)


class PointwiseConv(nn.Conv2d):
    """A convolution of one position, which compilers read as a product."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return pointwise_conv(x, self.weight, self.bias)


class PlaneGate(nn.Module):
    """A sigmoid of one convolution over the maximum and mean of a pooled axis (in this order).

    `(B, 2, M, N) -> (B, 1, M, N)`, for any M, N >= 1.

    Args:
        kernel_size: Side of the convolution, odd.
        zero_init: Start the scale of the normalisation at zero, so that the gate is 0.5 everywhere.

    Raises:
        ValueError: If `kernel_size` is not a positive odd number.
    """

    def __init__(
        self,
        kernel_size: int = 7,
        *,
        zero_init: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_odd(kernel_size=kernel_size)
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        self.zero_init = zero_init
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False, **dd)
        self.bn = nn.BatchNorm2d(1, momentum=0.01, **dd)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The official initialisation."""
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out")
        self.bn.reset_parameters()
        if self.zero_init:
            nn.init.zeros_(self.bn.weight)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        return self.bn(plane_conv(pooled, self.conv.weight)).sigmoid()


class StripGates(nn.Module):
    """Computes a gate for each row and column of every channel from row and column means.

    Both strips go through one narrow convolution and its normalisation as one strip, so the statistics are joint.

    Args:
        channels: Width of the map.
        hidden: Width between the two convolutions.
        bias: Whether the convolutions have biases.
        act: Class of the activation after the normalisation.
    """

    # The strips as `visionattn.ops.axis_attention` makes them, and along which axes their gates have size 1.
    pools = (("mean", 3), ("mean", 2))
    broadcast_dims = ((3,), (2,))

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
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        self.conv1 = nn.Conv2d(channels, hidden, 1, bias=bias, **dd)
        self.bn1 = nn.BatchNorm2d(hidden, **dd)
        self.act = act()
        self.conv_h = nn.Conv2d(hidden, channels, 1, bias=bias, **dd)
        self.conv_w = nn.Conv2d(hidden, channels, 1, bias=bias, **dd)

    def reset_parameters(self) -> None:
        """PyTorch's default initialisation, as in the official code."""
        for layer in (self.conv1, self.bn1, self.conv_h, self.conv_w):
            layer.reset_parameters()

    def gates(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """The factors of the rows `(B, C, H, 1)` and of the columns `(B, C, 1, W)`."""
        rows, columns = self.strips(x.mean(3), x.mean(2))
        return {"rows": rows, "columns": columns}

    def strips(self, rows: torch.Tensor, columns: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Means `(B, C, H), (B, C, W)` to gates between 0 and 1, `(B, C, H, 1), (B, C, 1, W)`."""
        strips = torch.cat((rows, columns), dim=2).unsqueeze(3)
        strips = self.act(self.bn1(strip_conv(strips, self.conv1)))
        rows, columns = strips.split((rows.shape[2], columns.shape[2]), dim=2)
        return strip_conv(rows, self.conv_h).sigmoid(), strip_conv(columns, self.conv_w).sigmoid().transpose(2, 3)
