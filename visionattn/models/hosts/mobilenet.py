"""The MobileNets that the plug-ins share: timm's, with a plug-in at the end of the blocks, on their hidden maps, after
or in place of whole layers.

Papers: arXiv 1704.04861 (V1) and 1801.04381 (V2); built by timm's EfficientNet.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import EfficientNet
from timm.models.efficientnet import decode_arch_def, round_channels
from torch import nn

from visionattn.plugins import resolve_plugin
from visionattn.utils.factory import FactoryKwargs

from ..builder import StateDict, rename_keys

__all__ = ["HOSTS", "MobileNet", "mobilenet_cfg", "to_native"]

_V1 = ("dsa_r1_k3_s1_c64", "dsa_r2_k3_s2_c128", "dsa_r2_k3_s2_c256", "dsa_r6_k3_s2_c512", "dsa_r2_k3_s2_c1024")
_V2 = (
    "ds_r1_k3_s1_c16",
    "ir_r2_k3_s2_e6_c24",
    "ir_r3_k3_s2_e6_c32",
    "ir_r4_k3_s2_e6_c64",
    "ir_r3_k3_s1_e6_c96",
    "ir_r3_k3_s2_e6_c160",
    "ir_r1_k3_s1_e6_c320",
)
# Name -> arguments of the network.
HOSTS: dict[str, dict[str, Any]] = {
    "mobilenetv1_050": {"arch": _V1, "width": 0.5, "num_features": 0},
    "mobilenetv1_075": {"arch": _V1, "width": 0.75, "num_features": 0},
    "mobilenetv1_100": {"arch": _V1, "num_features": 0},
    "mobilenetv2_050": {"arch": _V2, "width": 0.5},
    "mobilenetv2_075": {"arch": _V2, "width": 0.75},
    "mobilenetv2_100": {"arch": _V2},
}


class _PluginLayer(nn.Module):
    """A layer that consists of a plug-in; like timm's blocks, it states its output width."""

    def __init__(self, channels: int, plugin: Callable[..., nn.Module], **kwargs: Any) -> None:
        super().__init__()
        self.channels = channels
        self.attn = plugin(channels, **kwargs)

    def feature_info(self, location: str) -> dict[str, Any]:
        return {"module": "", "num_chs": self.channels}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.attn(x)


