"""How a map lies in memory."""

import torch

__all__ = ["memory_format"]


def memory_format(x: torch.Tensor) -> torch.memory_format:
    """`torch.channels_last` for a map `(B, C, H, W)` that lies so and not otherwise; else `torch.contiguous_format`.

    Always the latter while compiling or exporting: a compiler chooses its own loops, and reading strides adds guards.
    """
    if torch.compiler.is_compiling() or x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last):
        return torch.contiguous_format
    return torch.channels_last
