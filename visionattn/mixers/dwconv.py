"""A depthwise convolution between two pointwise ones, as the unified ConvNeXt of STM-Evaluation mixes tokens.

ConvNeXt (CVPR 2022, arXiv 2201.03545) in the form of "Demystify Transformers & Convolutions in Modern Image Deep
Networks" (TPAMI 2025, arXiv 2211.05781): the pointwise convolutions play the part of attention's projections.

Official code: https://github.com/OpenGVLab/STM-Evaluation (MIT), classification/models/blocks/convnext.py. There the
three layers belong to the block; here they are a module of their own.

Differs from the official code in: the kernel may have another odd side than 7.

Golden: tests/golden/stm_dwconvblock_*.npz (outputs and input gradients of the whole block).
"""

import torch
from torch import nn

from visionattn.catalog import Card
from visionattn.ops import nhwc_conv, toeplitz_matrix
from visionattn.utils.arguments import check_odd, check_positive
from visionattn.utils.factory import FactoryKwargs

__all__ = ["DepthwiseConvMixer"]


class DepthwiseConvMixer(nn.Module):
    """Pointwise, depthwise and pointwise convolution, nothing between. `(B, H, W, C) -> (B, H, W, C)`, any H, W >= 1.

    Args:
        dim: Width of the map.
        kernel_size: Side of the depthwise convolution, odd; ConvNeXt found 7 to be enough.
        bias: Whether the three convolutions have biases.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: If `dim` is below 1 or `kernel_size` is not a positive odd number.
    """

    def __init__(
        self,
        dim: int,
        *,
        kernel_size: int = 7,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(dim=dim)
        check_odd(kernel_size=kernel_size)
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        self.dw_input_proj = nn.Conv2d(dim, dim, 1, bias=bias, **dd)
        self.dwconv = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim, bias=bias, **dd)
        self.dw_out_proj = nn.Conv2d(dim, dim, 1, bias=bias, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        conv = self.dwconv
        x = nhwc_conv(x, self.dw_input_proj.weight, self.dw_input_proj.bias)
        x = nhwc_conv(x, conv.weight, conv.bias, padding=conv.kernel_size[0] // 2, groups=conv.groups)
        return nhwc_conv(x, self.dw_out_proj.weight, self.dw_out_proj.bias)

    def weights(self, x: torch.Tensor) -> torch.Tensor:
        """What each position takes from each, a matrix a channel, `(B, C, N, N)`, of a map `(B, H, W, C)`."""
        return toeplitz_matrix(self.dwconv.weight, x.size(1), x.size(2)).expand(x.size(0), -1, -1, -1)


CARD = Card(
    name="convnext",
    title="ConvNeXt: depthwise convolution between pointwise ones",
    kind="mixer",
    factory=DepthwiseConvMixer,
    summary="a depthwise convolution between two pointwise ones",
    flow="1x1 conv -> depthwise conv -> 1x1 conv",
    paper="arXiv:2201.03545",
    code="https://github.com/OpenGVLab/STM-Evaluation",
    license="MIT",
    placement="in every block in place of attention",
    avoid="where far positions have to be compared: it sees 7 x 7 of them with the same weights everywhere",
    pyramid=("nano", "micro", "tiny", "small", "base"),
)
