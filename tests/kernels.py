"""What tests of kernels share: inputs in all layouts, and comparison with the torch code of the operation in float64.

Kernels run on a GPU, or on the CPU where `TRITON_INTERPRET=1` is set before Triton is imported.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves

from visionattn.ops import explain, use_backend

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED or not torch.cuda.is_available() else "cuda"
AVAILABLE = INTERPRETED or DEVICE == "cuda"
if INTERPRETED:
    from interpreter import repair_bfloat16

    repair_bfloat16()
LAYOUTS = ("NCHW", "NHWC")
# Largest error allowed, relative to the root mean square of what is expected.
TOLERANCES = {torch.float32: 1e-6, torch.bfloat16: 5e-3, torch.float16: 1e-3}
DTYPES = pytest.mark.parametrize("dtype", list(TOLERANCES), ids=lambda dtype: str(dtype).removeprefix("torch."))


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0, levels: int | None = None) -> torch.Tensor:
    """Normal numbers on the device of the kernels; of few `levels` for each unit if maxima shall be ties."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    if levels is not None:
        x = x.mul(levels).round().div(levels)
    return x.to(DEVICE, dtype)


def laid_out(x: torch.Tensor, layout: str) -> torch.Tensor:
    """A map `(B, C, H, W)` with the same numbers, between numbers that are none.

    Args:
        x: The map.
        layout: `NCHW` or `NHWC`, both dense; `sliced`, with gaps along each axis, for any tensor.
    """
    if layout == "sliced":
        wide = torch.full([size + 3 for size in x.shape], torch.nan, dtype=x.dtype, device=x.device)
        return wide[tuple(slice(1, size + 1) for size in x.shape)].copy_(x)
    memory_format = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}[layout]
    guarded = x.new_full((len(x) + 2, *x.shape[1:]), torch.nan).contiguous(memory_format=memory_format)
    return guarded[1:-1].copy_(x)


@contextmanager
def poisoned() -> Iterator[None]:
    """Fills what kernels' modules allocate with NaN or an index out of bounds, so that they must write all of it."""
    patch = pytest.MonkeyPatch()

    def poisoning(allocate: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def wrapped(*args: Any, **kwargs: Any) -> torch.Tensor:
            out = allocate(*args, **kwargs)
            if out.device.type == "meta" or type(out) is not torch.Tensor:  # shapes only
                return out
            return out.fill_(torch.nan if out.is_floating_point() else torch.iinfo(out.dtype).max)

        return wrapped

    # What the modules see as `torch`; and two methods of tensors, which concern nobody else meanwhile.
    for name in ("empty", "empty_like", "empty_strided"):
        patch.setattr(torch, name, poisoning(getattr(torch, name)))
    for name in ("new_empty", "new_empty_strided"):
        patch.setattr(torch.Tensor, name, poisoning(getattr(torch.Tensor, name)))
    try:
        yield
    finally:
        patch.undo()


def check(
    op: Callable[..., Any],
    *args: Any,
    grad: bool = True,
    tolerance: float | None = None,
    repeat: bool = not INTERPRETED,
    **kwargs: Any,
) -> None:
    """Compares an operation's kernels with its torch code: values, dtypes, layouts, and the gradients of all floats.

    The torch code gets the same numbers in float64.

    Args:
        op: An operation with kernels, which must take these arguments.
        *args: Its arguments; floating tensors anywhere among them, lists included, get gradients.
        grad: Whether to compare gradients.
        tolerance: The largest error, relative to the root mean square; as `TOLERANCES` says by default.
        repeat: Whether the kernels run twice and must give the same bits; the interpreter runs programs one by one, so
            that it takes a kernel with state of its own to differ there.
        **kwargs: Its keyword arguments.
    """
    choice = explain(op, *args, backend="triton", **kwargs)
    assert choice.backend == "triton", choice.reason
    with poisoned():
        actual = _run(op, "triton", args, kwargs, None, grad)
        again = _run(op, "triton", args, kwargs, None, grad) if repeat else actual
    expected = _run(op, "torch", args, kwargs, torch.float64, grad)
    plain = _run(op, "torch", args, kwargs, None, grad)
    assert actual.keys() == expected.keys() == plain.keys()
    for name, value in actual.items():
        assert torch.equal(value, again[name]), f"{name} differs from run to run"
        assert value.dtype == plain[name].dtype, f"{name} has dtype {value.dtype}, not {plain[name].dtype}"
        assert value.shape == plain[name].shape, f"{name} has shape {value.shape}, not {plain[name].shape}"
        if name in ("result 0", "gradient of argument 0") and value.shape == args[0].shape:
            actual_order, order = (_order(tensor) for tensor in (value, args[0]))
            assert actual_order == order, f"{name} has strides {actual_order}, not {order}"
        close(name, value, expected[name], tolerance)


def _order(x: torch.Tensor) -> list[int]:
    """Strides, of the axes that have more than one position."""
    return [stride for stride, size in zip(x.stride(), x.shape, strict=True) if size > 1]


def close(name: str, actual: torch.Tensor, expected: torch.Tensor, tolerance: float | None = None) -> None:
    """Asserts that the error's root mean square is within the tolerance, and no error is many times that."""
    if not actual.is_floating_point():
        assert torch.equal(actual, expected), name
        return
    tolerance = TOLERANCES[actual.dtype] if tolerance is None else tolerance
    assert actual.isfinite().all(), f"{name} is not finite everywhere"
    scale = expected.square().mean().sqrt()
    error = (actual.double() - expected.double()).abs()
    assert error.square().mean().sqrt() <= tolerance * scale, f"{name} is off by {error.square().mean().sqrt() / scale}"
    # Large numbers are rounded in proportion to themselves.
    worst = (error / (scale + expected.abs()).clamp(min=1e-30)).max()
    assert worst <= 10 * tolerance, f"{name} is off by {worst} in one place"


def check_second_derivatives(op: Callable[..., Any], *args: Any, tolerance: float = 1e-4, **kwargs: Any) -> None:
    """Compares what a gradient's own gradient is by kernels, which have none, with the torch code's in float64."""
    with sdpa_kernel(SDPBackend.MATH):  # the fused forms have no second derivative
        found = [_run(_gradients_of(op), backend, args, kwargs, dtype, grad=True) for backend, dtype in _BOTH]
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        close(name, value, found[1][name], tolerance)


_BOTH = (("triton", None), ("torch", torch.float64))


def _gradients_of(op: Callable[..., Any]) -> Callable[..., list[torch.Tensor]]:
    """The gradients of an operation, by the names of its arguments, as results that can be differentiated."""

    def run(*args: Any, **kwargs: Any) -> list[torch.Tensor]:
        leaves = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor) and t.requires_grad]
        results = [t for t in tree_leaves(op(*args, **kwargs)) if t is not None and t.requires_grad]
        weights = [random(*r.shape, seed=7).sin().to(r.dtype) for r in results]
        loss = sum((r * w).square().sum() for r, w in zip(results, weights, strict=True))
        return list(torch.autograd.grad(loss, leaves, create_graph=True))

    return run


