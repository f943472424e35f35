"""Where attention can go in a convolutional network.

A block's place is the end of its branch: after everything that the branch computes (a squeeze-excitation too), before
stochastic depth and the addition. The network is run once on the meta device, without data and without touching its
weights, to see which steps it takes, in which order, and how wide the maps are.
"""

import itertools
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from ._attached import AttachedModule

__all__ = ["SLOTS", "SOUGHT", "InsertionPoint", "find_insertion_points"]

# What timm and torchvision call a block's last step before the addition. It has no weights and may be None.
SLOTS = ("drop_path", "stochastic_depth")
# Blocks without such a step -> where their branch ends ("" stands for the block's output). By class name, so that
# subclasses, and both libraries' blocks of one name, are covered.
_ENDS: dict[str, tuple[str, ...]] = {
    "BasicBlock": ("bn2",),
    "Bottleneck": ("se_module", "bn3"),
    "SEResNetBlock": ("se_module",),
    "InvertedResidual": ("conv", "block"),
    "_InvertedResidual": ("layers",),
    "ResBottleneckBlock": ("f",),
    "DlaBasic": ("bn2",),
    "DlaBottleneck": ("bn3",),
    "DlaBottle2neck": ("bn3",),
    "GhostBottleneck": ("ghost2",),
    "GhostBottleneckV3": ("ghost2",),
    "RepGhostBottleneck": ("ghost2",),
    "DenseLayer": ("",),
    "_DenseLayer": ("",),
}
# Plain convolutions that have a drop path; without a shortcut they are no blocks.
_NO_BLOCKS = ("ConvBnAct",)
_CHAIN = 4
_FLAGS = ("training", "grad_checkpointing")
SOUGHT = (
    f"blocks with a {' or '.join(SLOTS)}, blocks named {', '.join(_ENDS)}, and chains of at least {_CHAIN} "
    "convolutions, with maps (B, C, H, W)"
)


@dataclass(frozen=True)
class InsertionPoint:
    """A place for attention: at the module `path`, before it if that is the last step of a block, else behind it."""

    path: str
    channels: int
    stage: int


@dataclass
class _Call:
    order: int
    output: Any
    version: int
    count: int

    @property
    def is_map(self) -> bool:
        # The input is square, so maps are; tokens (B, N, C) and maps (B, H, W, C) are not.
        return isinstance(self.output, torch.Tensor) and self.output.ndim == 4 and len({*self.output.shape[2:]}) == 1


@dataclass(frozen=True)
class _Block:
    path: str
    slot: str | None
    end: str


def find_insertion_points(model: nn.Module, where: str) -> list[InsertionPoint]:
    """Every place for attention, in the order in which the network runs.

    Args:
        model: A convolutional network.
        where: `block_end` or `stage_end`.

    Raises:
        ValueError: If the network does not run.
    """
    blocks = list(_blocks(model)) or list(_chains(model))
    taps = _taps(model)
    if not blocks and (where == "block_end" or not taps):
        return []
    with _open_slots(model, blocks):
        calls = _run(model)
    taps = sorted((path for tap in taps if (path := _find(calls, tap)) is not None), key=lambda path: calls[path].order)
    anchors, levels = {}, {}
    for block in sorted((b for b in blocks if b.path in calls), key=lambda b: calls[b.path].order):
        anchor = _anchor(model, calls, block)
        if anchor is not None and calls[anchor].is_map:
            anchors[block.path] = anchor
            levels[block.path] = _level(calls, taps, block.path)
    # Levels without blocks are the stem's.
    numbers = {level: number for number, level in enumerate(sorted({*levels.values()} or range(len(taps))))}
    if where == "block_end":
        ends = [(anchor, numbers[levels[path]]) for path, anchor in anchors.items()]
    else:
        ends = [(taps[level] if taps else _around(calls, levels, level), number) for level, number in numbers.items()]
        ends = [(_producer(model, calls, path), number) for path, number in ends if calls[path].is_map]
    return [InsertionPoint(path, calls[path].output.shape[1], number) for path, number in ends]


def _modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The network's own modules, without what is inside attached plug-ins."""
    plugins = tuple(f"{path}.plugin." for path, module in model.named_modules() if isinstance(module, AttachedModule))
    return ((path, module) for path, module in model.named_modules() if not f"{path}.".startswith(plugins))


