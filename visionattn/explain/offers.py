"""The explanation methods that a network supports, and why it does not support the rest."""

from importlib.util import find_spec

import torch
from torch import nn

from .attributions import ATTRIBUTIONS
from .cams import CAMS, cam_layer
from .capture import capture
from .gating import spatial_gates
from .maps import spatial_layers

__all__ = ["METHODS", "methods"]

# Every method of `visionattn explain`, with what it shows.
METHODS = {
    "attention": "what one place of the image, or the class token, looks at in one layer",
    "rollout": "attention multiplied through all layers",
    "relevance": "attention times gradient, added up through all layers (Chefer et al.)",
    "attention-gradcam": "Grad-CAM of one layer's attention",
    **dict.fromkeys(CAMS, "class activation map of the package grad-cam"),
    "captum:integrated-gradients": "the share of each pixel in the score, along the way from the mean colour",
    "captum:occlusion": "what the score loses where a square is covered",
    "captum:lime": "the share of each superpixel in a linear model of the score",
    "gates": "spatial gates of plug-ins",
}


def methods(model: nn.Module, x: torch.Tensor) -> dict[str, str]:
    """For every method, why the network does not support it; empty if it does.

    Args:
        model: The network.
        x: Images that it takes.
    """
    attention = placed = layered = gated = ""
    try:
        with torch.no_grad(), capture(model, keep=("probs",)) as record:
            model(x)
        spatial_layers(record)
    except ValueError as error:
        attention = placed = str(error)
    try:
        cam_layer(model, x)
    except ValueError as error:
        layered = str(error)
    if not layered and find_spec("pytorch_grad_cam") is None:
        layered = "needs grad-cam: pip install 'visionattn[explain]'"
    try:
        spatial_gates(model, x)
    except ValueError as error:
        gated = str(error)
    reasons = dict.fromkeys(METHODS, placed) | dict.fromkeys(CAMS, layered)
    missing = "" if find_spec("captum") else "needs captum: pip install 'visionattn[explain]'"
    reasons |= dict.fromkeys(ATTRIBUTIONS, missing)
    return reasons | {"attention": attention, "gates": gated}
