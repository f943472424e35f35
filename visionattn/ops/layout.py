"""The memory layout of a map."""

from typing import Any

import torch

from ._modes import compiling, needs_formula

__all__ = ["as_rows", "from_layout_of", "memory_format", "stores_channels_last", "tabulated", "to_layout_of"]

# Maps of fewer numbers are done before copies of what meets them pay.
_WORTHWHILE = 2**17


def memory_format(x: torch.Tensor) -> torch.memory_format:
    """`torch.channels_last` for a map `(B, C, H, W)` in that layout only; else `torch.contiguous_format`.

    Always the latter where plain formulas run: compilers choose their own loops, and what `torch.func` maps over does
    not say how it lies.
    """
    if needs_formula() or not _lies_as_nhwc(x):
        return torch.contiguous_format
    return torch.channels_last


def _lies_as_nhwc(x: torch.Tensor) -> bool:
    return not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def as_rows(x: torch.Tensor) -> tuple[torch.Tensor, int]:
    """A map `(B, C, H, W)` in its memory layout with positions flattened to length N, and the axis of its channels.

    `(B, N, C)` and 2 for channels_last maps; `(B, C, N)` and 1 for others. Views of dense maps.
    """
    if memory_format(x) == torch.channels_last or stores_channels_last(x):
        return x.permute(0, 2, 3, 1).flatten(1, 2), 2
    return x.flatten(2), 1


def stores_channels_last(x: torch.Tensor) -> bool:
    """Whether a compiler reads the code, and a map is worth copies of what meets it: a large one that lies as NHWC."""
    return compiling() and x.device.type == "cpu" and x.numel() >= _WORTHWHILE and _lies_as_nhwc(x)


def to_layout_of(x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """A gate `(B, C, ...)` stored as the map that it meets lies: a compiler's loops run through both densely."""
    stored: torch.Tensor = _stored(gate, True) if stores_channels_last(x) and gate.size(1) > 1 else gate
    return stored


def from_layout_of(x: torch.Tensor, pool: torch.Tensor) -> torch.Tensor:
    """The reverse, for what was pooled of a map, `(B, C, ...)`: its gradient is stored as the map lies."""
    stored: torch.Tensor = _stored(pool, False) if stores_channels_last(x) else pool
    return stored


def tabulated(x: torch.Tensor) -> torch.Tensor:
    """A table without a gradient, which a compiler on the CPU would compute anew for each number that meets it."""
    stored: torch.Tensor = _stored(x, False) if compiling() and x.device.type == "cpu" else x
    return stored


def _in_layout(x: torch.Tensor, channels_last: bool) -> torch.Tensor:
    if not channels_last:
        return x.clone(memory_format=torch.contiguous_format)
    return x.movedim(1, -1).clone(memory_format=torch.contiguous_format).movedim(-1, 1)


def _save_layout(ctx: Any, inputs: tuple[torch.Tensor, bool], output: torch.Tensor) -> None:
    ctx.channels_last = inputs[1]


_stored: Any = torch.library.custom_op("visionattn::stored", _in_layout, mutates_args=())
_stored.register_fake(_in_layout)
_stored.register_autograd(lambda ctx, grad: (_stored(grad, not ctx.channels_last), None), setup_context=_save_layout)
