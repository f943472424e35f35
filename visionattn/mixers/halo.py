"""Halo attention: Scaling Local Self-Attention for Parameter Efficient Visual Backbones (CVPR 2021, arXiv 2103.12731).

In the form of STM-Evaluation: https://github.com/OpenGVLab/STM-Evaluation (MIT),
classification/models/blocks/halonet.py.

Differs from the official code in:
- any height and width; there both must be multiples of the block.

Golden: tests/golden/stm_haloattn_*.npz, stm_haloblock_*.npz (outputs and input gradients).
"""

from typing import Any

import torch
from torch import nn

from visionattn.catalog import Card
from visionattn.ops import halo_attention, nhwc_conv
from visionattn.utils.arguments import check_heads, check_positive
from visionattn.utils.factory import FactoryKwargs

from ._common import WINDOWS

__all__ = ["HaloAttention"]


class _Distances(nn.Module):
    """Holds the embeddings of vertical and horizontal distances."""

    def __init__(self, window: int, head_dim: int, **dd: Any) -> None:
        super().__init__()
        self.height_rel = nn.Parameter(torch.empty(2 * window - 1, head_dim, **dd))
        self.width_rel = nn.Parameter(torch.empty(2 * window - 1, head_dim, **dd))
        self.init_weights()

    def init_weights(self) -> None:
        """Normal, so that the logits of random queries start out as those of the dot products."""
        for table in (self.height_rel, self.width_rel):
            nn.init.normal_(table, std=table.size(1) ** -0.5)


class HaloAttention(nn.Module):
    """Attention of each block of the map to itself and a halo around it. `(B, H, W, C) -> (B, H, W, C)`, any H, W >= 1.

    Logits carry a relative position that depends on the query, a sum of a vertical and a horizontal term. Keys outside
    the map do not count.

    Args:
        dim: Width of the map.
        num_heads: Divides `dim`.
        block_size: Side of the blocks, in positions: queries of one block share their keys.
        halo_size: How far the keys reach beyond the block to each side, in positions.
        attn_drop: Share of the attention weights dropped in training.
        proj_drop: Share of the outputs dropped in training.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: If `num_heads` does not divide `dim`, `block_size` is below 1 or `halo_size` below 0.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        block_size: int = 7,
        halo_size: int = 3,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        check_positive(block_size=block_size)
        if halo_size < 0:
            raise ValueError(f"halo_size must be at least 0, got {halo_size}")
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.block_size = block_size
        self.halo_size = halo_size
        self.attn_drop = attn_drop
        self.q = nn.Linear(dim, dim, bias=False, **dd)
        # A convolution in the published weights, with the keys and values of one head side by side.
        self.kv = nn.Conv2d(dim, 2 * dim, 1, bias=False, **dd)
        self.pos_embed = _Distances(block_size + 2 * halo_size, dim // num_heads, **dd)
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

    def init_weights(self) -> None:
        """Draws the embeddings of distances anew; the host initialises the other layers."""
        self.pos_embed.init_weights()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q = self.q(x).unflatten(-1, (self.num_heads, -1))
        k, v = nhwc_conv(x, self.kv.weight).unflatten(-1, (self.num_heads, 2, -1)).unbind(-2)
        out = halo_attention(
            q,
            k,
            v,
            self.pos_embed.height_rel,
            self.pos_embed.width_rel,
            block_size=self.block_size,
            halo_size=self.halo_size,
            dropout_p=self.attn_drop if self.training else 0.0,
        )
        return self.proj_drop(self.proj(out))


CARD = Card(
    name="halonet",
    title="HaloNet: halo attention",
    kind="mixer",
    factory=HaloAttention,
    summary="attention of blocks to themselves and a halo around them",
    flow=(
        "(((q of a block | k of block and halo) -> @ | (q | {relative positions}) -> @) -> + -> softmax | v of "
        "block and halo) -> @ -> proj"
    ),
    paper="arXiv:2103.12731",
    code="https://github.com/OpenGVLab/STM-Evaluation",
    license="MIT",
    placement="in every block in place of attention",
    avoid="where time or memory is short: every position is gathered as a key of its own block and of those around",
    pyramid=("nano", "micro", "tiny", "small", "base"),
    block_norm_eps=1e-5,  # the official blocks have PyTorch's
    cases={"": {"num_heads": 3, "block_size": 4, "halo_size": 2}},
    floor=WINDOWS,
    cost="N w",
    maps=True,
    reference="halo",
)
