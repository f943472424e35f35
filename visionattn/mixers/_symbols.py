"""Symbols of tokens, the values of relational attention (arXiv 2405.16727)."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from visionattn.ops import attention
from visionattn.utils.arguments import check_choice, check_heads, check_positive

__all__ = ["SYMBOLS", "PositionalSymbols", "RelationalSymbols", "RelativeSymbols", "SymbolicAttention", "build_symbols"]


class SymbolicAttention(nn.Module):
    """Symbols from a library, by attention to a template of each. `(B, N, C) -> (B, N, C)`.

    Args:
        dim: Width C.
        num_heads: Heads, a divisor of `dim`.
        num_symbols: Symbols in the library.
    """

    def __init__(self, dim: int, *, num_heads: int = 4, num_symbols: int = 64, **dd: Any) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        check_positive(num_symbols=num_symbols)
        self.num_heads = num_heads
        self.q_proj = nn.Linear(dim, dim, **dd)
        self.template_features = nn.Parameter(torch.empty(num_symbols, dim, **dd))
        self.symbol_library = nn.Parameter(torch.empty(num_symbols, dim, **dd))
        nn.init.normal_(self.template_features)
        nn.init.normal_(self.symbol_library)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q = self.q_proj(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        k, v = (
            table.to(q.dtype).unflatten(-1, (self.num_heads, -1)).transpose(0, 1).expand(q.size(0), -1, -1, -1)
            for table in (self.template_features, self.symbol_library)
        )
        return attention(q, k, v)


class PositionalSymbols(nn.Module):
    """A symbol for each position in the sequence, `(1, N, C)`; interpolated for longer sequences.

    Args:
        dim: Width C.
        max_length: Number of symbols.
    """

    def __init__(self, dim: int, *, max_length: int = 256, **dd: Any) -> None:
        super().__init__()
        check_positive(max_length=max_length)
        self.symbol_library = nn.Embedding(max_length, dim, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        table: torch.Tensor = self.symbol_library.weight
        if x.size(1) <= table.size(0):
            return table[: x.size(1)].unsqueeze(0)
        return F.interpolate(table.T.unsqueeze(0), size=x.size(1), mode="linear").mT


class RelativeSymbols(nn.Module):
    """A symbol for each distance in the sequence, `(2 max_rel_pos + 1, C)`.

    Args:
        dim: Width C.
        max_rel_pos: Largest distance; those beyond count as it.
    """

    def __init__(self, dim: int, *, max_rel_pos: int = 64, **dd: Any) -> None:
        super().__init__()
        check_positive(max_rel_pos=max_rel_pos)
        self.rel_pos_embeddings = nn.Parameter(torch.empty(2 * max_rel_pos + 1, dim, **dd))
        nn.init.xavier_uniform_(self.rel_pos_embeddings)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        table: torch.Tensor = self.rel_pos_embeddings
        return table


class RelationalSymbols(nn.Module):
    """Symbols from a library, by how a token relates to its neighbours in the sequence. `(B, N, C) -> (B, N, C)`.

    At the ends the outermost token stands for the neighbours that are missing.

    Args:
        dim: Width C.
        num_heads: Relations of a token and a neighbour, a divisor of `dim`.
        symbol_heads: Heads of the attention to the library; `num_heads` if None.
        num_symbols: Symbols in the library.
        neighbors: How far the neighbours go on each side.
        causal: Whether only those before a token are its neighbours.
        include_self: Whether it is one itself.
        normalize: Softmax of the relations over the neighbours.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 4,
        symbol_heads: int | None = None,
        num_symbols: int = 64,
        neighbors: int = 2,
        causal: bool = False,
        include_self: bool = False,
        normalize: bool = True,
        **dd: Any,
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        check_positive(neighbors=neighbors)
        self.num_heads = num_heads
        self.normalize = normalize
        before, own, after = range(1, neighbors + 1), [0] * include_self, range(1, neighbors + 1)
        offsets = (
            [*own, *(-step for step in before)] if causal else [*(-step for step in reversed(before)), *own, *after]
        )
        self.offsets = tuple(offsets)
        self.q_proj = nn.Linear(dim, dim, **dd)
        self.k_proj = nn.Linear(dim, dim, **dd)
        self.model_dim_proj = nn.Linear(num_heads * len(offsets), dim, **dd)
        heads = num_heads if symbol_heads is None else symbol_heads
        self.symbolic_attention = SymbolicAttention(dim, num_heads=heads, num_symbols=num_symbols, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k = (layer(x).unflatten(-1, (self.num_heads, -1)) for layer in (self.q_proj, self.k_proj))
        place = torch.arange(x.size(1), device=x.device)
        near = [(place + offset).clamp(0, x.size(1) - 1) for offset in self.offsets]
        relations = torch.stack([(q * k.index_select(1, rows)).sum(-1) for rows in near], 2)
        if self.normalize:
            relations = (relations * q.size(-1) ** -0.5).softmax(2)
        out: torch.Tensor = self.symbolic_attention(self.model_dim_proj(relations.flatten(2)))
        return out


SYMBOLS: dict[str, type[nn.Module]] = {
    "symbolic": SymbolicAttention,
    "positional": PositionalSymbols,
    "relative": RelativeSymbols,
    "relational": RelationalSymbols,
}


def build_symbols(what: str | dict[str, Any], dim: int, *, num_symbols: int, num_heads: int, **dd: Any) -> nn.Module:
    """Builds the symbol module from its name or a dict with `type` and arguments.

    Raises:
        ValueError: If there is none of this name.
    """
    arguments = {"type": what} if isinstance(what, str) else dict(what)
    name = str(arguments.pop("type", None))
    check_choice("symbols", name, SYMBOLS)
    if name in ("symbolic", "relational"):
        arguments = {"num_symbols": num_symbols, "num_heads": num_heads, **arguments}
    return SYMBOLS[name](dim, **arguments, **dd)
