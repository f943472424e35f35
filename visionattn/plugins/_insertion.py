"""Finds insertion points for attention in a convolutional network.

A block's place is the end of its branch: after everything that the branch computes (a squeeze-excitation too), before
stochastic depth and the addition. The network is run once on the meta device, without data and without touching its
weights, to see which steps it takes, in which order, and how wide the maps are.
"""

import types
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from ._attached import AttachedModule
from ._dry_run import Call, dry_run, producer
from ._named import Names, describe_maps, named_places
from ._residuals import Additions, residual_blocks

__all__ = ["InsertionPoint", "find_insertion_points"]

# What timm and torchvision call a block's last step before the addition. It has no weights and may be None.
SLOTS = ("drop_path", "stochastic_depth")
# Blocks without such a step that add nothing -> the layout that they must have. Their place is their output.
_JOINED = {"DenseLayer": ("norm1", "conv1", "norm2", "conv2"), "_DenseLayer": ("norm1", "conv1", "norm2", "conv2")}
# Plain convolutions that have a drop path; without a shortcut they are no blocks.
_NO_BLOCKS = ("ConvBnAct",)
_CHAIN = 4
_SOUGHT = (
    f"blocks with a {' or '.join(SLOTS)}, residual blocks, layers of DenseNet, and chains of at least {_CHAIN} "
    "convolutions, with maps (B, C, H, W)"
)


@dataclass(frozen=True)
class InsertionPoint:
    """An insertion point for attention.

    Args:
        path: The module that it is at.
        channels: Of the maps there.
        stage: Number of the stage.
        first: Whether it is before that module, the last step of a block, and not behind it.
        name: What the place was named by, if it was.
    """

    path: str
    channels: int
    stage: int
    first: bool = False
    name: str = ""


@dataclass(frozen=True)
class _Block:
    path: str
    slot: str | None
    end: str


def find_insertion_points(model: nn.Module, where: Names, example_input: Any = None) -> list[InsertionPoint]:
    """Insertion points for attention, in execution order.

    Args:
        model: A convolutional network.
        where: `block_end`, `stage_end` or what `attach` takes besides.
        example_input: What `dry_run` calls it with.

    Raises:
        ValueError: If the network does not run or has no such place.
    """
    blocks = list(_blocks(model))
    with _open_slots(model, blocks), Additions() as additions:
        calls = dry_run(model, example_input)
    name = type(model).__name__
    if not calls:
        raise ValueError(f"{name} has no place for attention: it has no Conv2d; example_input= says what it takes")
    found = (_find(calls, tap) for tap in _taps(model))
    taps = sorted((path for path in found if path is not None), key=lambda path: calls[path].order)
    residuals = (_Block(path, None, end) for path, end in residual_blocks(model, calls, additions).items())
    anchors = next(filter(None, (_anchors(model, calls, kind) for kind in (blocks, residuals, _chains(model)))), {})
    levels = {path: _level(calls, taps, path) for path in anchors}
    if where not in ("block_end", "stage_end"):
        return _named_points(model, calls, where, taps, [*levels.values()])
    # Levels without blocks are the stem's.
    numbers = {level: number for number, level in enumerate(sorted({*levels.values()} or range(len(taps))))}
    if where == "block_end":
        ends = [(anchor, numbers[levels[path]]) for path, anchor in anchors.items()]
    else:
        ends = [(taps[level] if taps else _around(calls, levels, level), number) for level, number in numbers.items()]
        ends = [(producer(model, calls, path), number) for path, number in ends if calls[path].is_map]
    if not ends:
        raise ValueError(
            f"{name} has no place for attention at {where!r}; looked for {_SOUGHT}. where= also takes names of "
            f"modules, patterns and predicates; {describe_maps(model, calls)}"
        )
    return [
        InsertionPoint(path, calls[path].output.shape[1], number, path.rpartition(".")[2] in SLOTS)
        for path, number in ends
    ]


def _named_points(
    model: nn.Module, calls: dict[str, Call], where: Names, taps: list[str], levels: list[int]
) -> list[InsertionPoint]:
    """Insertion points of named modules, in the stages of the network's blocks; the stem counts as the first."""
    places = named_places(model, calls, where)
    own = [_level(calls, taps, place.called_as) for place in places]
    known = sorted({*(levels or own)})
    stages = [min(bisect_left(known, level), len(known) - 1) for level in own]
    return [
        InsertionPoint(place.path, place.channels, stage, name=place.name)
        for place, stage in zip(places, stages, strict=True)
    ]


