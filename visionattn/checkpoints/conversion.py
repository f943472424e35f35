"""Conversion of weight files to our format and back: recognised, converted, traced weight by weight."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from visionattn.models import CONVERTERS, check_state_dict
from visionattn.utils.resources import read_manifest

from .files import write_published
from .layout import Layout, StateDict, Traced, trace
from .recognition import candidates

__all__ = ["Conversion", "convert", "export", "save"]

_TABLES = ("relative_position_index", "attn_mask", "relative_coords_table")


@dataclass(frozen=True)
class Conversion:
    """A weight file converted to our keys.

    Args:
        model: Registered name of the network.
        arguments: What the network needs beyond it.
        format: Whose names the file had: `native`, `official` or `timm`.
        state_dict: The weights under our keys.
        traced: Where each weight went.
    """

    model: str
    arguments: dict[str, Any]
    format: str
    state_dict: StateDict
    traced: Traced

    def build(self, **kwargs: Any) -> nn.Module:
        """The network, without the weights."""
        return timm.create_model(self.model, **self.arguments, **kwargs)

    def report(self) -> list[str]:
        """What happened to the entries of the file, and why some are dropped."""
        shapes, origins = self.traced.layout.shapes, self.traced.origins
        merged = [key for key, names in origins.items() if len(names) > 1]
        kept = [key for key, names in origins.items() if names == [key]]
        reshaped = [key for key, names in origins.items() if len(names) == 1 and self._moved(key, names[0])]
        lines = [
            f"{len(shapes)} entries of the {self.format} format became {len(origins)} of {self.model}: "
            f"{len(origins) - len(kept) - len(merged)} renamed, {len(kept)} kept their names, "
            f"{len(reshaped)} took another shape or order, {len(merged)} were put together of several"
        ]
        reasons = Counter(_reason(name) for name in self.traced.dropped)
        for reason, count in reasons.items():
            names = [name for name in self.traced.dropped if _reason(name) == reason]
            more = f" and {count - 3} more" if count > 3 else ""
            lines.append(f"left out {count}, {reason}: {', '.join(names[:3])}{more}")
        if counters := sum(k.endswith("num_batches_tracked") for k in self.build(device="meta").state_dict()) - sum(
            k.endswith("num_batches_tracked") for k in origins
        ):
            lines.append(f"{counters} counters of batch normalisation are not in the file; they change no result")
        return lines

    def _moved(self, key: str, name: str) -> bool:
        numbers = self.traced.numbers[key]
        shape = self.traced.layout.shapes[name]
        return tuple(numbers.shape) != shape or bool((numbers.flatten().diff() != 1).any())


def _reason(name: str) -> str:
    if name.endswith(_TABLES):
        return "tables that follow from the size of the pictures"
    return "which the official network holds and never uses"


def convert(
    state_dict: StateDict,
    layout: Layout,
    model: str | None = None,
    arguments: dict[str, Any] | None = None,
    file: str = "",
    track: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> Conversion:
    """Converts weights in any format that one of our families knows to our keys.

    Args:
        state_dict: The flat weights.
        layout: Theirs.
        model: Registered name of the network they are for; by default the one that they fit.
        arguments: Of the network, beyond its name.
        file: Name of the file, which may tell what it is.
        track: Shows how far the search is.

    Raises:
        ValueError: If they fit no network.
    """
    if model is not None and model not in CONVERTERS:
        raise ValueError(f"unknown network {model!r}; timm.list_models('va_*') lists ours")
    tried = [(model, arguments or {})] if model else list(candidates(state_dict, file))
    near: tuple[int, str, Exception] | None = None
    for name, given in track(tried):
        try:
            found = _fit(state_dict, layout, name, {**given, **(arguments or {})})
            # What the authors' weights need of the network, ours need not.
            return _fit(state_dict, layout, name, arguments or {}) if found.format == "native" and given else found
        except (ValueError, KeyError, TypeError) as error:
            if near is None or len(str(error)) < near[0]:
                near = len(str(error)), name, error
    if near is None:
        raise ValueError("the weights are in no format that a network of ours knows")
    _, name, fault = near
    raise ValueError(f"of {name}, {fault}" if model else f"the weights fit no network of ours: of {name}, {fault}")


def export(conversion: Conversion, like: Layout | None, kind: str) -> tuple[StateDict, Layout, list[str]]:
    """Converts our weights to the names and shapes of another format; converts them back and compares.

    Args:
        conversion: The weights under our keys.
        like: The layout of the official format, for any number of classes; `timm` needs none.
        kind: `official` or `timm`.

    Returns:
        The weights, their layout, and the entries of the layout that are left out because our network has none.

    Raises:
        ValueError: If there is no such format for the network, or the weights do not fit it.
    """
    own: Any = conversion.build(device="meta")
    if kind == "timm":
        like = _timm_layout(conversion)
    elif like is None:
        raise ValueError(
            f"how the official code lays out {conversion.model} is not known here; name a file in its format, which "
            "may be any state dict that the authors' network saves"
        )
    there = CONVERTERS[conversion.model]
    traced = trace(like, lambda marked: there(marked, own))
    heads = [f"{own.default_cfg['classifier']}.{kind}" for kind in ("weight", "bias")]
    resized = {
        traced.origins[key][0]: tuple(conversion.state_dict[key].shape)
        for key in heads
        if key in traced.numbers and traced.numbers[key].shape != conversion.state_dict[key].shape
    }
    if resized:  # another number of classes than in the file that shows the layout
        like = replace(like, shapes={**like.shapes, **resized})
        traced = trace(like, lambda marked: there(marked, own))
    # Old files lack the counters of batch normalisation, which change no result.
    counters = {k: torch.tensor(0) for k in traced.numbers if k.endswith("num_batches_tracked")}
    kept = {
        key: value
        for key, value in {**counters, **conversion.state_dict}.items()
        if key in traced.numbers or not key.endswith("num_batches_tracked")
    }
    exported = traced.back(kept)
    again = there(exported, own)
    if again.keys() != kept.keys() or not all(torch.equal(again[key], value) for key, value in kept.items()):
        raise ValueError("round-trip mismatch: converted back, the exported weights are not the same")
    return exported, like, traced.dropped


def save(conversion: Conversion, folder: str | Path) -> Path:
    """Writes weights under our keys as `<model>-<format>-<sha256>.safetensors`, which records their original layout.

    Args:
        conversion: The weights.
        folder: Where the file goes.
    """
    facts = {
        "model": conversion.model,
        "arguments": conversion.arguments,
        "layout": conversion.traced.layout.to_json(),
    }
    return write_published(conversion.state_dict, facts, folder, f"{conversion.model}-from-{conversion.format}")


def _fit(state_dict: StateDict, layout: Layout, name: str, arguments: dict[str, Any]) -> Conversion:
    """The conversion to one network.

    Raises:
        ValueError: If the weights do not fit it.
    """
    there = CONVERTERS[name]
    network: Any = timm.create_model(name, device="meta", **arguments)
    native = there(dict(state_dict), network)
    sizes = {}
    head, stem = (native.get(f"{network.default_cfg[part]}.weight") for part in ("classifier", "first_conv"))
    if head is not None and head.ndim == 2 and head.shape[0] != network.num_classes:
        sizes["num_classes"] = head.shape[0]
    if stem is not None and stem.ndim == 4 and stem.shape[1] != 3:
        sizes["in_chans"] = stem.shape[1]
    if sizes := {key: value for key, value in sizes.items() if key not in arguments}:
        arguments = {**arguments, **sizes}
        network = timm.create_model(name, device="meta", **arguments)
    check_state_dict(native, network)
    traced = trace(layout, lambda marked: there(marked, network))
    kind = "official"
    if native.keys() == state_dict.keys():
        kind = "native"
    elif timm.is_model(name.removeprefix("va_")) and name.removeprefix("va_") != name:
        theirs = timm.create_model(name.removeprefix("va_"), device="meta").state_dict()
        kind = "timm" if theirs.keys() == state_dict.keys() and _differs(name) else "official"
    return Conversion(name, arguments, kind, native, traced)


def _differs(name: str) -> bool:
    """Whether timm's names differ from the authors'."""
    return any(entry["model"] == name and entry["format"] == "timm" for entry in read_manifest().values())


def _timm_layout(conversion: Conversion) -> Layout:
    name = conversion.model.removeprefix("va_")
    if not timm.is_model(name):
        raise ValueError(f"timm has no network {name}, so there is no timm format of {conversion.model}")
    sizes = {key: value for key, value in conversion.arguments.items() if key in ("num_classes", "in_chans")}
    if conversion.arguments.keys() - sizes.keys():
        raise ValueError(f"timm's {name} does not have {', '.join(conversion.arguments.keys() - sizes.keys())}")
    return Layout.of(timm.create_model(name, device="meta", **sizes).state_dict())
