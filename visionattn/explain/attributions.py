"""Attributions to pixels through the package captum: what a score owes to each part of the picture.

The package is imported when a map is asked for: `pip install 'visionattn[explain]'`. Its methods take any network, also
one without attention. What is taken away is replaced by zero, which in normalised pictures is the mean colour of the
training data.

Integrated gradients: Axiomatic Attribution for Deep Networks (ICML 2017, arXiv 1703.01365). Occlusion: Visualizing and
Understanding Convolutional Networks (ECCV 2014, arXiv 1311.2901). LIME: "Why Should I Trust You?" (KDD 2016, arXiv
1602.04938), on superpixels by SLIC, where the authors' code takes quickshift, and weighted by the likeness of pictures,
where it compares the choices; the linear model is ridge regression as there.
"""

import torch
from torch import nn

from visionattn.utils.arguments import check_choice

from ._evaluation import evaluating
from ._target import Score, Target, class_of_each, is_score

__all__ = ["ATTRIBUTIONS", "attribution"]

# Perturbed pictures that the network gets at once.
_BATCH = 16


def _integrated_gradients(score: Score, x: torch.Tensor, classes: torch.Tensor | None) -> torch.Tensor:
    from captum.attr import IntegratedGradients

    return IntegratedGradients(score).attribute(x, target=classes, internal_batch_size=max(_BATCH, len(x)))


@torch.no_grad()
def _occlusion(score: Score, x: torch.Tensor, classes: torch.Tensor | None) -> torch.Tensor:
    from captum.attr import Occlusion

    side = max(min(x.shape[-2:]) // 8, 1)
    step = max(side // 2, 1)
    return Occlusion(score).attribute(
        x,
        sliding_window_shapes=(x.shape[1], side, side),
        strides=(x.shape[1], step, step),
        target=classes,
        perturbations_per_eval=max(_BATCH // len(x), 1),
    )


@torch.no_grad()
def _lime(score: Score, x: torch.Tensor, classes: torch.Tensor | None) -> torch.Tensor:
    from captum._utils.models.linear_model import SkLearnRidge
    from captum.attr import Lime
    from skimage.segmentation import slic

    # The authors' linear model; the package's own, a lasso, gives nothing where scores are small.
    tool = Lime(score, interpretable_model=SkLearnRidge(alpha=1.0))
    found = []
    with torch.random.fork_rng([]):
        for index, image in enumerate(x):
            torch.manual_seed(0)
            parts = slic(image.movedim(0, -1).cpu().float().numpy(), n_segments=50, start_label=0, channel_axis=-1)
            found.append(
                tool.attribute(
                    image[None],
                    target=None if classes is None else classes[index : index + 1],
                    feature_mask=torch.from_numpy(parts).to(x.device)[None, None],
                    n_samples=200,
                    perturbations_per_eval=_BATCH,
                )
            )
    return torch.cat(found)


# How each method attributes a score to pixels.
ATTRIBUTIONS = {
    "captum:integrated-gradients": _integrated_gradients,
    "captum:occlusion": _occlusion,
    "captum:lime": _lime,
}


def attribution(
    model: nn.Module, x: torch.Tensor, target: Target = None, *, method: str = "captum:integrated-gradients"
) -> torch.Tensor:
    """The share of each pixel in the score, summed over colours. `(B, C, H, W) -> (B, H, W)`, with signs.

    Args:
        model: The network; its gradients and its mode are left as they are.
        x: Images.
        target: A class, one for each image, a function of the network's output that gives a number for each image, or
            none for the class that the network predicts.
        method: `captum:integrated-gradients`, 50 steps from the mean colour, which add up to the difference of the
            scores; `captum:occlusion`, by squares of an eighth of the shorter side that move by half of theirs;
            `captum:lime`, a linear model of 200 random choices among about 50 superpixels, the same ones in each call.

    Raises:
        ValueError: If the method is unknown, or the target does not fit the output.
        ModuleNotFoundError: If captum is not installed.
    """
    check_choice("method", method, ATTRIBUTIONS)
    with evaluating(model):
        if is_score(target):
            found = ATTRIBUTIONS[method](_after(model, target), x.detach(), None)
        else:
            found = ATTRIBUTIONS[method](model, x.detach(), _classes(model, x, target))
    return found.detach().sum(1)


def _after(model: nn.Module, target: Score) -> Score:
    return lambda images: target(model(images))


@torch.no_grad()
def _classes(model: nn.Module, x: torch.Tensor, target: Target) -> torch.Tensor:
    output = model(x)
    if not isinstance(output, torch.Tensor) or output.ndim != 2:
        raise ValueError("target must be a function of the network's output, which is no (B, classes)")
    return output.argmax(1) if target is None else class_of_each(target, len(x), output.shape[1], x.device)
