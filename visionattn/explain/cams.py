"""Class activation maps through the package grad-cam, with the layer and its layout chosen for the network.

The package is imported when a map is asked for: `pip install 'visionattn[explain]'`. It reads any four-axis output as
`(B, C, H, W)` and says nothing where it is `(B, H, W, C)`; here the layout of the layer is found by its sizes.
"""

from typing import Any

import torch
from torch import nn

from visionattn.utils.arguments import check_choice

from ._evaluation import evaluating
from ._maps import MapFinder, MapLayout, modules_with_maps
from ._target import Target, class_of_each, is_score, target_score
from .capture import capture
from .tokens import inner_network, tokens

__all__ = ["CAMS", "cam", "cam_layer"]

# Our names and the package's classes.
CAMS = {
    "gradcam": "GradCAM",
    "gradcam++": "GradCAMPlusPlus",
    "hirescam": "HiResCAM",
    "xgradcam": "XGradCAM",
    "layercam": "LayerCAM",
    "eigencam": "EigenCAM",
    "eigengradcam": "EigenGradCAM",
    "scorecam": "ScoreCAM",
    "ablationcam": "AblationCAM",
}
# What follows the last map.
_HEADS = ("attn_pool", "global_pool", "head.", "fc")


def cam(
    model: nn.Module, x: torch.Tensor, target: Target = None, *, method: str = "gradcam", layer: str | None = None
) -> torch.Tensor:
    """A class activation map in 0..1, `(B, H, W)` in the size of the images.

    Args:
        model: The network; its gradients and its mode are left as they are.
        x: Images `(B, C, H, W)`.
        target: A class, one for each image, a function of the logits that gives a number for each image, or none for
            the class that the network predicts.
        method: `gradcam`, `gradcam++`, `hirescam`, `xgradcam`, `layercam`, `eigencam`, `eigengradcam`, `scorecam` or
            `ablationcam`.
        layer: Name of the module whose output is weighted; by default see `cam_layer`.

    Raises:
        ValueError: If the method is unknown, or there is no such module or its output is not a map.
        ModuleNotFoundError: If grad-cam is not installed.
    """
    check_choice("method", method, CAMS)
    name, layout = cam_layer(model, x, layer)
    import pytorch_grad_cam

    kept = [(parameter, parameter.grad) for parameter in model.parameters()]
    weighted = model.get_submodule(name)
    found = None
    try:
        with evaluating(model):  # before the package is made, which sets it itself
            make = getattr(pytorch_grad_cam, CAMS[method])
            options = {"ablation_layer": _ablation_layer(layout)} if method == "ablationcam" else {}
            tool = make(model, [weighted], reshape_transform=layout.channels_first, **options)
            images = x.detach().clone().requires_grad_()  # also frozen networks have gradients then
            with torch.enable_grad(), tool as run:
                found = run(input_tensor=images, targets=_targets(target, len(x)))
    finally:
        model.set_submodule(name, weighted)  # ablation leaves its own there if the network fails
        for parameter, grad in kept:
            parameter.grad = grad
    if found is None:  # the package prints index errors and goes on
        raise ValueError(f"grad-cam's {CAMS[method]} fails on {name} of {type(model).__name__}: see what it printed")
    return torch.from_numpy(found).float()


def cam_layer(model: nn.Module, x: torch.Tensor, layer: str | None = None) -> tuple[str, MapLayout]:
    """The module whose output is weighted, and its memory layout.

    By default the last map of the network, which of a detector or segmentor is its backbone's; where the class is read
    from an extra token, the last one before the last attention, as nothing behind it mixes tokens and the gradients of
    all patches are zero there.

    Raises:
        ValueError: If no module gives a map, or the named one does not.
    """
    known = tokens(model, x.shape[-2:])
    finder = MapFinder(model, x)
    found: list[tuple[str, MapLayout]] = []
    handles = []
    network = inner_network(model)
    within = next((f"{name}." for name, module in model.named_modules() if name and module is network), "")
    for name, module in modules_with_maps(model):
        inside = name.startswith(within) and not name.removeprefix(within).startswith(_HEADS)
        if not name or (name != layer if layer is not None else not inside):
            continue

        def note(module: nn.Module, args: Any, out: Any, name: str = name) -> None:
            if (layout := finder.find(module, out)) is not None and layout.grid != (1, 1):
                found.append((name, layout))

        handles.append(module.register_forward_hook(note))
    if layer is not None and not handles:
        raise ValueError(f"layer must name a module of {type(model).__name__}, there is no {layer!r}")
    before: list[int] = []
    paths: list[str] = []
    try:
        with torch.no_grad():
            if known.class_row is None:
                model(x)
            else:
                with capture(model, reduce=lambda attention: before.append(len(found))) as record:
                    model(x)
                paths = [attention.path for attention in record]
    finally:
        for handle in handles:
            handle.remove()
    if layer is None and paths:  # what attention itself makes before it attends is not the network's map
        found = [entry for entry in found[: before[-1]] if not entry[0].startswith(f"{paths[-1]}.")]
    if not found:
        what = f"the output of {layer} is no map" if layer else "no module gives a map"
        raise ValueError(f"{type(model).__name__} has nothing to weight: {what} of these images {tuple(x.shape)}")
    return found[-1]


def _ablation_layer(layout: MapLayout) -> Any:
    """Stands in for the weighted module and sets a channel of its map to zero in each copy of an image.

    The package's own has the channels on the second axis and, where a map has no zeros, ablates by -1e7; the paper by
    zero.
    """
    from pytorch_grad_cam.ablation_layer import AblationLayer

    class Ablation(AblationLayer):
        def set_next_batch(
            self, input_batch_index: int, activations: torch.Tensor, num_channels_to_ablate: int
        ) -> None:
            image = activations[input_batch_index : input_batch_index + 1]
            self.activations = image.repeat(num_channels_to_ablate, *[1] * (image.ndim - 1))

        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            maps = layout.channels_first(self.activations)
            for one, channel in zip(maps, self.indices, strict=False):  # the later ones belong to the next batches
                one[channel] = 0
            return self.activations

    return Ablation()


def _targets(target: Target, count: int) -> list[Any] | None:
    """The targets as grad-cam expects them: one function of the logits per image."""
    if target is None:
        return None
    if is_score(target):
        return [lambda logits: target(logits[None]).sum()] * count
    chosen = class_of_each(target, count).tolist()
    return [lambda logits, number=number: target_score(logits[None], number) for number in chosen]
