"""The ResNet for plug-ins: timm's, with a stem for small images and the papers' initialisation of plug-ins.

Paper: arXiv 1512.03385; ResNeXt: arXiv 1611.05431; wide: arXiv 1605.07146.
"""

from collections.abc import Callable
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import ResNet as _ResNet
from timm.models.resnet import BasicBlock, Bottleneck
from torch import nn

from visionattn.plugins import resolve_plugin
from visionattn.plugins._epilogue import fuse_epilogue

__all__ = ["FEATURES", "HOSTS", "ResNet", "resnet_cfg"]

# How timm extracts features: the stages', without the stem's.
FEATURES = {"out_indices": (1, 2, 3, 4)}

# Name -> arguments of the network.
HOSTS: dict[str, dict[str, Any]] = {
    # "n" for narrow: for images of 28 to 64 px, trained on a CPU in minutes.
    "resnet10n": {
        "block": BasicBlock,
        "layers": (1, 1, 1, 1),
        "channels": (16, 32, 64, 128),
        "stem_type": "deep",
        "stem_width": 8,
        "stem_stride": 2,
    },
    # The narrow host of plug-ins that need a second block in a stage; of resnet10n's size.
    "resnet18n": {
        "block": BasicBlock,
        "layers": (2, 2, 2, 2),
        "channels": (10, 20, 40, 80),
        "stem_type": "deep",
        "stem_width": 5,
        "stem_stride": 2,
    },
    "resnet18": {"block": BasicBlock, "layers": (2, 2, 2, 2)},
    "resnet34": {"block": BasicBlock, "layers": (3, 4, 6, 3)},
    "resnet50": {"block": Bottleneck, "layers": (3, 4, 6, 3)},
    "resnet101": {"block": Bottleneck, "layers": (3, 4, 23, 3)},
    "resnext50_32x4d": {"block": Bottleneck, "layers": (3, 4, 6, 3), "cardinality": 32, "base_width": 4},
    "wide_resnet50_2": {"block": Bottleneck, "layers": (3, 4, 6, 3), "base_width": 128},
}


class ResNet(_ResNet):
    """timm's ResNet with a choice of stem and a plug-in in every residual block, before the addition.

    `(B, in_chans, H, W) -> (B, num_classes)`.

    Args:
        *args: As timm's ResNet: `block` and `layers` first.
        plugin: Name, class or config of the block to put in; none leaves the plain network.
        stem_stride: Stride of the stem. 4 is the classic one; for small images 2 leaves the max-pool out and 1 (the
            official CIFAR mode) the first convolution's stride too, with 3x3 in place of 7x7. The stages' features come
            at 1, 2, 4 and 8 times this stride.
        zero_init_last: Start every residual branch at zero. Off, as in the plug-ins' papers.
        block_args: Further arguments of timm's residual blocks.
        **kwargs: As timm's ResNet.

    Raises:
        ValueError: If `stem_stride` is neither 1, 2 nor 4, or the plug-in is unknown.
    """

    conv1: Any  # a convolution or a sequence of them
    maxpool: Any
    layer1: Any
    layer2: Any
    layer3: Any
    layer4: Any
    feature_info: list[dict[str, Any]]

    def __init__(
        self,
        *args: Any,
        plugin: str | dict[str, Any] | Callable[..., nn.Module] | None = None,
        stem_stride: int = 4,
        zero_init_last: bool = False,
        block_args: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if stem_stride not in (1, 2, 4):
            raise ValueError(f"stem_stride must be 1, 2 or 4, got {stem_stride}")
        attention = {} if plugin is None else {"attn_layer": resolve_plugin(plugin)}
        kwargs |= {"zero_init_last": zero_init_last, "block_args": {**(block_args or {}), **attention}}
        super().__init__(*args, **kwargs)
        for module in self.modules():
            fuse_epilogue(module)
        if stem_stride < 4:
            self.maxpool = nn.Identity()
        if stem_stride == 1:
            self._keep_resolution()
        self.feature_info = [
            info | {"reduction": stem_stride * info["reduction"] // 4 if index else min(stem_stride, 2)}
            for index, info in enumerate(self.feature_info)
        ]

    def init_weights(self, zero_init_last: bool = False) -> None:
        """timm's initialisation of the host, then the papers' initialisation of the plug-ins, which timm overwrote."""
        super().init_weights(zero_init_last=zero_init_last)
        module: Any
        for module in self.modules():
            if hasattr(module, "official_keys"):
                module.reset_parameters()

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of parameters excluded from weight decay, besides biases and scales: none."""
        return set()

    def _keep_resolution(self) -> None:
        deep = isinstance(self.conv1, nn.Sequential)
        strided = self.conv1[0] if deep else self.conv1
        conv = nn.Conv2d(
            strided.in_channels,
            strided.out_channels,
            kernel_size=3,
            padding=1,
            bias=False,
            device=strided.weight.device,
            dtype=strided.weight.dtype,
        )
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        if deep:
            self.conv1[0] = conv
        else:
            self.conv1 = conv


def resnet_cfg(host: str, paper_ids: str, origin_url: str, **kwargs: Any) -> dict[str, Any]:
    """timm's cfg of a host with a plug-in.

    Args:
        host: Name in `HOSTS`.
        paper_ids: The plug-in's paper.
        origin_url: The plug-in's official code.
        **kwargs: Further fields, and ones to replace.
    """
    arguments = HOSTS[host]
    small = arguments.get("stem_stride", 4) < 4
    return {
        "url": "",
        "num_classes": 10 if small else 1000,
        "input_size": (3, 32, 32) if small else (3, 224, 224),
        "pool_size": (2, 2) if small else (7, 7),
        "crop_pct": 1.0 if small else 0.875,
        "interpolation": "bilinear",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "conv1.0" if "deep" in arguments.get("stem_type", "") else "conv1",
        "classifier": "fc",
        "license": "apache-2.0",
        "paper_ids": paper_ids,
        "origin_url": origin_url,
        **kwargs,
    }
