"""Saliency from counterfactual pictures, as in ACAT: Adversarial Counterfactual Attention for Classification and
Detection in Medical Imaging (ICML 2023, arXiv 2303.15421).

Official code: https://github.com/alessandro-f/ACAT (no licence file), saliency_maps.py.

Differs from the official code in:
- pictures come in batches, and none changes the result of another;
- each map is divided by its own maximum; the official code divides the second by that of the first, already scaled;
- of the channels of a difference the largest counts; the official pictures have one.
"""

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from visionattn.utils.arguments import check_positive

from ._evaluation import evaluating
from ._target import Classes, class_of_each

__all__ = ["counterfactual", "counterfactual_saliency"]

Code = Callable[[torch.Tensor], torch.Tensor]


def counterfactual(
    model: nn.Module,
    encoder: Code,
    decoder: Code,
    x: torch.Tensor,
    target: Classes,
    *,
    steps: int = 20,
    step_size: float = 0.1,
    distance: float = 100.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures as an autoencoder gives them back, and how they would have to look to be of another class.

    The code z of a picture goes down the gradient of `CE(model(decoder(z)), target) + distance * mean |z - z0|`, from
    z0 = `encoder(x)` on: so the picture stays one that the autoencoder knows, and near to what it was. The defaults are
    the paper's.

    Args:
        model: A classifier, `(B, C, H, W) -> (B, classes)`. It and the autoencoder compute in evaluation mode; neither
            their modes nor their gradients change.
        encoder: `(B, C, H, W)` to codes `(B, ...)`.
        decoder: Codes to pictures as the model takes them.
        x: Pictures `(B, C, H, W)`.
        target: The class that is wanted, or one for each picture.
        steps: How many steps to go.
        step_size: What the gradient is multiplied by.
        distance: Weight of the distance to the code of the picture.

    Returns:
        Pictures that the decoder makes of the codes at the start and at the end, `(B, C, H, W)` both.

    Raises:
        ValueError: If there is not one class for each picture, or not such a class, if `steps` is below 1, or if the
            decoder gives pictures of another shape.
    """
    check_positive(steps=steps)
    with evaluating(model, encoder, decoder):
        with torch.no_grad():
            start = encoder(x)
            before = decoder(start)
            if before.shape != x.shape:
                raise ValueError(f"decoder must give pictures {tuple(x.shape)}, got {tuple(before.shape)}")
            logits = model(before)
            wanted = class_of_each(target, len(x), logits.shape[1], logits.device)
        code = start
        for _ in range(steps):
            with torch.enable_grad():
                code = code.detach().requires_grad_()
                # Sums over the pictures: none changes the gradient of another.
                loss = F.cross_entropy(model(decoder(code)), wanted, reduction="sum")
                loss = loss + distance * (code - start).abs().flatten(1).mean(1).sum()
                (slope,) = torch.autograd.grad(loss, code)
            code = code - step_size * slope
        with torch.no_grad():
            return before, decoder(code.detach())


def counterfactual_saliency(
    model: nn.Module,
    encoder: Code,
    decoder: Code,
    x: torch.Tensor,
    targets: Sequence[int] = (1, 0),
    *,
    steps: int = 20,
    step_size: float = 0.1,
    distance: float = 100.0,
) -> torch.Tensor:
    """Where pictures would change to be of each of some classes: the second input of ACAT. `-> (B, 1, H, W)` in 0..1.

    For each class the magnitude of the change between both pictures of `counterfactual`, divided by its maximum; the
    mean of all classes. Of the class that a picture is of already there is little to change, so that its map, scaled as
    the others, is the noisier one.

    Args:
        model: As for `counterfactual`.
        encoder: As there.
        decoder: As there.
        x: Pictures `(B, C, H, W)`.
        targets: The classes; both of two in the paper.
        steps: As there.
        step_size: As there.
        distance: As there.

    Raises:
        ValueError: As there, or if no class is given.
    """
    if not targets:
        raise ValueError("targets must name one class at least, got none")
    maps = []
    for target in targets:
        before, after = counterfactual(
            model, encoder, decoder, x, target, steps=steps, step_size=step_size, distance=distance
        )
        change = (after - before).abs().amax(1, keepdim=True)
        tiny = torch.finfo(change.dtype).tiny
        maps.append(change / change.amax((2, 3), keepdim=True).clamp_min(tiny))
    return torch.stack(maps).mean(0)
