"""Decoders of segmentation-models-pytorch over our feature maps, through its interface for custom encoders.

Its `tu-` encoders count a network's maps from the first. Where timm's `feature_info` begins with the stem but the maps
asked for do not (all our ResNets) they take maps of other strides than they think, and strides of 2 to 16 are beyond
them; nor do they take weights from a file. Here the maps are those that timm gives.
"""

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import segmentation_models_pytorch as smp
import torch
from torch import nn

from ._features import FeatureMaps
from .registry import DECODERS

__all__ = ["build_decoder"]


class _Encoder(nn.Module):
    """Feature maps in the form that the decoders expect: `(B, C, H, W) -> [map, ...]`, strides 1, 2, 4, ...

    Maps that the network does not have are stood in for by maps without channels.

    Args:
        maps: The network's maps.
        first: The stride that its first map stands for: decoders that double a map's size step by step up to the
            picture need the true one, the others work at a quarter of whatever size.
    """

    def __init__(self, maps: FeatureMaps, first: int) -> None:
        super().__init__()
        self.maps = maps
        self.missing = first.bit_length() - 1
        self.out_channels = [0] * self.missing + maps.channels
        self.output_stride = maps.strides[-1]

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        maps = self.maps(x)
        batch, _, height, width = maps[0].shape
        absent = [x.new_empty(batch, 0, height << step, width << step) for step in range(self.missing, 0, -1)]
        return [*absent, *maps]

    def set_in_channels(self, in_channels: int, pretrained: bool) -> None:
        """Does nothing: the network is built already."""

    def make_dilated(self, output_stride: int) -> None:
        """Does nothing: timm dilates, by `output_stride`."""


class _Network(nn.Module):
    """The parts of a network of the library. `(B, C, H, W) -> logits and maps`, the logits not yet enlarged."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.encoder = network.encoder
        self.decoder = network.decoder
        self.segmentation_head = network.segmentation_head

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
        maps = self.encoder(x)
        return self.segmentation_head(self.decoder(list(maps))), maps


def build_decoder(name: str, build_maps: Callable[..., FeatureMaps], num_classes: int, **config: Any) -> nn.Module:
    """A network of segmentation-models-pytorch: `encoder`, `decoder` and `segmentation_head`, without upsampling.

    Args:
        name: Its class.
        build_maps: Makes the feature maps, given how many (`levels`).
        num_classes: Width of the head.
        **config: `decoder_*` arguments.

    Raises:
        ValueError: If an argument is unknown, or the maps do not suit it.
    """
    cls = getattr(smp, name)
    taken = inspect.signature(cls.__init__).parameters
    known = sorted(key for key in taken if key.startswith("decoder_"))
    if unknown := sorted(config.keys() - set(known)):
        raise ValueError(f"{name} takes no {', '.join(unknown)} here; it takes {', '.join(known)}")
    stepwise = name == "Unet"
    maps = build_maps(levels=None if stepwise else 4)
    if name == "FPN" and maps.strides != [maps.strides[0] << level for level in range(4)]:
        raise ValueError(f"FPN needs four maps, each half as large as the one before; their strides are {maps.strides}")
    encoder = _Encoder(maps, maps.strides[0] if stepwise else 4)
    depth = len(encoder.out_channels) - 1
    if stepwise:
        config.setdefault("decoder_channels", (256, 128, 64, 32, 16)[-depth:])
    else:
        config["upsampling"] = 1
    key = "visionattn"
    smp.encoders.encoders[key] = {"encoder": lambda **_: encoder, "params": {}, "pretrained_settings": {}}
    try:
        network = cls(key, encoder_depth=depth, encoder_weights=None, classes=num_classes, **config)
    except (TypeError, ValueError) as error:
        raise ValueError(f"over maps with strides {maps.strides}: {error}") from error
    finally:
        del smp.encoders.encoders[key]
    if name == "DeepLabV3Plus":
        # As many times as the last map is coarser than the first, dilated or not.
        network.decoder.up = nn.Upsample(scale_factor=maps.strides[-1] // maps.strides[0], mode="bilinear")
    return _Network(network)


for _name in ("UPerNet", "FPN", "Unet", "DeepLabV3Plus", "Segformer"):
    DECODERS.register_module(name=_name, module=partial(build_decoder, _name))
