"""How much a head matters, and at which distances it looks.

Are Sixteen Heads Really Better than One? (NeurIPS 2019, arXiv 1905.10650); How Does Attention Work in Vision
Transformers? (IEEE VIS 2023, arXiv 2303.13731) for rings.

Official code: https://github.com/pmichel31415/are-16-heads-really-better-than-1, scripts for text models only.

Differs from the paper in: the gradient of a gate on a head is the sum over tokens and channels of `out * d loss/d out`,
so no gate is put into the network, and one backward pass gives it for each image by itself.

Golden: tests/golden/explain_head_importance_*.npz.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from .capture import capture
from .layer import Layer

__all__ = ["ablation", "gate_gradients", "head_importance", "local_mass", "ring_profile"]

# Of logits `(B, classes)` and labels; gives a loss for each image.
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def gate_gradients(
    model: nn.Module, x: torch.Tensor, labels: torch.Tensor, loss: Loss | None = None
) -> list[torch.Tensor]:
    """The derivative of each image's loss with respect to a factor on each head, `(B, heads)` for each layer.

    Args:
        model: The network, in evaluation mode.
        x: Images `(B, C, H, W)`.
        labels: Their classes `(B,)`.
        loss: Of logits and labels, one number an image; cross entropy without it.
    """
    with torch.enable_grad(), capture(model, keep=("out",)) as record:
        logits = model(x)
    record.gradients(_losses(logits, labels, loss).sum(), of="out", retain_graph=False)
    return [(layer.out.detach() * layer.grad_of("out")).sum((1, 3, 4)) for layer in record if "out" in layer.grads]


def head_importance(
    model: nn.Module,
    x: torch.Tensor,
    labels: torch.Tensor,
    loss: Loss | None = None,
    *,
    normalise_layers: bool = False,
) -> list[torch.Tensor]:
    """The mean over the images of the magnitude of each head's gate gradient, `(heads,)` for each layer.

    Args:
        model: As for `gate_gradients`.
        x: As there.
        labels: As there.
        loss: As there.
        normalise_layers: Divide each layer's by their 2-norm, as the paper does before it ranks the heads of all.
    """
    means = [gradients.abs().mean(0) for gradients in gate_gradients(model, x, labels, loss)]
    return [mean / (mean.norm() + 1e-20) for mean in means] if normalise_layers else means


def ablation(model: nn.Module, x: torch.Tensor, labels: torch.Tensor, loss: Loss | None = None) -> list[torch.Tensor]:
    """The change of the mean loss when one head is switched off, `(heads,)` for each layer. Arguments as above."""
    with torch.no_grad():
        with capture(model, keep=()) as record:
            before = _losses(model(x), labels, loss).mean()
        table = []
        for number, heads in [(layer.index, layer.shape[2]) for layer in record]:
            changes = []
            for head in range(heads):
                with capture(model, keep=(), edit=partial(_without, number=number, head=head)):
                    changes.append(_losses(model(x), labels, loss).mean() - before)
            table.append(torch.stack(changes))
    return table


def ring_profile(patches: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Mean attention at each Chebyshev distance between patches, over the queries that have neighbours so far away.

    `(..., P, P) -> (..., rings)`, from distance 0 to the longer side of the grid minus 1. Rows are taken as they are.

    Args:
        patches: Probabilities between the patches, P = H * W.
        grid: `(H, W)`.
    """
    distance = _chebyshev(grid, patches.device)
    rings = []
    for ring in range(max(grid)):
        inside = (distance == ring).to(patches.dtype)
        count = inside.sum(-1)
        means = (patches * inside).sum(-1) / count.clamp_min(1)
        rings.append((means * (count > 0)).sum(-1) / (count > 0).sum())
    return torch.stack(rings, -1)


def local_mass(patches: torch.Tensor, grid: tuple[int, int], *, radius: int = 1) -> torch.Tensor:
    """How much of its attention a patch gives to its neighbourhood, mean over the patches. `(..., P, P) -> (...)`.

    Rows count as they are: what goes to extra tokens is not local.

    Args:
        patches: Probabilities between the patches, P = H * W.
        grid: `(H, W)`.
        radius: Chebyshev distance up to which patches are neighbours: 1 for 3 x 3 patches.
    """
    return (patches * (_chebyshev(grid, patches.device) <= radius)).sum(-1).mean(-1)


def _chebyshev(grid: tuple[int, int], device: torch.device) -> torch.Tensor:
    places = torch.cartesian_prod(*(torch.arange(side, device=device) for side in grid))
    return (places[:, None] - places[None]).abs().amax(-1)


def _losses(logits: torch.Tensor, labels: torch.Tensor, loss: Loss | None) -> torch.Tensor:
    return F.cross_entropy(logits, labels, reduction="none") if loss is None else loss(logits, labels)


def _without(layer: Layer, number: int, head: int) -> torch.Tensor:
    if layer.index != number:
        return layer.probs
    kept = torch.ones(layer.shape[2], dtype=layer.probs.dtype, device=layer.probs.device)
    kept[head] = 0
    return layer.probs * kept.view(-1, 1, 1)