def _modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The network's own modules, without those inside attached plug-ins."""
    plugins = tuple(f"{path}.plugin." for path, module in model.named_modules() if isinstance(module, AttachedModule))
    return ((path, module) for path, module in model.named_modules() if not f"{path}.".startswith(plugins))


def _blocks(model: nn.Module) -> Iterator[_Block]:
    for path, module in _modules(model):
        if not path or isinstance(module, AttachedModule):
            continue
        slot = next((s for s in SLOTS if isinstance(getattr(module, s, 0), nn.Module | types.NoneType)), None)
        if slot is not None:
            # A block that can fold its branches into one convolution loses its drop path then.
            yield _Block(path, None if hasattr(module, "reparameterize") else slot, path)
            continue
        layout = _JOINED.get(type(module).__name__)
        if layout and all(hasattr(module, part) for part in layout):
            yield _Block(path, None, path)


def _chains(model: nn.Module) -> Iterator[_Block]:
    """The blocks of plain networks: a convolution and what follows it up to the next convolution or pooling."""
    for path, module in _modules(model):
        children = list(module.named_children())
        convs = sum(isinstance(child, nn.Conv2d) for _, child in children)
        if not isinstance(module, nn.Sequential | nn.ModuleDict) or convs < _CHAIN:
            continue
        inside = False
        for (name, child), (_, following) in zip(children, [*children[1:], ("", None)], strict=True):
            inside = not _is_pool(child) and (inside or isinstance(child, nn.Conv2d))
            if inside and (following is None or isinstance(following, nn.Conv2d) or _is_pool(following)):
                end = f"{path}.{name}" if path else name
                yield _Block(end, None, end)


def _is_pool(module: nn.Module) -> bool:
    return "Pool" in type(module).__name__


@contextmanager
def _open_slots(model: nn.Module, blocks: list[_Block]) -> Iterator[None]:
    """Fills the empty slots temporarily, to find out which of them the network uses."""
    empty = [(model.get_submodule(b.path), b.slot) for b in blocks if b.slot]
    empty = [(module, slot) for module, slot in empty if getattr(module, slot) is None]
    for module, slot in empty:
        setattr(module, slot, nn.Identity())
    try:
        yield
    finally:
        for module, slot in empty:
            delattr(module, slot)
            setattr(module, slot, None)


def _anchors(model: nn.Module, calls: dict[str, Call], blocks: Iterable[_Block]) -> dict[str, str]:
    """Path of each block that outputs a map -> its insertion point, in execution order."""
    ran = sorted((block for block in blocks if block.path in calls), key=lambda block: calls[block.path].order)
    anchors = ((block.path, _anchor(model, calls, block)) for block in ran)
    return {path: anchor for path, anchor in anchors if anchor is not None and calls[anchor].is_map}


def _anchor(model: nn.Module, calls: dict[str, Call], block: _Block) -> str | None:
    slot = f"{block.path}.{block.slot}"
    if slot in calls and calls[slot].count == 1:
        return slot
    no_block = type(model.get_submodule(block.path)).__name__ in _NO_BLOCKS
    if no_block or block.end not in calls or calls[block.end].count > 1:
        return None
    return producer(model, calls, block.end)


def _taps(model: nn.Module) -> list[str]:
    info = getattr(model, "feature_info", None) or []
    return [tap["module"] for tap in getattr(info, "info", info) if tap.get("module")]


def _find(calls: dict[str, Call], tap: str) -> str | None:
    """timm's wrappers for features rename `stages.0` to `stages_0`, `model.stages.0` or `body.stages.0`."""
    names = {f"{prefix}{tap}".replace("_", ".") for prefix in ("", "model.", "body.")}
    return next((path for path in calls if path.replace("_", ".") in names), None)


def _level(calls: dict[str, Call], taps: list[str], path: str) -> int:
    """The index of the first feature that is available after the block; without features, by map size."""
    if not taps:
        return -calls[path].output.shape[-1]
    return next((i for i, tap in enumerate(taps) if calls[tap].order >= calls[path].order), len(taps) - 1)


def _around(calls: dict[str, Call], levels: dict[str, int], level: int) -> str:
    """The stage module of networks without features: the outermost one with blocks of this stage only."""
    path = parent = [block for block, number in levels.items() if number == level][-1]
    others = [block for block, number in levels.items() if number != level]
    while (parent := parent.rpartition(".")[0]) and not any(block.startswith(f"{parent}.") for block in others):
        path = parent if parent in calls and calls[parent].is_map else path
    return path
