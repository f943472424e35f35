"""The memory layout of a map."""

import torch

from ._modes import needs_formula

__all__ = ["as_rows", "memory_format"]


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
