"""Halo attention in stages of a HaloNet."""

from collections.abc import Iterator

import torch

from visionattn.ops.triton.halo_attention import halo_backward, halo_forward

from . import Call, meta

__all__ = ["CALLS"]


def _calls(
    name: str,
    shape: tuple[int, int, int, int, int],
    dtype: torch.dtype,
    block: int = 7,
    halo: int = 3,
    dot: bool = True,
    slow: bool = False,
) -> Iterator[Call]:
    """Forward and backward. `shape` is (B, H, W, heads, d); keys and values lie side by side."""
    batch, height, width, heads, dim = shape
    q, kv = meta(*shape, dtype=dtype), meta(batch, height, width, heads, 2, dim, dtype=dtype)
    table = meta(2 * (block + 2 * halo) - 1, dim, dtype=dtype)
    first, last = (q, *kv.unbind(4), table, table), (block, halo)
    sums = meta(2, batch, heads, height * width, dtype=torch.float32)
    yield Call(name, halo_forward, (*first, *last), dot=dot, slow=slow)
    yield Call(f"{name}-backward", halo_backward, (*first, q, sums, q, *last), dot=dot, slow=slow)


CALLS = [
    *_calls("halonet", (128, 56, 56, 4, 32), torch.bfloat16),
    *_calls("halonet-detector", (2, 50, 84, 4, 32), torch.float16, slow=True),
    *_calls("halonet-wide-heads", (8, 28, 28, 2, 64), torch.bfloat16, block=8, halo=3, slow=True),
    # Without TF32 there are no tensor cores for float32.
    *_calls("halonet-float32", (8, 56, 56, 4, 32), torch.float32, dot=False),
]
