"""Losses by the names that configs use. Those of segmentation-models-pytorch and timm are imported on demand."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from visionattn.utils.building import build

from .registry import LOSSES

__all__ = ["build_loss", "build_losses"]


def _register(log_name: str) -> Callable[[Callable[..., nn.Module]], Callable[..., nn.Module]]:
    def register(entry: Any) -> Callable[..., nn.Module]:
        entry.log_name = log_name
        return LOSSES.register_module()(entry)

    return register


@_register("ce")
def CrossEntropyLoss(
    num_classes: int,
    ignore_index: int,
    class_weights: Sequence[float] | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> nn.Module:
    """PyTorch's, with `class_weights` as a list."""
    if class_weights is not None and len(class_weights) != num_classes:
        raise ValueError(f"class_weights needs one for each of the {num_classes} classes, got {len(class_weights)}")
    weight = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
    return nn.CrossEntropyLoss(weight, ignore_index=ignore_index, label_smoothing=label_smoothing, reduction=reduction)


@_register("bce")
def BinaryCrossEntropy(
    smoothing: float = 0.1,
    target_threshold: float | None = None,
    sum_classes: bool = False,
    pos_weight: float | None = None,
) -> nn.Module:
    """timm's, for classification only."""
    from timm.loss import BinaryCrossEntropy

    return BinaryCrossEntropy(
        smoothing,
        target_threshold=target_threshold,
        sum_classes=sum_classes,
        pos_weight=None if pos_weight is None else torch.tensor(pos_weight),
    )


@_register("dice")
def DiceLoss(ignore_index: int, log_loss: bool = False, smooth: float = 0.0, eps: float = 1e-7) -> nn.Module:
    """Of segmentation-models-pytorch, for segmentation only."""
    import segmentation_models_pytorch as smp

    return smp.losses.DiceLoss("multiclass", log_loss=log_loss, smooth=smooth, ignore_index=ignore_index, eps=eps)


@_register("lovasz")
def LovaszLoss(ignore_index: int, per_image: bool = False) -> nn.Module:
    """Of segmentation-models-pytorch, for segmentation only."""
    import segmentation_models_pytorch as smp

    return smp.losses.LovaszLoss("multiclass", per_image=per_image, ignore_index=ignore_index)


def build_loss(config: Mapping[str, Any], num_classes: int, ignore_index: int) -> nn.Module:
    """One loss.

    Raises:
        ValueError: If its type or an argument is unknown or wrong.
    """
    return build(LOSSES, config, "loss", num_classes=num_classes, ignore_index=ignore_index)


def build_losses(
    configs: Sequence[Mapping[str, Any]], num_classes: int, ignore_index: int
) -> tuple[nn.ModuleDict, dict[str, float]]:
    """Several losses and their weights, by the names they have in logs.

    Args:
        configs: Each with its type and arguments, `loss_weight`, and `name` if two have the same type.
        num_classes: How many classes there are.
        ignore_index: Class number that does not count.

    Raises:
        ValueError: If there is none, two have one name, or a type or an argument is unknown or wrong.
    """
    losses, weights = nn.ModuleDict(), {}
    for config in configs:
        if not isinstance(config, dict):
            raise ValueError(f"losses must be a list of dicts, got {config!r} in it")
        config = dict(config)
        kind = config.get("type")
        weight, name = config.pop("loss_weight", 1.0), config.pop("name", None)
        loss = build_loss(config, num_classes, ignore_index)
        entry = kind if callable(kind) else LOSSES.module_dict[kind]
        name = name or getattr(entry, "log_name", entry.__name__.removesuffix("Loss").lower())
        if name in losses:
            raise ValueError(f"two losses are called {name!r}: give one another name (losses[...].name)")
        losses[name], weights[name] = loss, weight
    if not losses:
        raise ValueError("losses must name at least one loss")
    return losses, weights
