"""SimAM: A Simple, Parameter-Free Attention Module for Convolutional Neural Networks (ICML 2021).

Official code: https://github.com/ZjjConan/SimAM (no licence file), networks/attentions/simam_module.py.

Differs from the official code in:
- a channel of a single value is scaled by sigmoid(1/2), as every constant channel is; the official code gives NaN.

Golden: none; the tests compare it with its formula in float64, outputs and gradients.
"""

from typing import Any

import torch
from torch import nn

from visionattn.catalog import Card, Floor
from visionattn.utils.arguments import check_positive

__all__ = ["SimAM"]


class SimAM(nn.Module):
    """Scales each value by how far it stands out from its channel. `(B, C, H, W) -> (B, C, H, W)`, any H, W >= 1.

    `x * sigmoid((x - mean)^2 / (4 (variance + e_lambda)) + 1/2)`, with mean and unbiased variance of each channel of
    each image: the inverse of the least energy that tells a neuron from the others. There are no parameters.

    Args:
        channels: Width of the map; like `device` and `dtype` only taken because every plug-in takes it.
        e_lambda: Added to the variance. The module's default is for CIFAR; the published ImageNet networks have 0.1.

    Raises:
        ValueError: If `channels` is below 1 or `e_lambda` is not above 0.
    """

    # There are no parameters to rename.
    official_keys = ()

    def __init__(
        self,
        channels: int,
        *,
        e_lambda: float = 1e-4,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(channels=channels)
        if not e_lambda > 0:
            raise ValueError(f"e_lambda must be above 0, got {e_lambda}")
        self.e_lambda = e_lambda

    def extra_repr(self) -> str:
        return f"e_lambda={self.e_lambda:g}"

    def reset_parameters(self) -> None:
        """Does nothing: there are no parameters."""

    def gates(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """The factors of the map, of its shape."""
        squares = (x - x.mean((2, 3), keepdim=True)).square()
        count: Any = torch.sym_max(x.shape[2] * x.shape[3] - 1, 1)
        variance = squares.sum((2, 3), keepdim=True) / count
        return {"neurons": (squares / (4 * (variance + self.e_lambda)) + 0.5).sigmoid()}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gates(x)["neurons"]


CARD = Card(
    name="simam",
    title="SimAM: Simple, Parameter-Free Attention Module",
    kind="plugin",
    factory=SimAM,
    summary="scales each value by how far it stands out from its channel, no parameters",
    flow="(. | squared distance to the channel's mean -> over 4 variances, + 1/2 -> sigmoid) -> *",
    paper="ICML 2021, PMLR 139, pages 11863 to 11874",
    code="https://github.com/ZjjConan/SimAM",
    placement="in every residual block, after its 3x3 convolution (of two, the second)",
    avoid="to shut something out: its factors never fall below sigmoid(1/2), which is 0.62",
    hosts=("resnet", "mobilenet", "narrow"),
    floor=Floor(3, 5, "statistics R, then R and W; back two reductions of dy and x: R, R, then R, R and W dx"),
    maps=True,
    reference="simam",
)
