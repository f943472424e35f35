"""Averages what a network with rotary embeddings says over several bases (Attention Buckets, arXiv 2312.04455).

Each base makes attention strong at other distances and weak at others; the paper runs a language model once for each
and averages, without training. Here networks of timm with rotary embeddings of two axes.

Differs from the paper in: logits are averaged and not probabilities; the weights of bases are equal by default.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from visionattn.utils.arguments import check_choice

__all__ = ["RopeBases"]


class RopeBases(nn.Module):
    """A network of timm with rotary embeddings, run once for each base. `(B, 3, H, W) -> (B, classes)`.

    The network itself and its state dict stay as they are.

    Args:
        model: The network (EVA-02, ViT with RoPE, DINOv3 and the like).
        bases: Of the angles; the network's own is `model.rope.temperature`.
        weighting: `mean`: all bases count the same. `confidence`: for each picture a base counts as much as its largest
            probability.

    Raises:
        ValueError: If the network has no rotary embeddings with a base, there is no base, or one is not above 0.
    """

    def __init__(self, model: nn.Module, bases: Sequence[float], *, weighting: str = "mean") -> None:
        super().__init__()
        check_choice("weighting", weighting, ("mean", "confidence"))
        rope: Any = getattr(model, "rope", None)
        if rope is None or getattr(rope, "in_pixels", False) or not hasattr(rope, "init_non_persistent_buffers"):
            raise ValueError(f"{type(model).__name__} has no rotary embeddings of timm's with a base")
        if getattr(rope, "temperature", None) is None or any(p.requires_grad for p in rope.parameters()):
            raise ValueError(f"the rotary embeddings of {type(model).__name__} are not made from a base")
        if not len(bases) or not all(base > 0 for base in bases):
            raise ValueError(f"bases must be numbers above 0, at least one, got {list(bases)}")
        self.model = model
        self.weighting = weighting
        self.ropes = nn.ModuleList(_with_base(rope, float(base)) for base in bases)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outs = torch.stack([self._logits(rope, x) for rope in self.ropes])
        if self.weighting == "mean":
            return outs.mean(0)
        shares = outs.softmax(-1).amax(-1, keepdim=True)
        return (outs * (shares / shares.sum(0))).sum(0)

    def _logits(self, rope: nn.Module, x: torch.Tensor) -> torch.Tensor:
        own = {f"rope.{name}": value for name, value in rope.named_buffers()}
        logits: torch.Tensor = functional_call(self.model, own, (x,))
        return logits


def _with_base(rope: Any, base: float) -> Any:
    """A copy of rotary embeddings with another base."""
    changed = copy.deepcopy(rope)
    changed.temperature = base
    changed.init_non_persistent_buffers()
    return changed
