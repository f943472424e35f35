"""U-GAT-IT's attention and normalisation step by step, as the official code takes them."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ._literal import Literal

__all__ = ["cam", "layer_instance", "naive_of"]


def cam(module: Any, x: torch.Tensor) -> torch.Tensor:
    """The output of `visionattn.plugins.CAMAttention`: both logits, both scaled maps, their concatenation, the mix."""
    scaled = []
    for layer, pool in ((module.gap_fc, F.adaptive_avg_pool2d), (module.gmp_fc, F.adaptive_max_pool2d)):
        weight = layer.weight / layer.weight.norm() if module.normalize else layer.weight
        F.linear(pool(x, 1).flatten(1), weight)  # the logit, which the generator always makes
        scaled.append(x * weight[:, :, None, None])
    return F.leaky_relu(module.conv1x1(torch.cat(scaled, dim=1)), module.negative_slope)


def layer_instance(
    x: torch.Tensor, rho: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor, eps: float = 1e-5
) -> torch.Tensor:
    """The output of `AdaLIN` and `LIN`, with `gamma` and `beta` `(B or 1, C, 1, 1)`."""
    parts = []
    for dims in ((2, 3), (1, 2, 3)):
        mean, variance = x.mean(dims, keepdim=True), x.var(dims, keepdim=True)
        parts.append((x - mean) / torch.sqrt(variance + eps))
    return (rho.expand_as(x) * parts[0] + (1 - rho.expand_as(x)) * parts[1]) * gamma + beta


def naive_of(module: Any) -> nn.Module:
    """The literal module of a `CAMAttention`."""
    return Literal(cam, module)
