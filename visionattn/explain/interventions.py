"""Interventions: heads scaled, attention between places cut, sinks emptied; each holds while a `with` block lasts.

with explain.edit(model, explain.scale_heads({(3, 1): 0.0})):
    model(x)
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from .capture import Edit, capture
from .layer import Layer
from .record import Record

__all__ = ["edit", "filter_sinks", "knock_out", "redistribute_sinks", "scale_heads", "steer"]


@contextmanager
def edit(model: nn.Module, *edits: Edit) -> Iterator[Record]:
    """Changes the attention probabilities of a network, one edit after the other.

    Args:
        model: The network.
        *edits: Each is called with an attention and returns its probabilities, `(B, windows, heads, N, M)`.
    """

    def change(layer: Layer) -> torch.Tensor:
        for step in edits:
            layer.raw["probs"] = layer.layout.undo(step(layer), layer.raw["probs"].shape)
        return layer.probs

    with capture(model, edit=change) as record:
        yield record


def scale_heads(factors: Mapping[tuple[int, int], float]) -> Edit:
    """Heads times a factor; 0 switches one off.

    Args:
        factors: (number of the attention, number of the head) -> factor.
    """

    def change(layer: Layer) -> torch.Tensor:
        scale = torch.ones(layer.shape[2], dtype=layer.probs.dtype, device=layer.probs.device)
        for (number, head), factor in factors.items():
            if number == layer.index:
                if not 0 <= head < len(scale):
                    raise ValueError(f"heads of layer {number} must lie in 0..{len(scale) - 1}, got {head}")
                scale[head] = factor
        return layer.probs * scale.view(-1, 1, 1)

    return change


def knock_out(
    rows: Collection[int], columns: Collection[int], layers: Collection[int] | None = None
) -> Callable[[Layer], torch.Tensor]:
    """Prevents some tokens from attending to others: their scores are minus infinity, so the rest of a row sums to 1.

    Args:
        rows: Numbers of the queries that are cut off, as the network counts its tokens (0: the class token).
        columns: Numbers of the keys that they cannot see.
        layers: Numbers of the attentions; all without it.
    """

    def change(layer: Layer) -> torch.Tensor:
        if layers is not None and layer.index not in layers:
            return layer.probs
        seen = torch.ones(layer.shape[-2:], dtype=layer.probs.dtype, device=layer.probs.device)
        for name, numbers, count in (("rows", rows, layer.shape[3]), ("columns", columns, layer.shape[4])):
            if any(not 0 <= number < count for number in numbers):
                raise ValueError(f"{name} must lie in 0..{count - 1} in layer {layer.index}, got {sorted(numbers)}")
        seen[torch.tensor(sorted(rows)).view(-1, 1), torch.tensor(sorted(columns)).view(1, -1)] = 0
        kept = layer.probs * seen
        return kept / kept.sum(-1, keepdim=True).clamp_min(torch.finfo(kept.dtype).tiny)

    return change


def redistribute_sinks(keep: float = 0.6, *, times: float = 10.0, layers: Collection[int] | None = None) -> Edit:
    """Tokens with many times their share of attention keep a part of it; the rest goes to the others in proportion.

    Args:
        keep: The part, from 0 to 1.
        times: A token is a sink of a head if the mean over the rows is more than so many times its share.
        layers: Numbers of the attentions; all without it.

    Raises:
        ValueError: If `keep` is not in 0..1.
    """
    if not 0 <= keep <= 1:
        raise ValueError(f"keep must lie in 0..1, got {keep}")

    def change(layer: Layer) -> torch.Tensor:
        probs = layer.probs
        if layers is not None and layer.index not in layers:
            return probs
        sinks = probs.mean(-2, keepdim=True) > times / probs.shape[-1]
        others = (probs * ~sinks).sum(-1, keepdim=True)
        freed = (1 - keep) * (probs * sinks).sum(-1, keepdim=True)
        grown = probs * (1 + freed / others.clamp_min(torch.finfo(probs.dtype).tiny))
        return torch.where(others > 0, torch.where(sinks, keep * probs, grown), probs)

    return change


def filter_sinks(record: Record, *, times: float = 10.0, layers: Collection[int] | None = None) -> None:
    """Takes sinks out of the probabilities of a record, so that maps made of it show the rest; the network ran as ever.

    Args:
        record: Of a forward pass; it is changed.
        times: As for `redistribute_sinks`: such tokens get nothing, the others more in proportion.
        layers: Numbers of the attentions; all without it.
    """
    change = redistribute_sinks(0.0, times=times, layers=layers)
    for layer in record:
        if "probs" in layer.raw:
            layer.raw["probs"] = layer.layout.undo(change(layer).detach(), layer.raw["probs"].shape)


def steer(directions: Mapping[tuple[int, int], tuple[torch.Tensor | None, torch.Tensor | None]]) -> Edit:
    """Directions added to all queries and keys of chosen heads.

    Args:
        directions: (number of the attention, number of the head) -> what is added to its queries and to its keys,
            `(d,)` each or none.

    Raises:
        ValueError: On the forward pass, if there is no such head, or the network scales its scores in a way that is not
            known: fused attention says it, and so does attention whose queries are scaled before.
    """

    def change(layer: Layer) -> torch.Tensor:
        chosen = {head: pair for (number, head), pair in directions.items() if number == layer.index}
        if not chosen:
            return layer.probs
        if layer.scale is None:
            raise ValueError(f"the scale of the scores of layer {layer.index} ({layer.path}) is not known")
        scores, q, k = layer.logits.clone(), layer.q, layer.k
        for head, pair in chosen.items():
            if not 0 <= head < layer.shape[2]:
                raise ValueError(f"heads of layer {layer.index} must lie in 0..{layer.shape[2] - 1}, got {head}")
            old_q, old_k = q[:, :, head], k[:, :, head]
            new_q, new_k = (
                old if added is None else old + added for old, added in zip((old_q, old_k), pair, strict=True)
            )
            scores[:, :, head] += layer.scale * (new_q @ new_k.mT - old_q @ old_k.mT)
        return scores.softmax(-1)

    return change
