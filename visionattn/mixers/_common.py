"""Parts that several mixers share."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from visionattn.catalog import BlockContext, Floor
from visionattn.ops import attention, window_attention
from visionattn.ops.projection import split_heads
from visionattn.utils.arguments import check_choice, check_heads, check_positive, pair
from visionattn.utils.factory import FactoryKwargs

__all__ = [
    "SR_RATIOS",
    "WINDOWS",
    "KVReducedAttention",
    "TokenMixer",
    "WindowMixer",
    "accept_split_qkv",
    "convert_when_loading",
    "join_projections",
    "split_heads",
    "usual_window",
]

WINDOWS = Floor(10, 19, "q, k, v in, o out: 4; back q, k, v, do in, dq, dk, dv out: 7; the rest are projections")
# Sides of the patches that become one key, in the stages of a pyramid.
SR_RATIOS = (8, 4, 2, 1)


class TokenMixer(nn.Module):
    """A mixer of all tokens, including extra ones; a map is a sequence of its rows. `(B, H, W, C) -> (B, H, W, C)`.

    A subclass has `forward_tokens(x, grid, prefix=0)`, `(B, prefix + H * W, C)` in and out.
    """

    forward_tokens: Callable[..., torch.Tensor]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        grid = (x.shape[1], x.shape[2])
        return self.forward_tokens(x.flatten(1, 2), grid).unflatten(1, grid)


def usual_window(context: BlockContext) -> dict[str, Any]:
    """Windows of 7, or of 4 on small maps, so that these have several windows too."""
    return {"window": 4 if context.grid and max(context.grid) <= 8 else 7}


class WindowMixer(nn.Module):
    """The base of window attention: projections, a window, and the handling of padded tokens.

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

    pad_masks: tuple[str, ...] = ("none", "exact")

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        window_size: int | Sequence[int] = 7,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        pad_mask: str = "none",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        check_choice("pad_mask", pad_mask, self.pad_masks)
        self.window_size = pair("window_size", window_size)
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
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
            self.proj,
            num_heads=self.num_heads,
            window=window,
            shift=shift,
            bias=bias,
            mask_padding=self.masks_padding(x.size(1), x.size(2)),
            dropout_p=self.attn_drop.p if self.training else 0.0,
        )
        return self.proj_drop(x)

    def masks_padding(self, height: int, width: int) -> bool:
        """Whether padded tokens are masked on a map of this size."""
        return self.pad_mask == "exact"


class KVReducedAttention(nn.Module):
    """Softmax attention of every token to a reduced map, one token for each patch.

    Args:
        dim: Width of the tokens.
        num_heads: Number of heads, a divisor of `dim`.
        sr_ratio: Side in tokens of the patches; 1: every token is a key.
        remainder: What happens to rows and columns that do not fill a patch: `crop` or `pad`. Sides below `sr_ratio`
            are padded with zeros either way.
        qkv_bias: Whether the projections to queries, keys and values have biases.
        attn_drop: Dropout rate of the attention weights.
        proj_drop: Dropout rate of the result.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        sr_ratio: int = 1,
        remainder: str = "crop",
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        check_positive(sr_ratio=sr_ratio)
        check_choice("remainder", remainder, ("crop", "pad"))
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.sr_ratio = sr_ratio
        self.remainder = remainder
        self.q = nn.Linear(dim, dim, bias=qkv_bias, **dd)
        self.kv = nn.Linear(dim, 2 * dim, bias=qkv_bias, **dd)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)
        self.sr = nn.Conv2d(dim, dim, sr_ratio, stride=sr_ratio, **dd) if sr_ratio > 1 else None
        # Not the host's normalisation: the official ones keep PyTorch's eps where the blocks' have 1e-6.
        self.norm = nn.LayerNorm(dim, eps=1e-5, **dd) if sr_ratio > 1 else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q = self.q(x).flatten(1, 2).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        kv = self.kv(self.summary(x)).flatten(1, 2).unflatten(-1, (2, self.num_heads, -1))
        k, v = kv.permute(2, 0, 3, 1, 4).unbind(0)
        out = attention(q, k, v, dropout_p=self.attn_drop.p if self.training else 0.0)
        return self.proj_drop(self.proj(out.unflatten(1, x.shape[1:3])))

    def summary(self, x: torch.Tensor) -> torch.Tensor:
        """The reduced map from which keys and values are computed, `(B, H', W', C)`."""
        if self.sr is None or self.norm is None:
            return x
        short = [
            -side % self.sr_ratio if self.remainder == "pad" or side < self.sr_ratio else 0 for side in x.shape[1:3]
        ]
        if any(short):
            x = F.pad(x, (0, 0, 0, short[1], 0, short[0]))
        return self.norm(self.sr(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


def join_projections(
    state_dict: Mapping[str, torch.Tensor], prefix: str, parts: Sequence[str], proj: str = "proj"
) -> dict[str, torch.Tensor]:
    """Converts three separate layers to one layer `qkv`, and the output projection to `proj`; keeps other entries.

    Args:
        state_dict: The weights.
        prefix: What the names of the module's entries begin with.
        parts: Names of the projections to queries, keys and values.
        proj: Name of the output projection.
    """
    native = dict(state_dict)
    for kind in ("weight", "bias"):
        names = [f"{prefix}{part}.{kind}" for part in parts]
        if all(name in native for name in names):
            native[f"{prefix}qkv.{kind}"] = torch.cat([native.pop(name) for name in names])
        if f"{prefix}{proj}.{kind}" in native:
            native[f"{prefix}proj.{kind}"] = native.pop(f"{prefix}{proj}.{kind}")
    return native


def convert_when_loading(module: nn.Module) -> None:
    """Lets `load_state_dict` accept the formats that the module's `to_native` reads, besides its own."""
    module.register_load_state_dict_pre_hook(_convert)


def accept_split_qkv(module: nn.Module) -> None:
    """Lets `load_state_dict` of a module with a layer `qkv` accept separate weights `q`, `k` and `v`."""
    module.register_load_state_dict_pre_hook(_join)


def _join(module: nn.Module, state_dict: dict[str, torch.Tensor], prefix: str, *_: object) -> None:
    _replace(state_dict, join_projections(state_dict, prefix, "qkv"))


def _convert(module: Any, state_dict: dict[str, torch.Tensor], prefix: str, *_: object) -> None:
    _replace(state_dict, module.to_native(state_dict, prefix))


def _replace(state_dict: dict[str, torch.Tensor], native: dict[str, torch.Tensor]) -> None:
    state_dict.clear()
    state_dict.update(native)
