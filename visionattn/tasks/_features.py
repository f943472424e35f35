"""The feature maps of any timm network, as detectors and segmentation decoders need them."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.logging import print_log
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ._base import compile_network, create_network

__all__ = ["FeatureMaps", "find_maps", "pad_to_multiple"]


class FeatureMaps(nn.Module):
    """The last feature maps of a timm network. `(B, C, H, W) -> [(B, channels[i], H / strides[i], W / strides[i])]`.

    Maps that are NHWC are turned to NCHW. Plain vision transformers, whose maps all have one stride, get a pyramid too:
    their last map is halved, the one before stays as it is, those before are enlarged two, four, ... times; or all are
    resized to the `strides` asked for.

    Args:
        backbone: Arguments of `timm.create_model`, `model_name` among them. `out_indices` chooses the maps, or
            `strides`: for each the deepest map that is no coarser, whatever network it is, and the deepest others
            where one map would serve two. Without them they are the last ones. `output_stride` is left out, with a
            line in the log, where a network does not know it.
        attach: Arguments of `visionattn.attach`.
        replace_attention: Arguments of `visionattn.replace_attention`.
        compile: Compile the network with torch.compile: True, or its arguments.
        levels: How many maps to give if nothing chooses them; all without it.
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
        replace_attention: dict[str, Any] | None = None,
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
        backbone = dict(backbone)
        strides = backbone.pop("strides", None)
        if strides is not None:
            if "out_indices" in backbone:
                raise ValueError("model.backbone.strides and out_indices both choose maps: set one of them")
            if not strides or list(strides) != sorted(set(strides)):
                raise ValueError(f"model.backbone.strides must be rising, got {strides}")
        try:
            if strides is not None or "output_stride" in backbone:
                backbone = _fitted(backbone, strides)
            self.network = create_network(backbone, attach, replace_attention, features_only=True)
        except (AttributeError, RuntimeError, AssertionError, IndexError) as error:
            raise ValueError(f"{name} gives no feature maps (features_only): {error}") from error
        info: Any = self.network.feature_info
        if levels is None or "out_indices" in backbone:
            levels = len(info.channels())
        plain = len({entry["reduction"] for entry in info.info}) == 1
        if plain and strides is not None:
            levels = len(strides)
        self.channels: list[int] = info.channels()[-levels:]
        self.strides: list[int] = info.reduction()[-levels:]
        # How many times larger each map is made.
        self.scales = [1.0] * levels
        if plain and strides is not None:
            self.scales = [own / stride for own, stride in zip(self.strides, strides, strict=False)]
            self.strides = list(strides[: len(self.strides)])
        elif plain and levels > 1 and self.strides[0] >= 2 ** (levels - 2):
            self.scales = [2.0**power for power in range(levels - 2, -2, -1)]
            self.strides = [int(stride / scale) for stride, scale in zip(self.strides, self.scales, strict=True)]
        rising = all(a < b for a, b in zip(self.strides, self.strides[1:], strict=False))
        dilated = backbone.get("output_stride", 32) < 32
        if len(self.strides) < levels or not (rising or dilated):
            raise ValueError(
                f"{name} has maps with strides {', '.join(map(str, info.reduction()))}; {levels} with rising strides "
                "are needed: choose them by model.backbone.strides or out_indices"
            )
        self.divisor = max(*info.reduction(), *self.strides)  # of the sides of its pictures
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
        info: Any = self.network.feature_info
        count = len(info.channels())
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


def find_maps(module: nn.Module) -> FeatureMaps:
    """The feature maps that a detector or decoder stands on.

    Raises:
        ValueError: If it has none.
    """
    for part in module.modules():
        if isinstance(part, FeatureMaps):
            return part
    raise ValueError(f"{type(module).__name__} keeps no feature maps: it must call build_maps and hold what that gives")


def pad_to_multiple(x: torch.Tensor, divisor: int) -> torch.Tensor:
    """Pads `(..., H, W)` with zeros below and to the right until both sides are multiples of a number."""
    height, width = x.shape[-2:]
    return nn.functional.pad(x, (0, -width % divisor, 0, -height % divisor))


def _fitted(backbone: dict[str, Any], strides: Sequence[int] | None) -> dict[str, Any]:
    """The arguments that a network supports: dilation if available, with the maps of the requested strides."""
    # On the meta device a network costs little, and no weights are loaded.
    trial = {key: value for key, value in backbone.items() if key not in ("pretrained", "pretrained_cfg_overlay")}
    with torch.device("meta"):
        try:
            info: Any = create_network(trial, features_only=True).feature_info
        except (ValueError, AssertionError, NotImplementedError):
            if trial.pop("output_stride", None) is None:
                raise
            name = backbone["model_name"]
            print_log(f"{name} knows no output_stride: its maps keep their strides", "current")
            backbone = {key: value for key, value in backbone.items() if key != "output_stride"}
            info = create_network(trial, features_only=True).feature_info
    reductions = info.reduction()
    if strides is None or len(set(reductions)) == 1:
        return backbone
    chosen = set()
    for stride in strides:
        fitting = [index for index, reduction in enumerate(reductions) if reduction <= stride]
        if not fitting:
            raise ValueError(
                f"{backbone['model_name']} has maps with strides {', '.join(map(str, reductions))}, none as fine as "
                f"{stride}: change model.backbone.strides"
            )
        chosen.add(fitting[-1])
    others = [index for index in range(len(reductions)) if index not in chosen]
    chosen.update(others[max(len(others) - (len(strides) - len(chosen)), 0) :])
    return {**backbone, "out_indices": tuple(info.out_indices[index] for index in sorted(chosen))}


def _rescale(x: torch.Tensor, scale: float) -> torch.Tensor:
    if scale < 1:
        return nn.functional.avg_pool2d(x, round(1 / scale))
    return x if scale == 1 else nn.functional.interpolate(x, scale_factor=scale, mode="bilinear")


def _upstream(network: nn.Module, maps: Sequence[torch.Tensor]) -> set[str]:
    """Names of the parameters that maps depend on."""
    names, parameters = zip(*network.named_parameters(), strict=True)
    total: Any = sum(m.sum() for m in maps)
    gradients = torch.autograd.grad(total, parameters, allow_unused=True, retain_graph=True)
    return {name for name, gradient in zip(names, gradients, strict=True) if gradient is not None}


def _is_frozen(module: nn.Module) -> bool:
    parameters = list(module.parameters())
    return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)


def _input_size(network: nn.Module, backbone: dict[str, Any]) -> tuple[int, int]:
    cfg: Any = network.pretrained_cfg
    size = backbone.get("img_size") or cfg["input_size"][-2:]
    return (size, size) if isinstance(size, int) else tuple(size)
