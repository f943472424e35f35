"""Heads taken out of a network for good: smaller projections with the same result as heads that are switched off.

Are Sixteen Heads Really Better than One? (NeurIPS 2019, arXiv 1905.10650).
"""

import copy
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn

__all__ = ["prune_heads"]


def prune_heads(model: nn.Module, heads: Mapping[str, Collection[int]]) -> nn.Module:
    """A copy of a network without some heads. What is left computes what the whole network with those heads off does.

        record[3].path  # blocks.3.attn
        smaller = prune_heads(model, {"blocks.3.attn": [0, 2]})

    Attention must have one projection `qkv` and an output projection `proj`: timm's `Attention`, windows of Swin (whose
    biases of positions shrink, too), and mixers of ours of that form. Where no head is left, the bias of `proj` is.

    Args:
        model: The network, which stays as it is.
        heads: Name of an attention module -> numbers of its heads to take out.

    Raises:
        ValueError: If a module or head does not exist, or the module is of another form.
    """
    smaller = copy.deepcopy(model)
    modules = dict(smaller.named_modules())
    for name, out in heads.items():
        name = name.removesuffix(".softmax")  # what captures of Swin's windows name
        if name not in modules:
            raise ValueError(f"heads must name modules of {type(model).__name__}, there is no {name!r}")
        module: Any = modules[name]
        count = _checked(module, name)
        if any(not 0 <= head < count for head in out):
            raise ValueError(f"heads of {name} must lie in 0..{count - 1}, got {sorted(out)}")
        kept = [head for head in range(count) if head not in set(out)]
        if kept:
            _shrink(module, torch.tensor(kept), count)
        else:
            parent, _, own = name.rpartition(".")
            setattr(smaller.get_submodule(parent), own, _BiasOnly(module.proj))
    return smaller


class _BiasOnly(nn.Module):
    """Attention without heads. `(..., C) -> (..., C)`."""

    def __init__(self, proj: nn.Linear) -> None:
        super().__init__()
        width = proj.out_features
        self.bias = nn.Parameter(proj.weight.new_zeros(width) if proj.bias is None else proj.bias.detach().clone())

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self.bias.to(x.dtype).expand(*x.shape[:-1], -1)

    def forward_tokens(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self(x)


def _checked(module: Any, name: str) -> int:
    """Number of heads of an attention that can be pruned."""
    qkv, proj, count = (getattr(module, part, None) for part in ("qkv", "proj", "num_heads"))
    if not isinstance(qkv, nn.Linear) or not isinstance(proj, nn.Linear) or not isinstance(count, int):
        raise ValueError(f"{name} ({type(module).__name__}) must have linear layers qkv and proj and a num_heads")
    known = {"qkv", "proj", "gate", "q_norm", "k_norm", "norm", "attn_drop", "proj_drop", "softmax"}
    per_head: list[Any] = [getattr(module, "q_norm", None), getattr(module, "k_norm", None)]
    widths = {part.weight.numel() for part in per_head if getattr(part, "weight", None) is not None}
    strange = [part for part, value in module.named_children() if part not in known]
    strange += [part for part, _ in module.named_parameters(recurse=False) if part not in _PER_HEAD]
    if any(True for _ in getattr(module, "norm", nn.Identity()).parameters()):
        strange.append("norm")  # over all heads: the result would change
    if getattr(module, "sparse", None) is not None:
        strange.append("sparse")  # its blocks may be chosen for each head
    if strange or qkv.out_features != 3 * proj.in_features or widths - {proj.in_features // count}:
        raise ValueError(
            f"{name} ({type(module).__name__}) cannot lose heads"
            + (f": it has {', '.join(strange)}" if strange else ": its norms or projections run over several heads")
        )
    return count


# Parameters of an attention module itself, with the axis of the heads.
_PER_HEAD = {"relative_position_bias_table": 1}


def _shrink(module: Any, kept: torch.Tensor, count: int) -> None:
    qkv, proj = module.qkv, module.proj
    width = proj.in_features // count
    rows = (kept[:, None] * width + torch.arange(width)).flatten()
    all_rows = (torch.arange(3)[:, None] * count * width + rows).flatten()
    module.qkv = _linear(qkv, rows=all_rows)
    module.proj = _linear(proj, columns=rows)
    if isinstance(getattr(module, "gate", None), nn.Linear):
        module.gate = _linear(module.gate, rows=rows)
    for name, axis in _PER_HEAD.items():
        if (table := getattr(module, name, None)) is not None:
            setattr(module, name, nn.Parameter(table.detach().index_select(axis, kept.to(table.device))))
    module.num_heads = len(kept)
    if hasattr(module, "attn_dim"):
        module.attn_dim = len(rows)


def _linear(layer: nn.Linear, rows: torch.Tensor | None = None, columns: torch.Tensor | None = None) -> nn.Linear:
    weight: torch.Tensor = layer.weight.detach()
    bias: torch.Tensor | None = layer.bias
    if rows is not None:
        weight = weight[rows.to(weight.device)]
        bias = None if bias is None else bias[rows.to(weight.device)]
    if columns is not None:
        weight = weight[:, columns.to(weight.device)]
    new = nn.Linear(weight.shape[1], len(weight), bias=bias is not None, device=weight.device, dtype=weight.dtype)
    new.weight = nn.Parameter(weight.clone())
    if bias is not None:
        new.bias = nn.Parameter(bias.detach().clone())
    return new
