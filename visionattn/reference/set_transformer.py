"""The blocks of the Set Transformer (arXiv 1810.00825) as its code takes the steps: heads are split into the batch."""

from typing import Any

import torch
from torch import nn

from ._literal import Literal

__all__ = ["naive_of", "pooled", "set_block"]


def _mab(block: Any, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    q, k, v = block.fc_q(queries), block.fc_k(keys), block.fc_v(keys)
    heads, width = block.num_heads, q.shape[-1]
    q_, k_, v_ = (torch.cat(t.split(width // heads, 2), 0) for t in (q, k, v))
    weights = torch.softmax(q_.bmm(k_.transpose(1, 2)) / width**0.5, 2)
    if not block.residual:
        return torch.cat(weights.bmm(v_).split(len(q), 0), 2)
    out = torch.cat((q_ + weights.bmm(v_)).split(len(q), 0), 2)
    out = out if block.ln0 is None else block.ln0(out)
    out = out + torch.relu(block.fc_o(out))
    return out if block.ln1 is None else block.ln1(out)


def set_block(module: Any, x: torch.Tensor) -> torch.Tensor:
    """The output of `visionattn.mixers.SABMixer` or `ISABMixer`."""
    tokens = x.flatten(1, 2)
    if hasattr(module, "mab"):
        return _mab(module.mab, tokens, tokens).unflatten(1, x.shape[1:3])
    points = _mab(module.mab0, module.I.repeat(len(x), 1, 1), tokens)
    return _mab(module.mab1, tokens, points).unflatten(1, x.shape[1:3])


def pooled(module: Any, x: torch.Tensor) -> torch.Tensor:
    """What `visionattn.heads.PMAPool` gives."""
    x = x if module.rff is None else torch.relu(module.rff(x))
    return _mab(module.mab, module.S.repeat(len(x), 1, 1), x).flatten(1)


def naive_of(module: Any) -> nn.Module:
    """The literal module with the weights of a `SABMixer`, `ISABMixer` or `PMAPool`."""
    return Literal(pooled if hasattr(module, "S") else set_block, module)