def _blocks(model: nn.Module) -> Iterator[_Block]:
    for path, module in _modules(model):
        if not path:
            continue
        slot = next((s for s in SLOTS if isinstance(getattr(module, s, 0), nn.Module | types.NoneType)), None)
        if slot is not None:
            # A block that can fold its branches into one convolution loses its drop path then.
            yield _Block(path, None if hasattr(module, "reparameterize") else slot, path)
            continue
        ends = [end for cls in type(module).__mro__ for end in _ENDS.get(cls.__name__, ())]
        end = next((end for end in ends if not end or hasattr(module, end)), None)
        if end is not None:
            yield _Block(path, None, f"{path}.{end}" if end else path)


def _chains(model: nn.Module) -> Iterator[_Block]:
    """In plain networks a block is a convolution with what follows it up to the next convolution or pool."""
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
    """Fills the empty slots for a while, to see which of them the network would use."""
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


def _run(model: nn.Module) -> dict[str, _Call]:
    calls: dict[str, _Call] = {}
    clock = itertools.count()

    def record(path: str, module: nn.Module, args: Any, output: Any) -> None:
        count = calls[path].count + 1 if path in calls else 1
        calls[path] = _Call(next(clock), output, getattr(output, "_version", 0), count)

    conv = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    if conv is None:
        return {}
    size = (getattr(model, "pretrained_cfg", None) or {}).get("input_size", (3, 224, 224))[-1]
    channels = getattr(model, "in_chans", conv.in_channels)
    x = torch.empty(1, channels, size, size, device="meta", dtype=conv.weight.dtype)
    tensors = itertools.chain(model.named_parameters(), model.named_buffers())
    state = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors}
    handles = [module.register_forward_hook(partial(record, path)) for path, module in model.named_modules()]
    # Gradient checkpointing goes round the stages' own forward.
    flags = [(m, flag, getattr(m, flag)) for m in model.modules() for flag in _FLAGS if getattr(m, flag, False)]
    for module, flag, _ in flags:
        setattr(module, flag, False)
    try:
        with torch.inference_mode(False), torch.no_grad():  # inference tensors do not count their changes
            torch.func.functional_call(model, state, (x,))
    except Exception as error:
        raise ValueError(f"{type(model).__name__} does not run on an input of {tuple(x.shape)}: {error}") from error
    finally:
        for handle in handles:
            handle.remove()
        for module, flag, value in flags:
            setattr(module, flag, value)
    return calls


def _anchor(model: nn.Module, calls: dict[str, _Call], block: _Block) -> str | None:
    slot = f"{block.path}.{block.slot}"
    if slot in calls and calls[slot].count == 1:
        return slot
    no_block = type(model.get_submodule(block.path)).__name__ in _NO_BLOCKS
    if no_block or block.end not in calls or calls[block.end].count > 1:
        return None
    return _producer(model, calls, block.end)


def _producer(model: nn.Module, calls: dict[str, _Call], path: str) -> str:
    """The innermost module that gives the output of the one at `path` as it is.

    A joint there leaves the modules around it as they are: networks iterate over their stages and set flags on them.
    """
    while not isinstance(module := model.get_submodule(path), AttachedModule):
        inner = [name for child, _ in module.named_children() if (name := f"{path}.{child}") in calls]
        last = max(inner, key=lambda name: calls[name].order, default=path)
        same = calls[last].output is calls[path].output and calls[last].version == calls[path].version
        if last == path or not same or calls[last].count > 1:
            break
        path = last
    return path


def _taps(model: nn.Module) -> list[str]:
    info = getattr(model, "feature_info", None) or []
    return [tap["module"] for tap in getattr(info, "info", info) if tap.get("module")]


def _find(calls: dict[str, _Call], tap: str) -> str | None:
    """timm's wrappers for features rename `stages.0` to `stages_0`, `model.stages.0` or `body.stages.0`."""
    names = {f"{prefix}{tap}".replace("_", ".") for prefix in ("", "model.", "body.")}
    return next((path for path in calls if path.replace("_", ".") in names), None)


def _level(calls: dict[str, _Call], taps: list[str], path: str) -> int:
    """Number of the first feature that is ready when the block is; without features, the smaller the later."""
    if not taps:
        return -calls[path].output.shape[-1]
    return next((i for i, tap in enumerate(taps) if calls[tap].order >= calls[path].order), len(taps) - 1)


def _around(calls: dict[str, _Call], levels: dict[str, int], level: int) -> str:
    """Without features a stage is the outermost module around its last block that holds no other stage's block."""
    path = parent = [block for block, number in levels.items() if number == level][-1]
    others = [block for block, number in levels.items() if number != level]
    while (parent := parent.rpartition(".")[0]) and not any(block.startswith(f"{parent}.") for block in others):
        path = parent if parent in calls and calls[parent].is_map else path
    return path
