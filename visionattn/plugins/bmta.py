"""Balanced multi-task attention: coordinate attention and squeeze-and-excitation in a learned mix (arXiv 2510.15527).

Official code: https://github.com/virAditya/satellite-image-classification-eurosat (MIT), models/balanced_12layer.py.

Differs from the official code in:
- the hidden widths are never below 1 (the official code builds broken layers if channels < 16);
- one gate is mixed and applied instead of mixing two gated maps, and the channel means are taken from the row means:
  the same numbers up to rounding.

Golden: tests/golden/bmta_*.npz (outputs, input gradients, running statistics).
"""

import torch
from torch import nn

from visionattn.catalog import Card
from visionattn.ops import axis_attention
from visionattn.utils.arguments import check_positive
from visionattn.utils.factory import FactoryKwargs

from ._common import ONE_POOL, Matrix, StripGates

__all__ = ["BalancedMultiTaskAttention"]


class BalancedMultiTaskAttention(StripGates):
    """`s * x * rows * columns + (1 - s) * x * channel`, s = sigmoid(alpha). `(B, C, H, W) -> (B, C, H, W)`, any H, W.

    `rows` and `columns` are the gates of coordinate attention (without biases, with ReLU), `channel` is the gate of
    squeeze-and-excitation; `alpha` is learned. "Multi-task" is the paper's name for this mix: there is one task.

    Args:
        channels: Width of the map.
        reduction: Divides `channels` to the hidden width of the coordinate gates (at least 1).
        se_reduction: Divides `channels` to the hidden width of the channel gate (at least 1).
        alpha: Start of `alpha`; 0.5 gives coordinate attention a share of 0.62.

    Raises:
        ValueError: If `channels` or a reduction is below 1.
    """

    # Whether `forward` takes what comes after: `relu(plugin(x) + residual)` in one pass over the map.
    fuses_residual = True
    # (pattern, replacement) pairs that turn the author's parameter names into ours.
    official_keys = (
        (r"\bcoord_attention\.", ""),
        (r"\bse_attention\.excitation\.0\.", "fc1."),
        (r"\bse_attention\.excitation\.2\.", "fc2."),
    )

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 8,
        se_reduction: int = 16,
        alpha: float = 0.5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_positive(channels=channels, reduction=reduction, se_reduction=se_reduction)
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        super().__init__(channels, max(channels // reduction, 1), bias=False, act=nn.ReLU, **dd)
        hidden = max(channels // se_reduction, 1)
        self.fc1 = Matrix(channels, hidden, **dd)
        self.fc2 = Matrix(hidden, channels, **dd)
        self.start = alpha
        self.alpha = nn.Parameter(torch.empty((), **dd))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The author's start: PyTorch's default weights and the given `alpha`."""
        super().reset_parameters()
        self.fc1.reset_parameters()
        self.fc2.reset_parameters()
        nn.init.constant_(self.alpha, self.start)

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None, relu: bool = False) -> torch.Tensor:
        broadcast = (*self.broadcast_dims, (2, 3))
        return axis_attention(x, self.pools, broadcast, self._mixed, join="mixed", residual=residual, relu=relu)

    def gates(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """The factors by name; `rows * columns` and `channel` in the learned mix are `gate`."""
        rows, columns, channel = self._mixed(x.mean(3), x.mean(2))
        mix = self.alpha.sigmoid()
        gate = rows * columns + channel
        return {"rows": rows / mix, "columns": columns, "channel": channel / (1 - mix), "gate": gate}

    def _mixed(self, row_means: torch.Tensor, column_means: torch.Tensor) -> tuple[torch.Tensor, ...]:
        rows, columns = self.strips(row_means, column_means)
        channel = self.fc2(self.fc1(row_means.mean(2)).relu()).sigmoid()[:, :, None, None]
        mix = self.alpha.sigmoid()
        return mix * rows, columns, (1 - mix) * channel


CARD = Card(
    name="bmta",
    title="Balanced multi-task attention",
    kind="plugin",
    factory=BalancedMultiTaskAttention,
    summary="coordinate attention and squeeze-and-excitation in a learned mix",
    flow=(
        "(. | (row and column means -> 1x1 conv, norm, ReLU -> (1x1 conv, sigmoid | 1x1 conv, sigmoid) -> * | "
        "mean, MLP, sigmoid) -> learnt mix) -> *"
    ),
    paper="arXiv:2510.15527",
    code="https://github.com/virAditya/satellite-image-classification-eurosat",
    license="MIT",
    placement="in every residual block, before the addition",
    avoid="where one of its halves does: it computes coordinate attention and squeeze-and-excitation, and was "
    "tried on one set of satellite pictures",
    hosts=("resnet", "mobilenet", "narrow"),
    floor=ONE_POOL,
    maps=True,
    reference="bmta",
)
