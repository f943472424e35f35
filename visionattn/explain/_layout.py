"""The layout of attention in a network: which leading axes are images, windows and heads."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

__all__ = ["Layout", "find_layout"]


@dataclass(frozen=True)
class Layout:
    """Turns `(..., N, M)` with any leading axes into `(B, windows, heads, N, M)` and back.

    Args:
        axes: The leading axes with images first, such as `(B, windows, heads)` or `(B, heads, rows, columns)`.
        head: Which of them are the heads; none if there is one head.
    """

    axes: tuple[int, ...]
    head: int | None

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """To `(B, windows, heads, N, M)`."""
        x = x.reshape(*self.axes, *x.shape[-2:])
        x = x.unsqueeze(-3) if self.head is None else x.movedim(self.head, -3)
        return x.reshape(self.axes[0], -1, *x.shape[-3:])

    def undo(self, x: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        """From `(B, windows, heads, N, M)` to the network's own shape."""
        if self.head is None:
            return x.reshape(*shape)
        others = [size for axis, size in enumerate(self.axes) if axis != self.head]
        return x.reshape(*others, *x.shape[-3:]).movedim(-3, self.head).reshape(*shape)


def find_layout(lead: Sequence[int], batch: int, heads: int | None, heads_first: bool) -> Layout:
    """The layout of attention with these leading axes.

    Args:
        lead: All axes but the last two.
        batch: Number of images.
        heads: Number of heads, if the module says it.
        heads_first: Whether heads come before windows; the customary order is the other.
    """
    if not lead or lead[0] % batch:  # the first axis does not hold the images: they share one map
        batch, lead = 1, (1, *lead)
    rest = [*([lead[0] // batch] if lead[0] != batch else []), *lead[1:]]
    if not rest:
        return Layout((batch,), None)
    found = [axis for axis, size in enumerate(rest) if size == heads]
    if found:
        return Layout((batch, *rest), 1 + found[0 if heads_first else -1])
    if heads and lead[0] != batch and rest[0] % heads == 0:
        split = [heads, rest[0] // heads] if heads_first else [rest[0] // heads, heads]
        return Layout((batch, *split, *rest[1:]), 1 if heads_first else 2)
    if heads == 1 or (heads is None and len(lead) == 1):
        return Layout((batch, *rest), None)
    return Layout((batch, *rest), len(rest))
