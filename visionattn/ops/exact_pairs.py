"""The pairs with exact weights in Scatterbrain, and the directions of its features (arXiv 2110.15343)."""

from dataclasses import dataclass

import torch

from ._autocast import wide, without_autocast
from .masked_attention import Blocks

__all__ = ["Band", "Clusters", "Round", "Support", "Tiles", "hash_clusters", "random_projection"]


@dataclass(frozen=True)
class Round:
    """Groups of queries that attend to the keys of a group.

    Args:
        rows: The tokens of each group of queries, `(B, heads, groups, m)` or with 1 in place of B or heads; numbers
            from N up stand for nothing.
        columns: Those of the keys, `(B, heads, groups, n)`.
        mask: Which key of its group each query sees besides, `(groups, m, n)`; none: all.
    """

    rows: torch.Tensor
    columns: torch.Tensor
    mask: torch.Tensor | None = None


@dataclass(frozen=True)
class Band:
    """Tokens that are close in raster order: `-(context // 2) <= j - i < (context + 1) // 2`."""

    context: int

    def covers(self, tokens: int) -> bool:
        return (self.context + 1) // 2 >= tokens

    def rounds(self, tokens: int, device: torch.device) -> list[Round]:
        length, left = max(self.context, 16), self.context // 2
        start = torch.arange(-(-tokens // length), device=device)[:, None] * length
        rows = start + torch.arange(length, device=device)
        columns = start - left + torch.arange(length + self.context - 1, device=device)
        distance = columns[:, None] - rows[..., None]
        mask = (distance >= -left) & (distance < (self.context + 1) // 2)
        return [Round(rows[None, None], columns.where(columns >= 0, tokens)[None, None], mask)]

    def pairs(self, tokens: int, device: torch.device) -> torch.Tensor:
        place = torch.arange(tokens, device=device)
        distance = place - place[:, None]
        return ((distance >= -(self.context // 2)) & (distance < (self.context + 1) // 2))[None, None]


@dataclass(frozen=True)
class Clusters:
    """Queries and keys of equal rank, in groups of equal size, in one or several orders: `hash_clusters`.

    Args:
        queries: Orders of the queries, `(rounds, B, heads, groups * size)`; numbers from N up are last.
        keys: Those of the keys.
        size: Tokens in a group.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    size: int

    def covers(self, tokens: int) -> bool:
        return self.size >= tokens

    def rounds(self, tokens: int, device: torch.device) -> list[Round]:
        return [
            Round(*(order.unflatten(-1, (-1, self.size)) for order in both))
            for both in zip(self.queries, self.keys, strict=True)
        ]

    def pairs(self, tokens: int, device: torch.device) -> torch.Tensor:
        q, k = (x[..., :tokens] for x in self.groups())
        return (q.unsqueeze(-1) == k.unsqueeze(-2)).any(0)

    def groups(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The group of each query and of each key in each round, `(rounds, B, heads, groups * size)`."""
        return self.queries.argsort(-1) // self.size, self.keys.argsort(-1) // self.size


@dataclass(frozen=True)
class Tiles:
    """The tokens of the same tile of a map."""

    blocks: Blocks

    def covers(self, tokens: int) -> bool:
        return self.blocks.tokens.size(0) == 1

    def rounds(self, tokens: int, device: torch.device) -> list[Round]:
        return [Round(self.blocks.tokens[None, None], self.blocks.tokens[None, None])]

    def pairs(self, tokens: int, device: torch.device) -> torch.Tensor:
        return (self.blocks.of_token[:, None] == self.blocks.of_token)[None, None]


Support = Band | Clusters | Tiles


def random_projection(
    features: int, dim: int, *, cosh: bool = True, ortho_scaling: bool = False, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Orthogonal directions for random features, `(features / 2, dim)` with `cosh`, `(features, dim)` without.

    Args:
        features: Number of features.
        dim: Width of queries and keys.
        cosh: Whether each direction serves for two features, of both signs.
        ortho_scaling: Whether all have length `dim ** 0.5`; otherwise lengths are drawn as those of normal vectors.
        generator: Draws them; none is PyTorch's own.
    """
    count = features // 2 if cosh else features
    squares = []
    for _ in range(-(-count // dim)):
        q, r = torch.linalg.qr(torch.randn(dim, dim, generator=generator))
        squares.append((q * r.diagonal().sign()).mT)
    length = torch.randn(count, dim, generator=generator).norm(dim=1)
    return torch.cat(squares)[:count] * (torch.full_like(length, dim**0.5) if ortho_scaling else length)[:, None]


def hash_clusters(q: torch.Tensor, k: torch.Tensor, alpha: torch.Tensor, size: int) -> Clusters:
    """Clusters of queries and keys with large products, by asymmetric hashes (SMYRF, arXiv 2010.05315).

    Args:
        q: Queries `(B, heads, N, d)`.
        k: Keys.
        alpha: Directions of the hashes, `(d + 2, rounds)`.
        size: Tokens in a cluster; the last one may have fewer.
    """
    tokens = q.size(2)
    with torch.no_grad(), without_autocast(q):
        q, k, alpha = (x.to(wide(q)) for x in (q, k, alpha))
        q_norm, k_norm = (x.square().sum(-1, keepdim=True) for x in (q, k))
        most = q_norm.amax(2, keepdim=True) + k_norm.amax(2, keepdim=True)
        # All get one length, in one further direction for queries and another one for keys.
        one, other = alpha[-2], alpha[-1]
        hashes = (
            q @ alpha[:-2] + (most - q_norm).clamp_min(0).sqrt() * other,
            k @ alpha[:-2] + (most - k_norm).clamp_min(0).sqrt() * one,
        )
        orders = [x.movedim(-1, 0).argsort(-1) for x in hashes]
        rest = torch.arange(tokens, -(-tokens // size) * size, device=q.device)
        orders = [torch.cat([order, rest.expand(*order.shape[:-1], -1)], -1) for order in orders]
    return Clusters(orders[0], orders[1], size)
