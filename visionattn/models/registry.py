"""Registers a family's table of networks with timm, with a tag for each of their published weights."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from timm.models import generate_default_cfgs, register_model
from torch import nn

from visionattn.catalog import Card
from visionattn.utils.resources import read_manifest
from visionattn.utils.weight_files import find, sources

from .builder import Converter, StateDict, build_model
from .published import with_checkpoint

__all__ = ["CONVERTERS", "Network", "card_source", "register_family"]

# Name of a network -> what maps weights in any format that its family knows to its own keys.
CONVERTERS: dict[str, Converter] = {}


@dataclass(frozen=True)
class Network:
    """A row of a family's table.

    Args:
        doc: What it is, in a line.
        build: The class of the network, or a function that builds it.
        arguments: Of `build`; a caller's own take their place.
        cfg: timm's cfg: the size of the input, the paper, the names of the first and the last layer.
        features: How timm extracts its features (`out_indices`, `feature_cls`), or what says so from the arguments.
    """

    doc: str
    build: Callable[..., nn.Module]
    arguments: Mapping[str, Any]
    cfg: Mapping[str, Any]
    features: Mapping[str, Any] | Callable[..., Mapping[str, Any]] = field(
        default_factory=lambda: {"out_indices": (0, 1, 2, 3), "feature_cls": "getter"}
    )


def register_family(module: str, networks: Mapping[str, Network], to_native: Converter | None = None) -> None:
    """Registers networks with timm, with a tag for each of their classifiers in the manifest of checkpoints.

    Their entrypoints, and `default_cfgs` as timm expects it, become attributes of the module.

    Args:
        module: Name of the module that describes them; its last part is what timm lists them under.
        networks: By name.
        to_native: Maps a flat state dict in any format that the family knows to a network's own keys; without it there
            is no format but those.
    """
    table: dict[str, Any] = {}
    for name, network in networks.items():
        entries = _classifiers().get(name, {})
        published = {tag: {**network.cfg, **_published_cfg(entry)} for tag, entry in entries.items()}
        table |= published or {name: dict(network.cfg)}
    holder = sys.modules[module]
    setattr(holder, "default_cfgs", generate_default_cfgs(table))  # noqa: B010 (unknown to type checkers)
    for name, network in networks.items():
        CONVERTERS[name] = to_native or _as_it_is
        setattr(holder, name, register_model(_entrypoint(module, name, network)))


def card_source(card: Card) -> tuple[str, str]:
    """The paper of a mechanism, and the address of its official code, or else of the paper."""
    return card.paper, card.code or card.paper.replace("arXiv:", "https://arxiv.org/abs/")


def _as_it_is(state_dict: StateDict, model: nn.Module) -> StateDict:
    return state_dict


@cache
def _classifiers() -> dict[str, dict[str, dict[str, Any]]]:
    """Name of a network -> the entries of its classifiers in the manifest, by name and tag."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for name, entry in read_manifest().items():
        if entry["task"] == "classification":
            found.setdefault(entry["model"], {})[name] = entry
    return found


def _published_cfg(entry: dict[str, Any]) -> dict[str, Any]:
    """The fields of timm's cfg that a manifest entry states."""
    if {"kind": "packaged"} in entry["sources"]:
        source = {"file": str(find(entry))}
    elif repositories := sources(entry, "hub", "id"):
        source = {"hf_hub_id": repositories[0]}
    else:
        # Tells timm that there are weights; `build_model` fetches them, for timm could not.
        source = {"url": (sources(entry, "url") + sources(entry, "page"))[0]}
    # Some authors do not say what may be done with their weights.
    return {"license": entry["license"] or "unknown", **source, **entry["input"]}


def _entrypoint(module: str, name: str, network: Network) -> Callable[..., nn.Module]:
    """The function that timm calls to create a network."""

    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        merged = {**network.arguments, **with_checkpoint(name, pretrained, kwargs)}
        features = network.features(**merged) if callable(network.features) else network.features
        # timm takes entries out of feature_cfg.
        return build_model(
            network.build, name, pretrained, to_native=CONVERTERS[name], feature_cfg=dict(features), **merged
        )

    create.__name__ = create.__qualname__ = name
    create.__module__ = module
    create.__doc__ = network.doc
    return create
