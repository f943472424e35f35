"""Coordinate attention for efficient mobile network design (CVPR 2021, arXiv 2103.02907).

Official code: https://github.com/houqb/CoordAttention (MIT), coordatt.py and mbv2_ca.py.

Differs from the official code in: nothing that changes a number; rows and columns are pooled and gated with fewer
passes over the map.

Golden: tests/golden/coordatt_*.npz (outputs, input gradients, running statistics, both namings of the parameters).
"""

import torch
from torch import nn

from visionattn.catalog import Card
from visionattn.ops import axis_attention
from visionattn.utils.arguments import check_positive

from ._common import ONE_POOL, StripGates

__all__ = ["CoordinateAttention"]


class CoordinateAttention(StripGates):
    """Scales each position by a gate of its row and one of its column. `(B, C, H, W) -> (B, C, H, W)`, any H, W >= 1.

    The paper puts one into every inverted residual, on the expanded width, after the depthwise convolution.

    Args:
        channels: Width of the map.
        reduction: Divides `channels` to the hidden width.
        min_width: The hidden width is at least this.

    Raises:
        ValueError: If an argument is below 1.
    """

    # Whether `forward` takes what comes after: `relu(plugin(x) + residual)` in one pass over the map.
    fuses_residual = True
    # The checkpoint's network calls the last two layers differently from the module's own file.
    official_keys = ((r"\bconv2\.", "conv_h."), (r"\bconv3\.", "conv_w."))

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 32,
        min_width: int = 8,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_positive(channels=channels, reduction=reduction, min_width=min_width)
        hidden = max(channels // reduction, min_width)
        super().__init__(channels, hidden, bias=True, act=nn.Hardswish, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None, relu: bool = False) -> torch.Tensor:
        return axis_attention(x, self.pools, self.broadcast_dims, self.strips, residual=residual, relu=relu)


CARD = Card(
    name="coord",
    title="Coordinate attention",
    kind="plugin",
    factory=CoordinateAttention,
    summary="gates of rows and columns",
    flow="(. | row and column means -> 1x1 conv, norm, h-swish -> (1x1 conv, sigmoid | 1x1 conv, sigmoid) -> *) -> *",
    paper="arXiv:2103.02907",
    code="https://github.com/houqb/CoordAttention",
    license="MIT",
    placement="in every inverted residual, on the expanded width, after the depthwise convolution",
    avoid="where two objects lie at opposite corners: a gate of rows times a gate of columns opens the other two "
    "corners as well",
    hosts=("resnet", "mobilenet", "narrow"),
    floor=ONE_POOL,
    maps=True,
    reference="coord",
)
