"""Inserts attention into any network with feature maps, keeping its pretrained weights."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from visionattn.catalog import cards
from visionattn.utils.factory import FactoryKwargs
from visionattn.utils.modifications import record_modification
from visionattn.utils.tables import format_table

from ._attached import AttachedModule, ZeroInitGate
from ._conditioned import Conditioned, resolve_gate
from ._dry_run import input_shapes
from ._epilogue import fuse_epilogue
from ._insertion import InsertionPoint, find_insertion_points
from ._named import Names
from ._resolve import resolve_plugin

__all__ = ["Place", "Places", "attach"]


@dataclass(frozen=True)
class Place:
    """An inserted plug-in: its name in the model, the width of its maps, the stage, and its kind."""

    name: str
    channels: int
    stage: int
    plugin: str


class Places(list[Place]):
    """The places of a model; prints as a table."""

    def __str__(self) -> str:
        rows = [("place", "channels", "stage", "plug-in")]
        rows += [(place.name, str(place.channels), str(place.stage), place.plugin) for place in self]
        return format_table(rows)


def attach(
    model: nn.Module,
    plugin: str | dict[str, Any] | Callable[..., nn.Module],
    where: Names = "block_end",
    stages: int | Iterable[int] | None = None,
    start: str = "identity",
    example_input: Any = None,
    condition: bool = False,
    **kwargs: Any,
) -> nn.Module:
    """Inserts a plug-in into every block, after every stage or after named modules of a network, which it returns.

    `model.attached` then lists the places (`print(model.attached)` shows a table) and a plug-in is
    `model.get_submodule(place.name)`. The entries of the network's state dict keep their names, so weights from before
    still load with `strict=False`; weights saved afterwards load after the same `attach` on a fresh network, which
    `model.modifications` notes as plain data for `visionattn.checkpoints.publish`. Patterns and predicates are noted as
    the names that they chose.

    The network is run once without data to see which of its modules give maps `(B, C, H, W)`, and how wide they are.

    Args:
        model: A network of timm or torchvision, with or without classifier, also one made with `features_only`; with
            named places any network that runs.
        plugin: A name of `list_plugins()`, a class that takes the number of channels, or a dict with `type` and
            further arguments.
        where: `block_end` is the end of each block's branch: after its last layer (and a squeeze-excitation or layer
            scale there), before stochastic depth and the addition. A block without an addition has it at its output:
            an inverted bottleneck with stride 2; a layer of DenseNet, before its features join the others; in VGG a
            convolution with its activation. `stage_end` is the output of each stage.

            Anything else names modules, each of which gets a plug-in behind it (at its last part, if the module gives
            that one's map as it is): a name as in `named_modules()`, a
            pattern of names (`encoder.stages.*.layers.*`; `*` stays inside one part of a name, `**` goes over any
            number of parts), a compiled regular expression that the whole name must match, a list of those, or a
            predicate `(name, module) -> bool`. A module that is named itself must give one map; of those that fit a
            pattern or a predicate, the ones that don't are passed over.
        stages: Numbers of the stages to change; all if None. They count from 0 without the stem: entries of timm's
            `feature_info` that have blocks, or sizes of the map in networks without it. Negative ones count from the
            end. A named module in the stem is in stage 0.
        start: `identity` blends the plug-in in by a factor that starts at zero (`ZeroInitGate`), so the outputs do not
            change at first; `paper` puts in the bare plug-in.
        example_input: What the network can be called with: a tensor or its shape, a list of those for several
            arguments, a dict for arguments by name. By default a picture of the size that the network states, or of
            224 pixels a side.
        condition: Whether the plug-in takes a second input, such as `sentence` or `acat`. The network is then wrapped:
            it is called `model(image, condition)`, and its state dict keeps its names (`Conditioned`).
        **kwargs: For the plug-in.

    Raises:
        ValueError: If the plug-in, `where` or `start` is unknown, a stage does not exist, a named module gives no map,
            the network does not run, has no place for attention or one is taken already.
    """
    if isinstance(model, Conditioned):
        attach(model.network, plugin, where, stages, start, example_input, condition, **kwargs)
        return model
    if start not in ("identity", "paper"):
        raise ValueError(f"start must be 'identity' or 'paper', got {start!r}")
    build = resolve_gate(plugin) if condition else resolve_plugin(plugin)
    stages = stages if stages is None or isinstance(stages, int) else list(stages)
    if isinstance(where, Iterable) and not isinstance(where, str):
        where = list(where)
    spots = _select(find_insertion_points(model, where, example_input), stages)
    taken = [spot.path for spot in spots if isinstance(getattr(*_owner(model, spot.path)), AttachedModule)]
    if taken:
        raise ValueError(f"attention is attached already at {', '.join(taken)}; choose other places or stages")

    weight = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    dd: FactoryKwargs = {"device": weight.device, "dtype": weight.dtype}
    blocks = [build(spot.channels, **kwargs).to(**dd) for spot in spots]
    kinds = [type(getattr(block, "gate", block) if condition else block).__name__ for block in blocks]
    if start == "identity":
        blocks = [ZeroInitGate(block, **dd) for block in blocks]
    before = [(place, model.get_submodule(place.name)) for place in getattr(model, "attached", ())]
    # All owners first: a place may be inside another one.
    owners = [_owner(model, spot.path) for spot in spots]
    for spot, block, (owner, name) in zip(spots, blocks, owners, strict=True):
        joint = AttachedModule(getattr(owner, name), block.train(owner.training), first=spot.first)
        joint.training = owner.training
        setattr(owner, name, joint)
        fuse_epilogue(owner)
    paths = {module: path for path, module in model.named_modules()}
    old = [replace(place, name=paths[module]) for place, module in before]
    new = [Place(paths[b], s.channels, s.stage, kind) for s, b, kind in zip(spots, blocks, kinds, strict=True)]
    host: Any = model
    host.attached = Places([*old, *new])
    arguments = {"plugin": _as_data(plugin), "where": where, "stages": stages, "start": start, **kwargs}
    if spots[0].name:
        arguments |= {"where": [spot.name for spot in spots], "stages": None}
    if example_input is not None:
        arguments["example_input"] = input_shapes(example_input)
    if condition:
        arguments["condition"] = True
    record_modification(model, "attach", arguments)
    return Conditioned(model) if condition else model


def _as_data(plugin: str | dict[str, Any] | Callable[..., nn.Module]) -> str | dict[str, Any]:
    """The name of a plug-in, or its config with names only; a class that has none is named by where it is defined."""
    if isinstance(plugin, dict):
        return {**plugin, "type": _as_data(plugin["type"])}
    if isinstance(plugin, str):
        return plugin
    names = [card.name for card in cards("plugin") if card.factory is plugin]
    return names[0] if names else f"{getattr(plugin, '__module__', '')}.{getattr(plugin, '__qualname__', plugin)}"


def _select(spots: list[InsertionPoint], stages: int | Iterable[int] | None) -> list[InsertionPoint]:
    if stages is None:
        return spots
    numbers = sorted({spot.stage for spot in spots})
    count = 1 + numbers[-1]
    wanted = [stages] if isinstance(stages, int) else list(stages)
    chosen = {stage + count if stage in range(-count, 0) else stage for stage in wanted}
    if not chosen or not chosen.issubset(numbers):
        raise ValueError(f"stages must be some of {', '.join(map(str, numbers))} (-1 is the last), got {wanted}")
    return [spot for spot in spots if spot.stage in chosen]


def _owner(model: nn.Module, path: str) -> tuple[nn.Module, str]:
    parent, _, name = path.rpartition(".")
    return model.get_submodule(parent), name
