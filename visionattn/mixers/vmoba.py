"""VMoBA: Mixture-of-Block Attention for Video Diffusion Models (arXiv 2506.23858), for images.

Official code: https://github.com/KwaiVGI/VMoBA, src/vmoba.py.

Differs from the official code in:
- images: blocks are tiles or strips of a map, of any height and width; blocks at the borders may be smaller;
- entries are compared within an image, where theirs compares them over the batch, and queries that all see no block but
  their own see just that, where theirs falls back to full attention (see `legacy`);
- extra tokens such as the class token see everything and are always seen.

Golden: tests/golden/vmoba_*.npz (outputs, input gradients, blocks).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from visionattn.catalog import BlockContext, Card
from visionattn.ops import Blocks, masked_attention, pair_mask, route_blocks
from visionattn.ops._autocast import wide, without_autocast
from visionattn.utils.arguments import check_choice, check_positive, pair

from ._common import WINDOWS
from .softmax import SoftmaxAttention

__all__ = ["BlockRoutedAttention"]

_SCOPES = {
    "topk": ("query_head", "head_global", "overall"),
    "threshold": ("query_head", "block", "head_global", "overall"),
}


class BlockRoutedAttention(SoftmaxAttention):
    """Attention of each query to its own block and those with the best mean keys. `(B, H, W, C) -> (B, H, W, C)`.

    Any H, W >= 1. Which blocks are seen changes in jumps and takes no gradient. Where all are, it is softmax attention.

    Args:
        dim: Width C.
        num_heads: Heads, a divisor of `dim`.
        block: Height and width of a block, or its share of the tokens, from above 0 to 1: strips in raster order.
        select: `threshold` or `topk`: see `visionattn.ops.route_blocks`.
        scope: What blocks are compared within: `query_head`, `block` (not for `topk`), `head_global` or `overall`.
        threshold: Share of the scaled gates that the blocks of a scope are to have, from 0 to 1 (all blocks).
        topk: Blocks that a query sees, on average over the scope.
        legacy: Compare over the batch and fall back to full attention, as the official code.
        qkv_bias: Whether the projections to queries, keys and values have biases.
        qk_norm: Layer norms of the queries and keys of each head before their product.
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
        block: float | Sequence[int] = (7, 7),
        select: str = "threshold",
        scope: str = "head_global",
        threshold: float = 0.25,
        topk: int = 3,
        legacy: bool = False,
        qkv_bias: bool = True,
        qk_norm: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            dim,
            num_heads=num_heads,
            qkv_bias=qkv_bias,
            qk_norm=qk_norm,
            attn_drop=attn_drop,
            proj_drop=proj_drop,
            device=device,
            dtype=dtype,
        )
        check_choice("select", select, _SCOPES)
        check_choice(f"scope of {select}", scope, _SCOPES[select])
        check_positive(topk=topk)
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold must be from 0 to 1, got {threshold}")
        if isinstance(block, float):
            if not 0 < block <= 1:
                raise ValueError(f"block must be two sides or a share of the tokens, above 0 to 1, got {block}")
            self.block: float | tuple[int, int] = block
        else:
            self.block = pair("block", block)
        self.select = select
        self.scope = scope
        self.threshold = threshold
        self.topk = topk
        self.legacy = legacy

    def forward_tokens(
        self,
        x: torch.Tensor,
        grid: tuple[int, int],
        prefix: int = 0,
        *,
        rotate: Callable[[torch.Tensor], torch.Tensor] | None = None,
        bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attention of tokens, `(B, prefix + H * W, C) -> (B, prefix + H * W, C)`.

        Args:
            x: The tokens, extra ones first.
            grid: `(H, W)`.
            prefix: Number of extra tokens, which see everything and are seen by all.
            rotate: Rotates queries and keys `(B, num_heads, N, C / num_heads)` by their positions.
            bias: Added to the scores, not to the gates; broadcasts to `(B, num_heads, N, N)`.
        """
        q, k, v = self._heads(x)
        if rotate is not None:
            q, k = rotate(q), rotate(k)
        blocks = self.blocks(grid, x.device)
        seen = self._route(q, k, blocks, prefix)
        dropped = self.attn_drop.p if self.training else 0.0
        out = masked_attention(q, k, v, seen, keys=blocks, prefix=prefix, bias=bias, dropout_p=dropped)
        return self.proj_drop(self.proj(out))

    def blocks(self, grid: tuple[int, int], device: torch.device | None = None) -> Blocks:
        """The blocks of a map."""
        if isinstance(self.block, tuple):
            return Blocks.tiles(grid, self.block, device)
        tokens = grid[0] * grid[1]
        return Blocks.rows(tokens, max(int(self.block * tokens), 1), device)

    def routes(self, x: torch.Tensor) -> torch.Tensor:
        """The blocks that each position of a map `(B, H, W, C)` attends to, bool, `(B, num_heads, N, blocks)`."""
        q, k, _ = self._heads(x.flatten(1, 2))
        return self._route(q, k, self.blocks((x.size(1), x.size(2)), x.device), 0)

    def _mask(self, q: torch.Tensor, k: torch.Tensor, grid: tuple[int, int] | None, prefix: int) -> torch.Tensor | None:
        if grid is None:
            raise ValueError("weights of tokens need their grid here, got grid=None")
        blocks = self.blocks(grid, q.device)
        return pair_mask(self._route(q, k, blocks, prefix), None, blocks, prefix)

    def _route(self, q: torch.Tensor, k: torch.Tensor, blocks: Blocks, prefix: int) -> torch.Tensor:
        own = blocks.of_token[:, None] == torch.arange(blocks.tokens.size(0), device=q.device)
        with torch.no_grad(), without_autocast(q):
            exact = wide(q)
            mean = own.mT.to(exact) / own.sum(0).to(exact)[:, None]
            gate = q[:, :, prefix:].to(exact) @ (mean @ k[:, :, prefix:].to(exact)).mT
        settings: dict[str, Any] = {"threshold": self.threshold, "topk": self.topk, "legacy": self.legacy}
        return route_blocks(gate, own, select=self.select, scope=self.scope, **settings)


def _keywords(context: BlockContext) -> Mapping[str, Any]:
    """Alternates strips of rows, strips of columns, and tiles."""
    if context.grid is None:
        return {}
    height, width = context.grid
    sizes = ((-(-height // 7), width), (height, -(-width // 7)), (-(-height // 3), -(-width // 3)))
    return {"block": sizes[context.block % 3]}


CARD = Card(
    name="vmoba",
    title="VMoBA: Mixture-of-Block Attention",
    kind="mixer",
    factory=BlockRoutedAttention,
    summary="attention to the own block of tokens and those whose mean key fits a query",
    flow="((q | k of the own block and those that fit) -> @ -> softmax | v of the same blocks) -> @ -> proj",
    paper="arXiv:2506.23858",
    code="https://github.com/KwaiVGI/VMoBA",
    placement="in every block in place of attention; strips of rows, strips of columns and tiles take turns",
    avoid="on pictures of usual sizes: it was made for the long sequences of videos, and choosing blocks costs "
    "more than it saves on fewer tokens",
    columnar=("nano", "tiny"),
    keywords=_keywords,
    cases={
        "": {"num_heads": 3, "block": (3, 3)},
        "topk": {"num_heads": 3, "block": (2, 3), "select": "topk", "scope": "query_head"},
        "strips": {"num_heads": 3, "block": 0.2, "scope": "block", "threshold": 0.4},
    },
    floor=WINDOWS,
    cost="N^2",
    memory="N",
    keeps_weights=True,
    maps=True,
    discrete=True,
    reference="vmoba",
)
