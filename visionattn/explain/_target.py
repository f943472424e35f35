"""What is explained: a class for all images, one for each, or a function of the network's output."""

from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

import torch

__all__ = ["Classes", "Score", "Target", "class_of_each", "is_score", "target_score"]

# Gives a number for each image.
Score = Callable[[torch.Tensor], torch.Tensor]
Classes = int | Sequence[int] | torch.Tensor
Target = Classes | Score | None


def is_score(target: Target) -> TypeGuard[Score]:
    """Whether it is a function; tensors can be called in some versions of PyTorch."""
    return callable(target) and not isinstance(target, torch.Tensor)


def class_of_each(
    target: Target, count: int, classes: int | None = None, device: torch.device | None = None
) -> torch.Tensor:
    """The class of each image, `(count,)`.

    Args:
        target: One class, or one for each image.
        count: Number of images.
        classes: How many classes there are; not checked without it.
        device: Of the result.

    Raises:
        ValueError: If there is not one whole number for each image, or one is no class.
    """
    given: Any = target
    chosen = torch.as_tensor(given, device=device)
    if chosen.ndim > 1 or chosen.numel() not in (1, count) or chosen.is_floating_point() or chosen.dtype == torch.bool:
        raise ValueError(f"target must be one class or one for each of {count} images, got {target}")
    if classes is not None and bool(((chosen < 0) | (chosen >= classes)).any()):
        raise ValueError(f"target must lie in 0..{classes - 1}, got {target}")
    return chosen.long().expand(count)


def target_score(logits: torch.Tensor, target: Target) -> torch.Tensor:
    """The explained score, summed over the images.

    Raises:
        ValueError: If the target does not fit the logits.
    """
    if is_score(target):
        return target(logits).sum()
    if logits.ndim != 2:
        raise ValueError(
            f"target must be a function of the network's output, which is no (B, classes) but {tuple(logits.shape)}"
        )
    chosen = logits.argmax(1) if target is None else class_of_each(target, len(logits), logits.shape[1], logits.device)
    return logits.gather(1, chosen[:, None]).sum()
