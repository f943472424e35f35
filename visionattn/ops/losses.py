"""Auxiliary losses of parts of a network, such as a router's load balance, passed to the task.

    with collect_losses() as losses:
        logits = network(images)
    loss = criterion(logits, labels) + sum(torch.stack(values).mean() for values in losses.values())

A module reports with `add_loss(name, value)` in its forward pass; without an open collector that does nothing. Values
keep their gradient, each report is one entry, and nothing is kept in the module. What is computed again in the backward
pass (gradient checkpointing) reports nothing. The gradients flow through the values, so DistributedDataParallel needs
the collector inside the module that it wraps, as the tasks have it.

`torch.compile` records a report as it is, but not one inside of a checkpointed region. A module that takes `losses` and
says so (`has_losses = True`) gets a dictionary from its host and passes it on to `add_loss`: then the values leave the
region as results (`visionattn.models.hosts`), and checkpointed networks compile to one graph too.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

__all__ = ["Losses", "add_loss", "call_with_losses", "collect_losses", "find_target", "known_targets"]

# Name -> the values of all modules that report under it, in the order of the forward pass.
Losses = dict[str, list[torch.Tensor]]

_open: Losses | None = None
# What is known of the pictures of this forward pass, and of the last one, for what is computed again.
_targets: Mapping[str, torch.Tensor] = {}
_last_targets: Mapping[str, torch.Tensor] = {}


@contextmanager
def collect_losses() -> Iterator[Losses]:
    """Opens a collector for the forward pass of a network: yields a dictionary, name -> list of scalars.

    Raises:
        RuntimeError: If a collector is open already: the losses would belong to two tasks.
    """
    global _open
    if _open is not None:
        raise RuntimeError("collect_losses() is open already; close it before another forward pass collects losses")
    _open = {}
    try:
        yield _open
    finally:
        _open = None


def add_loss(name: str, value: torch.Tensor, losses: Losses | None = None) -> None:
    """Reports a loss of a module, already weighted; the task takes the mean over all modules of a name.

    Compute the value whether or not anybody collects it: gradient checkpointing compares the two forward passes.

    Args:
        name: Such as `balance`; the task logs `loss_<name>`.
        value: A scalar.
        losses: Where to put it; by default the open collector, if there is one.

    Raises:
        ValueError: If the value is not a scalar.
    """
    if value.ndim:
        raise ValueError(f"the value of loss {name!r} must be a scalar, got shape {tuple(value.shape)}")
    if losses is None:
        losses = None if _recomputing() else _open
    if losses is not None:
        losses.setdefault(name, []).append(value)


@contextmanager
def known_targets(targets: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Gives modules access to a task's targets, for auxiliary losses, while the network runs.

    Args:
        targets: Name -> values of the batch, `(B, ...)`, such as the `domain` of each picture.
    """
    global _targets, _last_targets
    before, _targets = _targets, targets
    try:
        yield
    finally:
        _targets, _last_targets = before, targets


def find_target(name: str) -> torch.Tensor | None:
    """The target of this forward pass under a name, or None."""
    return (_last_targets if _recomputing() else _targets).get(name)


def call_with_losses(module: nn.Module, *args: Any, losses: Losses | None) -> Any:
    """Runs a module, with `losses` if it accepts them."""
    return module(*args, losses=losses) if getattr(module, "has_losses", False) else module(*args)


def _recomputing() -> bool:
    """Whether this forward pass is a recomputation in a backward pass; compiled code recomputes without Python."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
