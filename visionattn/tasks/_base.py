"""What the tasks share: a timm network that is created with checks, and weights that must fit exactly."""

import logging
from typing import Any

import timm
import torch
from mmengine.model import BaseModel
from timm.models import is_model_pretrained
from torch import nn

from visionattn.models.loading import LoadReport, load_fitting
from visionattn.plugins import attach as attach_plugin

from ._weights import check_loaded, weights_with_plugins, with_known_names

__all__ = ["Task", "compile_network", "create_network"]

_logger = logging.getLogger(__name__)


class Task(BaseModel):
    """A network with its losses, as mmengine trains it; `backbone` is the part that comes from timm."""

    kind: str  # what it does: classification, detection or segmentation

    def __init__(self, channels_last: bool, data_preprocessor: dict[str, Any] | nn.Module | None) -> None:
        super().__init__(data_preprocessor=data_preprocessor)
        self.memory_format = torch.channels_last if channels_last else torch.preserve_format

    def init_weights(self) -> None:
        """Does nothing: timm's networks start when they are built, and pretrained weights must stay."""

    def load_weights(self, state_dict: dict[str, torch.Tensor], other_classes: bool = False) -> LoadReport:
        """Loads weights of this task.

        Args:
            state_dict: The weights.
            other_classes: Whether they may be for other classes: then the outputs that differ stay as they are.

        Returns:
            What was loaded, and what is new.

        Raises:
            ValueError: If anything else is missing, unknown or of another shape.
        """
        return load_fitting(self, state_dict, other_classes)


def create_network(backbone: dict[str, Any], attach: dict[str, Any] | None = None, **fixed: Any) -> nn.Module:
    """A timm network as a config describes it.

    Args:
        backbone: Arguments of `timm.create_model`, `model_name` among them. Weights by file:
            `pretrained=True, pretrained_cfg_overlay=dict(file=PATH)`; the file may name timm's layers differently, and
            may be a training checkpoint for other classes, whose head is left out.
        attach: Arguments of `visionattn.attach`: puts a plug-in into the network, pretrained weights kept.
        **fixed: Further arguments of `timm.create_model`, which the task decides.

    Raises:
        FileNotFoundError: If a file of weights is missing.
        ValueError: If the network is unknown, an argument is the task's to decide, or a file of weights does not fit.
    """
    name = backbone.get("model_name")
    if not isinstance(name, str) or not (timm.is_model(name) or ":" in name):
        raise ValueError(f"unknown model {name!r} (model.backbone.model_name); timm.list_models('va_*') lists ours")
    if "." in name and ":" not in name and not name.startswith("va_") and not is_model_pretrained(name):
        raise ValueError(
            f"timm has no weights {name!r}; a file published under this name is given by "
            f"model_name={name.partition('.')[0]!r}, pretrained=True, pretrained_cfg_overlay=dict(file=...)"
        )
    if clash := sorted(backbone.keys() & fixed.keys()):
        raise ValueError(f"model.backbone may not set {', '.join(clash)}: the task decides it")
    if attach and "features_only" not in fixed and (weights := weights_with_plugins(backbone)) is not None:
        plain = {key: value for key, value in backbone.items() if not key.startswith("pretrained")}
        network = attach_plugin(timm.create_model(**plain, **fixed), **attach)
        report = load_fitting(network, weights, other_classes=True)
        _logger.log(logging.WARNING if report.new else logging.INFO, "%s: %s", name, report)
        return network
    arguments, given = with_known_names(backbone)
    network = timm.create_model(**arguments, **fixed)
    if given is not None:
        check_loaded(network, given, backbone["pretrained_cfg_overlay"]["file"])
    return attach_plugin(network, **attach) if attach else network


def compile_network(network: nn.Module, compile: bool | dict[str, Any]) -> None:
    """Compiles a network in place if asked: True, or the arguments of torch.compile."""
    if compile:
        network.compile(**(compile if isinstance(compile, dict) else {}))
