"""Parts shared by FEAT's mixers."""

from typing import Any

import torch

__all__ = ["check_first", "pass_over_unused"]


def check_first(x: torch.Tensor, first: torch.Tensor | None, guidance: bool) -> None:
    """Raises unless the first layer's tokens are given where needed, in the shape of the input."""
    if (first is not None) != guidance:
        given = "none" if first is None else tuple(first.shape)
        raise ValueError(f"first must be given with guidance=True only; guidance is {guidance}, first {given}")
    if first is not None and first.shape != x.shape:
        raise ValueError(f"first must have the shape of x, {tuple(x.shape)}, got {tuple(first.shape)}")


def pass_over_unused(module: Any, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Drops entries of official weights that the official code never uses; call it before loading."""
    for key in (*getattr(module, "unused", ()), *(() if module.guidance else ("alpha",))):
        state_dict.pop(f"{prefix}{key}", None)