def check_operator(registered: Callable[..., Any], *args: Any) -> None:
    """PyTorch's own checks of a registered operator: schema, fake results, autograd, compilers."""
    torch.library.opcheck(registered, args)


def check_compiles(function: Callable[..., Any], *args: torch.Tensor) -> None:
    """Asserts that a function compiles with its kernels as one graph, forward and backward, to the same numbers."""
    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, backend="inductor" if DEVICE == "cuda" else "aot_eager")
    with use_backend("triton"):
        actual, expected = (_run(f, None, args, {}, None, grad=True) for f in (compiled, function))
    for name, value in actual.items():
        close(name, value, expected[name])


def check_exports(function: Callable[..., Any], *args: torch.Tensor) -> None:
    """Asserts that exporters get PyTorch's own operators, whatever backend is wished."""

    class Net(torch.nn.Module):
        def forward(self, *args: torch.Tensor) -> Any:
            return function(*args)

    with use_backend("triton"):
        program = torch.export.export(Net(), args)
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert targets and not [target for target in targets if "visionattn" in target]


def _run(
    op: Callable[..., Any],
    backend: str | None,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    dtype: torch.dtype | None,
    grad: bool,
) -> dict[str, torch.Tensor]:
    leaves: dict[str, torch.Tensor] = {}
    seen: dict[int, torch.Tensor] = {}

    def leaf(value: Any, name: str) -> Any:
        if isinstance(value, (list, tuple)):
            return type(value)(leaf(part, f"{name}[{index}]") for index, part in enumerate(value))
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            # Detached and not copied: strides and what stands around stay. One tensor stays one.
            if id(value) not in seen:
                copy = value.detach() if dtype is None else value.detach().to(dtype)
                seen[id(value)] = leaves[name] = copy.requires_grad_(grad)
            return seen[id(value)]
        return value

    args = [leaf(value, f"argument {index}") for index, value in enumerate(args)]
    kwargs = {name: leaf(value, name) for name, value in kwargs.items()}
    if backend is not None:
        kwargs["backend"] = backend
    results = op(*args, **kwargs)
    results = [results] if isinstance(results, torch.Tensor) else [r for r in results if r is not None]
    found = {f"result {index}": result.detach() for index, result in enumerate(results)}
    if grad:
        grads = torch.autograd.grad(
            [result for result in results if result.requires_grad],
            list(leaves.values()),
            # Numbers that all precisions hold.
            [random(*r.shape, seed=i).bfloat16().to(r.dtype) for i, r in enumerate(results) if r.requires_grad],
            allow_unused=True,
        )
        found |= {f"gradient of {name}": g for name, g in zip(leaves, grads, strict=True) if g is not None}
    return found
