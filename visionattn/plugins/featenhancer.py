"""FeatEnHancer: Enhancing Hierarchical Features for Object Detection and Beyond Under Low-Light Vision (ICCV 2023,
arXiv 2308.03594).

Official code: https://github.com/khurramHashmi/FeatEnHancer (no licence file), feat_enhancer.py.

Differs from the official code in:
- pictures with a side below 15 pixels, where the official code fails, are continued by their last row and column;
- `zero_init` starts with the picture as it is.

Golden: tests/golden/featenhancer_*.npz (pictures, input gradients).
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from visionattn.catalog import Card
from visionattn.ops import memory_format
from visionattn.utils.arguments import check_heads, check_positive
from visionattn.utils.factory import FactoryKwargs

__all__ = ["FeatEnHancer", "ScaleAwareFusion"]

_SMALLEST = 15  # a side that both strided convolutions leave one position of


class ScaleAwareFusion(nn.Module):
    """Joins a fine and a coarse map by attention over the two at each position. `(B, C, H, W) -> (B, C, H, W)`.

    The fine map is brought to the coarse one's size. At each position, and in each head, the coarse map asks which of
    the two to take; what it takes is enlarged and added to the fine map.

    Args:
        channels: Width of both maps.
        num_heads: Heads, which divide the width.

    Raises:
        ValueError: If `num_heads` does not divide `channels`.
    """

    def __init__(
        self,
        channels: int,
        *,
        num_heads: int = 8,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_heads(channels, num_heads)
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.query_conv1 = nn.Conv2d(channels, channels, 7, stride=4, **dd)
        self.query_conv2 = nn.Conv2d(channels, channels, 3, stride=2, **dd)
        self.key_conv = nn.Conv2d(channels, channels, 3, stride=2, **dd)

    def forward(self, fine: torch.Tensor, coarse: torch.Tensor) -> torch.Tensor:
        """Joins two maps.

        Args:
            fine: `(B, C, H, W)`, H and W at least 15.
            coarse: `(B, C, h, w)` with h = (H - 7) // 4 + 1, and w likewise.
        """
        own, other = self.query_conv2(self.query_conv1(fine)), self.key_conv(coarse)
        items = (own, other)
        heads = [item.unflatten(1, (self.num_heads, -1)) for item in items]
        scale = heads[0].shape[2] ** -0.5
        # A softmax over two is a sigmoid of their difference.
        share = (((heads[0] - heads[1]) * heads[1]).sum(2, keepdim=True) * scale).sigmoid()
        joint = torch.lerp(heads[1], heads[0], share.to(heads[0].dtype)).flatten(1, 2)
        return fine + _enlarge(joint, fine)


class FeatEnHancer(nn.Module):
    """Enhances an image for the following network, trained by that network's loss. `(B, 3, H, W) -> (B, 3, H, W)`.

    One small network looks at the picture at full size, at a quarter and at an eighth; what it finds is joined, and
    eight corrections of the picture are made of it. It stands before any backbone: `frontend=dict(type='FeatEnHancer')`
    of a task.

    Args:
        in_channels: Channels of the picture.
        num_heads: Heads of the fusion of full size and quarter.
        zero_init: Start with corrections of zero, so that the picture is unchanged at first.

    Raises:
        ValueError: If an argument is below 1 or `num_heads` does not divide the width 8 `in_channels`.
    """

    def __init__(
        self,
        in_channels: int = 3,
        *,
        num_heads: int = 8,
        zero_init: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(in_channels=in_channels)
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        width, out = 32, 8 * in_channels
        self.zero_init = zero_init
        # The names are the official code's.
        self.e_conv1 = nn.Conv2d(in_channels, width, 3, padding=1, **dd)
        for number in (2, 3, 4):
            setattr(self, f"e_conv{number}", nn.Conv2d(width, width, 3, padding=1, **dd))
        for number in (5, 6):
            setattr(self, f"e_conv{number}", nn.Conv2d(2 * width, width, 3, padding=1, **dd))
        self.e_conv7 = nn.Conv2d(2 * width, out, 3, padding=1, **dd)
        self.ue_conv8 = nn.Conv2d(2 * out, width, 3, padding=1, **dd)
        self.ue_conv9 = nn.Conv2d(width, out, 3, padding=1, **dd)
        self.quarter_conv = nn.Conv2d(in_channels, in_channels, 7, stride=4, **dd)
        self.hexa_conv = nn.Conv2d(in_channels, in_channels, 3, stride=2, **dd)
        self.scale_aware_aggregation = ScaleAwareFusion(out, num_heads=num_heads, **dd)
        if zero_init:
            self._zero()

    def reset_parameters(self) -> None:
        """PyTorch's default initialisation, as in the official code, or that of `zero_init`."""
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                layer.reset_parameters()
        if self.zero_init:
            self._zero()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[2:]
        if height < _SMALLEST or width < _SMALLEST:
            missing = (0, max(_SMALLEST - width, 0), 0, max(_SMALLEST - height, 0))
            enhanced = self._enhance(F.pad(x, missing, "replicate"))[:, :, :height, :width]
            return enhanced.contiguous(memory_format=memory_format(x))
        return self._enhance(x)

    def _enhance(self, x: torch.Tensor) -> torch.Tensor:
        quarter = self.quarter_conv(x)
        fine, coarse = self._features(x).relu(), self._features(quarter).relu()
        eighth = _enlarge(self._features(self.hexa_conv(quarter)), x)
        joint = torch.cat((self.scale_aware_aggregation(fine, coarse), eighth), dim=1)
        corrections = self.ue_conv9(self.ue_conv8(joint)).tanh()
        return x + corrections.unflatten(1, (8, -1)).sum(1)

    def _features(self, x: torch.Tensor) -> torch.Tensor:
        layers: Any = self
        first = layers.e_conv1(x).relu_()
        second = layers.e_conv2(first).relu_()
        third = layers.e_conv3(second).relu_()
        y = layers.e_conv4(third).relu_()
        y = layers.e_conv5(torch.cat((third, y), dim=1)).relu_()
        y = layers.e_conv6(torch.cat((second, y), dim=1)).relu_()
        return layers.e_conv7(torch.cat((first, y), dim=1))

    def _zero(self) -> None:
        nn.init.zeros_(self.ue_conv9.weight)
        if self.ue_conv9.bias is not None:
            nn.init.zeros_(self.ue_conv9.bias)


def _enlarge(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=True)


CARD = Card(
    name="featenhancer",
    title="FeatEnHancer",
    kind="frontend",
    factory=FeatEnHancer,
    summary="corrects a dark picture by what a small network sees in it at three scales",
    flow=(
        "(features | at a quarter of the size: features | at an eighth: features) -> attention over scales -> 8 "
        "corrections of the picture"
    ),
    paper="arXiv:2308.03594",
    code="https://github.com/khurramHashmi/FeatEnHancer",
    placement="before the backbone of a detector or a segmentor, which it learns with",
    avoid="on bright pictures: it was published for dark ones, and works at full resolution in front of the backbone",
    reference="featenhancer",
)
