"""What a head does for a classifier, read from its weights.

Relation scores are the image form of MAPS (Inferring Functionality of Attention Heads from their Parameters, 2024,
arXiv 2412.11965): a class takes the place of a word, the classifier that of the dictionary.

Official code: https://github.com/amitelhelo/MAPS (language models only). What is here is inspired by it: there is no
official form for images. Weights alone do not know the deviations of the norms, so scores rank outputs and do not scale
them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from visionattn.utils.arguments import check_positive

from ._stream import blocks_of, head_weights

__all__ = ["RelationScores", "position_preference", "relation_scores", "salient_operations"]


@dataclass(frozen=True)
class RelationScores:
    """Shares of the classes for which a head promotes a related class, `(layers, heads)` each.

    Args:
        copying: The class itself is among those that the head's output raises most.
        association: Another class of its group is.
        copying_suppressed: The class itself is among those that it lowers most.
        association_suppressed: Another class of its group is.
        p_association: Share of random groups of the same sizes with at least this association; none without groups.
        p_association_suppressed: Likewise.
    """

    copying: torch.Tensor
    copying_suppressed: torch.Tensor
    association: torch.Tensor | None = None
    association_suppressed: torch.Tensor | None = None
    p_association: torch.Tensor | None = None
    p_association_suppressed: torch.Tensor | None = None


@torch.no_grad()
def relation_scores(
    model: nn.Module,
    groups: Sequence[int] | None = None,
    *,
    k: int = 10,
    tokens: torch.Tensor | None = None,
    permutations: int = 200,
    seed: int = 0,
) -> RelationScores:
    """What every head makes of every class: `e_c W_V W_O`, read by the classifier.

    Args:
        model: A `VisionTransformer` of timm's with a classifier.
        groups: Number of the group of each class; without it there is no association.
        k: How many of the classes that are raised (lowered) most count.
        tokens: What stands for each class at the start of each layer, `(classes, C)` or `(layers, classes, C)`, such as
            mean tokens of its images; without it the rows of the classifier, which need no image.
        permutations: Random groups for the p values.
        seed: Of these.

    Raises:
        ValueError: If the network has no classifier, or an argument does not fit.
    """
    blocks = blocks_of(model)
    read = _classifier(model)
    classes = len(read)
    check_positive(k=k, permutations=permutations)
    if k > classes:
        raise ValueError(f"k must be at most the number of classes, {classes}, got {k}")
    if groups is not None and len(groups) != classes:
        raise ValueError(f"groups must have a number for each of {classes} classes, got {len(groups)}")
    given = read if tokens is None else tokens
    if given.shape[-2:] != read.shape or given.ndim not in (2, 3):
        raise ValueError(f"tokens must be (classes, C) = {tuple(read.shape)}, got {tuple(given.shape)}")
    given = given.expand(len(blocks), -1, -1)
    own = torch.eye(classes, dtype=torch.bool, device=read.device)
    related = [own]
    if groups is not None:
        numbers = torch.as_tensor(groups, device=read.device)
        generator = torch.Generator().manual_seed(seed)
        orders = [torch.arange(classes), *(torch.randperm(classes, generator=generator) for _ in range(permutations))]
        related += [(numbers[order, None] == numbers[None, order]) & ~own for order in orders]
    masks = torch.stack(related).float()  # (1 or 2 + permutations, classes, classes)
    found = []
    for block, embedded in zip(blocks, given, strict=True):
        weights = head_weights(block)
        for value, out in zip(weights.v, weights.out, strict=True):
            scores = _centred(embedded) @ value.T @ out @ read.T
            for signed in (scores, -scores):
                top = torch.zeros_like(scores).scatter_(1, signed.topk(k, dim=1).indices, 1.0)
                found.append(((masks * top).sum(2) > 0).float().mean(1))
    table = torch.stack(found).unflatten(0, (len(blocks), -1, 2))  # (layers, heads, signs, masks)
    up, down = table.unbind(2)
    if groups is None:
        return RelationScores(up[..., 0], down[..., 0])
    chances = [(part[..., 2:] >= part[..., 1:2]).float().mean(2) for part in (up, down)]
    return RelationScores(up[..., 0], down[..., 0], up[..., 1], down[..., 1], *chances)


@torch.no_grad()
def salient_operations(
    model: nn.Module, layer: int, head: int, *, count: int = 5, k: int = 5, tokens: torch.Tensor | None = None
) -> list[tuple[int, float, list[int]]]:
    """The classes on which a head works most, `(class, gain, classes that it raises most)`, largest gain first.

    Args:
        model: As for `relation_scores`.
        layer: Number of the block.
        head: Number of the head.
        count: How many classes.
        k: How many that it raises.
        tokens: As for `relation_scores`, `(classes, C)`.

    Raises:
        ValueError: If there is no such layer or head.
    """
    blocks = blocks_of(model)
    if not 0 <= layer < len(blocks):
        raise ValueError(f"layer must lie in 0..{len(blocks) - 1}, got {layer}")
    weights = head_weights(blocks[layer])
    if not 0 <= head < len(weights.v):
        raise ValueError(f"head must lie in 0..{len(weights.v) - 1}, got {head}")
    read = _classifier(model)
    given = _centred(read if tokens is None else tokens)
    moved = given @ weights.v[head].T @ weights.out[head]
    gain = moved.norm(dim=1) / given.norm(dim=1).clamp_min(torch.finfo(given.dtype).tiny)
    scores = moved @ read.T
    best = gain.topk(min(count, len(gain))).indices.tolist()
    return [(number, gain[number].item(), scores[number].topk(min(k, len(read))).indices.tolist()) for number in best]


@torch.no_grad()
def position_preference(model: nn.Module) -> torch.Tensor:
    """Scores between positions alone, `(layers, heads, P, P)`: where a head would look if all patches were alike.

    The position embeddings take the place of tokens in queries and keys, with the scale of attention.

    Args:
        model: A `VisionTransformer` of timm's with learnt positions.

    Raises:
        ValueError: If it has none, or norms of queries and keys.
    """
    network: Any = model
    blocks = blocks_of(model)
    positions = getattr(network, "pos_embed", None)
    if positions is None:
        raise ValueError(f"{type(model).__name__} has no position embeddings")
    area = network.patch_embed.num_patches
    places = positions.detach()[0, -area:]
    result = []
    for block in blocks:
        if not isinstance(block.attn.q_norm, nn.Identity):
            raise ValueError("queries and keys must not be normalised: a norm of positions alone says nothing")
        weights = head_weights(block)
        x = nn.functional.layer_norm(places, places.shape[-1:], eps=block.norm1.eps)
        q = torch.einsum("pc,hdc->hpd", x, weights.q) + weights.q_bias[:, None]
        k = torch.einsum("pc,hdc->hpd", x, weights.k) + weights.k_bias[:, None]
        result.append(q @ k.mT * block.attn.scale)
    return torch.stack(result)


def _classifier(model: nn.Module) -> torch.Tensor:
    """Rows of the classifier, times the gain of the norm before it. `(classes, C)`"""
    network: Any = model
    if not isinstance(network.head, nn.Linear):
        raise ValueError(f"{type(model).__name__} must have a classifier, its head is {type(network.head).__name__}")
    norm = network.fc_norm if isinstance(network.norm, nn.Identity) else network.norm
    weight: torch.Tensor = network.head.weight.detach()
    return _centred(weight * norm.weight.detach())


def _centred(x: torch.Tensor) -> torch.Tensor:
    """A layer norm takes the mean of the channels away from what it reads."""
    return x - x.mean(-1, keepdim=True)
