"""ELA: Efficient Local Attention for Deep Convolutional Neural Networks (arXiv 2403.01123).

Official code: https://github.com/Xuwei86/ELA_Code (no licence file), MbV2/models/mbv2_ela72.py and the author's other
projects there. They share one convolution and one normalisation between both directions, as does the paper's listing,
and name the parameters as they are named here. timm's `EfficientLocalAttn` is another block: its weights do not fit.

Differs from the official code in:
- widths that the numbers of groups do not divide take the largest number of groups that does;
- any memory layout and strips of one value are taken.

Golden: tests/golden/ela_module_*.npz (outputs and input gradients).
"""

from functools import partial

import torch
from torch import nn

from visionattn.catalog import Card
from visionattn.ops import axis_attention, strip_conv
from visionattn.utils.arguments import check_odd, check_positive
from visionattn.utils.factory import FactoryKwargs

from ._common import ONE_POOL

__all__ = ["EfficientLocalAttention", "ela_b", "ela_l", "ela_s", "ela_t"]


class EfficientLocalAttention(nn.Module):
    """Scales each row and each column of each channel, by a 1-D convolution over the means of its neighbours.

    `(B, C, H, W) -> (B, C, H, W)`, any C, H, W >= 1. The presets `ela_t`, `ela_b`, `ela_s` and `ela_l` are the paper's
    four versions; the defaults are those of `ela_l`.

    The paper's widths are multiples of 8 and of `norm_groups`. For others, the convolution and the normalisation take
    the largest number of groups that divides the width and is not above the wanted one.

    Args:
        channels: Width of the map.
        kernel_size: Length of the convolution, odd.
        group_size: Channels that each group of the convolution mixes, wanted; 1 is depthwise.
        norm_groups: Groups of the normalisation, wanted.
        residual: Add the input to the result, as the author's DeepLab and YOLOF do around the block.

    Raises:
        ValueError: If `channels`, `group_size` or `norm_groups` is below 1, or `kernel_size` is not a positive odd
            number.
    """

    # The author's parameter names are ours.
    official_keys = ()

    def __init__(
        self,
        channels: int,
        *,
        kernel_size: int = 7,
        group_size: int = 8,
        norm_groups: int = 16,
        residual: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(channels=channels, group_size=group_size, norm_groups=norm_groups)
        check_odd(kernel_size=kernel_size)
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        self.residual = residual
        # Whether `forward` takes what comes after, as in the other plug-ins: one residual is added in the same pass.
        self.fuses_residual = not residual
        groups = _largest_divisor(channels, channels // group_size)
        self.conv = nn.Conv1d(
            channels, channels, kernel_size, padding=kernel_size // 2, groups=groups, bias=False, **dd
        )
        self.gn = nn.GroupNorm(_largest_divisor(channels, norm_groups), channels, **dd)

    def reset_parameters(self) -> None:
        """The official initialisation: PyTorch's own."""
        self.conv.reset_parameters()
        self.gn.reset_parameters()

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None, relu: bool = False) -> torch.Tensor:
        pools, broadcast = (("mean", 3), ("mean", 2)), ((3,), (2,))
        if not self.residual:
            return axis_attention(x, pools, broadcast, self._gates, residual=residual, relu=relu)
        y = axis_attention(x, pools, broadcast, self._gates, residual=x)
        y = y if residual is None else y + residual
        return y.relu() if relu else y

    def gates(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """The factors of rows `(B, C, H, 1)` and columns `(B, C, 1, W)`; with a residual also the `gate` of both."""
        rows, columns = self._gates(x.mean(3), x.mean(2))
        joint = {"gate": rows * columns + 1} if self.residual else {}
        return {"rows": rows, "columns": columns, **joint}

    def _gates(self, rows: torch.Tensor, columns: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self._gate(rows).unsqueeze(3), self._gate(columns).unsqueeze(2)

    def _gate(self, strip: torch.Tensor) -> torch.Tensor:
        # Not through the module: it refuses groups of a single value, which a map of one row can have.
        gn = self.gn
        return torch.group_norm(strip_conv(strip, self.conv), gn.num_groups, gn.weight, gn.bias, gn.eps).sigmoid()


def _largest_divisor(number: int, limit: int) -> int:
    return next((divisor for divisor in range(min(limit, number), 1, -1) if number % divisor == 0), 1)


ela_t = partial(EfficientLocalAttention, kernel_size=5, group_size=1, norm_groups=32)
ela_b = partial(EfficientLocalAttention, kernel_size=7, group_size=1, norm_groups=16)
ela_s = partial(EfficientLocalAttention, kernel_size=5, group_size=8, norm_groups=16)
ela_l = partial(EfficientLocalAttention, kernel_size=7, group_size=8, norm_groups=16)


CARDS = tuple(
    Card(
        name=f"ela_{letter}",
        title=f"ELA-{letter.upper()}: Efficient Local Attention",
        kind="plugin",
        factory=factory,
        summary="1-D convolutions along both sides, over the means of rows and columns",
        flow="(. | (row means, 1-D conv, norm, sigmoid | column means, 1-D conv, norm, sigmoid) -> *) -> *",
        paper="arXiv:2403.01123",
        code="https://github.com/Xuwei86/ELA_Code",
        placement="on the expanded maps of MobileNetV2's blocks, after the depthwise convolution",
        avoid="on maps of a few positions a side: its kernels along rows and columns then see padding for the "
        "most part",
        hosts=("resnet", "mobilenet", "narrow"),
        floor=ONE_POOL,
        maps=True,
        reference="ela",
    )
    for letter, factory in {"t": ela_t, "b": ela_b, "s": ela_s, "l": ela_l}.items()
)
