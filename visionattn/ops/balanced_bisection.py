"""Clusters of equal size by recursive balanced bisection of tokens in feature space."""

import torch
from torch.nn import functional as F

from ._autocast import without_autocast
from ._dispatch import has_kernel

__all__ = ["MOST", "WIDEST", "balanced_bisection", "levels_of"]

# Limits of the kernels: the width of a head, and the tokens that one sorts.
WIDEST, MOST = 128, 8192


def _refuses(q: torch.Tensor, *, cluster_size: int, **settings: object) -> str:
    if q.size(3) > WIDEST:
        return f"heads are wider than {WIDEST}"
    if q.stride(3) != 1:
        return "the numbers of a head do not lie side by side"
    clusters = 1 << levels_of(q.size(2), cluster_size)
    return f"there are more than {MOST} tokens" if -(-q.size(2) // clusters) * clusters > MOST else ""


@has_kernel("balanced_bisection", _refuses)
def balanced_bisection(
    q: torch.Tensor, *, cluster_size: int, iterations: int = 2, temperature: float = 100.0
) -> torch.Tensor:
    """Orders the tokens of each head so that similar ones are adjacent, in clusters of equal size.

    `(B, heads, N, d) -> (B, heads, clusters, size)` of token numbers. There are `2**L` clusters for the smallest L with
    `clusters * cluster_size >= N`, each of `size = ceil(N / clusters)` slots. Every token has one slot. Slots that are
    left over hold numbers from N up: at most one in a cluster, the first slot of an even or the last of an odd one, so
    that the two siblings of a pair meet in tokens.

    In L rounds every run of tokens is split at the median of `(1 + s0) / (1 + s1)`, the cosines to two centroids; the
    smaller half comes first. The centroids start as the means of the halves of the run as it stands (at first the
    upper and the lower half of the image) and become means weighted by the softmax of the cosines. Ties keep their
    order. Computed without gradients, in float32 or, for such tokens, in float64, under autocast too.

    Args:
        q: The tokens, by which they are compared.
        cluster_size: Most tokens in a cluster, at least 2.
        iterations: How often the centroids of a round are renewed.
        temperature: Factor of the cosines in the softmax.
    """
    batch, heads, tokens, dim = q.shape
    levels = levels_of(tokens, cluster_size)
    size = -(-tokens // (1 << levels))
    slots = size << levels
    order = torch.arange(slots, device=q.device).expand(batch * heads, slots)
    if levels:
        with without_autocast(q):
            x = q.detach().to(torch.promote_types(q.dtype, torch.float32)).reshape(-1, tokens, dim).contiguous()
            if slots > tokens:
                # Empty slots are zeros, which add nothing to any centroid.
                x = F.pad(x, (0, 0, 0, slots - tokens))
            inverse_norm = torch.linalg.vector_norm(x, dim=-1).clamp_min(1e-12).reciprocal()
            for level in range(levels):
                run = slots >> level
                x, inverse_norm, order = x.view(-1, run, dim), inverse_norm.view(-1, run), order.view(-1, run)
                score = _nearness(x, inverse_norm, iterations, temperature)
                if slots > tokens:
                    # Bit by bit the number of an empty slot leads it to a cluster of its own.
                    sides = torch.where((order - tokens) >> level & 1 == 0, -torch.inf, torch.inf)
                    score = torch.where(order < tokens, score, sides.to(score.dtype))
                rank = _ranking(score)
                order = order.gather(1, rank)
                if level < levels - 1:
                    inverse_norm = inverse_norm.gather(1, rank)
                    rows = rank + run * torch.arange(rank.size(0), device=q.device).unsqueeze(1)
                    x = x.view(-1, dim).index_select(0, rows.flatten())
    return order.view(batch, heads, 1 << levels, size)


def levels_of(tokens: int, cluster_size: int) -> int:
    """The smallest number of rounds that leaves no more than `cluster_size` tokens together."""
    levels = 0
    while cluster_size << levels < tokens:
        levels += 1
    return levels


def _nearness(x: torch.Tensor, inverse_norm: torch.Tensor, iterations: int, temperature: float) -> torch.Tensor:
    """The difference of similarity of each token to the two centroids of its run. `(R, n, d) -> (R, n)`."""
    # Cosines ask for directions only: sums serve as means.
    centroids = x.unflatten(1, (2, -1)).sum(2)
    toward = temperature * inverse_norm
    # The softmax over two is the sigmoid of how much nearer the one is. Not one minus the first for the second, which
    # may be far below the first's last digit.
    sides = torch.stack((toward, -toward), dim=1)
    for _ in range(iterations):
        first, second = F.normalize(centroids, dim=-1).split(1, dim=1)
        centroids = ((first - second) @ x.mT * sides).sigmoid() @ x
    # In this order of the operands; the other takes almost twice as long on the CPU.
    cosines = F.normalize(centroids, dim=-1) @ x.mT * inverse_norm.unsqueeze(1)
    near, far = (1 + cosines).unbind(1)
    # A token opposite to the second centroid would divide by zero, or by what rounding makes of it.
    return near / far.clamp_min(torch.finfo(x.dtype).tiny)


def _ranking(score: torch.Tensor) -> torch.Tensor:
    """The ranks of the scores in ascending order; ties keep their order."""
    if torch.onnx.is_in_onnx_export():
        # ONNX has no stable sort, but defines this for its TopK.
        return score.topk(score.size(-1), largest=False).indices
    return score.sort(dim=-1, stable=True).indices
