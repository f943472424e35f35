"""Scores of maps: against masks, and against other maps.

Attention IoU (CVPR 2025, arXiv 2503.19846).

Official code: https://github.com/aaronserianni/attention-iou (MIT), bias_scorer.py.

Differs from the official code in: maps without mass. Where one of the two has none the score is 0, where neither has
any it is NaN; officially both are NaN.

Golden: tests/golden/explain_attention_iou_*.npz.
"""

import torch
from torch.nn import functional as F

__all__ = ["attention_iou", "mask_score", "mass_in_mask", "pointing_game"]


def attention_iou(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """How far two maps agree, from 0 (nowhere both) to 1 (equal up to a factor). `2 x (B, H, W) -> (B,)`.

    `sum(a b) / sum(((a + b) / 2)^2)` of maps with the sum 1.

    Raises:
        ValueError: If the shapes differ, or a map has negative values.
    """
    _check(a, b)
    masses = [values.sum((1, 2), keepdim=True) for values in (a, b)]
    a, b = (torch.where(mass > 0, values / mass, 0) for values, mass in zip((a, b), masses, strict=True))
    return (a * b).sum((1, 2)) / ((a + b) / 2).square().sum((1, 2))


def mask_score(maps: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """`attention_iou` of maps and masks, which are reduced to the size of the maps. `(B, h, w), (B, H, W) -> (B,)`."""
    size = tuple(maps.shape[1:])
    reduced = F.interpolate(masks[:, None].to(maps.dtype), size, mode="bilinear", antialias=True)[:, 0]
    return attention_iou(maps, reduced / (1e-7 + reduced.amax((1, 2), keepdim=True)))


def pointing_game(maps: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Whether the largest value of a map lies in its mask, 1 or 0. `(B, h, w), (B, H, W) -> (B,)`."""
    reduced = F.interpolate(masks[:, None].float(), tuple(maps.shape[1:]), mode="nearest")[:, 0]
    return reduced.flatten(1).gather(1, maps.flatten(1).argmax(1, keepdim=True))[:, 0].gt(0).to(maps.dtype)


def mass_in_mask(maps: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """The share of a map's mass in its mask, NaN for a map without mass. `2 x (B, H, W) -> (B,)`.

    Raises:
        ValueError: If the shapes differ, or a map has negative values.
    """
    _check(maps, masks)
    return (maps * masks).sum((1, 2)) / maps.sum((1, 2))


def _check(a: torch.Tensor, b: torch.Tensor) -> None:
    if a.shape != b.shape or a.ndim != 3:
        raise ValueError(f"maps must have one shape (B, H, W), got {tuple(a.shape)} and {tuple(b.shape)}")
    if (a < 0).any() or (b < 0).any():
        raise ValueError("maps must not have negative values: take their positive part or explain.min_max of them")
