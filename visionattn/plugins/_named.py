"""Insertion points given by module names, patterns or a predicate, in any network."""

import difflib
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import nn

from ._attached import AttachedModule
from ._dry_run import Call, producer

__all__ = ["NamedPlace", "Names", "describe_maps", "named_places"]

Names = str | re.Pattern[str] | Callable[[str, nn.Module], bool] | Iterable[str | re.Pattern[str]]
_GLOB = re.compile(r"\*\*|[*?]|\[[^\]]+\]|[^*?\[]+|\[")
_SHOWN = 12


class _Part(NamedTuple):
    """A module with its name in the state dict and its path in the network, which `attach` lengthens."""

    name: str
    path: str
    module: nn.Module


class NamedPlace(NamedTuple):
    """An insertion point that was named.

    Attributes:
        name: Of the module that was meant.
        called_as: Where the dry run has this module: one that stands in several places is known by the first.
        path: The innermost module that gives the same map.
        channels: Of the map.
    """

    name: str
    called_as: str
    path: str
    channels: int


def named_places(model: nn.Module, calls: dict[str, Call], where: Names) -> list[NamedPlace]:
    """The named insertion points, in execution order.

    Args:
        model: The network.
        calls: What its modules did.
        where: As for `attach`.

    Raises:
        ValueError: If a name or a pattern fits no module, a module that is named does not run or gives something else
            than one map, or of those that fit none gives one.
    """
    parts = {part.name: part for part in _parts(model) if part.name}
    paths = {module: path for path, module in model.named_modules()}
    found: dict[str, NamedPlace] = {}
    for name, is_exact in _chosen(model, calls, parts, where).items():
        part = parts[name]
        called_as = paths[part.module]
        call = calls.get(called_as)
        if call is None or 0 in call.channels or len(call.channels) > 1:
            if is_exact:
                raise ValueError(f"where: {_reason(model, part, call)}; {describe_maps(model, calls)}")
            continue
        path = producer(model, calls, part.path) if part.path == called_as else part.path
        found.setdefault(path, NamedPlace(name, called_as, path, min(call.channels)))
    if not found:
        raise ValueError(f"where={_text(where)}: no module that fits gives one map; {describe_maps(model, calls)}")
    return sorted(found.values(), key=lambda place: calls[place.called_as].order)


def describe_maps(model: nn.Module, calls: dict[str, Call]) -> str:
    """The modules that output maps and their widths; indices in names are merged to `*`."""
    groups: dict[str, list[Call]] = {}
    parts = [part for part in _parts(model) if part.name and part.path in calls]
    composite = [part for part in parts if next(part.module.children(), None) is not None]
    for part in composite or parts:
        call = calls[part.path]
        if call.is_map and len(call.channels) == 1:
            groups.setdefault(re.sub(r"(?<=\.)\d+(?=\.|$)|^\d+(?=\.|$)", "*", part.name), []).append(call)
    if not groups:
        return "none of its modules gives a map (B, C, H, W)"
    # The outer modules are what one looks for.
    shown = sorted(groups, key=lambda group: group.count("."))[:_SHOWN]
    texts = []
    for group in sorted(shown, key=lambda group: groups[group][0].order):
        widths = sorted({*groups[group][0].channels.union(*(call.channels for call in groups[group]))})
        widths = [widths[0], widths[-1]] if len(widths) > 1 else widths
        texts.append(f"{group} ({' to '.join(map(str, widths))} channels)")
    more = f" and {len(groups) - len(shown)} more" if len(groups) > len(shown) else ""
    return f"maps (B, C, H, W) come from {', '.join(texts)}{more}"


def _parts(module: nn.Module, name: str = "", path: str = "") -> Iterator[_Part]:
    """Every module of the network, except those that `attach` inserted."""
    yield _Part(name, path, module)
    if isinstance(module, AttachedModule):
        module, path = module.module, f"{path}.module"
    for child, part in module._modules.items() if module is not None else ():
        if part is not None:
            prefix, above = (f"{name}." if name else "", f"{path}." if path else "")
            yield from _parts(part, prefix + child, above + child)


def _chosen(model: nn.Module, calls: dict[str, Call], parts: dict[str, _Part], where: Names) -> dict[str, bool]:
    """The names of selected modules -> whether selected by their exact name."""
    if callable(where):
        return {name: False for name, part in parts.items() if where(name, part.module)}
    items = [where] if isinstance(where, str | re.Pattern) else list(where) if isinstance(where, Iterable) else []
    if not items or not all(isinstance(item, str | re.Pattern) for item in items):
        raise ValueError(
            "where must be 'block_end', 'stage_end', names of modules, patterns of names or a predicate "
            f"(name, module) -> bool, got {where!r}"
        )
    chosen: dict[str, bool] = {}
    for item in items:
        is_exact = isinstance(item, str) and not re.search(r"[*?\[]", item)
        pattern = item if isinstance(item, re.Pattern) else _compiled(item)
        fitting = [name for name in parts if pattern.fullmatch(name)]
        if not fitting:
            close = difflib.get_close_matches(str(item), parts, 1, 0.8) if is_exact else []
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            kind = "is no module of" if is_exact else "fits no module of"
            what = f"where: {_text(item)} {kind} {type(model).__name__}{hint}"
            raise ValueError(f"{what}, nor is it 'block_end' or 'stage_end'; {describe_maps(model, calls)}")
        for name in fitting:
            chosen[name] = chosen.get(name, False) or is_exact
    return chosen


def _compiled(text: str) -> re.Pattern[str]:
    """A glob over dotted names: `*` and `?` match within a part, `**` matches any number of parts."""
    wild = {"**": ".*", "*": "[^.]*", "?": "[^.]"}
    pieces = []
    for piece in _GLOB.findall(text):
        is_set = len(piece) > 2 and piece[0] == "[" and piece[-1] == "]"
        pieces.append(wild.get(piece) or (piece.replace("[!", "[^", 1) if is_set else re.escape(piece)))
    return re.compile("".join(pieces))


def _reason(model: nn.Module, part: _Part, call: Call | None) -> str:
    if call is None:
        return f"{part.name} is not called when {type(model).__name__} runs"
    if len(call.channels) > 1 and 0 not in call.channels:
        widths = ", ".join(map(str, sorted(call.channels)))
        return f"{part.name} runs {call.count} times, with maps of {widths} channels: name the modules around it"
    output = call.output
    what = f"a tensor {tuple(output.shape)}" if isinstance(output, torch.Tensor) else f"a {type(output).__name__}"
    return f"{part.name} gives {what}, not one map (B, C, H, W)"


def _text(where: Any) -> str:
    if isinstance(where, re.Pattern):
        return repr(where.pattern)
    return getattr(where, "__name__", None) or repr(where)
