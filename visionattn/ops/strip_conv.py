"""Convolutions of pooled rows and columns, as products where these are faster."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ._autocast import autocast_dtype
from ._modes import compiling, use_eager_kernel
from .eager._opaque import opaque
from .pointwise_conv import pointwise_rows

__all__ = ["strip_conv"]

# Products of fewer multiplications gain less than their six further calls cost: of eight strips of 28 positions and 16
# channels to 8 a convolution takes 0.6 of the time, 0.8 in training; of 7 positions and 8 channels to 256 2.2 times.
_WORTHWHILE = 2**16


def strip_conv(x: torch.Tensor, conv: Any) -> torch.Tensor:
    """`conv(x)`. `(B, C, L) -> (B, C', L)`, or with a further axis of length 1 for `nn.Conv2d`.

    A compiler that meets a convolution lays out everything before it with channels last: it would copy the map whose
    rows and columns were pooled, and read it against its layout. On the CPU, PyTorch convolves so few positions of many
    channels up to four times slower than it multiplies.

    Args:
        x: The strips.
        conv: An `nn.Conv1d` with zero padding to equal length, or an `nn.Conv2d` of one position.
    """
    if type(conv) not in (nn.Conv1d, nn.Conv2d) or conv._forward_hooks or conv._forward_pre_hooks:
        return conv(x)
    if compiling():
        # Positions stay innermost: the gates made of them meet rows of the map.
        dtype = autocast_dtype(x) or x.dtype  # which the operator does not ask for
        strips, weight = x.flatten(2).to(dtype), conv.weight.to(dtype)
        convolved = isinstance(conv, nn.Conv1d)
        out = _convolved(strips, weight) if convolved else pointwise_rows(strips, 1, weight.flatten(1))
        out = out if conv.bias is None else out + conv.bias.to(dtype)[:, None]
        return out.view(*out.shape, *x.shape[3:])
    if isinstance(conv, nn.Conv2d) and conv.groups == 1 and use_eager_kernel(x):
        return _of_positions(x, conv) if x.numel() * conv.out_channels >= _WORTHWHILE else conv(x)
    return conv(x)


def _of_positions(x: torch.Tensor, conv: nn.Conv2d) -> torch.Tensor:
    """One product for the positions of all images."""
    weight, columns = conv.weight.flatten(1), x.transpose(0, 1).flatten(1)
    out = weight @ columns if conv.bias is None else torch.addmm(conv.bias.unsqueeze(1), weight, columns)
    return out.unflatten(1, (len(x), *x.shape[2:])).transpose(0, 1)


def _convolve(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return F.conv1d(x, weight, padding=weight.size(2) // 2, groups=x.size(1) // weight.size(1)).contiguous()


def _strips_like(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x.new_empty(x.size(0), weight.size(0), x.size(2))


def _gradients(grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    pad, groups = weight.size(2) // 2, x.size(1) // weight.size(1)
    dx, dw, _ = torch.ops.aten.convolution_backward(
        grad.contiguous(), x, weight, None, [1], [pad], [1], False, [0], groups, [True, True, False]
    )
    return dx.contiguous(), dw.contiguous()


# Taps and products, which a compiler makes of it, take up to 1.4 times as long.
_convolved = opaque("strip_conv", _convolve, _strips_like, _gradients)
