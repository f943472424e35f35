"""Further losses of a training step, besides those of the task itself."""

from contextlib import ExitStack
from types import TracebackType

import torch

from visionattn.ops.losses import collect_losses

from .registry import LOSS_COLLECTORS

__all__ = ["ReportedLosses"]


@LOSS_COLLECTORS.register_module()
class ReportedLosses:
    """Losses that layers report by `visionattn.ops.losses.add_loss`: the mean for each name.

    Args:
        weights: Factors by name; 1 without one.
    """

    def __init__(self, weights: dict[str, float] | None = None) -> None:
        self.weights = dict(weights or {})
        self.found: dict[str, list[torch.Tensor]] = {}
        self.stack = ExitStack()

    def __enter__(self) -> "ReportedLosses":
        self.found = self.stack.enter_context(collect_losses())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stack.close()

    def losses(self) -> dict[str, torch.Tensor]:
        """The losses by name; returned once."""
        found, self.found = self.found, {}
        return {name: self.weights.get(name, 1.0) * torch.stack(values).mean() for name, values in found.items()}
