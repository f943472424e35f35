"""MANO: multipole attention, one window attention on all levels of a pyramid (ICCV workshop 2025, arXiv 2507.02748).

Official code: https://github.com/AlexColagrande/MANO, models/MANO.py; as far as its module is known from public copies.

Differs from the official code in:
- any map: each level is padded at the right and the bottom to whole windows and whole steps of the downsampling, and
  padded tokens are not seen; what comes up from a coarser level is cropped to the finer one. There, sides that the
  window or the rate does not divide leave uncovered tokens or fail;
- as many levels as fit follow from the map, counted in integers, unless `levels` says how many;
- the windows of all levels are attended to in one call, since the levels share all weights;
- the layers are `norm`, `attn_norm`, `qkv`, `proj`, `down`, `up` (`to_native` maps the official names).

Golden: tests/golden/mano_multipole_*.npz (outputs and input gradients).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from visionattn.catalog import BlockContext, Card, Floor
from visionattn.ops import attention, merge_windows, nhwc_conv, partition_windows
from visionattn.utils.arguments import check_choice, check_heads, check_positive

__all__ = ["MultipoleAttention", "fitting_levels"]

Pair = tuple[int, int]
_OFFICIAL = (
    ("Attention.norm.", "norm."),
    ("Attention.Attention.norm.", "attn_norm."),
    ("Attention.Attention.to_qkv.", "qkv."),
    ("Attention.Attention.to_out.0.", "proj."),
    ("down.1.", "down."),
    ("up.1.", "up."),
)


class MultipoleAttention(nn.Module):
    """The sum of window attention on a map and on coarser copies of it. `(B, H, W, C) -> (B, H, W, C)`.

    The attention, the downsampling and the upsampling are the same on all levels. From the coarsest level on, each
    result is upsampled, divided by the number of the step and added to that of the next finer level. Any H, W >= 1.

    Args:
        dim: Width of the tokens.
        num_heads: Number of heads.
        window_size: Side of the windows.
        head_dim: Width of a head; None for `dim / num_heads`. The heads together may be wider or narrower than `dim`.
        levels: Number of levels, small maps being padded; None for as many as the map has whose shorter side is not
            less than the window. One level needs neither downsampling nor upsampling.
        down: `conv`, a convolution whose patches do not overlap, or `avg_pool`.
        up: `conv`, a transposed convolution likewise, or `avg_pool`, which repeats each token.
        rate: Factor between the sides of two levels.
        window_stride: Step of the windows; less than the window lets them overlap, and results are averaged; None for
            the window's side.
        proj: Whether there is a projection of the result; None leaves it out with one head as wide as `dim`.
        attn_drop: Dropout rate of the attention weights.
        proj_drop: Dropout rate of the projection.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 4,
        *,
        window_size: int = 2,
        head_dim: int | None = None,
        levels: int | None = None,
        down: str = "conv",
        up: str = "conv",
        rate: int = 2,
        window_stride: int | None = None,
        proj: bool | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(dim=dim, num_heads=num_heads, window_size=window_size)
        if head_dim is None:
            check_heads(dim, num_heads)
            head_dim = dim // num_heads
        check_positive(head_dim=head_dim, levels=1 if levels is None else levels)
        check_choice("down", down, ("conv", "avg_pool"))
        check_choice("up", up, ("conv", "avg_pool"))
        if rate < 2:
            raise ValueError(f"rate must be at least 2, got {rate}")
        stride = window_size if window_stride is None else window_stride
        if not 1 <= stride <= window_size:
            raise ValueError(f"window_stride must be from 1 to window_size={window_size}, got {window_stride}")
        inner = num_heads * head_dim
        if proj is None:
            proj = num_heads > 1 or head_dim != dim
        if not proj and inner != dim:
            raise ValueError(f"proj=False needs heads as wide as dim={dim} together, got {num_heads} x {head_dim}")
        self.num_heads = num_heads
        self.window_size = window_size
        self.window_stride = stride
        self.levels = levels
        self.rate = rate
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.norm = nn.LayerNorm(dim, **dd)
        self.attn_norm = nn.LayerNorm(dim, **dd)
        self.qkv = nn.Linear(dim, 3 * inner, bias=False, **dd)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(inner, dim, **dd) if proj else nn.Identity()
        self.proj_drop = nn.Dropout(proj_drop)
        several = levels != 1
        self.down = nn.Conv2d(dim, dim, rate, stride=rate, bias=False, **dd) if down == "conv" and several else None
        self.up = (
            nn.ConvTranspose2d(dim, dim, rate, stride=rate, bias=False, **dd) if up == "conv" and several else None
        )

    @staticmethod
    def to_native(state_dict: Mapping[str, torch.Tensor], prefix: str = "") -> dict[str, torch.Tensor]:
        """Official weights under the names used here; other entries as they are.

        Args:
            state_dict: Weights in the official format.
            prefix: What the names of this module's entries begin with.
        """
        native = {}
        for key, value in state_dict.items():
            for official, own in _OFFICIAL:
                if key.startswith(prefix + official):
                    key = prefix + own + key.removeprefix(prefix + official)
                    break
            native[key] = value
        return native

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = [x]
        for _ in range(self.count_levels(x.size(1), x.size(2)) - 1):
            maps.append(self._downsample(maps[-1]))
        results = self._attend(maps)
        out = results[-1]
        for step, finer in enumerate(reversed(results[:-1]), 1):
            coarse = self._upsample(out)[:, : finer.size(1), : finer.size(2)]
            out = torch.add(finer, coarse, alpha=1 / step)
        return out

    def count_levels(self, height: int, width: int) -> int:
        """The number of levels for a map of this size."""
        return self.levels or fitting_levels(min(height, width), self.window_size, self.rate)

    def _downsample(self, x: torch.Tensor) -> torch.Tensor:
        short = [-side % self.rate for side in x.shape[1:3]]
        if self.down is not None:
            x = F.pad(x, (0, 0, 0, short[1], 0, short[0])) if any(short) else x
            return nhwc_conv(x, self.down.weight, stride=self.rate)
        # Means of the tokens that there are.
        x = x.permute(0, 3, 1, 2)
        return F.avg_pool2d(x, self.rate, ceil_mode=any(short), count_include_pad=False).permute(0, 2, 3, 1)

    def _upsample(self, x: torch.Tensor) -> torch.Tensor:
        rate = self.rate
        if self.up is None:
            return x.repeat_interleave(rate, 1).repeat_interleave(rate, 2)
        # Patches do not overlap: one product for each token.
        x = F.linear(x, self.up.weight.permute(2, 3, 1, 0).flatten(0, 2)).unflatten(3, (rate, rate, -1))
        return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)

    def _attend(self, maps: list[torch.Tensor]) -> list[torch.Tensor]:
        """Attention in the windows of all maps at once."""
        side, stride = self.window_size, self.window_stride
        windows, visible, padded = [], [], False
        for level in maps:
            size = (level.size(1), level.size(2))
            windows.append(self._cut(level))
            held = self._cut(level.new_ones(1, *size, 1))
            visible.append(held.squeeze(2).bool().repeat(level.size(0), 1))
            padded = padded or any(max(s - side, 0) % stride or s < side for s in size)
        x = torch.cat(windows) if len(windows) > 1 else windows[0]
        x = self.attn_norm(self.norm(x))
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        # A window has a token of the map at least.
        mask = torch.cat(visible)[:, None, None] if padded else None
        out = attention(q, k, v, mask=mask, dropout_p=self.attn_drop.p if self.training else 0.0)
        out = self.proj_drop(self.proj(out))
        parts = out.split([part.size(0) for part in windows])
        return [self._lay(part, level) for part, level in zip(parts, maps, strict=True)]

    def _cut(self, x: torch.Tensor) -> torch.Tensor:
        """The windows of a map padded with zeros. `(B, H, W, C) -> (B * windows, n, C)`."""
        side, stride = self.window_size, self.window_stride
        if stride == side:
            return partition_windows(x, (side, side))
        x = F.pad(x, (0, 0, *self._padding(x.size(2)), *self._padding(x.size(1))))
        return x.unfold(1, side, stride).unfold(2, side, stride).permute(0, 1, 2, 4, 5, 3).flatten(3, 4).flatten(0, 2)

    def _lay(self, x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """The map from its windows; their mean where they overlap."""
        side, stride, size = self.window_size, self.window_stride, (like.size(1), like.size(2))
        if stride == side:
            return merge_windows(x, size, (side, side))
        padded = tuple(length + self._padding(length)[1] for length in size)
        columns = x.unflatten(0, (like.size(0), -1)).permute(0, 3, 2, 1).flatten(1, 2)
        total = F.fold(columns, padded, side, stride=stride)
        rows, cols = (_coverage(length, side, stride, x) for length in padded)
        total = total / (rows[:, None] * cols)
        return total[:, :, : size[0], : size[1]].permute(0, 2, 3, 1)

    def _padding(self, length: int) -> Pair:
        """The padding before and after so that windows at this stride cover all tokens."""
        if length < self.window_size:
            return 0, self.window_size - length
        return 0, -(length - self.window_size) % self.window_stride


def _coverage(length: int, side: int, stride: int, like: torch.Tensor) -> torch.Tensor:
    """The number of windows that cover each position of an axis."""
    position = torch.arange(length, device=like.device)
    first = ((position - side).div(stride, rounding_mode="floor") + 1).clamp_min(0)
    last = position.div(stride, rounding_mode="floor").clamp_max((length - side) // stride)
    return (last - first + 1).to(like.dtype)


def fitting_levels(side: int, window_size: int, rate: int = 2) -> int:
    """The number of levels whose windows fit into the map, by its shorter side."""
    count = 1
    while (side := -(-side // rate)) >= max(window_size, 2):
        count += 1
    return count


def _keywords(context: BlockContext) -> dict[str, Any]:
    """Windows that divide the nominal map, and its number of levels."""
    if context.grid is None:
        return {"window_size": 7}
    side = min(context.grid)
    window = next(window for window in (7, 4, 2, 1) if side % window == 0)
    return {"window_size": window, "levels": fitting_levels(side, window)}


CARD = Card(
    name="mano",
    title="MANO: multipole attention",
    kind="mixer",
    factory=MultipoleAttention,
    summary="one attention in windows of a map and of ever coarser copies of it, summed up",
    flow=(
        "(softmax attention in windows | downsample -> the same attention -> upsample | downsample twice -> the "
        "same attention -> upsample) -> +"
    ),
    paper="arXiv:2507.02748",
    code="https://github.com/AlexColagrande/MANO",
    placement="in every block in place of attention",
    pyramid=("nano", "micro", "tiny"),
    keywords=_keywords,
    cases={"": {"num_heads": 3}, "pooled": {"num_heads": 3, "window_size": 4, "down": "avg_pool", "up": "avg_pool"}},
    floor=Floor(14, 26, "windows of 4/3 of the map, levels down and up once each; projections"),
    cost="N w",
    maps=True,
    reference="mano",
)
