"""The feature maps of any timm network, as detectors and segmentation decoders need them."""

import copy
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ._base import compile_network, create_network

__all__ = ["FeatureMaps", "pad_to_multiple"]


class FeatureMaps(nn.Module):
    """The last feature maps of a timm network. `(B, C, H, W) -> [(B, channels[i], H / strides[i], W / strides[i])]`.

    Networks whose maps are NHWC are turned to NCHW. Columnar vision transformers, whose maps all have one stride, get a
    simple pyramid on their last map (ViTDet, arXiv 2203.16527).

    Args:
        backbone: Arguments of `timm.create_model`, `model_name` among them. `out_indices` chooses the maps; without it
            they are the last ones.
        attach: Arguments of `visionattn.attach`.
        compile: Compile the network with torch.compile: True, or its arguments.
        levels: How many maps to give if `out_indices` does not choose them; all without it.
        frozen_stages: How many of the network's last four maps are frozen, from the first on: nothing that one of them
            depends on learns, and its batch normalisation keeps its statistics. With `out_indices`, of the chosen maps.
        norm_eval: Whether all batch normalisation of the network keeps its statistics, as detectors need that see few
            pictures a step.

    Raises:
        ValueError: If the network is unknown, has no maps, too few or none that form a pyramid, or has fewer stages
            than `frozen_stages`.
    """

    def __init__(
        self,
        backbone: dict[str, Any],
        attach: dict[str, Any] | None = None,
        compile: bool | dict[str, Any] = False,
        *,
        levels: int | None,
        frozen_stages: int = 0,
        norm_eval: bool = False,
    ) -> None:
        super().__init__()
        name = backbone.get("model_name")
        if "num_classes" in backbone:
            raise ValueError("num_classes belongs to the model itself, not into model.backbone: it has no head here")
        try:
            self.network = create_network(backbone, attach, features_only=True)
        except (AttributeError, RuntimeError, AssertionError) as error:
            raise ValueError(f"{name} gives no feature maps (features_only): {error}") from error
        info = self.network.feature_info
        if levels is None or "out_indices" in backbone:
            levels = len(info.channels())
        self.channels: list[int] = info.channels()[-levels:]
        self.strides: list[int] = info.reduction()[-levels:]
        self.pyramid = None
        if len(set(self.strides)) == 1 < levels:
            self.pyramid = _SimplePyramid(self.channels[-1], min(levels, 4))
            self.channels = self.pyramid.channels
            self.strides = [int(self.strides[-1] / scale) for scale in self.pyramid.scales]
            levels = len(self.strides)
        rising = all(a < b for a, b in zip(self.strides, self.strides[1:], strict=False))
        dilated = backbone.get("output_stride", 32) < 32
        if len(self.strides) < levels or not (rising or dilated):
            raise ValueError(
                f"{name} has maps with strides {', '.join(map(str, info.reduction()))}; {levels} with rising strides "
                "are needed: choose them by model.backbone.out_indices"
            )
        self.norm_eval = norm_eval
        self._freeze(frozen_stages, (1, backbone.get("in_chans", 3), *_input_size(self.network, backbone)))
        compile_network(self.network, compile)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        maps = self.network(x)[-len(self.channels) :]
        if getattr(self.network, "output_fmt", "NCHW") == "NHWC":
            maps = [m.permute(0, 3, 1, 2).contiguous() for m in maps]
        return maps if self.pyramid is None else self.pyramid(maps[-1])

    def train(self, mode: bool = True) -> "FeatureMaps":
        """As PyTorch's, but what is frozen stays in evaluation mode."""
        super().train(mode)
        for module in self.modules():
            if (self.norm_eval and isinstance(module, _BatchNorm)) or _is_frozen(module):
                module.eval()
        return self

    def _freeze(self, stages: int, shape: tuple[int, ...]) -> None:
        count = len(self.network.feature_info.channels())
        first = max(count - 4, 0)
        if not 0 <= stages <= count - first:
            raise ValueError(f"frozen_stages must lie in 0..{count - first}, got {stages}")
        if not stages:
            return
        # What a map depends on is what gets a gradient from it; asked on the meta device, that costs nothing.
        double = copy.deepcopy(self.network).to("meta").eval()
        wanted = double(torch.empty(shape, device="meta"))[: first + stages]
        names, parameters = zip(*double.named_parameters(), strict=True)
        gradients = torch.autograd.grad(sum(m.sum() for m in wanted), parameters, allow_unused=True)
        frozen = {name for name, gradient in zip(names, gradients, strict=True) if gradient is not None}
        for name, parameter in self.network.named_parameters():
            if name in frozen:
                parameter.requires_grad_(False)


class _SimplePyramid(nn.Module):
    """Maps of several strides from one. `(B, C, H, W) -> [(B, channels[i], H * s, W * s) for s in scales]`.

    The finest is made from the second finest, so that a decoder which reads only the outermost trains all of it.
    """

    def __init__(self, channels: int, levels: int) -> None:
        super().__init__()
        half, quarter = max(channels // 2, 1), max(channels // 4, 1)
        self.scales = [4, 2, 1, 0.5][-levels:]
        self.channels = [quarter, half, channels, channels][-levels:]
        self.coarser = nn.MaxPool2d(2)
        self.finer = nn.ConvTranspose2d(channels, half, kernel_size=2, stride=2) if levels > 2 else None
        self.finest = None
        if levels > 3:
            up = nn.ConvTranspose2d(half, quarter, kernel_size=2, stride=2)
            self.finest = nn.Sequential(nn.GroupNorm(1, half), nn.GELU(), up)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        maps = [x, self.coarser(x)]
        if self.finer is not None:
            maps.insert(0, self.finer(x))
        if self.finest is not None:
            maps.insert(0, self.finest(maps[0]))
        return maps[-len(self.scales) :]


def pad_to_multiple(x: torch.Tensor, divisor: int) -> torch.Tensor:
    """Pads `(..., H, W)` with zeros below and to the right until both sides are multiples of a number."""
    height, width = x.shape[-2:]
    return nn.functional.pad(x, (0, -width % divisor, 0, -height % divisor))


def _is_frozen(module: nn.Module) -> bool:
    parameters = list(module.parameters())
    return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)


def _input_size(network: nn.Module, backbone: dict[str, Any]) -> tuple[int, int]:
    size = backbone.get("img_size") or network.pretrained_cfg["input_size"][-2:]
    return (size, size) if isinstance(size, int) else tuple(size)
