"""MobileNetV1 and V2 with a plug-in at the end of the blocks, on their hidden maps, or in place of whole layers.

Papers of the hosts: arXiv 1704.04861 and 1801.04381, built by timm's EfficientNet. Where the plug-ins go in V2:
coordinate attention (arXiv 2103.02907, https://github.com/houqb/CoordAttention, MIT, mbv2_ca.py) and ELA (arXiv
2403.01123, https://github.com/Xuwei86/ELA_Code, no licence file): on the hidden maps of the expanding blocks; triplet
attention (arXiv 2010.03045, https://github.com/landskape-ai/triplet-attention, MIT): after the last normalisation of a
block, before the addition; ULSAM (arXiv 2006.15102, https://github.com/Nandan91/ULSAM, no licence file), in V1 too: the
code holds the block only, its layers follow from the published parameter and FLOP counts, which leave open which of
several equal layers it is. All other places are our choice.

Differs from the official code in: any input size instead of 224 px only; ReLU6 and the start of V2's codes in V1 too.

Golden: tests/golden/coordatt_mobilenetv2_*.npz and ulsam_mobilenetv2_*.npz (logits and the means of the stages; the
latter of torchvision's network with the official block in it).
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

from visionattn.plugins import ULSAM, resolve_plugin

from ..builder import StateDict, family_cfgs, register_network, rename_keys

__all__ = ["MobileNet"]

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
_HOSTS: dict[str, dict[str, Any]] = {
    "mobilenetv1_050": {"arch": _V1, "width": 0.5, "num_features": 0},
    "mobilenetv1_075": {"arch": _V1, "width": 0.75, "num_features": 0},
    "mobilenetv1_100": {"arch": _V1, "num_features": 0},
    "mobilenetv2_050": {"arch": _V2, "width": 0.5},
    "mobilenetv2_075": {"arch": _V2, "width": 0.75},
    "mobilenetv2_100": {"arch": _V2},
}


def _ulsam(where: str, *layers: int) -> dict[str, Any]:
    return {"plugin": "ulsam", "where": where, "layers": layers}


_V1_HIDDEN: dict[str, Any] = {"where": "hidden"}
# The first block of V2 does not expand its map.
_V2_HIDDEN: dict[str, Any] = {"where": "hidden", "layers": range(3, 19), "drop_rate": 0.1}
# Hosts, rest of the name, arguments (the plug-in is what the rest says). Layers count from the stem, which is 1.
_TABLE: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("v1_100 v2_100", "bmta", {}),
    ("v1_100 v2_100", "cbam", {}),
    ("v1_100", "coord", _V1_HIDDEN),
    ("v2_050 v2_075 v2_100", "coord", {**_V2_HIDDEN, "init_plugins": True}),
    *(("v1_100", ela, _V1_HIDDEN) for ela in ("ela_t", "ela_b", "ela_s", "ela_l")),
    *(("v2_100", ela, _V2_HIDDEN) for ela in ("ela_t", "ela_b", "ela_s", "ela_l")),
    ("v1_100", "triplet", {"init_plugins": True}),
    ("v2_100", "triplet", {"init_plugins": True, "drop_rate": 0.25}),
    ("v1_050 v1_075 v1_100", "ulsam", _ulsam("instead", 12)),
    ("v1_100", "ulsam_i11", _ulsam("after", 11)),
    ("v1_100", "ulsam_i12", _ulsam("after", 12)),
    ("v1_100", "ulsam_i13", _ulsam("after", 13)),
    ("v2_100", "ulsam", _ulsam("instead", 14, 17)),
    ("v2_100", "ulsam_i17", _ulsam("after", 17)),
    ("v2_100", "ulsam_r14", _ulsam("instead", 14)),
    ("v2_100", "ulsam_r17", _ulsam("instead", 17)),
    ("v2_100", "ulsam_r11_14", _ulsam("instead", 11, 14)),
    ("v2_100", "ulsam_r16_17", _ulsam("instead", 16, 17)),
    ("v2_100", "ulsam_r13_14_16_17", _ulsam("instead", 13, 14, 16, 17)),
)
# Registered name -> host and further arguments.
_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    f"va_mobilenet{host}_{rest}": (f"mobilenet{host}", {"plugin": rest, **arguments})
    for hosts, rest, arguments in _TABLE
    for host in hosts.split()
}
# First word of a plug-in's name -> its paper and official code.
_SOURCES = {
    "bmta": ("arXiv:2510.15527", "https://github.com/virAditya/satellite-image-classification-eurosat"),
    "cbam": ("arXiv:1807.06521", "https://github.com/Jongchan/attention-module"),
    "coord": ("arXiv:2103.02907", "https://github.com/houqb/CoordAttention"),
    "ela": ("arXiv:2403.01123", "https://github.com/Xuwei86/ELA_Code"),
    "triplet": ("arXiv:2010.03045", "https://github.com/landskape-ai/triplet-attention"),
    "ulsam": ("arXiv:2006.15102", "https://github.com/Nandan91/ULSAM"),
}


class _PluginLayer(nn.Module):
    """A layer that is nothing but a plug-in; like timm's blocks, it tells how wide its output is."""

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
        count = 1 + sum(len(stage) for stage in self.blocks)
        chosen = set(range(2, count + 1) if layers is None else layers)
        if not chosen <= set(range(2, count + 1)):
            raise ValueError(f"layers must be among 2 to {count}, got {sorted(chosen)}")
        make = None if plugin is None else resolve_plugin(plugin)
        dd = {"device": kwargs.get("device"), "dtype": kwargs.get("dtype")}
        if not init_plugins:
            self.apply(_start)
        self.layer_names: dict[int, str] = {}
        for index, stage in enumerate(self.blocks):
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
        """Parameters that no weight decay should touch beyond biases and scales: none."""
        return set()


