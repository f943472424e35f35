"""The second input of conditioned gates, and how it reaches them inside a network.

It is an argument of the network (`Conditioned`) and of each gate. In between are networks that were built for one
input, so for the time of one forward pass it stands beside the call; nothing is kept in a module.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, cast

import torch
from torch import nn

__all__ = ["ConditionedGate", "TakesCondition", "check_condition", "given_condition", "is_given"]


class _Given:
    condition: torch.Tensor | None = None


_given = _Given()


class TakesCondition(Protocol):
    """A plug-in with a second input."""

    condition_name: str

    def __call__(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor: ...

    def example_condition(self, x: torch.Tensor) -> torch.Tensor:
        """A condition of the right shape for a map, for dry runs."""
        ...


@contextmanager
def given_condition(condition: torch.Tensor | None) -> Iterator[None]:
    """Provides a condition to all gates of networks that run inside the block; None changes nothing.

    Raises:
        ValueError: If it is no tensor of finite numbers.
    """
    before = _given.condition
    if condition is not None:
        check_finite(condition, "condition")
        _given.condition = condition
    try:
        yield
    finally:
        _given.condition = before


def is_given() -> bool:
    """Whether a condition is given at present."""
    return _given.condition is not None


class ConditionedGate(nn.Module):
    """A gate within a network of one input. `(B, C, H, W) -> (B, C, H, W)`.

    On the meta device, where there is no data, it takes an example where nothing is given.

    Args:
        gate: The plug-in.
    """

    def __init__(self, gate: nn.Module) -> None:
        super().__init__()
        self.gate = gate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = cast(TakesCondition, self.gate)
        condition = _given.condition
        if condition is None:
            if not x.is_meta:
                raise ValueError(
                    f"condition is missing: {type(gate).__name__} needs the {gate.condition_name} of each picture; "
                    "call model(image, condition), without gradient checkpointing, which runs gates once more later"
                )
            condition = gate.example_condition(x)
        return gate(x, condition)


def check_finite(condition: Any, name: str) -> None:
    """Raises a ValueError unless a condition is a tensor of finite numbers; not checked in traced graphs."""
    if not isinstance(condition, torch.Tensor) or not condition.is_floating_point():
        kind = condition.dtype if isinstance(condition, torch.Tensor) else type(condition).__name__
        raise ValueError(f"{name} must be a tensor of floating-point numbers, got {kind}")
    if torch.compiler.is_compiling() or condition.is_meta or condition is _given.condition:
        return
    # A sum is one pass over a map; only where it is not finite, or overflows, each number is looked at.
    if not bool(condition.detach().sum().isfinite()) and not bool(condition.isfinite().all()):
        wrong = (~condition.isfinite()).flatten(1).any(1).nonzero().flatten().tolist()
        raise ValueError(f"{name} must be finite; that of picture {wrong[0]} of the batch is not")


def check_condition(condition: Any, x: torch.Tensor, name: str, shape: tuple[int | str, ...]) -> None:
    """Raises a ValueError unless the condition of a gate fits the map.

    Args:
        condition: What came as second input.
        x: The map, `(B, ...)`.
        name: What errors call the condition.
        shape: Its shape after the batch: numbers where a size is needed, letters where any from 1 will do.
    """
    if condition is None:
        raise ValueError(f"{name} is missing: it is the second input, (B, {', '.join(map(str, shape))})")
    check_finite(condition, name)
    fits = condition.ndim == 1 + len(shape) and condition.shape[0] == x.shape[0]
    fits = fits and all(
        size == wanted if isinstance(wanted, int) else size >= 1
        for size, wanted in zip(condition.shape[1:], shape, strict=True)
    )
    if not fits:
        wanted = ", ".join(map(str, (x.shape[0], *shape)))
        raise ValueError(f"{name} must be (B, {', '.join(map(str, shape))}) = ({wanted}), got {tuple(condition.shape)}")
