"""FeatEnHancer step by step: a softmax over the two scales with its weights expanded, eight corrections one by one."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ._literal import Literal

__all__ = ["featenhancer", "fusion", "naive_of"]


def fusion(module: Any, fine: torch.Tensor, coarse: torch.Tensor) -> torch.Tensor:
    """The output of `visionattn.plugins.ScaleAwareFusion`."""
    items = torch.stack((module.query_conv2(module.query_conv1(fine)), module.key_conv(coarse)), dim=1)
    b, _, c, h, w = items.shape
    heads = items.reshape(b, 2, module.num_heads, c // module.num_heads, h, w)
    scores = (heads * heads[:, 1:]).sum(3, keepdim=True) / (c // module.num_heads) ** 0.5
    joint = (scores.expand_as(heads).softmax(1) * heads).sum(1).reshape(b, c, h, w)
    return F.interpolate(joint, fine.shape[2:], mode="bilinear", align_corners=True) + fine


def featenhancer(module: Any, x: torch.Tensor) -> torch.Tensor:
    """The output of `visionattn.plugins.FeatEnHancer`, for sides of at least 15."""

    def features(picture: torch.Tensor) -> torch.Tensor:
        maps = [torch.relu(module.e_conv1(picture))]
        for layer in (module.e_conv2, module.e_conv3, module.e_conv4):
            maps.append(torch.relu(layer(maps[-1])))
        y = torch.relu(module.e_conv5(torch.cat([maps[2], maps[3]], 1)))
        y = torch.relu(module.e_conv6(torch.cat([maps[1], y], 1)))
        return module.e_conv7(torch.cat([maps[0], y], 1))

    quarter = module.quarter_conv(x)
    joint = fusion(module.scale_aware_aggregation, torch.relu(features(x)), torch.relu(features(quarter)))
    eighth = F.interpolate(features(module.hexa_conv(quarter)), x.shape[2:], mode="bilinear", align_corners=True)
    corrections = torch.tanh(module.ue_conv9(module.ue_conv8(torch.cat([joint, eighth], 1))))
    for correction in torch.split(corrections, x.shape[1], dim=1):
        x = x + correction
    return x


def naive_of(module: Any) -> nn.Module:
    """The literal module of a `FeatEnHancer`."""
    return Literal(featenhancer, module)
