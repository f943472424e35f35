"""Cross-shaped window attention: CSWin Transformer (CVPR 2022, arXiv 2107.00652).

Official code: https://github.com/microsoft/CSWin-Transformer (MIT), models/cswin.py. There `qkv` and `proj` belong to
the block; here they are the mixer's, under the same names.

Differs from the official code in:
- any height and width; there the map must be a square of whole stripes;
- whether there are two branches is asked for, not derived from a fixed size of the input.

Golden: none for the mixer alone; the tests compare it in float64 with stripes that are cut out, padded and masked.
"""

import torch
from torch import nn

from visionattn.catalog import Card
from visionattn.ops import stripe_attention
from visionattn.utils.arguments import check_heads, check_positive
from visionattn.utils.factory import FactoryKwargs

from ._common import WINDOWS

__all__ = ["CrossShapedWindowAttention", "StripeAttention"]


class StripeAttention(nn.Module):
    """Attention inside stripes plus a depthwise convolution of the values. `(B, H, W, 3, C) -> (B, H, W, C)`.

    Args:
        dim: Width of the values.
        num_heads: Divides `dim`.
        stripe: Height and width of a stripe in positions; `None` is the whole side of the map.
        qk_scale: Factor of the dot products; `None` is one over the square root of a head's width.
        attn_drop: Share of the attention weights dropped in training.
        device: Of the parameters.
        dtype: Of the parameters.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        stripe: tuple[int | None, int | None] = (None, None),
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.stripe = stripe
        self.qk_scale = qk_scale
        self.attn_drop = attn_drop
        self.get_v = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, device=device, dtype=dtype)

    def forward(self, qkv: torch.Tensor) -> torch.Tensor:
        return stripe_attention(
            qkv,
            self.get_v.weight,
            self.get_v.bias,
            num_heads=self.num_heads,
            stripe=self.stripe,
            scale=self.qk_scale,
            dropout_p=self.attn_drop if self.training else 0.0,
        )


class CrossShapedWindowAttention(nn.Module):
    """Half of the heads attend in vertical stripes, half in horizontal ones. `(B, H, W, C) -> (B, H, W, C)`, any H, W.

    On a map no larger than the stripes both halves attend to all of it; `full` says so beforehand and computes the same
    in one branch.

    Args:
        dim: Width of the map.
        num_heads: Divides `dim`; even, unless `full`.
        split_size: Width of the stripes in positions. The paper takes 1, 2, 7, 7 in its four stages.
        full: One branch that attends to the whole map, as in the last stage.
        qkv_bias: Whether queries, keys and values have biases.
        qk_scale: Factor of the dot products; `None` is one over the square root of a head's width.
        attn_drop: Share of the attention weights dropped in training.
        proj_drop: Share of the outputs dropped in training.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: If `num_heads` does not divide `dim` or is odd without `full`, or `split_size` is below 1.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        split_size: int = 7,
        full: bool = False,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        if num_heads % 2 and not full:
            raise ValueError(f"num_heads must be even to be halved between the two stripes, got {num_heads}")
        check_positive(split_size=split_size)
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        stripes = [(None, None)] if full else [(None, split_size), (split_size, None)]
        share = {"dim": dim // len(stripes), "num_heads": num_heads // len(stripes)}
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **dd)
        self.attns = nn.ModuleList(
            StripeAttention(**share, stripe=stripe, qk_scale=qk_scale, attn_drop=attn_drop, **dd) for stripe in stripes
        )
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = self.qkv(x).unflatten(-1, (3, -1)).chunk(len(self.attns), dim=-1)
        out = [attn(part) for attn, part in zip(self.attns, parts, strict=True)]
        return self.proj_drop(self.proj(torch.cat(out, dim=-1) if len(out) > 1 else out[0]))


CARD = Card(
    name="cswin",
    title="CSWin: Cross-Shaped Window Attention",
    kind="mixer",
    factory=CrossShapedWindowAttention,
    summary="attention in horizontal and vertical stripes, half of the heads each",
    flow=(
        "qkv -> (half of the heads: softmax attention in vertical stripes | the others: in horizontal stripes) -> "
        "concat -> proj"
    ),
    paper="arXiv:2107.00652",
    code="https://github.com/microsoft/CSWin-Transformer",
    license="MIT",
    placement="in every block in place of attention; stripes of width 1, 2 and 7, the whole map in the last stage",
    avoid="where one block must bring together places that share neither rows nor columns: its stripes reach "
    "along these alone",
    keywords=lambda context: {"split_size": (1, 2, 7, 7)[context.stage], "full": context.stage == 3},
    cases={"": {"num_heads": 4, "split_size": 3}, "one branch": {"num_heads": 3, "full": True}},
    floor=WINDOWS,
    cost="N^1.5",
    memory="N",
    keeps_weights=True,
    maps=True,
    reference="cswin",
)
