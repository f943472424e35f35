"""The layout of a weight file, and the conversion from our keys back to it.

The way there, from any format to our keys, is code of each family. The way back is written down nowhere: numbers that
occur once each go the way there in place of the weights, and where one comes out tells where its weight has to go back
to. This covers new names, other shapes and orders, parts put together and parts left out alike.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

import torch

__all__ = ["Layout", "Traced", "trace"]

StateDict = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Layout:
    """Keys and shapes of a file, and its wrappers.

    Args:
        shapes: Of each entry, in the order of the file.
        wrapper: Key of the checkpoint under which the weights are; none if they are the checkpoint.
        prefix: What all keys begin with, such as `module.`; left out in `shapes`.
    """

    shapes: dict[str, tuple[int, ...]]
    wrapper: str | None = None
    prefix: str = ""

    @classmethod
    def of(cls, state_dict: StateDict, wrapper: str | None = None, prefix: str = "") -> "Layout":
        return cls({key: tuple(value.shape) for key, value in state_dict.items()}, wrapper, prefix)

    @classmethod
    def from_json(cls, text: str) -> "Layout":
        stored = json.loads(text)
        shapes = {key: tuple(shape) for key, shape in stored["shapes"].items()}
        return cls(shapes, stored["wrapper"], stored["prefix"])

    def to_json(self) -> str:
        return json.dumps({"wrapper": self.wrapper, "prefix": self.prefix, "shapes": self.shapes})


@dataclass(frozen=True)
class Traced:
    """Where the weights of a layout end up.

    Args:
        layout: The layout.
        starts: First number of each of its entries.
        numbers: Our key -> the numbers of the weights that come out there, in its shape.
    """

    layout: Layout
    starts: dict[str, int]
    numbers: StateDict

    @property
    def origins(self) -> dict[str, list[str]]:
        """Our key -> the entries of the layout that it comes from."""
        return {key: [name for name, _ in self._parts(numbers)] for key, numbers in self.numbers.items()}

    @property
    def dropped(self) -> list[str]:
        """Entries of the layout that end up nowhere."""
        used = {name for names in self.origins.values() for name in names}
        return [name for name in self.layout.shapes if name not in used]

    def back(self, native: StateDict) -> StateDict:
        """Converts weights under our keys to the layout, except its dropped entries.

        Raises:
            ValueError: If they are not those that the layout gives, or only a part of an entry comes back.
        """
        if missing := sorted(self.numbers.keys() ^ native.keys()):
            raise ValueError(f"the weights do not fit the format: {', '.join(missing[:4])} in one of them only")
        parts: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
        for key, numbers in self.numbers.items():
            if numbers.shape != native[key].shape:
                shapes = f"{tuple(native[key].shape)}, not {tuple(numbers.shape)}"
                raise ValueError(f"the weights do not fit the format: {key} is {shapes}")
            for name, chosen in self._parts(numbers):
                places = numbers.flatten()[chosen] - self.starts[name]
                parts.setdefault(name, []).append((places, native[key].flatten()[chosen]))
        state_dict = {}
        for name, shape in self.layout.shapes.items():
            if name not in parts:
                continue
            places, values = (torch.cat(column) for column in zip(*parts[name], strict=True))
            flat = torch.empty(torch.Size(shape).numel(), dtype=values.dtype)
            if not _distinct(places, len(flat)) or len(places) != len(flat):
                raise ValueError(f"only a part of {name} comes back")
            flat[places.long()] = values
            state_dict[name] = flat.view(shape)
        return state_dict

    def _parts(self, numbers: torch.Tensor) -> list[tuple[str, torch.Tensor | slice]]:
        """The entries that given numbers belong to, each with the indices of those numbers."""
        if not numbers.numel():
            return []
        names, bounds = list(self.starts), torch.tensor(list(self.starts.values()))
        ends = torch.stack(numbers.aminmax()).long()
        first, last = (torch.searchsorted(bounds, ends, right=True) - 1).tolist()
        if first == last:
            return [(names[first], slice(None))]
        owners = torch.searchsorted(bounds, numbers.flatten().long(), right=True) - 1
        return [(names[owner], owners == owner) for owner in owners.unique().tolist()]


def _distinct(numbers: torch.Tensor, total: int) -> bool:
    """Whether numbers below `total` are all distinct."""
    seen = torch.zeros(total, dtype=torch.bool)
    seen[numbers.long()] = True
    return int(seen.sum()) == len(numbers)


def trace(layout: Layout, to_native: Callable[[StateDict], StateDict]) -> Traced:
    """Follows every weight of a layout to our keys.

    Args:
        layout: The layout.
        to_native: The way there: may rename, reorder, reshape, put together and leave out, but not compute.

    Raises:
        ValueError: If a weight comes out more than once.
    """
    sizes = [torch.Size(shape).numel() for shape in layout.shapes.values()]
    ends = list(accumulate(sizes))
    dtype = torch.int32 if sum(sizes) < 2**31 else torch.int64
    marked, starts = {}, {}
    for (name, shape), size, end in zip(layout.shapes.items(), sizes, ends, strict=True):
        marked[name] = torch.arange(end - size, end, dtype=dtype).view(shape)
        if size:
            starts[name] = end - size
    numbers = to_native(marked)
    if numbers and not _distinct(torch.cat([value.flatten() for value in numbers.values()]), sum(sizes)):
        raise ValueError("a weight is in several places under our keys")
    return Traced(layout, starts, numbers)
