"""Describes a test pipeline in the terms of timm's configuration."""

from collections.abc import Sequence
from typing import Any

__all__ = ["describe_pipeline"]

# OpenCV's numbers, which albumentations takes.
_INTERPOLATIONS = {0: "nearest", 1: "bilinear", 2: "bicubic", 3: "box", 4: "lanczos"}


def describe_pipeline(pipeline: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """`interpolation`, `crop_pct` and `crop_mode` of the common resizing pipelines; the whole image for all others.

    Args:
        pipeline: A config's test pipeline: one dict a transform.
    """
    steps = {step.get("type"): step for step in pipeline}
    resize = next((steps[name] for name in ("Resize", "SmallestMaxSize", "FitResize") if name in steps), {})
    share, crop = 1.0, steps.get("CenterCrop")
    short = resize.get("max_size", resize.get("short"))
    if crop and isinstance(short, int):
        share = min(crop["height"] / short, 1.0)
    return {
        "interpolation": _INTERPOLATIONS.get(resize.get("interpolation", 1), "bilinear"),
        "crop_pct": share,
        "crop_mode": "squash" if "Resize" in steps else "center",
    }
