"""Finds residual blocks by what they compute: a branch is added to its own input, or to a shortcut."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ._dry_run import CLOCK, Call, version_of

__all__ = ["Additions", "residual_blocks"]

_SUMS = {"add", "add_", "__add__", "__iadd__", "__radd__"}


@dataclass(frozen=True)
class _Term:
    """A summand: the tensor, its version counter, and the number of steps that lead to it."""

    tensor: torch.Tensor
    version: int
    depth: int


@dataclass(frozen=True)
class _Addition:
    order: int
    branch: _Term


class Additions(TorchFunctionMode):
    """Records additions of two maps of one shape with unequal numbers of steps."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[_Addition] = []
        # Number of steps that lead to a tensor, by its id, and the tensor, so that no other gets this id.
        self._depths: dict[int, tuple[int, torch.Tensor]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        terms = [self._term(x) for x in _tensors([*args, *(kwargs or {}).values()])]
        is_sum = getattr(func, "__name__", "") in _SUMS and len(terms) == 2
        if is_sum and terms[0].tensor.ndim == 4 and terms[0].tensor.shape == terms[1].tensor.shape:
            short, long = sorted(terms, key=lambda term: term.depth)
            if short.depth < long.depth:
                self.found.append(_Addition(next(CLOCK), long))
        output = func(*args, **(kwargs or {}))
        depth = 1 + max((term.depth for term in terms), default=0)
        for tensor in _tensors(output if isinstance(output, tuple | list) else [output]):
            self._depths[id(tensor)] = (depth, tensor)
        return output

    def _term(self, tensor: torch.Tensor) -> _Term:
        return _Term(tensor, version_of(tensor), self._depths.get(id(tensor), (0, tensor))[0])


def residual_blocks(model: nn.Module, calls: dict[str, Call], additions: Additions) -> dict[str, str]:
    """Path of each residual block -> path of the module that its branch ends in.

    A block of the same class that adds nothing, as one with stride 2, ends in its output.

    Args:
        model: The network.
        calls: What its modules did.
        additions: What was added then.
    """
    blocks: dict[str, str] = {}
    for addition in additions.found:
        ends = [path for path, call in calls.items() if path and _is_end(call, addition.branch)]
        if not ends:
            continue
        # The innermost returns first, and a dropout that passes it on comes later.
        end = min(ends, key=lambda path: calls[path].order)
        block = _above(end)
        while block and (block not in calls or calls[block].order < addition.order):
            block = _above(block)
        # Where features of several stages are added, no block gives a map of that shape.
        if block and calls[block].is_map and calls[block].output.shape == addition.branch.tensor.shape:
            blocks[block] = end
    classes = {type(model.get_submodule(path)) for path in blocks}
    for path, module in model.named_modules():
        if type(module) in classes and path in calls and calls[path].is_map:
            blocks.setdefault(path, path)
    return _outermost(model, blocks)


def _outermost(model: nn.Module, blocks: dict[str, str]) -> dict[str, str]:
    """The outermost blocks, without layers that sum parallel convolutions or a skip around the whole network."""
    counts = Counter(type(model.get_submodule(path)) for path in blocks)
    holders = {path for path in blocks if any(other.startswith(f"{path}.") for other in blocks)}
    kept = blocks.keys() - {path for path in holders if counts[type(model.get_submodule(path))] == 1}
    inside = {path for path in kept if any(path.startswith(f"{other}.") for other in kept & holders)}
    return {path: end for path, end in blocks.items() if path in kept - inside}


def _is_end(call: Call, branch: _Term) -> bool:
    return call.output is branch.tensor and call.version == branch.version and call.count == 1 and call.is_map


def _above(path: str) -> str:
    return path.rpartition(".")[0]


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from _tensors(value)
