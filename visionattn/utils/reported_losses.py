"""Losses that a layer has itself, such as a balance of experts: reported where they arise, collected by the task."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

__all__ = ["collect_losses", "report_loss"]

_collected: ContextVar[dict[str, list[torch.Tensor]] | None] = ContextVar("reported_losses", default=None)


@contextmanager
def collect_losses() -> Iterator[dict[str, list[torch.Tensor]]]:
    """Collects what `report_loss` is told within the block, by name."""
    losses: dict[str, list[torch.Tensor]] = {}
    token = _collected.set(losses)
    try:
        yield losses
    finally:
        _collected.reset(token)


def report_loss(name: str, value: torch.Tensor) -> None:
    """Adds a layer's own loss to those of this training step; does nothing where nobody collects.

    Args:
        name: What it is called in logs, such as `balance`; layers may share a name, and their mean counts then.
        value: A number, weighted by the layer.
    """
    losses = _collected.get()
    if losses is not None:
        losses.setdefault(name, []).append(value)
