"""The memory layout of a map."""

from typing import Any

import torch

from ._modes import compiling, needs_formula

__all__ = ["as_rows", "memory_format", "stored_for", "stores_channels_last"]

# Maps of fewer numbers are done before the copies of `stored_for` pay.
_WORTHWHILE = 2**17


def memory_format(x: torch.Tensor) -> torch.memory_format:
    """`torch.channels_last` for a map `(B, C, H, W)` in that layout only; else `torch.contiguous_format`.

    Always the latter where plain formulas run: compilers choose their own loops, and what `torch.func` maps over does
    not say how it lies.
    """
    if needs_formula() or x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last):
        return torch.contiguous_format
    return torch.channels_last


def as_rows(x: torch.Tensor) -> tuple[torch.Tensor, int]:
    """A map `(B, C, H, W)` in its memory layout with positions flattened to length N, and the axis of its channels.

    `(B, N, C)` and 2 for channels_last maps; `(B, C, N)` and 1 for others. Views of dense maps.
    """
    if memory_format(x) == torch.channels_last:
        return x.permute(0, 2, 3, 1).flatten(1, 2), 2
    return x.flatten(2), 1


def stores_channels_last(x: torch.Tensor) -> bool:
    """Whether a compiler reads the code, and the map is worth what `stored_for` does: a large one that lies as NHWC."""
    large = compiling() and x.device.type == "cpu" and x.numel() >= _WORTHWHILE
    return large and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def stored_for(x: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
    """What was pooled of a map or is to gate it, `(B, C, ...)`; for compilers stored in the layout of a map as NHWC.

    They store it as NCHW otherwise, and run through a map of another layout one number at a time.
    """
    stored: torch.Tensor = _channels_last(part) if stores_channels_last(x) else part
    return stored


def _with_channels_last(x: torch.Tensor) -> torch.Tensor:
    return x.movedim(1, -1).clone(memory_format=torch.contiguous_format).movedim(-1, 1)


_channels_last: Any = torch.library.custom_op("visionattn::channels_last", _with_channels_last, mutates_args=())
_channels_last.register_fake(_with_channels_last)
# The gradient meets the map, too.
_channels_last.register_autograd(lambda ctx, grad: _channels_last(grad))
