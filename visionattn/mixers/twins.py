"""Twins: locally grouped and global sub-sampled attention (NeurIPS 2021, arXiv 2104.13840).

Official code: https://github.com/Meituan-AutoML/Twins (Apache-2.0), gvt.py and the backbones for dense tasks.

Differs from the official code in:
- any map: the official classifier refuses maps that whole windows do not cover, and those smaller than `sr_ratio`;
- padded tokens can be left out exactly; the official mask, which adds -1000 and does nothing where only one side is
  padded, is an option.

Golden: tests/golden/twins_{lsa,gsa}_*.npz (outputs and input gradients).
"""

from typing import Any

from torch import nn

from visionattn.catalog import BlockContext, Card, Floor

from ._common import SR_RATIOS, WINDOWS, KVReducedAttention, WindowMixer
from ._position import PositionConv

__all__ = ["GlobalSubsampledAttention", "LocallyGroupedAttention"]


class LocallyGroupedAttention(WindowMixer):
    """Softmax attention in windows side by side (LSA). `(B, H, W, C) -> (B, H, W, C)`, any H, W >= 1.

    Args:
        dim: Width of the tokens.
        num_heads: Number of heads, a divisor of `dim`.
        window_size: Height and width of a window in tokens, or one number for both.
        qkv_bias: Whether the projection to queries, keys and values has a bias.
        attn_drop: Dropout rate of the attention weights.
        proj_drop: Dropout rate of the result.
        pad_mask: What the tokens of a map do with the padded ones in their window. `exact` leaves them out. `none`
            does not, as the second of the official code's two ways and timm. `official` is the first, which leaves them
            out only where the map is padded both at the right and at the bottom.

    Raises:
        ValueError: If an argument is out of range.
    """

    pad_masks = ("none", "exact", "official")

    def masks_padding(self, height: int, width: int) -> bool:
        if self.pad_mask == "official":
            return height % self.window_size[0] != 0 and width % self.window_size[1] != 0
        return super().masks_padding(height, width)


class GlobalSubsampledAttention(KVReducedAttention):
    """Softmax attention of every token to a sub-sampled map (GSA). `(B, H, W, C) -> (B, H, W, C)`, any H, W >= 1.

    Args:
        dim: Width of the tokens.
        num_heads: Number of heads, a divisor of `dim`.
        sr_ratio: Side in tokens of the patches that a convolution sums up to one key and value; 1: no convolution.
        qkv_bias: Whether the projections to queries, keys and values have biases.
        attn_drop: Dropout rate of the attention weights.
        proj_drop: Dropout rate of the result.
        remainder: What happens to rows and columns that do not fill a patch: `crop` leaves them out of the summary, as
            the official code does, `pad` fills their patches with zeros. Sides below `sr_ratio` are padded either way.

    Raises:
        ValueError: If an argument is out of range.
    """


_TWINS: dict[str, Any] = {
    "kind": "mixer",
    "paper": "arXiv:2104.13840",
    "code": "https://github.com/Meituan-AutoML/Twins",
    "license": "Apache-2.0",
    "maps": True,
}


def _mixers(context: BlockContext, **dd: Any) -> dict[str, nn.Module]:
    return (_LOCAL, _GLOBAL)[context.block % 2].build_mixers(context, **dd)


def _position(context: BlockContext, **dd: Any) -> nn.Module | None:
    return PositionConv(context.dim, **dd) if context.block == 1 else None


def _summary_size(context: BlockContext) -> dict[str, Any]:
    return {"sr_ratio": SR_RATIOS[context.stage]}


_LOCAL = Card(
    **_TWINS,
    name="twins_local",
    title="Twins: locally grouped attention (LSA)",
    factory=LocallyGroupedAttention,
    summary="attention in windows side by side",
    flow="cut into windows -> ((q | k) -> @ -> softmax | v) -> @ -> proj -> join windows",
    placement="in every first of two blocks",
    avoid="alone: windows stand side by side and never move, so nothing passes between them; the paper takes "
    "turns with global attention",
    cases={"": {"num_heads": 3, "window_size": 4}},
    floor=WINDOWS,
    cost="N w",
    keeps_weights=True,
    reference="window",
)
_GLOBAL = Card(
    **_TWINS,
    name="twins_global",
    title="Twins: global sub-sampled attention (GSA)",
    factory=GlobalSubsampledAttention,
    summary="attention to a map reduced by a strided convolution",
    flow="((q | strided conv, norm -> k) -> @ -> softmax | strided conv, norm -> v) -> @ -> proj",
    placement="in every second of two blocks",
    avoid="alone: its keys are a reduced map, which has lost fine detail",
    keywords=_summary_size,
    cases={"": {"num_heads": 3, "sr_ratio": 4}},
    floor=Floor(7, 16, "q and o of full size, keys of an eighth of the side; projections"),
    cost="N^2 / r^2",
    memory="N",
)
CARDS = (
    Card(
        **_TWINS,
        name="twins",
        title="Twins: spatially separable attention",
        factory=None,
        summary="attention in windows and to a reduced map, in turns",
        flow="softmax attention in windows -> softmax attention to a reduced map",
        placement="in every block in place of attention, with one position encoding a stage",
        avoid="where single far positions matter: beyond a window there is only a map that a strided convolution "
        "has reduced",
        pyramid=("nano", "micro", "tiny", "small", "base"),
        mixers=_mixers,
        position=_position,
        cost="N w + N^2 / r^2",
        memory="N",
    ),
    _LOCAL,
    _GLOBAL,
)
