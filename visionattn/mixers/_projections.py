"""Weights of queries, keys and values under other names."""

from typing import Any

import torch
from torch import nn

__all__ = ["accept_split_qkv"]


def accept_split_qkv(module: nn.Module) -> None:
    """Lets a module with a layer `qkv` load weights that are kept apart, as `q`, `k` and `v`."""
    module.register_load_state_dict_pre_hook(_join)


def _join(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    for what in ("weight", "bias"):
        names = [f"{prefix}{part}.{what}" for part in "qkv"]
        if all(name in state_dict for name in names):
            state_dict[f"{prefix}qkv.{what}"] = torch.cat([state_dict.pop(name) for name in names])
