"""Spatial-reduction attention: Pyramid Vision Transformer (ICCV 2021, arXiv 2102.12122; version 2: arXiv 2106.13797).

Official code: https://github.com/whai362/PVT (Apache-2.0), classification/pvt.py and pvt_v2.py; the published weights
of STM-Evaluation (MIT), classification/models/blocks/pvt.py, have the same layers.

Differs from the official code in:
- a side of the map that is shorter than the reduction is padded with zeros up to it (the official code fails).

Golden: tests/golden/stm_pvtblock_*.npz (outputs and input gradients of the whole block).
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from visionattn.catalog import BlockContext, Card
from visionattn.ops import nhwc_conv

from ._common import SR_RATIOS, KVReducedAttention
from ._position import PositionEmbedding

__all__ = ["SpatialReductionAttention"]


class SpatialReductionAttention(KVReducedAttention):
    """Attention of every position to a reduced map. `(B, H, W, C) -> (B, H, W, C)`, any H, W >= 1.

    Args:
        dim: Width of the map.
        num_heads: Divides `dim`.
        sr_ratio: Side of the patches that become one key, in positions; rows and columns that fill no patch are left
            out. With 1 every position is a key. The paper takes 8, 4, 2, 1 in its four stages.
        pool_size: Side of the map that the keys are averaged to, whatever the size of the input, in place of the
            patches (PVTv2's linear attention, 7 there). `None` takes patches.
        qkv_bias: Whether queries, keys and values have biases.
        attn_drop: Share of the attention weights dropped in training.
        proj_drop: Share of the outputs dropped in training.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: If `num_heads` does not divide `dim`, `sr_ratio` or `pool_size` is below 1, or both are asked for.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        sr_ratio: int = 1,
        pool_size: int | None = None,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            dim,
            num_heads=num_heads,
            sr_ratio=sr_ratio,
            remainder="crop",
            qkv_bias=qkv_bias,
            attn_drop=attn_drop,
            proj_drop=proj_drop,
            device=device,
            dtype=dtype,
        )
        if pool_size is not None and (pool_size < 1 or sr_ratio > 1):
            raise ValueError(
                f"pool_size must be at least 1 and leave sr_ratio at 1, got pool_size={pool_size}, sr_ratio={sr_ratio}"
            )
        self.pool_size = pool_size
        if pool_size:
            self.sr = nn.Conv2d(dim, dim, 1, device=device, dtype=dtype)
            self.norm = nn.LayerNorm(dim, eps=1e-5, device=device, dtype=dtype)

    def summary(self, x: torch.Tensor) -> torch.Tensor:
        if not self.pool_size or self.sr is None or self.norm is None:
            return super().summary(x)
        x = F.adaptive_avg_pool2d(x.permute(0, 3, 1, 2), self.pool_size).permute(0, 2, 3, 1)
        return F.gelu(self.norm(nhwc_conv(x, self.sr.weight, self.sr.bias)))


def _keywords(context: BlockContext) -> dict[str, Any]:
    return {"sr_ratio": SR_RATIOS[context.stage]}


def _position(context: BlockContext, **dd: Any) -> nn.Module | None:
    if context.block or context.grid is None:
        return None
    return PositionEmbedding(context.dim, context.grid, mode="bilinear", **dd)


CARD = Card(
    name="pvt",
    title="PVT: spatial-reduction attention",
    kind="mixer",
    factory=SpatialReductionAttention,
    summary="attention to a map reduced by a strided convolution, or by pooling (version 2)",
    flow="((q | reduced map -> k) -> @ -> softmax | reduced map -> v) -> @ -> proj",
    paper="arXiv:2102.12122",
    code="https://github.com/whai362/PVT",
    license="Apache-2.0",
    placement="in every block in place of attention; reduced 8, 4, 2, 1 times in the four stages",
    avoid="where single far positions matter: keys are a map that a strided convolution, or a pool, has reduced",
    pyramid=("nano", "micro", "tiny", "small", "base"),
    keywords=_keywords,
    position=_position,
    block_norm_eps=1e-5,  # the official blocks have PyTorch's
    cases={"": {"num_heads": 3, "sr_ratio": 4}, "pooled": {"num_heads": 3, "pool_size": 7}},
    cost="N^2 / r^2",
    memory="N",
    maps=True,
)
