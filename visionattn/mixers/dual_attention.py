"""Dual attention: relational beside ordinary heads (Disentangling and Integrating Relational and Sensory Information
in Transformer Architectures, arXiv 2405.16727).

Official code: https://github.com/Awni00/dual-attention (MIT).

Differs from the official code in:
- relations without an activation are never formed: see `visionattn.ops.relational_attention`; with one, some queries at
  a time meet all keys; symbols of distances sum the weights of each distance first;
- parameters that two layers share have one name (`to_native` maps); the symbols are made of what the mixer gets, after
  the block's norm, unless a host hands them in (`symbols`); the relational types for ablation are left out;
- nothing is dropped in evaluation; positional symbols beyond their number are interpolated.

Golden: tests/golden/dat_*.npz (outputs, input gradients).
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from visionattn.catalog import BlockContext, Card
from visionattn.ops import attention, relational_attention
from visionattn.ops.relational_attention import RELATIONS
from visionattn.utils.arguments import check_choice, check_positive
from visionattn.utils.factory import FactoryKwargs

from ._common import WINDOWS, TokenMixer
from ._symbols import build_symbols

__all__ = ["DualAttention"]

Rotate = Callable[[torch.Tensor], torch.Tensor]


class DualAttention(TokenMixer):
    """Heads that attend to tokens and heads that attend to relations with tokens. `(B, H, W, C) -> (B, H, W, C)`.

    Any H, W >= 1. A relational head gives the mean of the symbols of the tokens it attends to, and a projection of the
    mean of its relations to them: inner products of further queries and keys. Both kinds have an output projection
    of their own and stand side by side in the result.

    Args:
        dim: Width C.
        num_heads_self: Ordinary heads; may be 0.
        num_heads_rel: Relational heads; may be 0. Both together divide `dim`.
        num_relations: Relations of two tokens, a divisor of the width of the relational heads; `num_heads_rel` if None.
        symmetric: Whether the keys of the relations are their queries.
        rel_activation: Of the relations: identity, relu, sigmoid, tanh, gelu, silu or softmax (over the keys).
        symbols: What gives the symbols: `symbolic` (a library, by attention), `positional`, `relative` (a symbol for
            each distance), `relational` (a library, by the relations to neighbours), a dict with `type` and further
            arguments (`num_heads`, `max_length`, `max_rel_pos`, `neighbors`, ...), or a module to share.
        num_symbols: Symbols in a library.
        num_kv_heads_self: Heads of keys and values, which groups of ordinary heads share; as many as those if None.
        num_kv_heads_rel: The same of relational heads.
        share_attn_params: Whether relational heads attend as the ordinary ones do; both must be as many.
        bias: Whether the projections have biases.
        attn_drop: Dropout of the attention weights.
        proj_drop: Dropout of the result.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: If an argument is out of range or the numbers of heads do not fit.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads_self: int = 4,
        num_heads_rel: int = 4,
        num_relations: int | None = None,
        symmetric: bool = False,
        rel_activation: str = "identity",
        symbols: str | dict[str, Any] | nn.Module = "symbolic",
        num_symbols: int = 64,
        num_kv_heads_self: int | None = None,
        num_kv_heads_rel: int | None = None,
        share_attn_params: bool = False,
        bias: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        heads = num_heads_self + num_heads_rel
        if min(num_heads_self, num_heads_rel) < 0 or heads < 1 or dim % heads:
            raise ValueError(
                "num_heads_self + num_heads_rel must divide dim, none below 0, "
                f"got dim={dim}, num_heads_self={num_heads_self}, num_heads_rel={num_heads_rel}"
            )
        if share_attn_params and (num_heads_self != num_heads_rel or num_kv_heads_self != num_kv_heads_rel):
            raise ValueError(
                "share_attn_params needs as many heads of each kind, got "
                f"num_heads_self={num_heads_self}, num_heads_rel={num_heads_rel}, "
                f"num_kv_heads_self={num_kv_heads_self}, num_kv_heads_rel={num_kv_heads_rel}"
            )
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        self.num_heads = heads
        self.share_attn_params = share_attn_params
        width = dim // heads
        self.self_attention = (
            _SelfHeads(dim, num_heads_self, width, num_kv_heads_self, bias, attn_drop, **dd) if num_heads_self else None
        )
        self.relational_attention, self.symbol_retriever = None, None
        if num_heads_rel:
            self.relational_attention = _RelationalHeads(
                dim,
                num_heads_rel,
                width,
                num_kv_heads_rel,
                bias,
                attn_drop,
                relations=num_relations,
                symmetric=symmetric,
                activation=rel_activation,
                own_attention=not share_attn_params,
                **dd,
            )
            self.symbol_retriever = (
                symbols
                if isinstance(symbols, nn.Module)
                else build_symbols(symbols, dim, num_symbols=num_symbols, num_heads=heads, **dd)
            )
        self.proj_drop = nn.Dropout(proj_drop)

    def to_native(self, state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Official weights of a block (`dual_attn.*`, `symbol_retriever.*`) under the names used here."""
        native = {key.removeprefix("dual_attn."): value for key, value in state_dict.items()}
        relational = self.relational_attention
        for key in [key for key in native if ".rel_pos_enc." in key]:
            native[key.replace(".rel_pos_enc.", ".")] = native.pop(key)
        # Of two names of one parameter, the later in the file is what the official code loads.
        if relational is not None and relational.wk_rel is None:
            for key in [key for key in native if key.startswith("relational_attention.wk_rel.")]:
                native[key.replace("wk_rel", "wq_rel")] = native.pop(key)
        if self.share_attn_params:
            for key in [
                key for key in native if key.startswith(("relational_attention.wq_", "relational_attention.wk_"))
            ]:
                if "_attn." in key:
                    native[key.replace("relational_", "self_").replace("_attn.", ".", 1)] = native.pop(key)
        return native

    def forward_tokens(
        self,
        x: torch.Tensor,
        grid: tuple[int, int],
        prefix: int = 0,
        *,
        rotate: Rotate | None = None,
        bias: torch.Tensor | None = None,
        symbols: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attention of tokens, `(B, prefix + H * W, C) -> (B, prefix + H * W, C)`.

        Args:
            x: The tokens, extra ones first.
            grid: `(H, W)`, which makes no difference here.
            prefix: Number of extra tokens, likewise.
            rotate: Rotates queries and keys `(B, heads, N, C / num_heads)` by their positions, not those of relations.
            bias: Added to the scores, or False where a key is not seen; broadcasts to `(B, num_heads, N, N)`, ordinary
                heads first.
            symbols: `(B, N, C)`, those of the tokens, or `(2 D + 1, C)`, of distances; made of `x` if None.
        """
        parts, first = [], self.self_attention
        count = 0 if first is None else first.num_heads
        if first is not None:
            parts.append(first(x, rotate, _of_heads(bias, slice(None, count))))
        if self.relational_attention is not None:
            assert self.symbol_retriever is not None
            symbols = self.symbol_retriever(x) if symbols is None else symbols
            source = first if self.share_attn_params else None
            parts.append(self.relational_attention(x, symbols, rotate, _of_heads(bias, slice(count, None)), source))
        return self.proj_drop(torch.cat(parts, -1) if len(parts) > 1 else parts[0])

    def weights(self, x: torch.Tensor) -> torch.Tensor:
        """The attention weights, `(B, num_heads, N, N)`, of a map `(B, H, W, C)` or tokens `(B, N, C)`."""
        x, rows = x.flatten(1, -2), []
        kinds = [kind for kind in (self.self_attention, self.relational_attention) if kind is not None]
        for kind in kinds:
            q, k = kind.queries_and_keys(x, self.self_attention if self.share_attn_params else None)
            rows.append((q @ k.mT * q.size(-1) ** -0.5).softmax(-1))
        return torch.cat(rows, 1)


class _SelfHeads(nn.Module):
    """Ordinary heads. `(B, N, dim) -> (B, N, heads * width)`."""

    def __init__(
        self, dim: int, heads: int, width: int, kv_heads: int | None, bias: bool, attn_drop: float, **dd: Any
    ) -> None:
        super().__init__()
        self.num_heads = heads
        self.groups = _groups("num_kv_heads_self", heads, kv_heads)
        inner, shared = heads * width, heads * width // self.groups
        self.wq = nn.Linear(dim, inner, bias=bias, **dd)
        self.wk = nn.Linear(dim, shared, bias=bias, **dd)
        self.wv = nn.Linear(dim, shared, bias=bias, **dd)
        self.wo = nn.Linear(inner, inner, bias=bias, **dd)
        self.attn_drop = nn.Dropout(attn_drop)

    def queries_and_keys(
        self, x: torch.Tensor, source: "_SelfHeads | None" = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return _split(self.wq(x), self.num_heads), _split(self.wk(x), self.num_heads // self.groups, self.groups)

    def forward(self, x: torch.Tensor, rotate: Rotate | None, mask: torch.Tensor | None) -> torch.Tensor:
        q, k = self.queries_and_keys(x)
        v = _split(self.wv(x), self.num_heads // self.groups, self.groups)
        if rotate is not None:
            q, k = rotate(q), rotate(k)
        out: torch.Tensor = self.wo(attention(q, k, v, mask=mask, dropout_p=self.attn_drop.p if self.training else 0.0))
        return out


class _RelationalHeads(nn.Module):
    """Relational heads. `(B, N, dim)` and symbols `-> (B, N, heads * width)`."""

    def __init__(
        self,
        dim: int,
        heads: int,
        width: int,
        kv_heads: int | None,
        bias: bool,
        attn_drop: float,
        *,
        relations: int | None,
        symmetric: bool,
        activation: str,
        own_attention: bool,
        **dd: Any,
    ) -> None:
        super().__init__()
        self.num_heads = heads
        self.groups = _groups("num_kv_heads_rel", heads, kv_heads)
        inner, shared = heads * width, heads * width // self.groups
        relations = heads if relations is None else relations
        check_positive(num_relations=relations)
        if inner % relations:
            raise ValueError(f"num_relations must divide the width of the relational heads, {inner}, got {relations}")
        check_choice("rel_activation", activation, RELATIONS)
        self.num_relations = relations
        self.activation = activation
        self.wq_attn = nn.Linear(dim, inner, bias=bias, **dd) if own_attention else None
        self.wk_attn = nn.Linear(dim, shared, bias=bias, **dd) if own_attention else None
        self.wq_rel = nn.Linear(dim, inner, bias=bias, **dd)
        self.wk_rel = None if symmetric else nn.Linear(dim, inner, bias=bias, **dd)
        self.wr = nn.Parameter(torch.empty(heads, width, relations, **dd))
        nn.init.kaiming_uniform_(self.wr, a=5**0.5)
        self.wv = nn.Linear(dim, shared, bias=bias, **dd)
        self.wo = nn.Linear(inner, inner, bias=bias, **dd)
        self.attn_drop = nn.Dropout(attn_drop)

    def queries_and_keys(self, x: torch.Tensor, source: _SelfHeads | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        if self.wq_attn is None or self.wk_attn is None:
            assert source is not None
            return source.queries_and_keys(x)
        q, k = self.wq_attn(x), self.wk_attn(x)
        return _split(q, self.num_heads), _split(k, self.num_heads // self.groups, self.groups)

    def forward(
        self,
        x: torch.Tensor,
        symbols: torch.Tensor,
        rotate: Rotate | None,
        mask: torch.Tensor | None,
        source: _SelfHeads | None,
    ) -> torch.Tensor:
        q, k = self.queries_and_keys(x, source)
        if rotate is not None:
            q, k = rotate(q), rotate(k)
        values = _split(self.wv(symbols), self.num_heads // self.groups, self.groups)
        if symbols.ndim == 3:
            values = values.expand(x.size(0), -1, -1, -1)
        q_rel = _split(self.wq_rel(x), self.num_relations)
        k_rel = q_rel if self.wk_rel is None else _split(self.wk_rel(x), self.num_relations)
        out, related = relational_attention(
            q,
            k,
            values,
            q_rel,
            k_rel,
            activation=self.activation,
            mask=mask,
            dropout_p=self.attn_drop.p if self.training else 0.0,
        )
        # (B, heads, N, R) times (heads, R, width)
        out = out + related @ self.wr.mT
        result: torch.Tensor = self.wo(out.transpose(1, 2).flatten(2))
        return result


def _groups(name: str, heads: int, kv_heads: int | None) -> int:
    """How many heads share keys and values."""
    if kv_heads is None:
        return 1
    if kv_heads < 1 or heads % kv_heads:
        raise ValueError(f"{name} must divide the {heads} heads, got {kv_heads}")
    return heads // kv_heads


def _split(x: torch.Tensor, heads: int, groups: int = 1) -> torch.Tensor:
    """Heads apart, `(..., N, heads * d) -> (..., heads * groups, N, d)`."""
    x = x.unflatten(-1, (heads, -1)).transpose(-3, -2)
    return x.repeat_interleave(groups, -3) if groups > 1 else x


def _of_heads(bias: torch.Tensor | None, heads: slice) -> torch.Tensor | None:
    return bias if bias is None or bias.ndim < 3 or bias.size(-3) == 1 else bias[..., heads, :, :]


def _keywords(context: BlockContext) -> dict[str, Any]:
    """Half of the heads of a host are relational."""
    return {"num_heads_self": context.num_heads // 2, "num_heads_rel": (context.num_heads + 1) // 2}


CARD = Card(
    name="dual_attention",
    title="Dual attention: relational beside ordinary heads",
    kind="mixer",
    factory=DualAttention,
    summary="attention half of whose heads give symbols of tokens and relations with them, not their values",
    flow=(
        "(((q | k) -> @ -> softmax | v) -> @ -> proj | ((q | k) -> @ -> softmax | symbols and relations) -> @ -> "
        "proj) -> concat"
    ),
    paper="arXiv:2405.16727",
    code="https://github.com/Awni00/dual-attention",
    license="MIT",
    placement="in every block in place of attention",
    avoid="where time counts: relations have queries, keys and symbols of their own besides attention to all pairs",
    columnar=("nano", "tiny"),
    keywords=_keywords,
    cases={
        "": {"num_heads_self": 1, "num_heads_rel": 2},
        "relu of symmetric relations": {
            "num_heads_self": 2,
            "num_heads_rel": 1,
            "num_relations": 4,
            "symmetric": True,
            "rel_activation": "relu",
        },
        "symbols of distances": {
            "num_heads_self": 2,
            "num_heads_rel": 2,
            "symbols": {"type": "relative", "max_rel_pos": 9},
        },
        "symbols of places": {"num_heads_self": 0, "num_heads_rel": 4, "num_kv_heads_rel": 2, "symbols": "positional"},
        "symbols of relations": {
            "num_heads_self": 2,
            "num_heads_rel": 2,
            "share_attn_params": True,
            "symbols": "relational",
        },
    },
    floor=WINDOWS,
    cost="N^2",
    memory="N",
    maps=True,
    reference="dual_attention",
)
