"""Block-sparse attention in windows of a Swin, stripes of a CSWin, clusters of a BOAT, regions of a BiFormer."""

from collections.abc import Iterator, Sequence

import torch

from visionattn.ops.triton.block_sparse import block_sparse_backward, block_sparse_forward

from . import Call, meta

__all__ = ["CALLS"]


def _calls(
    name: str,
    shape: tuple[int, int, int, int],
    dtype: torch.dtype,
    windows: Sequence[int] = (),
    table: torch.Tensor | None = None,
    block_table: torch.Tensor | None = None,
    keys: int = 0,
    padded: bool = False,
    overlap: int = 0,
    dot: bool = True,
    slow: bool = False,
) -> Iterator[Call]:
    """Forward and backward. `shape` is (B, N, heads, d); with `keys` there is a bias."""
    batch, tokens, heads, dim = shape
    qkv, out = meta(batch, tokens, 3, heads, dim, dtype=dtype), meta(*shape, dtype=dtype)
    slots = windows[2] * windows[3] if windows else table.size(3)
    bias = meta(heads, slots, keys, dtype=torch.float32) if keys else None
    first = (qkv, table, block_table, bias, meta(2, heads, dim, dtype=dtype) if padded else None)
    last = (list(windows), overlap, dim**-0.5)
    values = table is not None
    sums = meta(2, batch, heads, tokens, dtype=torch.float32)
    yield Call(name, block_sparse_forward, (*first, *last, values), dot=dot, slow=slow)
    grads = (out, sums, out, out if values else None)
    yield Call(f"{name}-backward", block_sparse_backward, (*first, *grads, *last, keys > 0), dot=dot, slow=slow)


_REGIONS = meta(128, 49, 4, dtype=torch.int64)
_CLUSTERS = meta(128, 3, 64, 49, dtype=torch.int64)
CALLS = [
    *_calls("swin", (128, 3136, 3, 32), torch.float16, (56, 56, 7, 7, 3, 3), keys=49),
    *_calls("swin-padded", (2, 50 * 84, 3, 32), torch.bfloat16, (50, 84, 7, 7, 3, 3), keys=49, padded=True, slow=True),
    *_calls("davit", (128, 3136, 3, 32), torch.bfloat16, (56, 56, 7, 7, 0, 0)),
    *_calls("large-windows", (8, 3136, 4, 32), torch.bfloat16, (56, 56, 14, 14, 7, 7), keys=196, slow=True),
    *_calls("wide-heads", (8, 3136, 2, 128), torch.bfloat16, (56, 56, 14, 14, 7, 7), keys=196, padded=True, slow=True),
    *_calls("cswin", (128, 3136, 2, 32), torch.bfloat16, (56, 56, 56, 1, 0, 0)),
    *_calls("cswin-wide", (2, 800, 8, 32), torch.bfloat16, (25, 32, 7, 32, 0, 0), slow=True),
    *_calls("boat", (128, 3136, 3, 32), torch.bfloat16, table=_CLUSTERS, overlap=20),
    *_calls("biformer", (128, 784, 4, 32), torch.bfloat16, (28, 28, 4, 4, 0, 0), block_table=_REGIONS),
    # Without TF32 there are no tensor cores for float32.
    *_calls("float32", (128, 3136, 3, 32), torch.float32, (56, 56, 7, 7, 3, 3), keys=49, dot=False),
    *_calls("float32-wide", (8, 3136, 2, 64), torch.float32, (56, 56, 7, 7, 3, 3), keys=49, dot=False, slow=True),
    *_calls("float32-widest", (8, 3136, 2, 128), torch.float32, (56, 56, 7, 7, 3, 3), keys=49, dot=False, slow=True),
]
