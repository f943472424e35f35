"""ACAT: Adversarial Counterfactual Attention for Classification and Detection in Medical Imaging (ICML 2023, arXiv
2303.15421).

Official code: https://github.com/alessandro-f/ACAT (no licence file), models/attention_modules.py and
models/model_architectures.py.

Differs from the official code in:
- the masks are pooled to the size of the last map, which the official code takes to be 4 x 4;
- the stem of the saliency branch has as many outputs as its first stage takes (the official one has 2048), and what
  that branch never uses (its last stage) does not exist;
- where saliency has another size than the map, its maximum over the channels is resized.

The paper's saliency maps come of counterfactual pictures: `visionattn.explain.counterfactual_saliency`.

Golden: tests/golden/acat_*.npz (outputs, masks, input gradients).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from visionattn.catalog import Card
from visionattn.ops import plane_conv
from visionattn.utils.arguments import check_odd, check_positive
from visionattn.utils.factory import FactoryKwargs

from ._condition import check_condition

__all__ = ["ACAT", "SaliencyFusion", "SaliencyModulation", "SliceAttention"]


class SaliencyModulation(nn.Module):
    """Adds the map again, masked by a saliency map. `(B, C, H, W), (B, S, h, w) -> (B, C, H, W)`.

    `x + x * mask` with a soft mask of the maximum over the channels of the saliency, which may be a feature map too.

    Args:
        channels: Width of the map; like `dtype` of no effect on the result.
        kernel_size: Side of the convolution on the maxima, odd.

    Raises:
        ValueError: If `channels` is below 1 or `kernel_size` is not odd.
    """

    condition_name = "saliency"
    official_keys = ((r"^att_\d\.att_conv\.", ""),)

    def __init__(
        self,
        channels: int,
        *,
        kernel_size: int = 3,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(channels=channels)
        check_odd(kernel_size=kernel_size)
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        self.conv = nn.Conv2d(1, 1, kernel_size, padding=kernel_size // 2, bias=False, **dd)
        self.bn = nn.BatchNorm2d(1, **dd)

    def reset_parameters(self) -> None:
        """PyTorch's default initialisation."""
        self.conv.reset_parameters()
        self.bn.reset_parameters()

    def mask(self, saliency: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
        """The share of a map that is added again. `(B, S, h, w) -> (B, 1, H, W)` for a map of that size."""
        strongest = saliency.max(1, keepdim=True).values if saliency.shape[1] > 1 else saliency
        strongest = _resize(strongest.to(self.conv.weight.dtype), size)
        return self.bn(plane_conv(strongest, self.conv.weight)).sigmoid()

    def forward(self, x: torch.Tensor, saliency: torch.Tensor) -> torch.Tensor:
        """Modulates a map.

        Args:
            x: `(B, C, H, W)`.
            saliency: Map or features of any size, `(B, S, h, w)`.

        Raises:
            ValueError: If the saliency is missing, of another shape or not finite.
        """
        check_condition(saliency, x, "saliency", ("S", "h", "w"))
        return x * (1 + self.mask(saliency, x.shape[2:])).to(x.dtype)

    def example_condition(self, x: torch.Tensor) -> torch.Tensor:
        """A condition of a shape that fits a map."""
        return x.new_zeros(x.shape[0], 1, *x.shape[2:])


class SaliencyFusion(nn.Module):
    """Modulates the last map by a mask fused from those of earlier stages. `(B, C, H, W) -> (B, C, H, W)`.

    Args:
        stages: How many masks there are.
    """

    def __init__(
        self, stages: int = 3, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        check_positive(stages=stages)
        self.fusion = nn.Conv2d(stages, 1, 1, bias=False, device=device, dtype=dtype)

    def mask(self, masks: Sequence[torch.Tensor], size: Sequence[int]) -> torch.Tensor:
        """The joint mask, of any sign: `(B, 1, H, W)` of masks `(B, 1, h, w)` each."""
        if len(masks) != self.fusion.in_channels:
            raise ValueError(f"masks must be {self.fusion.in_channels}, one a stage, got {len(masks)}")
        return self.fusion(torch.cat([F.adaptive_avg_pool2d(mask, (size[0], size[1])) for mask in masks], dim=1))

    def forward(self, x: torch.Tensor, masks: Sequence[torch.Tensor]) -> torch.Tensor:
        return x * (1 + self.mask(masks, x.shape[2:])).to(x.dtype)


class SliceAttention(nn.Module):
    """Sums the slices of a scan, each weighted by a sigmoid of all. `(B, S, D) -> (B, D)`.

    Args:
        dim: Width of the features of a slice.
        slices: How many slices a scan has.
        hidden: Width of the hidden layer.
        dropout: Rate of dropout after it.
    """

    def __init__(
        self,
        dim: int,
        slices: int,
        *,
        hidden: int = 64,
        dropout: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(dim=dim, slices=slices, hidden=hidden)
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        self.fc1 = nn.Linear(dim * slices, hidden, **dd)
        self.dropout = nn.Dropout(dropout)
        self.fc2 = nn.Linear(hidden, slices, **dd)

    def weights(self, x: torch.Tensor) -> torch.Tensor:
        """The weight of each slice. `(B, S, D) -> (B, S)`."""
        return self.fc2(self.dropout(F.leaky_relu(self.fc1(x.flatten(1))))).sigmoid()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.weights(x).unsqueeze(1) @ x).squeeze(1)


class ACAT(nn.Module):
    """Two ResNets, one for the image and one for its saliency, which modulates the first after every stage.

    `(B, in_chans, H, W), (B, S, H, W) -> (B, num_classes)`.

    Args:
        image: A ResNet of timm's, with its classifier.
        saliency: Another of the same stages, for as many channels as saliency has; what is unused of it is taken out.

    Raises:
        ValueError: If either is no ResNet of timm's.
    """

    def __init__(self, image: nn.Module, saliency: nn.Module) -> None:
        super().__init__()
        parts = ("conv1", "bn1", "act1", "maxpool", "layer1", "layer2", "layer3", "layer4", "forward_head")
        for name, network in (("image", image), ("saliency", saliency)):
            if missing := [part for part in parts if not hasattr(network, part)]:
                raise ValueError(f"{name} must be a ResNet of timm's, got {type(network).__name__} without {missing}")
        self.image: Any = image
        self.saliency: Any = saliency
        for part in ("layer4", "global_pool", "fc"):
            setattr(self.saliency, part, nn.Identity())
        weight = self.image.conv1.weight if isinstance(self.image.conv1, nn.Conv2d) else next(image.parameters())
        dd: FactoryKwargs = {"device": weight.device, "dtype": weight.dtype}
        info: Any = image.feature_info
        widths = [entry["num_chs"] for entry in info[1:4]]
        self.masks = nn.ModuleList(SaliencyModulation(width, **dd) for width in widths)
        self.fusion = SaliencyFusion(len(widths), **dd)

    def forward_features(self, x: torch.Tensor, saliency: torch.Tensor) -> torch.Tensor:
        """The last map, before pooling."""
        check_condition(saliency, x, "saliency", ("S", *x.shape[2:]))
        x, saliency = (
            net.maxpool(net.act1(net.bn1(net.conv1(y)))) for net, y in ((self.image, x), (self.saliency, saliency))
        )
        masks: list[torch.Tensor] = []
        modulation: Any
        for number, modulation in enumerate(self.masks, 1):
            x, saliency = getattr(self.image, f"layer{number}")(x), getattr(self.saliency, f"layer{number}")(saliency)
            masks.append(modulation.mask(saliency, x.shape[2:]))
            x = x * (1 + masks[-1]).to(x.dtype)
        return self.fusion(self.image.layer4(x), masks)

    def forward(self, x: torch.Tensor, saliency: torch.Tensor) -> torch.Tensor:
        return self.image.forward_head(self.forward_features(x, saliency))


def _resize(x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    if x.shape[2:] == torch.Size(size):
        return x
    smaller = size[0] <= x.shape[2] and size[1] <= x.shape[3]
    return F.adaptive_avg_pool2d(x, (size[0], size[1])) if smaller else F.interpolate(x, tuple(size), mode="bilinear")


CARD = Card(
    name="acat",
    title="ACAT: Adversarial Counterfactual Attention",
    kind="plugin",
    factory=SaliencyModulation,
    summary="adds the map once more where a saliency map says so, one soft mask a stage",
    flow="(. | (. | <saliency> -> max over channels, conv, norm -> sigmoid) -> *) -> +",
    paper="arXiv:2303.15421",
    code="https://github.com/alessandro-f/ACAT",
    placement="behind the first three stages of a ResNet, and one mask of all three behind the last",
    avoid="without a saliency map for each picture, which takes a second network or a counterfactual to make",
    further_inputs=("saliency",),
    reference="acat",
)
