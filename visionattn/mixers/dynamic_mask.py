"""Dynamic mask attention: the values decide which keys are attended to (Doge, arXiv 2508.02124).

Official code: https://github.com/SmallDoges/flash-sparse-attention, examples/modeling and
utils/mask.py.

Differs from the official code in:
- the form for images keeps one set of keys per image and key head, and gathers them: the same as masking the others;
- how many are kept can be a share of the map, and rotary embeddings are those of a map's rows and columns;
- of keys that tie the first are kept, and a query never sees none: where nothing is kept, the largest bias is;
- as in the official code, and unlike the paper, the bias is A softplus(.) without an exponential.

Golden: tests/golden/dma_*.npz.
"""

from collections.abc import Callable
from math import ceil

import torch
from torch import nn
from torch.nn import functional as F

from visionattn.catalog import Card
from visionattn.ops import attention
from visionattn.utils.arguments import check_choice, check_heads, check_positive
from visionattn.utils.factory import FactoryKwargs

from ._common import WINDOWS, TokenMixer

__all__ = ["DynamicMaskAttention"]

Rotation = Callable[[torch.Tensor], torch.Tensor]


class DynamicMaskAttention(TokenMixer):
    """Softmax attention to the keys with the largest value-derived biases. `(B, H, W, C) -> (B, H, W, C)`.

    Any H, W >= 1. The cost is that of the keys kept, or, with blocks, `relu` or `causal`, of all pairs. Keys that are
    not kept get no gradient. Several heads of queries may share a head of keys and values.

    Args:
        dim: Width C.
        num_heads: Heads of queries, a divisor of `dim`.
        num_kv_heads: Heads of keys and values, a divisor of `num_heads`; as many by default.
        keep: Keys that are kept: a number of them, or the share of the map's, a float above 0 and at most 1.0.
        rope: Whether queries and keys are rotated by their rows and columns; heads must have a multiple of 4 channels.
        rope_base: Base of the wavelengths.
        qk_norm: RMS norms of the queries and keys of each head.
        qkv_bias: Whether the projections to queries, keys and values have biases.
        selection: `topk`, or `relu`: all keys with a positive bias.
        block_size: Keys that are kept or dropped together: whole where more than half of them would be kept.
        causal: Whether a token sees itself and those before it only; then each query keeps keys of its own.
        attn_drop: Dropout of the attention weights.
        proj_drop: Dropout after the output projection.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        num_kv_heads: int | None = None,
        keep: float | int = 0.25,
        rope: bool = False,
        rope_base: float = 100.0,
        qk_norm: bool = True,
        qkv_bias: bool = False,
        selection: str = "topk",
        block_size: int = 1,
        causal: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        groups = num_heads if num_kv_heads is None else num_kv_heads
        if groups < 1 or num_heads % groups:
            raise ValueError(f"num_kv_heads must divide num_heads={num_heads}, got {num_kv_heads}")
        if isinstance(keep, bool) or not (keep >= 1 if isinstance(keep, int) else 0 < keep <= 1):
            raise ValueError(f"keep must be an integer of at least 1 or a share above 0.0 and at most 1.0, got {keep}")
        check_choice("selection", selection, ("topk", "relu"))
        check_positive(block_size=block_size)
        width = dim // num_heads
        if rope and width % 4:
            raise ValueError(f"rope needs heads with a multiple of 4 channels, got dim={dim}, num_heads={num_heads}")
        if not rope_base > 1:
            raise ValueError(f"rope_base must be above 1, got {rope_base}")
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.num_kv_heads = groups
        self.keep = keep
        self.rope = rope
        self.rope_base = rope_base
        self.selection = selection
        self.block_size = block_size
        self.causal = causal
        self.q_proj = nn.Linear(dim, dim, bias=qkv_bias, **dd)
        self.k_proj, self.v_proj = (nn.Linear(dim, groups * width, bias=qkv_bias, **dd) for _ in range(2))
        self.q_norm, self.k_norm = (nn.RMSNorm(width, eps=1e-6, **dd) if qk_norm else nn.Identity() for _ in range(2))
        self.dt_proj = nn.Linear(groups * width, groups, bias=False, **dd)
        self.A = nn.Parameter(torch.empty(groups, **dd))
        self.attn_drop = nn.Dropout(attn_drop)
        self.o_proj = nn.Linear(dim, dim, bias=False, **dd)
        self.proj_drop = nn.Dropout(proj_drop)
        self.init_weights()

    def init_weights(self) -> None:
        """The official initialisation of the biases' factors."""
        nn.init.normal_(self.A, std=0.02)

    def forward_tokens(
        self,
        x: torch.Tensor,
        grid: tuple[int, int],
        prefix: int = 0,
        *,
        rotate: Rotation | None = None,
        bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attention of tokens, `(B, prefix + H * W, C) -> (B, prefix + H * W, C)`.

        Args:
            x: The tokens, extra ones first.
            grid: `(H, W)`.
            prefix: Number of extra tokens, which are always kept and do not count.
            rotate: Rotates queries and keys `(B, heads, N, C / num_heads)` by their positions, instead of `rope`.
            bias: Added to the scores; broadcasts to `(B, num_heads, N, N)`.
        """
        q, k, v, lift = self._parts(x, grid, prefix, rotate)
        dropped = self.attn_drop.p if self.training else 0.0
        # Queries of all heads with the same keys are those of one head.
        shared = self.num_heads // self.num_kv_heads
        if self.selection == "topk" and self.block_size == 1 and not self.causal and bias is None:
            kept = self._count(x.shape[1] - prefix)
            if kept < x.shape[1] - prefix:
                places = _first_largest(lift[..., prefix:], kept) + prefix
                extra = torch.arange(prefix, device=x.device).expand(*places.shape[:2], prefix)
                places = torch.cat([extra, places], -1)
                rows = places.unsqueeze(-1).expand(-1, -1, -1, k.shape[-1])
                k, v, lift = k.gather(2, rows), v.gather(2, rows), lift.gather(2, places)
            q = q.unflatten(1, (self.num_kv_heads, shared)).flatten(2, 3)
            out = attention(q, k, v, mask=lift.unsqueeze(2).to(q.dtype), dropout_p=dropped)
            out = out.unflatten(1, (shared, -1)).unflatten(-1, (self.num_kv_heads, -1)).permute(0, 2, 3, 1, 4)
        else:
            mask = self._mask(lift, prefix) if bias is None else self._mask(lift, prefix) + bias
            k, v = (part.repeat_interleave(shared, 1) for part in (k, v))
            out = attention(q, k, v, mask=mask.to(q.dtype), dropout_p=dropped)
        return self.proj_drop(self.o_proj(out.flatten(2)))

    def weights(self, x: torch.Tensor, grid: tuple[int, int] | None = None) -> torch.Tensor:
        """The attention weights, `(B, num_heads, N, N)`; zero for dropped keys.

        Args:
            x: A map `(B, H, W, C)`, or tokens `(B, N, C)`.
            grid: `(H, W)` of tokens, which `rope` needs.

        Raises:
            ValueError: If tokens come without a grid that is needed.
        """
        if x.ndim == 4:
            grid = (x.shape[1], x.shape[2])
        if grid is None:
            if self.rope:
                raise ValueError("weights of tokens need their grid with rope=True, got grid=None")
            grid = (1, x.shape[1])
        q, k, _, lift = self._parts(x.flatten(1, -2), grid, 0, None)
        k = k.repeat_interleave(self.num_heads // self.num_kv_heads, 1)
        return (q @ k.mT * q.shape[-1] ** -0.5 + self._mask(lift, 0)).softmax(-1)

    def kept(self, x: torch.Tensor) -> torch.Tensor:
        """Which positions of a map `(B, H, W, C)` are keys of some query, `(B, num_kv_heads, H, W)`."""
        lift = self._lift(self.v_proj(x.flatten(1, 2)))
        return self._chosen(lift).any(2).unflatten(-1, (x.shape[1], x.shape[2]))

    def _count(self, keys: int) -> int:
        return min(self.keep if isinstance(self.keep, int) else max(1, ceil(self.keep * keys)), keys)

    def _parts(
        self, x: torch.Tensor, grid: tuple[int, int], prefix: int, rotate: Rotation | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values, `(B, heads, N, d)`, and the biases of the keys, `(B, num_kv_heads, N)`."""
        v = self.v_proj(x)
        lift = self._lift(v)
        q = self.q_norm(self.q_proj(x).unflatten(-1, (self.num_heads, -1))).transpose(1, 2)
        k = self.k_norm(self.k_proj(x).unflatten(-1, (self.num_kv_heads, -1))).transpose(1, 2)
        if rotate is not None:
            q, k = rotate(q), rotate(k)
        elif self.rope:
            q, k = (_rotated(part, grid, prefix, self.rope_base) for part in (q, k))
        v = v.unflatten(-1, (self.num_kv_heads, -1)).transpose(1, 2)
        return q.to(v.dtype), k.to(v.dtype), v, lift

    def _lift(self, v: torch.Tensor) -> torch.Tensor:
        """The bias of each key, `(B, N, num_kv_heads * d) -> (B, num_kv_heads, N)`."""
        # Not `softplus`: its gradient keeps the layout of the transposed one, which compiled graphs do not expect.
        return (self.A * -F.logsigmoid(-self.dt_proj(v))).transpose(1, 2)

    def _mask(self, lift: torch.Tensor, prefix: int) -> torch.Tensor:
        """The biases of the kept keys, `(B, num_heads, 1 or N, N)`, minus infinity elsewhere."""
        chosen = F.pad(self._chosen(lift[..., prefix:]), (prefix, 0, prefix if self.causal else 0, 0), value=True)
        if self.causal:
            chosen = chosen & torch.ones(2 * (lift.shape[-1],), dtype=torch.bool, device=lift.device).tril()
        mask = torch.where(chosen, lift.unsqueeze(2), float("-inf"))
        return mask.repeat_interleave(self.num_heads // self.num_kv_heads, 1)

    def _chosen(self, lift: torch.Tensor) -> torch.Tensor:
        """The kept keys of each query, `(B, num_kv_heads, 1 or N, N)`."""
        count = lift.shape[-1]
        scores = lift.detach().unsqueeze(2)
        visible = torch.ones(1, count, dtype=torch.bool, device=lift.device)
        if self.causal:
            visible = visible.expand(count, count).tril()
            scores = scores.masked_fill(~visible, torch.finfo(scores.dtype).min)
        if self.selection == "relu":
            chosen = (scores > 0).expand(-1, -1, visible.shape[0], -1)
        else:
            places = _first_largest(scores, self._count(count))
            chosen = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, places, True)
        if self.block_size > 1:
            chosen = _whole_blocks(chosen, self.block_size)
        chosen = chosen & visible
        best = torch.zeros_like(chosen).scatter(-1, _first_largest(scores, 1), True)
        return chosen | (best & ~chosen.any(-1, keepdim=True))


def _first_largest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Indices of the largest scores; ties in order of index."""
    if torch.onnx.is_in_onnx_export():
        # ONNX has no stable sort, but defines this for its TopK.
        return scores.detach().topk(count, -1).indices
    return scores.detach().sort(dim=-1, descending=True, stable=True).indices[..., :count]


def _whole_blocks(chosen: torch.Tensor, size: int) -> torch.Tensor:
    """Whole blocks of which more than half is chosen."""
    count = chosen.shape[-1]
    padded = F.pad(chosen, (0, -count % size)).unflatten(-1, (-1, size))
    held = F.pad(torch.ones(count, dtype=torch.bool, device=chosen.device), (0, -count % size)).unflatten(
        -1, (-1, size)
    )
    whole = 2 * padded.sum(-1, keepdim=True) > held.sum(-1, keepdim=True)
    return whole.expand(padded.shape).flatten(-2)[..., :count]


def _rotated(x: torch.Tensor, grid: tuple[int, int], prefix: int, base: float) -> torch.Tensor:
    """Pairs of channels, one of each half, rotated by the row or the column of their patch. `(B, heads, N, d)`."""
    quarter = x.shape[-1] // 4
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    speed = base ** (-torch.arange(quarter, device=x.device, dtype=wide) / quarter)
    rows, columns = (torch.arange(side, device=x.device, dtype=wide).unsqueeze(1) * speed for side in grid)
    angles = torch.cat([rows.repeat_interleave(grid[1], 0), columns.repeat(grid[0], 1)], -1)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x[:, :, prefix:].chunk(2, -1)
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
    return torch.cat([x[:, :, :prefix], turned], 2) if prefix else turned


CARD = Card(
    name="dma",
    title="Dynamic mask attention",
    kind="mixer",
    factory=DynamicMaskAttention,
    summary="softmax attention to the keys with the largest biases, which are computed from the values",
    flow="(((q | k) -> @ | v -> bias, the largest are kept) -> + -> softmax | v) -> @ -> proj",
    paper="arXiv:2508.02124",
    code="https://github.com/SmallDoges/flash-sparse-attention",
    placement="in every block in place of attention",
    avoid="where each query needs keys of its own: the keys that are kept follow from the values, the same for "
    "all queries of a head",
    columnar=("nano", "tiny"),
    cases={
        "": {"num_heads": 3},
        "grouped": {"num_heads": 6, "num_kv_heads": 2, "keep": 5, "rope": True},
        "blocks": {"num_heads": 3, "keep": 0.5, "block_size": 4},
        "relu": {"num_heads": 3, "selection": "relu", "qk_norm": False},
        "causal": {"num_heads": 3, "causal": True, "keep": 4},
    },
    floor=WINDOWS,
    cost="N^2, or N w with a number of keys in place of a share",
    memory="N",
    maps=True,
    discrete=True,
    reference="dynamic_mask",
)
