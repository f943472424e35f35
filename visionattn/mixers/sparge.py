"""SpargeAttn: Accurate and Training-free Sparse Attention Accelerating Any Model Inference (ICML 2025, 2502.18137).

Official code: https://github.com/thu-ml/SpargeAttn (Apache-2.0), spas_sage_attn/utils.py.

Differs from the official code in:
- the softmax over the chosen blocks is PyTorch's, in the precision of the input, without 8-bit products and without
  leaving out tiles whose weights stay small;
- any number of tokens, any width of heads; dropout and biases count, where theirs ignores them;
- extra tokens such as the class token are in no block: they see everything and are always seen;
- similarity within a block is computed in float32 rather than float16, for all pairs at once.

Golden: tests/golden/sparge_*.npz (outputs, input gradients, block maps).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from visionattn.catalog import BlockContext, Card

from ._common import WINDOWS
from .softmax import SoftmaxAttention

__all__ = ["SpargeAttention"]

Level = float | Sequence[float]


class SpargeAttention(SoftmaxAttention):
    """Softmax attention to the key blocks that match each query block best. `(B, H, W, C) -> (B, H, W, C)`.

    Any H, W >= 1. It has softmax attention's weights and is meant for them as they are: blocks are chosen by their
    means (`visionattn.ops.BlockMap`), without gradient, and no training is needed. With `topk=1.0` it is softmax
    attention. Worth it from several thousand tokens on; below, there are too few blocks to choose from.

    Args:
        dim: Width C.
        num_heads: Heads, a divisor of `dim`.
        block: Tokens in a block of queries and in one of keys.
        topk: Share of the key blocks that a query block sees, from 0 to 1; 0.5 where neither it nor `cdf` is given.
        cdf: In place of `topk`: the largest weights are taken while their sum is at most this share; official: 0.98.
        sim_threshold: Mean cosine above which the tokens of a block are alike: others are not left out.
        sink: Whether all see the first block of keys.
        smooth_k: Whether the mean key is taken off before keys are compared.
        order: Which tokens are consecutive, `raster` or `hilbert`.
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
        block: int | Sequence[int] = (128, 64),
        topk: Level | None = None,
        cdf: Level | None = None,
        sim_threshold: Level | None = None,
        sink: bool = False,
        smooth_k: bool = True,
        order: str = "raster",
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
            sparse={
                "block": block,
                "topk": topk,
                "cdf": cdf,
                "sim_threshold": sim_threshold,
                "sink": sink,
                "smooth": smooth_k,
                "order": order,
            },
            device=device,
            dtype=dtype,
        )


def _keywords(context: BlockContext) -> Mapping[str, Any]:
    """Smaller blocks for small maps."""
    if context.grid is None or context.grid[0] * context.grid[1] >= 2048:
        return {}
    return {"block": (16, 8)}


CARD = Card(
    name="sparge",
    title="SpargeAttn: training-free sparse attention",
    kind="mixer",
    factory=SpargeAttention,
    summary="softmax attention over the blocks of keys whose means fit those of the queries",
    flow="((q | k of the blocks that fit) -> @ -> softmax | v of the same blocks) -> @ -> proj",
    paper="arXiv:2502.18137",
    code="https://github.com/thu-ml/SpargeAttn",
    license="Apache-2.0",
    placement="in every block in place of attention, with its weights",
    avoid="below some thousand tokens: there are too few blocks to choose from, and choosing costs more than is saved",
    columnar=("nano", "tiny"),
    keywords=_keywords,
    cases={
        "": {"num_heads": 3, "block": (8, 4)},
        "cdf": {"num_heads": 3, "block": 4, "cdf": 0.6, "sim_threshold": 0.2, "sink": True},
        "hilbert": {"num_heads": 3, "block": (4, 4), "topk": 0.4, "order": "hilbert"},
    },
    floor=WINDOWS,
    cost="N^2",
    memory="N",
    keeps_weights=True,
    maps=True,
    discrete=True,
    reference="sparge",
)
