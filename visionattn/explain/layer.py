"""One attention of a network in a forward pass."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import torch

from ._layout import Layout

__all__ = ["PARTS", "Layer"]

PARTS = ("probs", "logits", "q", "k", "v", "out")


@dataclass(eq=False)
class Layer:
    """One attention: probabilities, scores, queries, keys, values and output, `(B, windows, heads, ...)` each.

    `probs` and `logits` are `(B, windows, heads, N, M)`, `q` `(..., N, d)`, `k` and `v` `(..., M, d)`, `out`
    `(..., N, d)`, before the output projection. Attention that has no windows has one.

    Args:
        index: Number of the attention in the network, from 0, in the order in which they run.
        path: The module that computes it, by its name in the network.
        kind: `spatial`; `channel`, whose N and M are channels and have no place in the image; or `routing`, whose
            probabilities meet no values: they only choose, or weigh, what other attention sees.
        shape: `(B, windows, heads, N, M)`.
        layout: How the network lays it out.
        scale: What the product of queries and keys is multiplied by, if that is known.
    """

    index: int
    path: str
    kind: str
    shape: tuple[int, ...]
    layout: Layout = field(repr=False)
    raw: dict[str, torch.Tensor] = field(default_factory=dict, repr=False)
    grads: dict[str, torch.Tensor] = field(default_factory=dict, repr=False)
    reduced: Any = field(default=None, repr=False)
    scale: float | None = None
    turned: set[str] = field(default_factory=set, repr=False)  # parts that the network has with rows as columns

    @property
    def probs(self) -> torch.Tensor:
        return self._part("probs")

    @property
    def logits(self) -> torch.Tensor:
        return self._part("logits")

    @property
    def q(self) -> torch.Tensor:
        return self._part("q")

    @property
    def k(self) -> torch.Tensor:
        return self._part("k")

    @property
    def v(self) -> torch.Tensor:
        return self._part("v")

    @property
    def out(self) -> torch.Tensor:
        return self._part("out")

    @property
    def grad(self) -> torch.Tensor:
        """The gradient of the probabilities, in their shape, after `record.gradients(score)`."""
        return self.grad_of("probs")

    def grad_of(self, part: str) -> torch.Tensor:
        """The gradient of any part, after `record.gradients(score, of=part)`."""
        if part not in self.grads:
            raise ValueError(
                f"layer {self.index} has no gradient of its {part}: call record.gradients(score, of={part!r}) first"
            )
        return self.laid_out(part, self.grads[part])

    def keep(self, parts: Collection[str]) -> None:
        """Keeps these parts and drops the others."""
        self.raw = {name: tensor for name, tensor in self.raw.items() if name in parts}

    def _part(self, name: str) -> torch.Tensor:
        if name not in self.raw:
            raise ValueError(
                f"layer {self.index} ({self.path}) holds no {name}: capture it with layers= and keep= that name it, if "
                "the network makes one"
            )
        return self.laid_out(name, self.raw[name])

    def laid_out(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """What belongs to a part of the network's, its gradient or tangent, as `(B, windows, heads, ...)`."""
        return self.layout.apply(tensor.mT if name in self.turned else tensor)
