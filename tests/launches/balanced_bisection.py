"""Balanced bisection in the first three stages of a BOAT, at 224 pixels and 128 images."""

import torch

from visionattn.ops.triton.balanced_bisection import bisected_tokens

from . import Call, meta


def _call(heads: int, side: int, levels: int, dtype: torch.dtype = torch.bfloat16, slow: bool = True) -> Call:
    q = meta(128, side * side, 3, heads, 32, dtype=dtype)[:, :, 0].transpose(1, 2)
    name = f"{heads}-{side}-{str(dtype).removeprefix('torch.')}"
    return Call(name, bisected_tokens, (q, levels, 2, 100.0), vectors=("scores_kernel",), slow=slow)


CALLS = [
    _call(3, 56, 6, slow=False),
    _call(6, 28, 4),
    _call(12, 14, 2),
    _call(3, 90, 8),
    _call(3, 56, 6, torch.float32),
]
