"""Relevance through attention: Generic Attention-model Explainability (ICCV 2021, arXiv 2103.15679), and Grad-CAM of
attention.

Official code: https://github.com/hila-chefer/Transformer-MM-Explainability (MIT),
Transformer_MM_explainability_ViT.ipynb.

Differs from the official code in:
- any number of images, extra tokens and any grid; networks without a class token: the mean over the rows of the
  patches;
- windowed and hierarchical networks: attention goes to the tokens that the positions say, and where the grid becomes
  coarser a token starts as the mean of those that it was made of;
- probabilities and gradients come from `explain.capture`, not from rewritten layers.

Golden: tests/golden/explain_relevance_*.npz.
"""

import torch
from torch import nn

from ._flow import Flow
from ._target import Target, target_score
from .capture import capture
from .maps import TokenMatrix, chosen_layer, class_map, levels_of, spatial_layers
from .record import Record

__all__ = ["attention_grad_cam", "relevance", "relevance_matrix"]


def relevance(
    model: nn.Module, x: torch.Tensor, target: Target = None, *, start: int = 0, class_row: int | None = None
) -> torch.Tensor:
    """The relevance of each patch to a class. `-> (B, H, W)` on the grid of the first stage.

    Layer by layer `R <- R + mean_h relu(A * dA) R` from the identity on; the map is the row of the token that the class
    is read from.

    Args:
        model: The network, in evaluation mode.
        x: Images `(B, C, H, W)`.
        target: A class, one for each image, a function of the logits that gives a number for each image, or none for
            the class that the network predicts.
        start: The first layer that counts, among those with positions.
        class_row: Number of the extra token whose map it is (1: DeiT's distillation token); by default the one that
            the classifier reads.
    """
    return _relevance(model, x, target, start).map(class_row)


def relevance_matrix(model: nn.Module, x: torch.Tensor, target: Target = None, *, start: int = 0) -> torch.Tensor:
    """All of `R`, `(B, tokens, tokens of the first stage)`, extra tokens first. Arguments as for `relevance`."""
    return _relevance(model, x, target, start).matrix()


def attention_grad_cam(model: nn.Module, x: torch.Tensor, target: Target = None, *, layer: int = -1) -> torch.Tensor:
    """Grad-CAM on the probabilities of one attention instead of a feature map. `-> (B, H, W)`.

    Heads are weighted by the mean of the gradient over the patches; negative sums become 0.

    Args:
        model: The network, in evaluation mode.
        x: Images `(B, C, H, W)`.
        target: As for `relevance`.
        layer: Number of the attention; negative ones count among those with positions.
    """
    record = _graded(model, x, target)
    chosen = chosen_layer(record, layer)
    positions, prefix = record.positions(chosen.index), record.tokens.prefix
    maps = []
    for weights in (chosen.probs, chosen.grad):
        for head in range(chosen.shape[2]):
            flow = Flow(weights[:, :, head : head + 1].detach().float(), positions.of_head(head), prefix)
            keys = torch.eye(flow.counts[1], device=weights.device).expand(len(x), -1, -1)
            maps.append(class_map(flow @ keys, record, positions.queries.grid, positions.keys.grid))
    probs, grads = torch.stack(maps, 1).chunk(2, dim=1)
    return (grads.mean((2, 3), keepdim=True) * probs).mean(1).clamp_min(0)


def _graded(model: nn.Module, x: torch.Tensor, target: Target) -> Record:
    with torch.enable_grad(), capture(model, keep=("probs",)) as record:
        logits = model(x)
    shared = [layer.index for layer in record if layer.shape[0] != len(x)]
    if shared:
        raise ValueError(f"the images share the attention of layer {shared[0]} and so its gradient: give one image")
    record.gradients(target_score(logits, target), retain_graph=False)
    return record


def _relevance(model: nn.Module, x: torch.Tensor, target: Target, start: int) -> TokenMatrix:
    record = _graded(model, x, target)
    # Attention that only chooses, without gradient, what other attention sees, has no part in the score.
    layers = [layer for layer in spatial_layers(record) if "probs" in layer.grads]
    if not 0 <= start < len(layers):
        raise ValueError(f"start must lie in 0..{len(layers) - 1}, got {start}")
    state = TokenMatrix(record, layers[0])
    for levels in levels_of(record, layers[start:]):
        state.add([((layer.probs * layer.grad).detach().float().relu(), layer) for layer in levels])
    return state
