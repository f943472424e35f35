"""bfloat16 in Triton's interpreter as on GPUs.

The interpreter cuts off the last bits of float32 where GPUs round to nearest, and its `dot` takes the bits of bfloat16
for integers.
"""

from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

__all__ = ["repair_bfloat16"]


def repair_bfloat16() -> None:
    """Makes casts round to nearest, ties to even, and products of matrices those of the numbers."""
    cast, dot = InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot

    def rounding_cast(self: Any, src: Any, dst_type: Any) -> Any:
        if src.dtype.scalar != tl.float32 or dst_type.scalar != tl.bfloat16:
            return cast(self, src, dst_type)
        bits = np.ascontiguousarray(src.data).view(np.uint32)
        rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
        return TensorHandle(np.where(np.isnan(src.data), 0x7FC0, rounded).astype(np.uint16), tl.bfloat16)

    def wide_dot(self: Any, a: Any, b: Any, *args: Any) -> Any:
        return dot(self, _widened(a), _widened(b), *args)

    InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot = rounding_cast, wide_dot


def _widened(handle: Any) -> Any:
    if handle.dtype.scalar != tl.bfloat16:
        return handle
    return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)
