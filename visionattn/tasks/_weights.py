"""Loads weights of timm's own networks from a file, and fails where timm would silently load nothing."""

import logging
from typing import Any

import timm
from torch import nn

from visionattn.models import check_state_dict
from visionattn.models.loading import LoadReport, load_fitting, other_outputs
from visionattn.utils.files import read_checkpoint
from visionattn.utils.published import read_facts
from visionattn.utils.state_dict import StateDict, check_finite, network_weights

__all__ = ["check_loaded", "load_except_head", "weights_of_changed_network", "with_known_names"]

_logger = logging.getLogger(__name__)


def with_known_names(backbone: dict[str, Any]) -> tuple[dict[str, Any], StateDict | None]:
    """Reads the file of `pretrained_cfg_overlay`, if there is one and the network is not ours, and names its entries.

    Other packages name the same layers differently. Entries that share no name with timm's network, but have its shapes
    in its order, take its names; all others stay as they are, for timm may know the format.

    Args:
        backbone: Arguments of `timm.create_model`.

    Returns:
        The arguments, with the entries in place of the file, and the entries; ours check their files themselves, and
        then there are none.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged or holds code.
    """
    overlay = backbone.get("pretrained_cfg_overlay") or {}
    name = backbone["model_name"]
    if not backbone.get("pretrained") or "file" not in overlay or name.startswith("va_"):
        return backbone, None
    given = network_weights(read_checkpoint(overlay["file"]), overlay["file"])
    check_finite(given, overlay["file"])
    own = timm.create_model(name).state_dict()
    shapes = [[tuple(value.shape) for value in entries.values()] for entries in (given, own)]
    if not given.keys() & own.keys() and shapes[0] == shapes[1]:
        given = dict(zip(own, given.values(), strict=True))
    overlay = {key: value for key, value in overlay.items() if key != "file"} | {"state_dict": given}
    cfg = timm.get_pretrained_cfg(name)
    head = given.get(f"{cfg.classifier}.weight") if cfg else None
    if head is not None:  # or timm would take the file to have as many classes as its own weights
        overlay.setdefault("num_classes", len(head))
    return {**backbone, "pretrained_cfg_overlay": overlay}, given


def weights_of_changed_network(backbone: dict[str, Any]) -> StateDict | None:
    """The entries of the file of `pretrained_cfg_overlay` if the network was modified before they were saved.

    Args:
        backbone: Arguments of `timm.create_model`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged or holds code.
    """
    file = (backbone.get("pretrained_cfg_overlay") or {}).get("file")
    if not backbone.get("pretrained") or not file:
        return None
    given = network_weights(read_checkpoint(file), file)
    check_finite(given, file)
    modified = (read_facts(file) or {}).get("modifications")
    return given if modified or any(".plugin." in key for key in given) else None


def check_loaded(network: nn.Module, given: StateDict, file: str) -> None:
    """Raises if no weight of a network comes from a file, and reports the new ones, which timm hardly does.

    Args:
        network: As timm made it.
        given: The entries of the file, by timm's names or not.
        file: Where they are from.

    Raises:
        ValueError: If none is in the network.
    """
    known = {value.double().sum().item() for value in given.values() if value.ndim > 1}
    if not any(p.detach().double().sum().item() in known for p in network.parameters() if p.ndim > 1):
        names = ", ".join(list(given)[:3])
        raise ValueError(
            f"{file} (pretrained_cfg_overlay.file) does not fit {type(network).__name__}: it holds {names}, ..., and "
            "nothing of it could be loaded"
        )
    own = network.state_dict()
    new = tuple(key for key, value in own.items() if key in given and given[key].shape != value.shape)
    if new:
        _logger.warning("%s: %s", file, LoadReport(len(own.keys() & given.keys()) - len(new), new))


def load_except_head(module: nn.Module, given: StateDict, file: str, new_head: bool) -> list[str]:
    """Loads weights of the same network; weights that depend on the number of classes may be kept.

    That is what differs in its first dimension only.

    Args:
        module: The network.
        given: The weights, by its names.
        file: Where they are from.
        new_head: Whether anything may be left.

    Returns:
        What was left, with its shape in the file and here.

    Raises:
        ValueError: If anything else does not fit, or something is left without `new_head`.
    """
    head = other_outputs(module, given)
    left = [f"{key} ({len(given[key])} -> {len(module.state_dict()[key])})" for key in head]
    if left and not new_head:
        check_state_dict({**given, **{key: module.state_dict()[key] for key in head}}, module)
        raise ValueError(
            f"{file} was trained on another number of classes: {', '.join(left)}. model.start_from.new_head=True "
            "starts these anew and keeps everything else"
        )
    load_fitting(module, given, new_head)
    return left
