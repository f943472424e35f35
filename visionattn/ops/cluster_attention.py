"""Attention inside clusters of tokens given by a table."""

import torch

from ._dispatch import has_kernel
from .block_sparse_attention import block_sparse_attention, refuses_rows

__all__ = ["cluster_attention", "siblings"]


def _refuses(qkv: torch.Tensor, order: torch.Tensor, *, dropout_p: float = 0.0, **settings: object) -> str:
    return "attention weights are dropped" if dropout_p > 0 else refuses_rows(qkv)


@has_kernel("block_sparse", _refuses)
def cluster_attention(
    qkv: torch.Tensor,
    order: torch.Tensor,
    *,
    overlap: int = 0,
    scale: float | None = None,
    dropout_p: float = 0.0,
    pair_images: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax attention of each cluster's queries to its keys and to a few of its sibling's.

    `(B, N, 3, heads, d), (B, heads, clusters, size) -> (B, N, heads, d)`, and of the same shape the values as they came
    in. They lie in memory of their own: whatever reads them does not keep all of `qkv`.

    Clusters 2j and 2j + 1 are siblings: the first sees the first `overlap` tokens of the second, the second the last
    `overlap` of the first. A single cluster has no sibling.

    Args:
        qkv: Queries, keys and values as one projection leaves them.
        order: The tokens of each cluster, as `balanced_bisection` gives them; numbers from N up mark empty slots.
        overlap: Keys of the sibling that a cluster sees, at most all.
        scale: Factor of the logits, `d**-0.5` if None.
        dropout_p: Dropout of the attention weights.
        pair_images: Let the single clusters of images 2j and 2j + 1 be siblings; B must be even.
    """
    rows, order, overlap = siblings(qkv, order, overlap, pair_images)
    out = block_sparse_attention(rows, order, overlap=overlap, scale=scale, dropout_p=dropout_p, backend="torch")
    return out.view(qkv[:, :, 0].shape), qkv[:, :, 2].contiguous()


def siblings(
    qkv: torch.Tensor, order: torch.Tensor, overlap: int, pair_images: bool
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """The clusters rearranged so that siblings are adjacent in one image, and their overlap."""
    overlap = min(overlap, order.size(3))
    if pair_images:
        # Two images of a cluster each are one of two clusters, in which empty slots lie beyond the tokens of both.
        tokens = qkv.size(1)
        order = order.unflatten(0, (-1, 2)).transpose(1, 2).flatten(2, 3)
        first = torch.arange(0, 2 * tokens, tokens, device=order.device).unsqueeze(1)
        return qkv.unflatten(0, (-1, 2)).flatten(1, 2), torch.where(order < tokens, order + first, 2 * tokens), overlap
    return qkv, order, overlap if order.size(2) > 1 else 0
