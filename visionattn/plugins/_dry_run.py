"""One forward pass of a network that records the output of each module and changes nothing."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from ._attached import AttachedModule

__all__ = ["CLOCK", "Call", "dry_run", "input_shapes", "producer", "version_of"]

# Numbers what happens during a run.
CLOCK = itertools.count()
_OFF = ("training", "grad_checkpointing", "gradient_checkpointing")
_TABLES = ("_parameters", "_buffers", "_modules")


@dataclass
class Call:
    """A call of a module.

    Args:
        order: When it returned last, in ticks of `CLOCK`.
        output: What it gave then.
        version: How often that had been changed in place by then.
        is_map: Whether that is one map `(B, C, H, W)`.
        count: How often it ran.
        channels: Of all maps that it gave; other outputs count as 0.
    """

    order: int
    output: Any
    version: int
    is_map: bool
    count: int = 0
    channels: set[int] = field(default_factory=set)


def dry_run(model: nn.Module, example_input: Any = None) -> dict[str, Call]:
    """Runs a network once, in evaluation mode.

    It runs on the meta device, without data; a network that can't is run where it is, on zeros. Weights, buffers,
    attributes and modes are afterwards what they were.

    Args:
        model: The network.
        example_input: What to call it with: a tensor or its shape, a list of those for several arguments, or a dict for
            arguments by name. By default a picture of the size that the network states, or of 224 pixels a side.

    Returns:
        Path of each module that ran -> what it did. Empty if nothing tells what the network takes.

    Raises:
        ValueError: If the network does not run.
    """
    weight = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    given = _picture_shape(model) if example_input is None else example_input
    if given is None:
        return {}
    devices: list[str | torch.device] = ["meta", weight.device] if weight.device.type != "meta" else ["meta"]
    for device in devices:
        inputs = _filled(given, device, weight.dtype)
        try:
            with _unchanged(model):
                return _run(model, inputs, device)
        except Exception as error:
            failure = error
    shapes = input_shapes(given)
    hint = "; example_input= says what else to call it with" if example_input is None else " (example_input)"
    reason = str(failure).strip().partition("\n")[0]
    name = type(model).__name__
    raise ValueError(f"{name} does not run on an input of {shapes}: {reason}{hint}") from failure


def producer(model: nn.Module, calls: dict[str, Call], path: str) -> str:
    """The innermost module whose output is the output of the module at `path`.

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


def version_of(output: Any) -> int:
    """The in-place version counter of a tensor; 0 for tensors without one, such as inference tensors."""
    return output._version if isinstance(output, torch.Tensor) and not output.is_inference() else 0


def input_shapes(example_input: Any) -> Any:
    """An example input with its floating-point tensors replaced by their shapes, as plain data."""
    if isinstance(example_input, torch.Tensor):
        return tuple(example_input.shape) if example_input.is_floating_point() else example_input
    if isinstance(example_input, dict):
        return {name: input_shapes(value) for name, value in example_input.items()}
    if isinstance(example_input, list | tuple) and not _is_shape(example_input):
        return [input_shapes(value) for value in example_input]
    return example_input


def _is_shape(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) > 1 and all(type(side) is int for side in value)


def _picture_shape(model: nn.Module) -> tuple[int, ...] | None:
    conv = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    if conv is None:
        return None
    size = (getattr(model, "pretrained_cfg", None) or {}).get("input_size", (3, 224, 224))[-1]
    return (1, getattr(model, "in_chans", conv.in_channels), size, size)


def _filled(given: Any, device: torch.device | str, dtype: torch.dtype) -> Any:
    """An example input on a device, with zeros for shapes."""
    if isinstance(given, torch.Tensor):
        return given.detach().to(device)
    if _is_shape(given):
        return torch.zeros(tuple(given), device=device, dtype=dtype)
    if isinstance(given, dict):
        return {name: _filled(value, device, dtype) for name, value in given.items()}
    if isinstance(given, list | tuple):
        return [_filled(value, device, dtype) for value in given]
    return given


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Restores all attributes of all modules: networks store grids and sizes of their last input."""
    saved = [(module, dict(vars(module)), {t: dict(vars(module)[t]) for t in _TABLES}) for module in model.modules()]
    try:
        yield
    finally:
        for module, attributes, tables in saved:
            vars(module).clear()
            vars(module).update(attributes)
            for name, table in tables.items():
                attributes[name].clear()
                attributes[name].update(table)


def _run(model: nn.Module, inputs: Any, device: torch.device | str) -> dict[str, Call]:
    calls: dict[str, Call] = {}
    args, kwargs = ((), inputs) if isinstance(inputs, dict) else (inputs if isinstance(inputs, list) else [inputs], {})
    picture = next((x for x in [*args, *kwargs.values()] if isinstance(x, torch.Tensor) and x.ndim == 4), None)
    is_map = _map_test(picture)

    def record(path: str, module: nn.Module, args: Any, output: Any) -> None:
        call = calls.setdefault(path, Call(0, None, 0, False))
        call.order, call.output, call.version = next(CLOCK), output, version_of(output)
        call.is_map, call.count = is_map(output), call.count + 1
        call.channels.add(output.shape[1] if call.is_map else 0)

    if device == "meta":
        tensors = itertools.chain(model.named_parameters(), model.named_buffers())
        state = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors}
    else:  # what is changed in place are copies
        state = {name: buffer.clone() for name, buffer in model.named_buffers()}
    handles = [module.register_forward_hook(partial(record, path)) for path, module in model.named_modules()]
    # Gradient checkpointing goes round the stages' own forward.
    for module in model.modules():
        for flag in _OFF:
            if getattr(module, flag, False):
                setattr(module, flag, False)
    try:
        with torch.inference_mode(False), torch.no_grad():  # inference tensors do not count their changes
            torch.func.functional_call(model, state, tuple(args), kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _map_test(picture: torch.Tensor | None) -> Callable[[Any], bool]:
    """A test that distinguishes maps `(B, C, H, W)`, with the image's aspect ratio, from `(B, H, W, C)`."""

    def is_map(output: Any) -> bool:
        if not isinstance(output, torch.Tensor) or output.ndim != 4:
            return False
        if picture is None:
            return True
        (height, width), (rows, columns) = picture.shape[2:], output.shape[2:]
        slack = 0 if height == width else max(height, width)  # sides are rounded
        return abs(rows * width - columns * height) <= slack

    return is_map
