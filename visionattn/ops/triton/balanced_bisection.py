"""Balanced bisection by kernels, two for each round.

The tokens stay where they are. Those of a run are few enough for the GPU's cache, so that of the passes over them only
the first reads memory.
"""

import torch

from visionattn.ops.balanced_bisection import MOST, WIDEST, levels_of

from ._bisection_kernels import scores_kernel, splitting_kernel
from ._register import power_of_2, register, wrap_triton

__all__ = ["balanced_bisection"]


def balanced_bisection(
    q: torch.Tensor, *, cluster_size: int, iterations: int = 2, temperature: float = 100.0
) -> torch.Tensor:
    """As `visionattn.ops.balanced_bisection`."""
    levels = levels_of(q.size(2), cluster_size)
    order: torch.Tensor = bisected_tokens(q.detach(), levels, iterations, temperature)
    return order


def _fake(q: torch.Tensor, levels: int, iterations: int, temperature: float) -> torch.Tensor:
    batch, heads, tokens, _ = q.shape
    return q.new_empty(batch, heads, 1 << levels, -(-tokens // (1 << levels)), dtype=torch.int64)


@register(_fake)
def bisected_tokens(q: torch.Tensor, levels: int, iterations: int, temperature: float) -> torch.Tensor:
    """Their order after a number of rounds."""
    batch, heads, tokens, dim = q.shape
    size = -(-tokens // (1 << levels))
    slots = size << levels
    shape = (batch, heads, 1 << levels, size)
    if levels == 0:
        return torch.arange(slots, device=q.device).expand(batch, heads, slots).contiguous().view(shape)
    scores = torch.empty(batch, heads, slots, dtype=torch.float32, device=q.device)
    order = None
    for level in range(levels):
        run, programs = slots >> level, batch * heads << level
        wrap_triton(scores_kernel)[(programs,)](
            q,
            order,
            scores,
            tokens,
            run,
            level,
            heads,
            q.stride(0),
            q.stride(1),
            q.stride(2),
            float(temperature),
            ITERATIONS=iterations,
            D=dim,
            BLOCK_N=64,
            BLOCK_D=power_of_2(dim, WIDEST),
            num_warps=4,
        )
        # What is passed on between rounds takes half the room.
        dtype = torch.int64 if level == levels - 1 else torch.int32
        found = torch.empty(batch, heads, slots, dtype=dtype, device=q.device)
        block = power_of_2(run, MOST)
        wrap_triton(splitting_kernel)[(programs,)](
            scores, order, found, run, BLOCK=block, num_warps=max(1, min(16, block // 256))
        )
        order = found
    assert order is not None
    return order.view(shape)
