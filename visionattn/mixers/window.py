"""Swin: attention in windows and in shifted windows, with a relative position bias (ICCV 2021, arXiv 2103.14030).

Official code: https://github.com/microsoft/Swin-Transformer (MIT), models/swin_transformer.py; the hosts of BOAT,
FLatten and STM-Evaluation use the same block.

Differs from the official code in:
- any map: it is padded to whole windows, and the masks of the shifted windows are made for its size, where the official
  block is built for one size;
- tokens that the shift brings together do not see each other at all, where the official mask adds -100;
- the bias table always has the nominal window's size. Where the window shrinks to the map its middle is read; the
  official block, built for a map smaller than the window, builds a smaller table;
- the table's indices and the masks are not in the state dict.

Golden: tests/golden/stm_swinblock_*.npz (outputs and input gradients of a whole block).
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn

from visionattn.catalog import BlockContext, Card
from visionattn.ops import relative_position_bias
from visionattn.utils.arguments import check_choice, pair

from ._common import WINDOWS, WindowMixer

__all__ = ["WindowAttention"]


class WindowAttention(WindowMixer):
    """Softmax attention in each window, with a bias for each distance. `(B, H, W, C) -> (B, H, W, C)`, any H, W >= 1.

    Args:
        dim: Width of the tokens.
        num_heads: Number of heads, a divisor of `dim`.
        window_size: Height and width of a window in tokens, or one number for both.
        shift_size: How far the windows are moved down and to the right, less than the window: a pair, one number for
            both, or `half` a window, as the paper moves those of every second block.
        qkv_bias: Whether the projection to queries, keys and values has a bias.
        attn_drop: Dropout rate of the attention weights.
        proj_drop: Dropout rate of the result.
        rel_pos: Whether each head learns a bias for each distance.
        fit_window: Where the shorter side of the map is not longer than the window, the window shrinks to that side and
            is not shifted, whatever the other side: the classifiers' rule. Without it such maps are padded like others
            and windows keep their shift: what the detectors do.
        pad_mask: `none`: padded tokens take part, as in the detectors. `exact`: the tokens of the map leave them out.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        window_size: int | Sequence[int] = 7,
        shift_size: int | Sequence[int] | Literal["half"] = 0,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        rel_pos: bool = True,
        fit_window: bool = True,
        pad_mask: str = "none",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            dim,
            num_heads=num_heads,
            window_size=window_size,
            qkv_bias=qkv_bias,
            attn_drop=attn_drop,
            proj_drop=proj_drop,
            pad_mask=pad_mask,
            device=device,
            dtype=dtype,
        )
        if isinstance(shift_size, str):
            check_choice("shift_size", shift_size, ("half",))
            shift_size = [side // 2 for side in self.window_size]
        self.shift_size = pair("shift_size", shift_size, least=0)
        if not all(by < side for by, side in zip(self.shift_size, self.window_size, strict=True)):
            raise ValueError(f"shift_size must be less than window_size={window_size}, got {shift_size}")
        self.fit_window = fit_window
        self.relative_position_bias_table = None
        if rel_pos:
            height, width = self.window_size
            table = torch.empty((2 * height - 1) * (2 * width - 1), num_heads, device=device, dtype=dtype)
            self.relative_position_bias_table = nn.Parameter(table)
        self.init_weights()

    def init_weights(self) -> None:
        """The official initialisation of the bias table."""
        if self.relative_position_bias_table is not None:
            nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        window, shift = self.windows(x.size(1), x.size(2))
        bias = None
        if self.relative_position_bias_table is not None:
            bias = relative_position_bias(self.relative_position_bias_table, window, self.window_size)
        return self.attend(x, window, shift, bias)

    def windows(self, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Height and width of the windows on a map of this size, and their shift."""
        side = min(height, width)
        if self.fit_window and side <= max(self.window_size):
            return (min(self.window_size[0], side), min(self.window_size[1], side)), (0, 0)
        return self.window_size, self.shift_size


def _shift(context: BlockContext) -> dict[str, Any]:
    return {"shift_size": "half" if context.block % 2 else 0}


CARD = Card(
    name="swin",
    title="Swin: shifted windows",
    kind="mixer",
    factory=WindowAttention,
    summary="attention in windows and shifted windows, with a relative position bias",
    flow=(
        "cut into shifted windows -> (((q | k) -> @ | {position bias}) -> + -> softmax | v) -> @ -> proj -> join "
        "windows"
    ),
    paper="arXiv:2103.14030",
    code="https://github.com/microsoft/Swin-Transformer",
    license="MIT",
    placement="in every block in place of attention; shifted in every second",
    avoid="where one block must see far: nothing passes beyond a window and its shifted neighbour",
    pyramid=("nano", "micro", "tiny", "small", "base"),
    keywords=_shift,
    cases={
        "": {"num_heads": 3, "window_size": 4},
        "shifted": {"num_heads": 3, "window_size": 4, "shift_size": 2},
    },
    floor=WINDOWS,
    cost="N w",
    keeps_weights=True,
    maps=True,
    reference="window",
)
