"""Salient relevance: the areas of a relevance map that stand out from the rest of it.

Beyond Saliency: Understanding Convolutional Neural Networks from Saliency Prediction on Layer-wise Relevance
Propagation (2017, arXiv 1712.08268), with Context-Aware Saliency Detection (CVPR 2010) of the map in place of an image.

Official code: https://github.com/Hey1Li/Salient-Relevance-Propagation (MIT), notebooks with the first step only.

Differs from the official code in: the second step is here; relevance comes from `explain.lrp` with one rule for all
layers, not the notebooks' z rule on outputs with their biases.

Golden: none; the saliency of a map is compared with its formula, written out.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from visionattn.utils.arguments import check_odd, check_positive

from ._target import Target
from .lrp import lrp
from .maps import min_max, upsample

__all__ = ["context_saliency", "salient_relevance"]


def salient_relevance(
    model: nn.Module, x: torch.Tensor, target: Target = None, *, size: int = 56, **rules: Any
) -> torch.Tensor:
    """Areas that a convolutional network attends to, in 0..1. `-> (B, H, W)` in the size of the images.

    Args:
        model: The network, in evaluation mode.
        x: Images `(B, C, H, W)`.
        target: As for `explain.relevance`.
        size: Longer side of the relevance map in which areas are sought.
        **rules: Of `explain.lrp`; by default `rule="alpha_beta"`, as in the notebooks' linear layers.
    """
    pixels = lrp(model, x, target, **{"rule": "alpha_beta", **rules}).sum(1).abs()
    height, width = pixels.shape[1:]
    shrink = min(1.0, size / max(height, width))
    small = F.adaptive_avg_pool2d(pixels[:, None], (max(round(height * shrink), 1), max(round(width * shrink), 1)))
    return upsample(context_saliency(small[:, 0]), (height, width))


def context_saliency(
    maps: torch.Tensor,
    *,
    patch: int = 7,
    nearest: int = 64,
    scales: Sequence[float] = (1.0, 0.8, 0.5),
    weight: float = 3.0,
    focus: float = 0.8,
) -> torch.Tensor:
    """Where a map is unlike the rest of it, in 0..1. `(B, H, W) -> (B, H, W)`.

    Of each patch `S = 1 - exp(-mean d)` over the patches most like it, `d = d_value / (1 + c d_place)`; the mean over
    the scales, from 0 to 1; then times one minus the distance to the nearest place above `focus`. Distances of places
    are in units of the longer side. It takes `(H W)^2` numbers an image: keep maps below 64 x 64.

    Args:
        maps: Any, such as relevance; each is scaled to 0..1 first.
        patch: Side of the patches, odd.
        nearest: How many patches are compared; at most all.
        scales: Of the map.
        weight: c, of the places.
        focus: What counts as attended, in 0..1.

    Raises:
        ValueError: If an argument is out of range.
    """
    check_odd(patch=patch)
    check_positive(nearest=nearest)
    if maps.ndim != 3 or not scales or min(scales) <= 0 or not 0 <= focus <= 1:
        raise ValueError(
            f"maps must be (B, H, W), scales above 0 and focus in 0..1, got {tuple(maps.shape)}, {scales}, {focus}"
        )
    scaled, size = min_max(maps.float()), tuple(maps.shape[1:])
    found = [upsample(_unlike(_resized(scaled, scale), patch, nearest, weight), size) for scale in scales]
    result = min_max(torch.stack(found).mean(0))
    places = _places(size, result.device)
    apart = torch.cdist(places, places)
    attended = result.flatten(1) > focus
    away = torch.where(attended[:, None], apart, torch.inf).amin(2)
    kept = (1 - away).clamp_min(0).view_as(result)  # a map without any contrast has no focus: nothing is left
    return min_max(result * kept)


def _resized(maps: torch.Tensor, scale: float) -> torch.Tensor:
    size = [max(round(side * scale), 1) for side in maps.shape[1:]]
    return maps if scale == 1 else F.interpolate(maps[:, None], size, mode="bilinear", antialias=True)[:, 0]


def _unlike(maps: torch.Tensor, patch: int, nearest: int, weight: float) -> torch.Tensor:
    """Saliency at one scale."""
    padded = F.pad(maps[:, None], (patch // 2,) * 4, mode="replicate")
    patches = F.unfold(padded, patch).mT / patch  # distances become root mean squares
    places = _places(tuple(maps.shape[1:]), maps.device)
    unlike = torch.cdist(patches, patches) / (1 + weight * torch.cdist(places, places))
    count = min(nearest, unlike.shape[2] - 1)
    if not count:
        return torch.zeros_like(maps)
    least = unlike.topk(count + 1, dim=2, largest=False).values  # the patch itself is one of them, at distance 0
    return (1 - (-least.sum(2) / count).exp()).view_as(maps)


def _places(size: tuple[int, ...], device: torch.device) -> torch.Tensor:
    sides = [torch.arange(side, device=device, dtype=torch.float32) / max(size) for side in size]
    return torch.cartesian_prod(*sides)
