"""Twins: locally grouped and global sub-sampled attention (NeurIPS 2021, arXiv 2104.13840).

Official code: https://github.com/Meituan-AutoML/Twins (Apache-2.0), gvt.py and the backbones for dense tasks.

Differs from the official code in:
- any map: the official classifier refuses maps that whole windows do not cover, and those smaller than `sr_ratio`;
- padded tokens can be left out exactly; the official mask, which adds -1000 and does nothing where only one side is
  padded, is an option.

Golden: tests/golden/twins_{lsa,gsa}_*.npz (outputs and input gradients).
"""

from ._common import KVReducedAttention, WindowMixer

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
    """Softmax attention of every token to a summary of the map (GSA). `(B, H, W, C) -> (B, H, W, C)`, any H, W >= 1.

    Args:
        dim: Width of the tokens.
        num_heads: Number of heads, a divisor of `dim`.
        sr_ratio: Side in tokens of the patches that a convolution sums up to one key and value; 1: no convolution.
        qkv_bias: Whether the projections to queries, keys and values have biases.
        attn_drop: Dropout rate of the attention weights.
        proj_drop: Dropout rate of the result.
        edge: What happens to rows and columns that do not fill a patch: `crop` leaves them out of the summary, as the
            official code does, `pad` fills up their patches with zeros. Sides below `sr_ratio` are padded either way.

    Raises:
        ValueError: If an argument is out of range.
    """
