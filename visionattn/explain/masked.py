"""Runs a vision transformer on some patches only: stage 2 of inherently faithful attention maps (iFAM).

Inherently Faithful Attention Maps for Vision Transformers (2025, arXiv 2506.08915).

Official code: https://github.com/ananthu-aniraj/ifam (no licence file at its root), models/attn_mask_vit_2_stage.py.

Differs from the official code in:
- no layer is rewritten: timm's own `attn_mask` does it;
- masks come from anywhere; the head is the network's own.

Golden: tests/golden/explain_ifam_*.npz.
"""

from typing import Any

import torch
from torch import nn

__all__ = ["masked_features", "masked_forward", "reclassify"]


def masked_forward(model: nn.Module, x: torch.Tensor, mask: torch.Tensor, *, prune: bool = True) -> torch.Tensor:
    """Logits of a network that sees only the patches of a mask.

    With a hard mask what lies outside has no influence at all: the logits do not change with it, bit for bit.

    Args:
        model: A `VisionTransformer` of timm's with blocks that take `attn_mask`.
        x: Images `(B, C, H, W)`.
        mask: Patches `(B, N)` or `(B, H, W)`: bool, or numbers in 0..1, whose logarithm is added to the scores.
        prune: Leave patches out of the computation that a hard mask hides in all images of the batch.

    Raises:
        ValueError: If the network or the mask does not fit.
    """
    network: Any = model
    return network.forward_head(masked_features(model, x, mask, prune=prune))


@torch.no_grad()
def reclassify(model: nn.Module, x: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
    """What classes become when a user leaves out patches.

    Args:
        model: As for `masked_forward`, in evaluation mode.
        x: Images `(B, C, H, W)`.
        mask: The patches that stay, as for `masked_forward`.

    Returns:
        `before` and `after`, probabilities `(B, classes)`; `change`, their difference; `kept`, whether the first class
        is the same, bool `(B,)`.
    """
    before, after = model(x).softmax(1), masked_forward(model, x, mask).softmax(1)
    return {"before": before, "after": after, "change": after - before, "kept": before.argmax(1) == after.argmax(1)}


def masked_features(model: nn.Module, x: torch.Tensor, mask: torch.Tensor, *, prune: bool = True) -> torch.Tensor:
    """The tokens after the last norm, extra tokens first. Arguments as for `masked_forward`."""
    network: Any = model
    if not all(hasattr(network, name) for name in ("_pos_embed", "patch_embed", "blocks", "norm_pre", "norm")):
        raise ValueError(f"model must be a VisionTransformer of timm's, got {type(model).__name__}")
    prefix = int(network.num_prefix_tokens)
    mask = mask.flatten(1)
    tokens = network.norm_pre(network._pos_embed(network.patch_embed(x)))
    if mask.shape != (len(x), tokens.shape[1] - prefix):
        raise ValueError(f"mask must be of {len(x)} x {tokens.shape[1] - prefix} patches, got {tuple(mask.shape)}")
    if mask.dtype != torch.bool and ((mask < 0) | (mask > 1)).any():
        raise ValueError("mask must be bool or lie in 0..1")
    if mask.dtype == torch.bool:
        if prune:
            count = int(mask.sum(1).amax())
            order = mask.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :count].sort(1).values
            mask = mask.gather(1, order)
            kept = tokens[:, prefix:].gather(1, order.unsqueeze(2).expand(-1, -1, tokens.shape[2]))
            tokens = torch.cat((tokens[:, :prefix], kept), 1)
        seen = torch.cat((mask.new_ones(len(x), prefix), mask), 1)
        bias = seen[:, None, None].expand(-1, 1, tokens.shape[1], -1)
    else:
        scores = torch.cat((mask.new_zeros(len(x), prefix), (mask + 1e-10).log()), 1)
        bias = scores.to(tokens.dtype)[:, None, None].expand(-1, 1, tokens.shape[1], -1)
    for block in network.blocks:
        tokens = block(tokens, attn_mask=bias)
    out: torch.Tensor = network.norm(tokens)
    return out
