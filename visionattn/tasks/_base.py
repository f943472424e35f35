"""The base of the tasks: a timm network created with checks, weights that must match, auxiliary losses."""

import logging
import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import timm
import torch
from mmengine.logging import print_log
from mmengine.model import BaseModel
from timm.models import get_pretrained_cfg, is_model_pretrained
from torch import nn

from visionattn.mixers import replace_attention as replace_with_mixer
from visionattn.models import unwrap
from visionattn.models.loading import LoadReport, load_fitting
from visionattn.plugins import attach as attach_plugin
from visionattn.utils.building import build, did_you_mean
from visionattn.utils.files import read_checkpoint

from ._weights import check_loaded, load_except_head, weights_of_changed_network, with_known_names
from .registry import FRONTENDS, LOSS_COLLECTORS

__all__ = ["Task", "check_kinds", "compile_network", "create_network"]

Losses = dict[str, torch.Tensor]
_logger = logging.getLogger(__name__)
# What most networks of timm take, for messages that guess.
_SETTINGS = (
    "checkpoint_path",
    "drop_path_rate",
    "drop_rate",
    "global_pool",
    "img_size",
    "in_chans",
    "num_classes",
    "pretrained",
)


class Task(BaseModel):
    """A network with its losses, as mmengine trains it; `backbone` is the part that comes from timm.

    Args:
        in_chans: How many channels its pictures have.
        channels_last: Keep weights and maps with their channels innermost, which convolutions are often faster with.
        start_from: What training starts from instead of what `backbone` says: `checkpoint`, the file of a run of this
            task with the same network; and `new_head=True` if that had other classes, so that the layers which depend
            on their number start anew.
        loss_collectors: What else is minimised; each `type` is a name in `LOSS_COLLECTORS`. By default what layers
            report (`visionattn.ops.losses.add_loss`).
        data_preprocessor: As in mmengine, usually `dict(type='ImgDataPreprocessor', mean=[...], std=[...])`.
        frontend: What stands before the backbone and learns with it: `type` is a name in `visionattn.tasks.FRONTENDS`,
            as `FeatEnHancer`, the rest its arguments.
    """

    kind: str  # what it does: classification, detection or segmentation

    def __init__(
        self,
        in_chans: int,
        channels_last: bool,
        start_from: dict[str, Any] | None,
        loss_collectors: Sequence[dict[str, Any]],
        data_preprocessor: dict[str, Any] | nn.Module | None,
        frontend: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(data_preprocessor=data_preprocessor)
        check_kinds(dict, "a dict", start_from=start_from, frontend=frontend)
        check_kinds((list, tuple), "a list of dicts", loss_collectors=loss_collectors)
        self.in_chans = in_chans
        self.frontend: nn.Module | None = None
        if frontend is not None:
            self.frontend = build(FRONTENDS, frontend, "frontend", in_channels=in_chans)
        self.memory_format = torch.channels_last if channels_last else torch.preserve_format
        start_from = dict(start_from or {})
        if unknown := start_from.keys() - {"checkpoint", "new_head"}:
            raise ValueError(f"start_from takes checkpoint and new_head, got {', '.join(sorted(unknown))}")
        if start_from and "checkpoint" not in start_from:
            raise ValueError("start_from needs the checkpoint to start from")
        self.start_from = start_from
        self.loss_collectors = [
            build(LOSS_COLLECTORS, config, "loss collector", network=self) for config in loss_collectors
        ]

    def init_weights(self) -> None:
        """Loads the weights of `start_from` before training. All others are loaded when the network is built.

        Raises:
            FileNotFoundError: If there is no such checkpoint.
            ValueError: If it does not fit, or only without its head and `new_head` is not set.
        """
        if not self.start_from:
            return
        path = self.start_from["checkpoint"]
        given = self.with_own_names(unwrap(read_checkpoint(path)))
        new = load_except_head(self, given, path, self.start_from.get("new_head", False))
        anew = f"; new start {', '.join(new)}" if new else ""
        print_log(f"start_from {path}: {len(given) - len(new)} of {len(given)} tensors taken over{anew}", "current")

    def with_own_names(self, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Weights under the task's names."""
        return state_dict

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

    def checked(self, inputs: torch.Tensor) -> torch.Tensor:
        """A batch in the network's memory format.

        Raises:
            ValueError: If it is no batch of normalised pictures with as many channels as the network takes.
        """
        if inputs.ndim != 4 or inputs.shape[1] != self.in_chans:
            raise ValueError(
                f"inputs must be (B, {self.in_chans}, H, W), got {tuple(inputs.shape)}: model.backbone.in_chans is "
                f"{self.in_chans}, and data sets give RGB pictures"
            )
        if not inputs.is_floating_point():
            raise ValueError(f"inputs must be normalised, got {inputs.dtype}: the config lacks a data_preprocessor")
        return inputs.to(memory_format=self.memory_format)

    def enhanced(self, inputs: torch.Tensor) -> torch.Tensor:
        """The input of the backbone: the batch, processed by the front-end if there is one.

        Raises:
            ValueError: If the front-end gives another shape.
        """
        if self.frontend is None:
            return inputs
        out = self.frontend(inputs)
        if out.shape != inputs.shape:
            name = type(self.frontend).__name__
            raise ValueError(
                f"frontend {name} must give pictures of the shape it gets, {tuple(inputs.shape)}, got "
                f"{tuple(out.shape)}"
            )
        return out

    def with_collected(self, compute: Callable[[], Losses]) -> Losses:
        """The losses, and those that collectors report while they are computed.

        Raises:
            ValueError: If two have one name.
        """
        with ExitStack() as stack:
            for collector in self.loss_collectors:
                stack.enter_context(collector)
            losses = compute()
        for collector in self.loss_collectors:
            for name, value in collector.losses().items():
                if f"loss_{name}" in losses:
                    raise ValueError(
                        f"{type(collector).__name__} has a loss {name!r}, as the task or another collector"
                    )
                losses[f"loss_{name}"] = value
        return losses


def check_kinds(kind: type | tuple[type, ...], what: str, **arguments: Any) -> None:
    """Raises a ValueError if a given argument is not of a type; booleans are not numbers.

    Args:
        kind: What it must be.
        what: How to call that in the message.
        **arguments: The arguments by name; None is passed over.
    """
    for name, value in arguments.items():
        wrong = not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)
        if value is not None and wrong:
            raise ValueError(f"{name} must be {what}, got {value!r}")


def create_network(
    backbone: dict[str, Any],
    attach: dict[str, Any] | None = None,
    replace_attention: dict[str, Any] | None = None,
    **fixed: Any,
) -> nn.Module:
    """A timm network as a config describes it.

    Args:
        backbone: Arguments of `timm.create_model`, `model_name` among them. Weights by file:
            `pretrained=True, pretrained_cfg_overlay=dict(file=PATH)`; the file may name timm's layers differently, and
            may be a training checkpoint for other classes, whose head is left out.
            `pretrained='packaged'` takes weights that come with the package and none if there are none.
            `grad_checkpointing=True` computes blocks again in the backward pass, and keeps less memory.
        attach: Arguments of `visionattn.attach`: puts a plug-in into the network, pretrained weights kept.
        replace_attention: Arguments of `visionattn.replace_attention`: a mixer in the place of attention.
        **fixed: Further arguments of `timm.create_model`, which the task decides.

    Raises:
        FileNotFoundError: If a file of weights is missing.
        ValueError: If the network is unknown, does not take an argument or has no weights, an argument is the task's to
            decide, or a file of weights does not fit.
    """
    checkpointing = backbone.get("grad_checkpointing", False)
    backbone = {key: value for key, value in backbone.items() if key != "grad_checkpointing"}
    network: Any = _create_network(backbone, attach, replace_attention, **fixed)
    if checkpointing:
        # Some wrappers that give feature maps leave it to the network in them.
        (network if hasattr(network, "set_grad_checkpointing") else network.model).set_grad_checkpointing()
    return network


def _create_network(
    backbone: dict[str, Any],
    attach: dict[str, Any] | None,
    replace_attention: dict[str, Any] | None,
    **fixed: Any,
) -> nn.Module:
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
    changed = (attach or replace_attention) and "features_only" not in fixed
    if changed and (weights := weights_of_changed_network(backbone)) is not None:
        plain = {key: value for key, value in backbone.items() if not key.startswith("pretrained")}
        network = _changed(timm.create_model(**plain, **fixed), attach, replace_attention)
        report = load_fitting(network, weights, other_classes=True)
        _logger.log(logging.WARNING if report.new else logging.INFO, "%s: %s", name, report)
        return network
    arguments, given = with_known_names({**backbone, "pretrained": _wanted(backbone)})
    try:
        network = timm.create_model(**arguments, **fixed)
    except TypeError as error:
        if unknown := re.search(r"unexpected keyword argument '(\w+)'", str(error)):
            close = did_you_mean(unknown[1], _SETTINGS)
            raise ValueError(f"model.backbone: {name} has no setting {unknown[1]!r}{close}") from error
        keys = ", ".join(sorted(backbone.keys() - {"model_name"}))
        raise ValueError(f"cannot build {name} with {keys} (model.backbone): {error}") from error
    except RuntimeError as error:
        if "pretrained" not in str(error):
            raise
        raise ValueError(
            f"{error} (model.backbone.model_name={name}; model.backbone.pretrained=False trains from scratch)"
        ) from error
    if given is not None:
        check_loaded(network, given, backbone["pretrained_cfg_overlay"]["file"])
    return _changed(network, attach, replace_attention)


def _changed(network: nn.Module, attach: dict[str, Any] | None, replace_attention: dict[str, Any] | None) -> nn.Module:
    if replace_attention:
        network = replace_with_mixer(network, **replace_attention)
    return attach_plugin(network, **attach) if attach else network


def _wanted(backbone: dict[str, Any]) -> bool:
    """Whether weights are to be loaded: True, False or whether they are `packaged`."""
    pretrained = backbone.get("pretrained", False)
    if pretrained in (True, False, None):
        return bool(pretrained)
    if pretrained != "packaged":
        raise ValueError(f"model.backbone.pretrained must be True, False or 'packaged', got {pretrained!r}")
    name = backbone["model_name"]
    file = (backbone.get("pretrained_cfg_overlay") or {}).get("file")
    if file is None and timm.is_model(name):
        file = getattr(get_pretrained_cfg(name), "file", None)
    if file is None or not Path(file).is_file():
        print_log(f"no weights of {name} come with the package: its backbone starts from scratch", "current")
        return False
    return True


def compile_network(network: nn.Module, compile: bool | dict[str, Any]) -> None:
    """Compiles a network in place if asked: True, or the arguments of torch.compile."""
    if compile:
        network.compile(**(compile if isinstance(compile, dict) else {}))
