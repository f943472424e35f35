"""Masked attention by PyTorch's flex attention, whose kernels on GPUs skip blocks of pairs that are not seen.

Tokens are sorted by their blocks, so that a run of 128 of them sees few runs. Written without a GPU at hand: the mask
is tested against the dense one with flex attention's own formula on the CPU, and nothing is known of its speed.
"""

import functools
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from .masked_attention import Blocks

__all__ = ["flex_masked_attention", "sorted_mask"]


def flex_masked_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    seen: torch.Tensor,
    *,
    queries: "Blocks | None" = None,
    keys: "Blocks | None" = None,
    prefix: int = 0,
    scale: float | None = None,
) -> torch.Tensor:
    """`visionattn.ops.masked_attention` without biases and dropout. `3 x (B, heads, N, d) -> (B, N, heads * d)`."""
    from torch.nn.attention.flex_attention import flex_attention

    order, places, mask = sorted_mask(q, seen, queries, keys, prefix)
    attend: Any = _compiled() if q.is_cuda else flex_attention
    out = attend(q[:, :, order], k[:, :, places], v[:, :, places], block_mask=mask, scale=scale)
    back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=q.device))
    return out[:, :, back].transpose(1, 2).flatten(2)


def sorted_mask(
    q: torch.Tensor, seen: torch.Tensor, queries: "Blocks | None", keys: "Blocks | None", prefix: int
) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """The order of queries and that of keys, `(N,)` each, and flex attention's mask of them in these orders."""
    from torch.nn.attention.flex_attention import create_block_mask

    length = q.size(2)
    (order, row), (places, column) = (_sorted(blocks, length, prefix, q.device) for blocks in (queries, keys))
    images, heads = (int(size > 1) for size in seen.shape[:2])

    def sees(image: Any, head: Any, i: Any, j: Any) -> Any:
        block, other = row[i], column[j]
        return (block < 0) | (other < 0) | seen[image * images, head * heads, block.clamp_min(0), other.clamp_min(0)]

    return order, places, create_block_mask(sees, seen.size(0), seen.size(1), length, length, device=q.device.type)


@functools.cache
def _compiled() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)


def _sorted(
    blocks: "Blocks | None", length: int, prefix: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens sorted by their blocks, and the block of each in that order, -1 for extra tokens. `2 x (N,)`."""
    block = torch.arange(length - prefix, device=device) if blocks is None else blocks.of_token.to(device)
    block = torch.cat([block.new_full((prefix,), -1), block])
    order = block.argsort(stable=True)
    return order, block[order]
