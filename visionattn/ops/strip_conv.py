"""Convolutions of pooled rows and columns, as products where these are faster."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ._modes import compiling, use_eager_kernel

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
    if isinstance(conv, nn.Conv2d) and conv.groups == 1 and use_eager_kernel(x):
        return _of_positions(x, conv) if x.numel() * conv.out_channels >= _WORTHWHILE else conv(x)
    if not compiling():
        return conv(x)
    weight, groups = conv.weight.flatten(2), conv.groups
    strips = x.flatten(2)
    pad = weight.size(2) // 2
    taps = F.pad(strips, (pad, pad)).unfold(2, weight.size(2), 1).unflatten(1, (groups, -1))
    taps = taps.permute(1, 0, 3, 2, 4).flatten(3).flatten(1, 2)
    out = taps @ weight.unflatten(0, (groups, -1)).flatten(2).mT
    out = out.unflatten(1, (len(x), -1)).permute(1, 0, 3, 2).flatten(1, 2)
    if conv.bias is not None:
        out = out + conv.bias[:, None]
    return out.view(*out.shape, *x.shape[3:])


def _of_positions(x: torch.Tensor, conv: nn.Conv2d) -> torch.Tensor:
    """One product for the positions of all images."""
    weight, columns = conv.weight.flatten(1), x.transpose(0, 1).flatten(1)
    out = weight @ columns if conv.bias is None else torch.addmm(conv.bias.unsqueeze(1), weight, columns)
    return out.unflatten(1, (len(x), *x.shape[2:])).transpose(0, 1)
