"""Attention in any convolutional network of timm or torchvision, with its pretrained weights kept."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from visionattn.catalog import cards
from visionattn.utils.factory import FactoryKwargs
from visionattn.utils.modifications import record_modification

from ._attached import AttachedModule, ZeroInitGate
from ._conditioned import Conditioned, resolve_gate
from ._insertion import SLOTS, SOUGHT, InsertionPoint, find_insertion_points
from ._resolve import resolve_plugin

__all__ = ["Place", "Places", "attach"]


@dataclass(frozen=True)
class Place:
    """Where a plug-in went: its name in the model, the width of its maps, the stage, and its kind."""

    name: str
    channels: int
    stage: int
    plugin: str


class Places(list[Place]):
    """The places of a model; prints as a table."""

    def __str__(self) -> str:
        rows = [("place", "channels", "stage", "plug-in")]
        rows += [(place.name, str(place.channels), str(place.stage), place.plugin) for place in self]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def attach(
    model: nn.Module,
    plugin: str | dict[str, Any] | Callable[..., nn.Module],
    where: str = "block_end",
    stages: int | Iterable[int] | None = None,
    start: str = "identity",
    condition: bool = False,
    **kwargs: Any,
) -> nn.Module:
    """Puts a plug-in into every block, or behind every stage, of a convolutional network; changes and returns it.

    `model.attached` then lists the places (`print(model.attached)` shows a table) and a plug-in is
    `model.get_submodule(place.name)`. The entries of the network's state dict keep their names, so weights from before
    still load with `strict=False`; weights saved afterwards load after the same `attach` on a fresh network, which
    `model.modifications` notes as plain data for `visionattn.checkpoints.publish`.

    Args:
        model: A network of timm or torchvision, with or without classifier, also one made with `features_only`.
        plugin: A name of `list_plugins()`, a class that takes the number of channels, or a dict with `type` and
            further arguments.
        where: `block_end` is the end of each block's branch: after its last layer (and a squeeze-excitation or layer
            scale there), before stochastic depth and the addition. A block without an addition has it at its output:
            an inverted bottleneck with stride 2; a layer of DenseNet, before its features join the others; in VGG a
            convolution with its activation. `stage_end` is the output of each stage.
        stages: Numbers of the stages to change; all if None. They count from 0 without the stem: entries of timm's
            `feature_info` that have blocks, or sizes of the map in networks without it. Negative ones count from the
            end.
        start: `identity` blends the plug-in in by a factor that starts at zero (`ZeroInitGate`), so the outputs do not
            change at first; `paper` puts in the bare plug-in.
        condition: Whether the plug-in takes a second input, such as `sentence` or `acat`. The network is then wrapped:
            it is called `model(image, condition)`, and its state dict keeps its names (`Conditioned`).
        **kwargs: For the plug-in.

    Raises:
        ValueError: If the plug-in, `where` or `start` is unknown, a stage does not exist, the network has no place for
            attention or one is taken already.
    """
    if isinstance(model, Conditioned):
        attach(model.network, plugin, where, stages, start, condition, **kwargs)
        return model
    if where not in ("block_end", "stage_end"):
        raise ValueError(f"where must be 'block_end' or 'stage_end', got {where!r}")
    if start not in ("identity", "paper"):
        raise ValueError(f"start must be 'identity' or 'paper', got {start!r}")
    build = resolve_gate(plugin) if condition else resolve_plugin(plugin)
    stages = stages if stages is None or isinstance(stages, int) else list(stages)
    spots = find_insertion_points(model, where)
    if not spots:
        raise ValueError(f"{type(model).__name__} has no place for attention at {where!r}; looked for {SOUGHT}")
    spots = _select(spots, stages)
    taken = [spot.path for spot in spots if isinstance(getattr(*_owner(model, spot.path)), AttachedModule)]
    if taken:
        raise ValueError(f"attention is attached already at {', '.join(taken)}; choose other stages")

    weight = next(p for p in model.parameters() if p.is_floating_point())
    dd: FactoryKwargs = {"device": weight.device, "dtype": weight.dtype}
    blocks = [build(spot.channels, **kwargs).to(**dd) for spot in spots]
    kinds = [type(getattr(block, "gate", block) if condition else block).__name__ for block in blocks]
    if start == "identity":
        blocks = [ZeroInitGate(block, **dd) for block in blocks]
    for spot, block in zip(spots, blocks, strict=True):
        owner, name = _owner(model, spot.path)
        joint = AttachedModule(getattr(owner, name), block.train(owner.training), first=name in SLOTS)
        joint.training = owner.training
        setattr(owner, name, joint)
    new = [Place(f"{s.path}.plugin", s.channels, s.stage, kind) for s, kind in zip(spots, kinds, strict=True)]
    host: Any = model
    host.attached = Places([*getattr(model, "attached", ()), *new])
    arguments = {"plugin": _as_data(plugin), "where": where, "stages": stages, "start": start, **kwargs}
    record_modification(model, "attach", {**arguments, **({"condition": True} if condition else {})})
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
