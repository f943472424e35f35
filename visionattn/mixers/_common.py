"""Parts that several mixers share."""

from collections.abc import Sequence

import torch
from torch import nn

from visionattn.ops import window_attention

__all__ = ["WindowMixer", "check_heads", "check_positive", "pair"]


def check_heads(dim: int, num_heads: int) -> None:
    """Raises unless a width splits into a number of heads."""
    if dim < 1 or num_heads < 1 or dim % num_heads:
        raise ValueError(f"num_heads must divide dim, got dim={dim}, num_heads={num_heads}")


def check_positive(**values: int) -> None:
    """Raises unless every argument, given by its name, is at least 1."""
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


def pair(name: str, value: int | Sequence[int]) -> tuple[int, int]:
    """Height and width from one number for both or from two. `name` is what an error calls them."""
    values = (value, value) if isinstance(value, int) else tuple(value)
    if len(values) != 2:
        raise ValueError(f"{name} must be one number or two, got {value}")
    return values


class WindowMixer(nn.Module):
    """What every attention inside windows has: projections, a window, and a way with padded tokens.

    A map that whole windows do not cover is padded with zeros at the right and the bottom, before the projection, so
    padded tokens have its bias as query, key and value.

    Args:
        dim: Width of the tokens.
        num_heads: Number of heads, a divisor of `dim`.
        window_size: Height and width of a window, or one number for both.
        qkv_bias: Whether the projection to queries, keys and values has a bias.
        attn_drop: Dropout rate of the attention weights.
        proj_drop: Dropout rate of the result.
        pad_mask: One of `pad_masks`.

    Raises:
        ValueError: If an argument is out of range.
    """

    pad_masks = ("none", "exact")

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        window_size: int | Sequence[int],
        qkv_bias: bool,
        attn_drop: float,
        proj_drop: float,
        pad_mask: str,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        self.window_size = pair("window_size", window_size)
        check_positive(window_size=min(self.window_size))
        if pad_mask not in self.pad_masks:
            raise ValueError(f"pad_mask must be one of {', '.join(self.pad_masks)}, got {pad_mask}")
        dd = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.pad_mask = pad_mask
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **dd)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.attend(x, self.window_size)

    def attend(
        self,
        x: torch.Tensor,
        window: tuple[int, int],
        shift: tuple[int, int] = (0, 0),
        bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attention in windows of a given size and place, with both projections."""
        x = window_attention(
            x,
            self.qkv,
            num_heads=self.num_heads,
            window=window,
            shift=shift,
            bias=bias,
            mask_padding=self.masks_padding(x.size(1), x.size(2)),
            dropout_p=self.attn_drop.p if self.training else 0.0,
        )
        return self.proj_drop(self.proj(x))

    def masks_padding(self, height: int, width: int) -> bool:
        """Whether the tokens of a map of this size leave the padded ones out."""
        return self.pad_mask == "exact"