def _start(module: nn.Module) -> None:
    """The official start: convolutions normal by fan-out, the classifier narrow, scales one, biases zero."""
    if isinstance(module, nn.Conv2d):
        # As the authors' formula, this counts all outputs of grouped convolutions too.
        nn.init.kaiming_normal_(module.weight, mode="fan_out")
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.01)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.ones_(module.weight)
    if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d) and module.bias is not None:
        nn.init.zeros_(module.bias)


def _put(
    make: Callable[..., nn.Module], where: str, block: nn.Module, number: int, dd: dict[str, Any]
) -> list[nn.Module]:
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


def checkpoint_filter_fn(state_dict: StateDict, model: nn.Module) -> StateDict:
    """Maps checkpoints in torchvision's and the plug-in authors' formats to our keys; our own and timm's pass through.

    Args:
        state_dict: Flat weights, without prefixes.
        model: The network they are for.
    """
    state_dict = ULSAM.merge_subspaces(state_dict)
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


def _cfg(name: str, **kwargs: Any) -> dict[str, Any]:
    paper, code = _SOURCES[name.split("_")[3]]
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
        "paper_ids": paper,
        "origin_url": code,
        **kwargs,
    }


default_cfgs = family_cfgs(_MODELS, _cfg)


def _doc(host: str, arguments: dict[str, Any]) -> str:
    where = {"hidden": "on the hidden maps of", "after": "after", "instead": "in place of", None: "at the end of"}
    layers = arguments.get("layers")
    which = f"layer {', '.join(map(str, layers))}" if isinstance(layers, tuple) else "the blocks"
    return f"{host} with {arguments['plugin']} {where[arguments.get('where')]} {which}."


for _name, (_host, _arguments) in _MODELS.items():
    register_network(
        __name__,
        _name,
        _doc(_host, _arguments),
        MobileNet,
        to_native=checkpoint_filter_fn,
        feature_cfg={"out_indices": (1, 2, 3, 4), "feature_cls": "getter"},
        **{**_HOSTS[_host], **_arguments},
    )
