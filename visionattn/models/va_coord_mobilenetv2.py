"""MobileNetV2 with coordinate attention in every expanding block, on timm's EfficientNet.

Paper: arXiv 2103.02907; of the host: arXiv 1801.04381. Official code: https://github.com/houqb/CoordAttention (MIT),
mbv2_ca.py.

Differs from the official code in: any input size instead of 224 px only.

Golden: tests/golden/coordatt_mobilenetv2_eval.npz (logits and the means of the stages).
"""

import re
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import make_divisible
from timm.models import EfficientNet, generate_default_cfgs, register_model
from torch import nn

from visionattn.plugins import CoordinateAttention

from ._build import StateDict, build_model, packaged_cfgs, rename_keys

__all__ = ["CoordMobileNetV2"]

# Expansion, width, blocks, stride of the first: the paper's stages.
_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
# Registered name -> multiplier of all widths.
_MODELS = {"va_mobilenetv2_coord": 1.0, "va_mobilenetv2_075_coord": 0.75, "va_mobilenetv2_050_coord": 0.5}

# Position in the official block -> our name, with and without expansion.
_EXPANDING = {0: "conv_pw", 1: "bn1", 3: "conv_dw", 4: "bn2", 6: "se", 7: "conv_pwl", 8: "bn3"}
_PLAIN = {0: "conv_dw", 1: "bn1", 3: "conv_pw", 4: "bn2"}


class CoordMobileNetV2(EfficientNet):
    """timm's MobileNetV2 with coordinate attention before every projection but the first.

    `(B, in_chans, H, W) -> (B, num_classes)`

    Args:
        width: Multiplier of all widths; the last is never below 1280.
        reduction: Divides a block's expanded width to the hidden width of its attention (at least 8).
        drop_rate: Dropout before the classifier; the paper's is 0.1.
        device: Where the parameters live.
        dtype: Their dtype.
        **kwargs: As timm's EfficientNet.

    Raises:
        ValueError: If `reduction` is below 1.
    """

    def __init__(
        self,
        *,
        width: float = 1.0,
        reduction: int = 32,
        drop_rate: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        super().__init__(
            block_args=[
                [_block(expansion, channels, stride if index == 0 else 1) for index in range(blocks)]
                for expansion, channels, blocks, stride in _STAGES
            ],
            num_features=make_divisible(1280 * max(width, 1.0)),
            round_chs_fn=lambda channels: make_divisible(channels * width),
            act_layer=nn.ReLU6,
            drop_rate=drop_rate,
            **dd,
            **kwargs,
        )
        for stage in self.blocks[1:]:
            for block in stage:
                block.se = CoordinateAttention(block.conv_pwl.in_channels, reduction=reduction, **dd)
        self.init_weights()

    def init_weights(self) -> None:
        """The official start, attention included: convolutions by fan-out, biases zero, a narrow classifier."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                side = module.kernel_size[0]
                nn.init.normal_(module.weight, std=(2 / (side * side * module.out_channels)) ** 0.5)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
            if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Parameters that no weight decay should touch beyond biases and scales: none."""
        return set()


def _block(expansion: int, channels: int, stride: int) -> dict[str, Any]:
    kind = {"block_type": "ds"} if expansion == 1 else {"block_type": "ir", "exp_ratio": expansion}
    return {**kind, "dw_kernel_size": 3, "out_chs": channels, "stride": stride, "act_layer": None}


def checkpoint_filter_fn(state_dict: StateDict, model: nn.Module) -> StateDict:
    """Maps the author's checkpoints to our keys; our own pass through unchanged.

    Args:
        state_dict: Flat weights, without prefixes.
        model: The network they are for.
    """
    if "conv_stem.weight" in state_dict:
        return state_dict
    places = [(s, b) for s, (_, _, blocks, _) in enumerate(_STAGES) for b in range(blocks)]

    def place(match: re.Match[str]) -> str:
        stage, block = places[int(match[1]) - 1]
        layer = (_EXPANDING if stage else _PLAIN).get(int(match[2]), match[2])
        return f"blocks.{stage}.{block}.{layer}."

    state_dict = {re.sub(r"^features\.(\d+)\.conv\.(\d+)\.", place, key): value for key, value in state_dict.items()}
    patterns = [(rf"(\.se)\.{pattern}", rf"\1.{name}") for pattern, name in CoordinateAttention.official_keys]
    trunk = (
        (r"^features\.0\.0\.", "conv_stem."),
        (r"^features\.0\.1\.", "bn1."),
        (r"^conv\.0\.", "conv_head."),
        (r"^conv\.1\.", "bn2."),
        (r"^classifier\.1\.", "classifier."),
    )
    return rename_keys(state_dict, [*patterns, *trunk])


def _cfg(name: str, **kwargs: Any) -> dict[str, Any]:
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
        "paper_ids": "arXiv:2103.02907",
        "origin_url": "https://github.com/houqb/CoordAttention",
        **kwargs,
    }


default_cfgs = generate_default_cfgs({**{name: _cfg(name) for name in _MODELS}, **packaged_cfgs(_MODELS, _cfg)})


def _register(name: str, width: float) -> None:
    def create(pretrained: bool = False, **kwargs: Any) -> CoordMobileNetV2:
        return build_model(
            CoordMobileNetV2,
            name,
            pretrained,
            to_native=checkpoint_filter_fn,
            feature_cfg={"feature_cls": "getter", "out_indices": (1, 2, 3, 4)},
            **{"width": width, **kwargs},
        )

    create.__name__ = create.__qualname__ = name
    create.__doc__ = f"MobileNetV2 {width} with coordinate attention in every expanding block."
    globals()[name] = register_model(create)


for _name, _width in _MODELS.items():
    _register(_name, _width)