class MobileNet(EfficientNet):
    """timm's MobileNet with a plug-in in its layers. `(B, in_chans, H, W) -> (B, num_classes)`.

    Layers count as in ULSAM's paper: the stem is layer 1, the first block layer 2. `layer_names` maps these numbers to
    the names of the modules.

    Args:
        arch: timm's description of the stages.
        width: Multiplies the widths of the layers.
        plugin: Name, class or config of the block to put in; none leaves the plain network.
        where: `block_end` (after a block's last normalisation and activation, before the addition), `hidden` (after the
            depthwise convolution), `after` (after the whole layer) or `instead` (in place of the layer).
        layers: Which layers; all by default.
        init_plugins: Start the layers of the plug-ins as the host's, as the authors of coordinate and triplet attention
            do; otherwise the plug-ins keep their own start.
        act_layer: Activation of the host.
        **kwargs: As timm's EfficientNet.

    Raises:
        ValueError: If the plug-in or `where` is unknown, a layer does not exist, or a layer is to be replaced that
            changes the width or the resolution.
    """

    def __init__(
        self,
        arch: Sequence[str] = _V2,
        *,
        width: float = 1.0,
        plugin: str | dict[str, Any] | Callable[..., nn.Module] | None = None,
        where: str = "block_end",
        layers: Iterable[int] | None = None,
        init_plugins: bool = False,
        act_layer: str | type[nn.Module] = "relu6",
        **kwargs: Any,
    ) -> None:
        super().__init__(
            decode_arch_def([[stage] for stage in arch]),
            round_chs_fn=partial(round_channels, multiplier=width),
            act_layer=act_layer,
            **kwargs,
        )
        if where not in ("block_end", "hidden", "after", "instead"):
            raise ValueError(f"where must be block_end, hidden, after or instead, got {where!r}")
        stages: Any = self.blocks
        count = 1 + sum(len(stage) for stage in stages)
        chosen = set(range(2, count + 1) if layers is None else layers)
        if not chosen <= set(range(2, count + 1)):
            raise ValueError(f"layers must be among 2 to {count}, got {sorted(chosen)}")
        make = None if plugin is None else resolve_plugin(plugin)
        dd: FactoryKwargs = {"device": kwargs.get("device"), "dtype": kwargs.get("dtype")}
        if not init_plugins:
            self.apply(_start)
        self.layer_names: dict[int, str] = {}
        for index, stage in enumerate(stages):
            modules: list[nn.Module] = []
            for block in stage:
                number = 2 + len(self.layer_names)
                self.layer_names[number] = f"blocks.{index}.{len(modules)}"
                modules += [block] if make is None or number not in chosen else _put(make, where, block, number, dd)
            self.blocks[index] = nn.Sequential(*modules)
        if init_plugins:
            self.apply(_start)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of parameters excluded from weight decay, besides biases and scales: none."""
        return set()


def _start(module: nn.Module) -> None:
    """The official initialisation: convolutions normal by fan-out, the classifier narrow, scales one, biases zero."""
    if isinstance(module, nn.Conv2d):
        # As the authors' formula, this counts all outputs of grouped convolutions too.
        nn.init.kaiming_normal_(module.weight, mode="fan_out")
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.01)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.ones_(module.weight)
    if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d) and module.bias is not None:
        nn.init.zeros_(module.bias)


def _put(make: Callable[..., nn.Module], where: str, block: Any, number: int, dd: FactoryKwargs) -> list[nn.Module]:
    """The modules of one layer with its plug-in."""
    convs = [module for module in block.children() if isinstance(module, nn.Conv2d)]
    width = convs[-1].out_channels
    if where == "after":
        return [block, _PluginLayer(width, make, **dd)]
    if where == "instead":
        if convs[0].in_channels != width or block.conv_dw.stride != (1, 1):
            raise ValueError(f"layer {number} changes the width or the resolution: it cannot be replaced")
        return [_PluginLayer(width, make, **dd)]
    if where == "hidden":
        block.se = make(block.conv_dw.out_channels, **dd)
    else:
        norm = block.bn3 if hasattr(block, "bn3") else block.bn2
        norm.act = nn.Sequential(norm.act, make(width, **dd))
    return [block]


# Names inside a block in torchvision's networks and, all in one sequence, in those of Coordinate Attention and ELA.
_NESTED = (
    {"0.0": "conv_dw", "0.1": "bn1", "1": "conv_pw", "2": "bn2", "3": "bn2.act.1"},
    {"0.0": "conv_pw", "0.1": "bn1", "1.0": "conv_dw", "1.1": "bn2", "2": "conv_pwl", "3": "bn3", "4": "bn3.act.1"},
)
_FLAT = (
    {"0": "conv_dw", "1": "bn1", "3": "conv_pw", "4": "bn2"},
    {"0": "conv_pw", "1": "bn1", "3": "conv_dw", "4": "bn2", "6": "se", "7": "conv_pwl", "8": "bn3"},
)


def to_native(state_dict: StateDict, model: Any) -> StateDict:
    """Maps checkpoints in torchvision's and the plug-in authors' formats to our keys; our own and timm's pass through.

    Args:
        state_dict: Flat weights, without prefixes.
        model: The network they are for.
    """
    if "features.0.0.weight" not in state_dict:
        return state_dict
    last = len(model.layer_names) + 1
    patterns = [
        (r"^features\.0\.0\.", "conv_stem."),
        (r"^features\.0\.1\.", "bn1."),
        (rf"^(features\.{last}|conv)\.0\.", "conv_head."),
        (rf"^(features\.{last}|conv)\.1\.", "bn2."),
        (r"^classifier\.1\.", "classifier."),
    ]
    for number, name in model.layer_names.items():
        layer = rf"^features\.{number - 1}\."
        names = (_NESTED if "features.1.conv.0.0.weight" in state_dict else _FLAT)[number > 2]
        patterns += [(rf"{layer}conv\.{re.escape(theirs)}\.", f"{name}.{ours}.") for theirs, ours in names.items()]
        patterns.append((layer, f"{name}.attn."))
    for name, module in model.named_modules():
        for pattern, replacement in getattr(module, "official_keys", ()):
            patterns.append((rf"^{re.escape(name)}\.{pattern}", f"{name}.{replacement}"))
    return rename_keys(state_dict, patterns)


def mobilenet_cfg(paper_ids: str, origin_url: str) -> dict[str, Any]:
    """timm's cfg of a host with a plug-in.

    Args:
        paper_ids: The plug-in's paper.
        origin_url: The plug-in's official code.
    """
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bilinear",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "conv_stem",
        "classifier": "classifier",
        "license": "apache-2.0",
        "paper_ids": paper_ids,
        "origin_url": origin_url,
    }
