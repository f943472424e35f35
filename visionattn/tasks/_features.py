"""The feature maps of any timm network, as detectors and segmentation decoders need them."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ._base import compile_network, create_network

__all__ = ["FeatureMaps", "pad_to_multiple"]


class FeatureMaps(nn.Module):
    """The last feature maps of a timm network. `(B, C, H, W) -> [(B, channels[i], H / strides[i], W / strides[i])]`.

    Maps that are NHWC are turned to NCHW. Plain vision transformers, whose maps all have one stride, get a pyramid too:
    their last map is halved, the one before stays as it is, those before are enlarged two, four, ... times.

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
        # How many times larger each map is made.
        self.scales = [1.0] * levels
        plain = len({entry["reduction"] for entry in info.info}) == 1
        if plain and levels > 1 and self.strides[0] >= 2 ** (levels - 2):
            self.scales = [2.0**power for power in range(levels - 2, -2, -1)]
            self.strides = [int(stride / scale) for stride, scale in zip(self.strides, self.scales, strict=True)]
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
        return [_rescale(m, scale) for m, scale in zip(maps, self.scales, strict=True)]

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
        # What a map depends on is what gets a gradient from it; asked on the meta device, that costs nothing.
        with torch.enable_grad():
            double = copy.deepcopy(self.network).to("meta").eval()
            maps = double(torch.empty(shape, device="meta"))
            learning = _upstream(double, maps[-len(self.channels) :])
            if stages:
                learning -= _upstream(double, maps[: first + stages])
        # Several processes would also wait for the gradient of what no map depends on, such as a last norm.
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(name in learning)


def pad_to_multiple(x: torch.Tensor, divisor: int) -> torch.Tensor:
    """Pads `(..., H, W)` with zeros below and to the right until both sides are multiples of a number."""
    height, width = x.shape[-2:]
    return nn.functional.pad(x, (0, -width % divisor, 0, -height % divisor))


def _rescale(x: torch.Tensor, scale: float) -> torch.Tensor:
    if scale < 1:
        return nn.functional.avg_pool2d(x, round(1 / scale))
    return x if scale == 1 else nn.functional.interpolate(x, scale_factor=scale, mode="bilinear")


def _upstream(network: nn.Module, maps: Sequence[torch.Tensor]) -> set[str]:
    """Names of the parameters that maps depend on."""
    names, parameters = zip(*network.named_parameters(), strict=True)
    total = sum(m.sum() for m in maps)
    gradients = torch.autograd.grad(total, parameters, allow_unused=True, retain_graph=True)
    return {name for name, gradient in zip(names, gradients, strict=True) if gradient is not None}


def _is_frozen(module: nn.Module) -> bool:
    parameters = list(module.parameters())
    return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)


def _input_size(network: nn.Module, backbone: dict[str, Any]) -> tuple[int, int]:
    size = backbone.get("img_size") or network.pretrained_cfg["input_size"][-2:]
    return (size, size) if isinstance(size, int) else tuple(size)
