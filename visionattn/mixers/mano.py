"""MANO: multipole attention, one window attention on all levels of a pyramid (ICCV workshop 2025, arXiv 2507.02748).

Official code: https://github.com/AlexColagrande/MANO, models/MANO.py; as far as its module is known from public copies.

Differs from the official code in:
- any map: each level is padded at the right and the bottom to whole windows and whole steps of the downsampling, and
  padded tokens are not seen; what comes up from a coarser level is cropped to the finer one. There, sides that the
  window or the rate does not divide leave uncovered tokens or fail;
- as many levels as fit follow from the map, counted in integers, unless `levels` says how many;
- the windows of all levels are attended to in one call, since the levels share all weights; level by level where
  someone looks on (`explain.capture`);
- the layers are `norm`, `attn_norm`, `qkv`, `proj`, `down`, `up` (`to_native` maps the official names).

Golden: tests/golden/mano_multipole_*.npz (outputs and input gradients).
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from visionattn.catalog import BlockContext, Card, Floor
from visionattn.ops import attention, nhwc_conv, nhwc_upconv, partition_windows, project_apart
from visionattn.ops._dispatch import wants_torch
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


class CoarseMap(nn.Module):
    """Gives a coarser level as it is: where hooks, such as those that find out where tokens lie, see its map."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


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
        self.coarse = CoarseMap()
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
        maps = self._pyramid(x, self._downsample)
        return _add_up(self._attend(maps), self._upsample)

    def weights(self, x: torch.Tensor) -> torch.Tensor:
        """What each position takes from each over all levels, `(B, num_heads, N, N)`, from a map `(B, H, W, C)`.

        A token of a coarser level stands for the mean of those that it covers, and all of them get what it takes: what
        the convolutions between levels do to channels is left out. The rows sum up to the sum of the levels' factors.
        """
        batch, height, width, _ = x.shape
        count = height * width
        one = torch.eye(count, device=x.device, dtype=x.dtype).view(1, height, width, count)
        maps, shares = self._pyramid(x, self._downsample), self._pyramid(one, self._average)
        windows, counts, mask = self._windows(maps)
        q, k, _ = self._heads(windows)
        scores = q @ k.mT * q.size(-1) ** -0.5
        rows = scores.softmax(-1) if mask is None else scores.masked_fill(~mask, float("-inf")).softmax(-1)
        results = []
        for part, level, share in zip(rows.unflatten(0, (batch, -1)).split(counts, 1), maps, shares, strict=True):
            taken = part @ self._cut(share).unsqueeze(2)  # of what each token of a window is made of
            results.append(self._lay(taken.transpose(2, 3).flatten(3), (level.size(1), level.size(2))))
        out = _add_up(results, lambda coarse: _repeat(coarse, self.rate))
        return out.flatten(1, 2).unflatten(2, (self.num_heads, count)).transpose(1, 2)

    def count_levels(self, height: int, width: int) -> int:
        """The number of levels for a map of this size."""
        return self.levels or fitting_levels(min(height, width), self.window_size, self.rate)

    def _pyramid(self, x: torch.Tensor, coarser: Callable[[torch.Tensor], torch.Tensor]) -> list[torch.Tensor]:
        """The map on all levels, the finest first."""
        maps = [x]
        for _ in range(self.count_levels(x.size(1), x.size(2)) - 1):
            maps.append(self.coarse(coarser(maps[-1])))
        return maps

    def _downsample(self, x: torch.Tensor) -> torch.Tensor:
        if self.down is None:
            return self._average(x)
        short = [-side % self.rate for side in x.shape[1:3]]
        x = F.pad(x, (0, 0, 0, short[1], 0, short[0])) if any(short) else x
        return nhwc_conv(x, self.down.weight, stride=self.rate)

    def _average(self, x: torch.Tensor) -> torch.Tensor:
        """Means of the tokens that there are."""
        uneven = any(side % self.rate for side in x.shape[1:3])
        x = x.permute(0, 3, 1, 2)
        return F.avg_pool2d(x, self.rate, ceil_mode=uneven, count_include_pad=False).permute(0, 2, 3, 1)

    def _upsample(self, x: torch.Tensor) -> torch.Tensor:
        return _repeat(x, self.rate) if self.up is None else nhwc_upconv(x, self.up.weight)

    def _attend(self, maps: list[torch.Tensor]) -> list[torch.Tensor]:
        """Attention in the windows of all maps at once."""
        windows, counts, mask = self._windows(maps)
        dropout_p = self.attn_drop.p if self.training else 0.0
        heads, batch = self._heads(windows), maps[0].size(0)

        def by_level(x: torch.Tensor) -> list[torch.Tensor]:
            return [part.flatten(0, 1) for part in x.unflatten(0, (batch, -1)).split(counts, 1)]

        if wants_torch():
            seen = [None] * len(maps) if mask is None else by_level(mask)
            levels = zip(*map(by_level, heads), seen, strict=True)
            parts = [attention(*level, mask=part, dropout_p=dropout_p) for *level, part in levels]
            out = torch.cat([part.unflatten(0, (batch, -1)) for part in parts], 1).flatten(0, 1)
        else:
            out = attention(*heads, mask=mask, dropout_p=dropout_p)
        parts = self.proj_drop(self.proj(out)).unflatten(0, (batch, -1)).split(counts, 1)
        return [self._lay(part, (level.size(1), level.size(2))) for part, level in zip(parts, maps, strict=True)]

    def _windows(self, maps: list[torch.Tensor]) -> tuple[torch.Tensor, list[int], torch.Tensor | None]:
        """Windows of all maps, image by image, `(B * windows, n, C)`, how many each map has, and which tokens are seen.

        The last is `(B * windows, 1, 1, n)`; none: all.
        """
        side, stride = self.window_size, self.window_stride
        windows = [self._cut(level) for level in maps]
        counts = [part.size(1) for part in windows]
        sizes = [(level.size(1), level.size(2)) for level in maps]
        mask = None
        if any(max(length - side, 0) % stride or length < side for size in sizes for length in size):
            # A window has a token of the map at least.
            held = torch.cat([self._cut(maps[0].new_ones(1, *size, 1)) for size in sizes], 1)
            mask = held.squeeze(3).bool().expand(maps[0].size(0), -1, -1).flatten(0, 1)[:, None, None]
        return torch.cat(windows, 1).flatten(0, 1), counts, mask

    def _heads(self, windows: torch.Tensor) -> list[torch.Tensor]:
        """Queries, keys and values of windows, `(windows, num_heads, n, head_dim)` each."""
        parts = project_apart(self.qkv, self.attn_norm(self.norm(windows)))
        return [part.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for part in parts]

    def _cut(self, x: torch.Tensor) -> torch.Tensor:
        """The windows of a map padded with zeros. `(B, H, W, C) -> (B, windows, n, C)`."""
        side, stride = self.window_size, self.window_stride
        if stride == side:
            return partition_windows(x, (side, side)).unflatten(0, (x.size(0), -1))
        x = F.pad(x, (0, 0, *self._padding(x.size(2)), *self._padding(x.size(1))))
        return x.unfold(1, side, stride).unfold(2, side, stride).permute(0, 1, 2, 4, 5, 3).flatten(3, 4).flatten(1, 2)

    def _lay(self, x: torch.Tensor, size: Pair) -> torch.Tensor:
        """The map from its windows; their mean where they overlap."""
        side, stride = self.window_size, self.window_stride
        if stride == side:
            tiles = (-(-size[0] // side), -(-size[1] // side))
            x = x.unflatten(2, (side, side)).unflatten(1, tiles).transpose(2, 3).flatten(1, 2).flatten(2, 3)
            return x[:, : size[0], : size[1]]
        padded = tuple(length + self._padding(length)[1] for length in size)
        columns = x.permute(0, 3, 2, 1).flatten(1, 2)
        total = F.fold(columns, padded, side, stride=stride)
        rows, cols = (_coverage(length, side, stride, x) for length in padded)
        total = total / (rows[:, None] * cols)
        return total[:, :, : size[0], : size[1]].permute(0, 2, 3, 1)

    def _padding(self, length: int) -> Pair:
        """The padding before and after so that windows at this stride cover all tokens."""
        if length < self.window_size:
            return 0, self.window_size - length
        return 0, -(length - self.window_size) % self.window_stride


def _repeat(x: torch.Tensor, rate: int) -> torch.Tensor:
    """Each token of a map `rate` times along both sides."""
    return x.repeat_interleave(rate, 1).repeat_interleave(rate, 2)


def _add_up(results: list[torch.Tensor], upsample: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """The sum of the results of all levels, from the coarsest on."""
    out = results[-1]
    for step, finer in enumerate(reversed(results[:-1]), 1):
        coarse = upsample(out)[:, : finer.size(1), : finer.size(2)]
        out = torch.add(finer, coarse, alpha=1 / step)
    return out


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
    avoid="where far detail matters: beyond its window a position sees ever coarser copies of the map",
    pyramid=("nano", "micro", "tiny"),
    keywords=_keywords,
    cases={"": {"num_heads": 3}, "pooled": {"num_heads": 3, "window_size": 4, "down": "avg_pool", "up": "avg_pool"}},
    floor=Floor(14, 26, "windows of 4/3 of the map, levels down and up once each; projections"),
    cost="N w",
    maps=True,
    reference="mano",
)
