"""Dual attention (arXiv 2405.16727) with all relations formed, `(B, N, N, R)`."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ._literal import Literal

__all__ = ["dual_attention", "naive_of"]


def dual_attention(module: Any, x: torch.Tensor) -> torch.Tensor:
    """The output of `visionattn.mixers.DualAttention` without dropout."""
    tokens, parts = x.flatten(1, 2), []
    ordinary, relational = module.self_attention, module.relational_attention
    if ordinary is not None:
        weights = _weights(*_queries_and_keys(ordinary.wq, ordinary.wk, tokens, ordinary))
        values = _heads(ordinary.wv(tokens), ordinary)
        parts.append(ordinary.wo(torch.einsum("bhij,bjhd->bihd", weights, values).flatten(2)))
    if relational is not None:
        if module.share_attn_params:
            pair = _queries_and_keys(ordinary.wq, ordinary.wk, tokens, ordinary)
        else:
            pair = _queries_and_keys(relational.wq_attn, relational.wk_attn, tokens, relational)
        weights = _weights(*pair)
        symbols = module.symbol_retriever(tokens)
        if symbols.ndim == 2:
            number, furthest = torch.arange(tokens.shape[1]), len(symbols) // 2
            symbols = symbols[(number - number[:, None]).clamp(-furthest, furthest) + furthest]
            out = torch.einsum("bhij,ijhd->bihd", weights, _heads(relational.wv(symbols), relational))
        else:
            values = _heads(relational.wv(symbols.expand_as(tokens)), relational)
            out = torch.einsum("bhij,bjhd->bihd", weights, values)
        count, asked = relational.num_relations, relational.wk_rel or relational.wq_rel
        q, k = (layer(tokens).unflatten(-1, (count, -1)) for layer in (relational.wq_rel, asked))
        scores = torch.einsum("bilp,bjlp->bijl", q, k) / q.shape[-1] ** 0.5
        relations = _activate(relational.activation, scores.transpose(2, 3)).transpose(2, 3)
        related = torch.einsum("bhij,bijr->bihr", weights, relations)
        out = out + torch.einsum("bihr,hdr->bihd", related, relational.wr)
        parts.append(relational.wo(out.flatten(2)))
    return torch.cat(parts, -1).view(x.shape)


def _heads(x: torch.Tensor, heads: Any) -> torch.Tensor:
    return x.unflatten(-1, (heads.num_heads // heads.groups, -1)).repeat_interleave(heads.groups, -2)


def _queries_and_keys(wq: Any, wk: Any, x: torch.Tensor, heads: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return wq(x).unflatten(-1, (heads.num_heads, -1)), _heads(wk(x), heads)


def _weights(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    return torch.softmax(torch.einsum("bihd,bjhd->bhij", q, k) / q.shape[-1] ** 0.5, -1)


def naive_of(module: Any) -> nn.Module:
    """The literal module with the weights of a `DualAttention`."""
    return Literal(dual_attention, module)


def _activate(name: str, relations: torch.Tensor) -> torch.Tensor:
    if name == "identity":
        return relations
    if name == "softmax":
        return torch.softmax(relations, -1)
    if name == "gelu":
        return F.gelu(relations, approximate="tanh")
    activation: torch.Tensor = getattr(F, name)(relations)
    return activation
