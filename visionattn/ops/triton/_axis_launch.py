"""The kernels for pools over axes and gates without axes as operators of PyTorch, for maps `(B, C, H, W)`.

Here a set of axes is a number: 4 for C, 2 for H, 1 for W, and their sums. Gates are `(B, C, H, W)` with size 1 along
the axes over which they broadcast; pools lack the pooled axes altogether. Both get the map's order of axes in memory.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton

from visionattn.ops._axis import join_gates

from ._axis_kernels import finish, gate, gate_backward, pool
from ._register import by_sizes, formula_gradients, power_of_2, register, unit_of, wrap_triton

__all__ = [
    "axis_gate",
    "axis_gate_backward",
    "axis_pool",
    "axis_pool_backward",
    "axis_spread",
    "gate_gradients",
    "is_nhwc",
]

# Numbers in a tile, by the bytes of one and how many a thread has: the most that all generations of GPUs hold in
# registers. A thread has eight, which it loads at once, or four where rows are not aligned for that.
TILES = {(2, 8): 4096, (2, 4): 4096, (4, 8): 1024, (4, 4): 512}
# Programs that fill the largest GPUs with four on each of their processors.
PROGRAMS = 528
# Fewer steps along L are not worth a program of its own: each stores what the next kernel must read.
STEPS = 32


def is_nhwc(x: torch.Tensor) -> bool:
    """Whether a map lies in memory as channels_last, and not as any other."""
    return not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


class _Map(NamedTuple):
    """A map as the kernels see it, `(B, L, M, N)`, and how they divide it."""

    shape: tuple[int, ...]
    nhwc: bool

    @classmethod
    def of(cls, x: torch.Tensor) -> "_Map":
        return cls(tuple(x.shape), is_nhwc(x))

    @property
    def order(self) -> tuple[int, int, int]:
        return (2, 3, 1) if self.nhwc else (1, 2, 3)

    @property
    def sizes(self) -> tuple[int, int, int]:
        length, m, n = self.order
        return self.shape[length], self.shape[m], self.shape[n]

    def bits(self, axes: int) -> int:
        """The set of axes with L, M, N in place of C, H, W."""
        return sum(4 >> place for place, axis in enumerate(self.order) if axes & (8 >> axis))

    def empty(self, axes: int, dtype: torch.dtype, device: torch.device, parts: int = 0) -> torch.Tensor:
        """Memory for a tensor without some axes, in the order of the map; `parts` of it are not put in order."""
        kept = [axis for axis in self.order if not axes & (8 >> axis)]
        out = torch.empty(
            [*([parts] * bool(parts)), *(self.shape[axis] for axis in (0, *kept))], dtype=dtype, device=device
        )
        return out if parts else out.permute(0, *(1 + kept.index(axis) for axis in sorted(kept)))

    def dense(self, x: torch.Tensor, axes: int) -> torch.Tensor:
        """A tensor without some axes with its memory in the order of the map; small, if it must be copied."""
        if not self.nhwc or axes & 4:  # without C the order is the same
            return x.contiguous()
        kept = [axis for axis in self.order if not axes & (8 >> axis)]
        return x.permute(0, *(1 + sorted(kept).index(axis) for axis in kept)).contiguous()

    def like(self, x: torch.Tensor) -> torch.Tensor:
        """Another map, such as a gradient, lying as this one does."""
        return x.contiguous(memory_format=torch.channels_last if self.nhwc else torch.contiguous_format)

    def new(self, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        layout = torch.channels_last if self.nhwc else torch.contiguous_format
        return torch.empty(self.shape, dtype=dtype, device=device, memory_format=layout)

    def tile(self, dtype: torch.dtype, share: int = 1) -> dict[str, int]:
        unit = unit_of(self.sizes[2])
        each = 8 if unit >= 8 else 4
        numbers = TILES[dtype.itemsize, each] // share
        columns = power_of_2(self.sizes[2], 64)
        rows = power_of_2(self.sizes[1], min(64, numbers // columns))
        steps = power_of_2(self.sizes[0], numbers // (rows * columns))
        warps = max(1, min(steps * rows * columns // (32 * each), 16))
        return {"UNIT": unit, "LB": steps, "MP": rows, "NP": columns, "num_warps": warps}

    @property
    def run_time(self) -> tuple[int, int, int]:
        """L, M and N in units of what the kernels are compiled for."""
        length, m, n = self.sizes
        return length, m, n // unit_of(n)


class _Walk(NamedTuple):
    """How programs walk along L: how far each, and how many share each axis."""

    tile: dict[str, int]
    chunk: int
    parts: tuple[int, int, int]

    @classmethod
    def over(cls, x: _Map, dtype: torch.dtype) -> "_Walk":
        # Tiles on their way: bytes count, and shared memory is finite.
        tile = {**x.tile(dtype), "STAGES": 2 if dtype.itemsize == 4 else 3}
        length, m, n = x.sizes
        parts_m, parts_n = triton.cdiv(m, tile["MP"]), triton.cdiv(n, tile["NP"])
        wanted = min(PROGRAMS // (x.shape[0] * parts_m * parts_n), length // max(STEPS, tile["LB"]))
        chunk = triton.cdiv(triton.cdiv(length, max(1, wanted)), tile["LB"]) * tile["LB"]
        return cls(tile, chunk, (triton.cdiv(length, chunk), parts_m, parts_n))

    def grid(self, batch: int) -> tuple[int]:
        # One axis: the others of a GPU's grid end at 65,535.
        return (batch * math.prod(self.parts),)

    def count(self, bits: int) -> int:
        """How many programs share the same results without some axes."""
        return math.prod(part for part, bit in zip(self.parts, (4, 2, 1), strict=True) if bits & bit)


def _broadcast_axes(x: torch.Tensor) -> int:
    return sum(8 >> axis for axis in (1, 2, 3) if x.shape[axis] == 1)


def _pointers(x: _Map, gates: Sequence[torch.Tensor]) -> list[torch.Tensor | None]:
    """Gates with their memory in the order of the map, three in all; axes of size 1 make no difference there."""
    layout = torch.channels_last if x.nhwc else torch.contiguous_format
    dense: list[torch.Tensor | None] = [part.contiguous(memory_format=layout) for part in gates]
    return dense + [None] * (3 - len(gates))


def _axes_of(gates: Sequence[torch.Tensor]) -> tuple[int, ...]:
    return tuple(_broadcast_axes(part) for part in gates)


def _gate_names(x: _Map, axes: Sequence[int], join: str, one: bool, sigmoid: bool) -> dict[str, Any]:
    """What kernels are compiled for, of gates that lack these axes."""
    names = {f"GATE{i}": x.bits(axes[i]) if i < len(axes) else 0 for i in range(3)}
    return {"COUNT": len(axes), "JOIN": join, "ONE": one, "SIGMOID": sigmoid, **names}


def _unsqueezed(x: torch.Tensor, axes: int) -> torch.Tensor:
    for axis in (1, 2, 3):
        if axes & (8 >> axis):
            x = x.unsqueeze(axis)
    return x


def _keys_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.int64 if dtype == torch.float32 else torch.int32


def _finish(
    sums: torch.Tensor | None,
    keys: torch.Tensor | None,
    total: torch.Tensor | None,
    maximum: torch.Tensor | None,
    index: torch.Tensor | None,
) -> None:
    parts = keys if sums is None else sums
    assert parts is not None
    size = parts[0].numel()
    wrap_triton(finish)[(triton.cdiv(size, 256),)](
        sums, keys, total, maximum, index, size, parts.shape[0], BLOCK=256, num_warps=4
    )


def _pool_results(
    x: torch.Tensor, weight: torch.Tensor | None, means: list[int], maxima: list[int]
) -> list[torch.Tensor]:
    lies = _Map.of(x)
    pools = [lies.empty(axes, x.dtype, x.device) for axes in (*means, *maxima)]
    return pools + [lies.empty(axes, torch.int32, x.device) for axes in maxima]


@register(_pool_results)
def axis_pool(x: torch.Tensor, weight: torch.Tensor | None, means: list[int], maxima: list[int]) -> list[torch.Tensor]:
    """Means and maxima of `x [* weight]` over sets of axes, and the first index of each maximum, flattened."""
    lies, results = _Map.of(x), _pool_results(x, weight, means, maxima)
    mean_of: dict[int | None, torch.Tensor] = dict(zip(means, results, strict=False))
    max_of: dict[int | None, torch.Tensor] = dict(zip(maxima, results[len(means) :], strict=False))
    index_of: dict[int | None, torch.Tensor] = dict(zip(maxima, results[len(means) + len(maxima) :], strict=True))
    over = 0 if weight is None else _broadcast_axes(weight)
    dense = None if weight is None else _pointers(lies, [weight])[0]
    for group, counts, grid, numbers, names in _pool_plan(lies, x.dtype, over, tuple(sorted({*means, *maxima}))):
        pointers: list[torch.Tensor | None] = []
        open_ = []
        for axes, parts in zip(group, counts, strict=True):
            mean, maximum, index = mean_of.get(axes), max_of.get(axes), index_of.get(axes)
            if parts > 1 and axes is not None:
                sums = None if mean is None else lies.empty(axes, torch.float32, x.device, parts)
                keys = None if maximum is None else lies.empty(axes, _keys_dtype(x.dtype), x.device, parts)
                open_.append((sums, keys, mean, maximum, index))
                mean, maximum, index = sums, keys, None
            pointers += [mean, maximum, index]
        wrap_triton(pool)[grid](x, dense, *pointers, *numbers, **names)
        for unfinished in open_:
            _finish(*unfinished)
    return results


@by_sizes
def _pool_plan(lies: _Map, dtype: torch.dtype, over: int, sets: tuple[int, ...]) -> list[Any]:
    """For each launch its three sets of axes, how many programs share each, the grid and the numbers it is given."""
    walk = _Walk.over(lies, dtype)
    plan = []
    for first in range(0, len(sets), 3):
        group = [*sets[first : first + 3], None, None, None][:3]
        bits = [0 if axes is None else lies.bits(axes) for axes in group]
        counts = [walk.count(part) for part in bits]
        names = {f"AXES{place}": part for place, part in enumerate(bits)}
        names |= {f"WHOLE{place}": not count > 1 for place, count in enumerate(counts)}
        names |= {"WEIGHT": lies.bits(over), **walk.tile}
        numbers = (lies.shape[0], *lies.run_time, walk.chunk)
        plan.append((group, counts, walk.grid(lies.shape[0]), numbers, names))
    return plan


def _spread_result(
    base: torch.Tensor | None,
    other: torch.Tensor | None,
    gates: list[torch.Tensor],
    join: str,
    one: bool,
    sigmoid: bool,
    shape: list[int],
    nhwc: bool,
    means: list[torch.Tensor],
    mean_axes: list[int],
    maxima: list[torch.Tensor],
    *others: Any,
) -> torch.Tensor:
    like = next(part for part in (base, other, *means, *maxima) if part is not None)
    return _Map(tuple(shape), nhwc).new(like.dtype, like.device)


@register(_spread_result)
def axis_spread(
    base: torch.Tensor | None,
    other: torch.Tensor | None,
    gates: list[torch.Tensor],
    join: str,
    one: bool,
    sigmoid: bool,
    shape: list[int],
    nhwc: bool,
    means: list[torch.Tensor],
    mean_axes: list[int],
    maxima: list[torch.Tensor],
    indices: list[torch.Tensor],
    max_axes: list[int],
    inner: int,
) -> torch.Tensor:
    """The gradient of a map: that of a gate's product, `base * gate`, another one, and those of its pools.

    Pools over the axes `inner` (0: none) are of the map's product with the first gate.
    """
    lies = _Map(tuple(shape), nhwc)
    out = _spread_result(base, other, gates, join, one, sigmoid, shape, nhwc, means, mean_axes, maxima)
    mean_of = {axes: lies.dense(grad, axes) for axes, grad in zip(mean_axes, means, strict=True)}
    max_of = {axes: lies.dense(grad, axes) for axes, grad in zip(max_axes, maxima, strict=True)}
    index_of = {axes: lies.dense(index, axes) for axes, index in zip(max_axes, indices, strict=True)}
    base, other = (None if part is None else lies.like(part) for part in (base, other))
    sets = sorted({*mean_axes, *max_axes}, key=lambda axes: (axes != inner, axes))
    for first in range(0, max(1, len(sets)), 3):
        group = (*sets[first : first + 3], 0, 0, 0)[:3]
        pointers = [found.get(axes) for axes in group for found in (mean_of, max_of, index_of)]
        within = bool(inner) and not first and inner in group
        _launch_gate(lies, base, other, out, gates, join, one, sigmoid, False, pointers, group, within)
        base, other, gates = out, None, []
    return out


def _launch_gate(
    lies: _Map,
    x: torch.Tensor | None,
    other: torch.Tensor | None,
    out: torch.Tensor,
    gates: list[torch.Tensor],
    join: str,
    one: bool,
    sigmoid: bool,
    relu: bool,
    pointers: Sequence[torch.Tensor | None],
    axes: tuple[int, ...],
    inner: bool = False,
) -> None:
    grid, names = _gate_plan(lies, out.dtype, _axes_of(gates), join, one, sigmoid, relu, axes, inner)
    wrap_triton(gate)[grid](x, other, out, *_pointers(lies, gates), *pointers, *lies.run_time, **names)


@by_sizes
def _gate_plan(
    lies: _Map,
    dtype: torch.dtype,
    broadcast: tuple[int, ...],
    join: str,
    one: bool,
    sigmoid: bool,
    relu: bool,
    axes: tuple[int, ...],
    inner: bool,
) -> tuple[tuple[int], dict[str, Any]]:
    tile = lies.tile(dtype, share=2)
    sides = (tile["LB"], tile["MP"], tile["NP"])
    tiles = math.prod(triton.cdiv(size, side) for size, side in zip(lies.sizes, sides, strict=True))
    names = _gate_names(lies, broadcast, join, one, sigmoid) | {"RELU": relu, "INNER": inner}
    names |= {f"AXES{i}": lies.bits(part) for i, part in enumerate(axes)}
    return (lies.shape[0] * tiles,), {**names, **tile}


def _gate_result(x: torch.Tensor, *others: Any) -> torch.Tensor:
    return _Map.of(x).new(x.dtype, x.device)


def _save_gate(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, gates, residual, ctx.join, ctx.one, ctx.sigmoid, ctx.relu = inputs
    ctx.residual = residual is not None
    ctx.save_for_backward(x, output if ctx.relu else None, *gates)


def gate_gradients(
    dz: torch.Tensor, x: torch.Tensor, gates: Sequence[torch.Tensor], join: str, one: bool, sigmoid: bool
) -> list[torch.Tensor | None]:
    """The gradients of x and of the gates, as a formula that can be differentiated once more."""

    def product(x: torch.Tensor, *gates: torch.Tensor) -> torch.Tensor:
        joined = join_gates(gates, join)
        joined = joined.sigmoid() if sigmoid else joined
        return x * (joined + 1 if one else joined)

    return list(formula_gradients(product, (x, *gates), (dz,)))


def _differentiate_gate(ctx: Any, dy: torch.Tensor) -> tuple[Any, ...]:
    x, y, *gates = ctx.saved_tensors
    if torch.is_grad_enabled():
        dz = dy if y is None else dy * (y > 0)
        dx, *grads = gate_gradients(dz, x, gates, ctx.join, ctx.one, ctx.sigmoid)
        return dx, grads, dz if ctx.residual else None, None, None, None, None
    store = ctx.residual and ctx.relu  # Without a ReLU the residual's gradient is dy.
    dx, dz, *grads = axis_gate_backward(dy, y, x, gates, ctx.join, ctx.one, ctx.sigmoid, True, store)
    return dx, grads, (dz if store else dy) if ctx.residual else None, None, None, None, None


@register(_gate_result, _save_gate, _differentiate_gate)
def axis_gate(
    x: torch.Tensor,
    gates: list[torch.Tensor],
    residual: torch.Tensor | None,
    join: str,
    one: bool,
    sigmoid: bool,
    relu: bool,
) -> torch.Tensor:
    """`x * gate + residual`, then ReLU; the gate is joined, then its sigmoid, then `one` more, where that is asked."""
    lies, out = _Map.of(x), _gate_result(x)
    residual = None if residual is None else lies.like(residual)
    _launch_gate(lies, x, residual, out, gates, join, one, sigmoid, relu, [None] * 9, (0, 0, 0))
    return out


def _gate_gradients(
    dy: torch.Tensor,
    y: torch.Tensor | None,
    x: torch.Tensor,
    gates: list[torch.Tensor],
    join: str,
    one: bool,
    sigmoid: bool,
    want_x: bool,
    want_dz: bool,
) -> list[torch.Tensor]:
    lies = _Map.of(x)
    dx = lies.new(x.dtype, x.device) if want_x else x.new_empty(0)
    dz = lies.new(x.dtype, x.device) if want_dz else x.new_empty(0)
    axes = [_broadcast_axes(part) for part in gates]
    grads = [lies.empty(over, part.dtype, x.device) for over, part in zip(axes, gates, strict=True)]
    return [dx, dz, *(_unsqueezed(grad, over) for over, grad in zip(axes, grads, strict=True))]


@register(_gate_gradients)
def axis_gate_backward(
    dy: torch.Tensor,
    y: torch.Tensor | None,
    x: torch.Tensor,
    gates: list[torch.Tensor],
    join: str,
    one: bool,
    sigmoid: bool,
    want_x: bool,
    want_dz: bool,
) -> list[torch.Tensor]:
    """The gradients of x, of what the ReLU got (both empty unless wanted), and of the gates, in one pass."""
    results = _gate_gradients(dy, y, x, gates, join, one, sigmoid, want_x, want_dz)
    dx, dz = (part if wanted else None for part, wanted in zip(results, (want_x, want_dz), strict=False))
    lies = _Map.of(x)
    _launch_gate_backward(
        lies, lies.like(dy), y, x, None, gates, join, one, sigmoid, [None] * 3, 0, dx, dz, results[2:]
    )
    return results


def _launch_gate_backward(
    lies: _Map,
    dy: torch.Tensor | None,
    y: torch.Tensor | None,
    x: torch.Tensor,
    other: torch.Tensor | None,
    gates: list[torch.Tensor],
    join: str,
    one: bool,
    sigmoid: bool,
    pointers: Sequence[torch.Tensor | None],
    axes: int,
    dx: torch.Tensor | None,
    dz: torch.Tensor | None,
    grads: Sequence[torch.Tensor | None],
) -> None:
    broadcast = _axes_of(gates)
    grid, counts, chunk, names = _backward_plan(lies, x.dtype, broadcast, join, one, sigmoid, axes)
    outs, open_ = [], []
    for over, count, grad in zip(broadcast, counts, grads, strict=True):
        outs.append(grad)
        if count > 1:
            outs[-1] = lies.empty(over, torch.float32, x.device, count)
            open_.append((outs[-1], None, grad, None, None))
    outs += [None] * (3 - len(gates))
    wrap_triton(gate_backward)[grid](
        dy, y, x, other, *_pointers(lies, gates), *pointers, dx, dz, *outs, lies.shape[0], *lies.run_time, chunk,
        **names,
    )  # fmt: skip
    for parts in open_:
        _finish(*parts)


@by_sizes
def _backward_plan(
    lies: _Map, dtype: torch.dtype, broadcast: tuple[int, ...], join: str, one: bool, sigmoid: bool, axes: int
) -> tuple[tuple[int], list[int], int, dict[str, Any]]:
    walk = _Walk.over(lies, dtype)
    counts = [walk.count(lies.bits(over)) for over in broadcast]
    names = _gate_names(lies, broadcast, join, one, sigmoid) | {"AXES": lies.bits(axes), **walk.tile}
    return walk.grid(lies.shape[0]), counts, walk.chunk, names


def _pool_gradients(
    base: torch.Tensor | None, x: torch.Tensor, weight: torch.Tensor, *others: Any
) -> list[torch.Tensor]:
    lies, over = _Map.of(x), _broadcast_axes(weight)
    grad = _unsqueezed(lies.empty(over, weight.dtype, x.device), over)
    return [x.new_empty(0) if base is None else lies.new(x.dtype, x.device), grad]


@register(_pool_gradients)
def axis_pool_backward(
    base: torch.Tensor | None,
    x: torch.Tensor,
    weight: torch.Tensor,
    mean: torch.Tensor,
    maximum: torch.Tensor,
    index: torch.Tensor,
    axes: int,
) -> list[torch.Tensor]:
    """The gradients of x, added to `base`, and of weight from those of the mean and the maximum of their product.

    Without a base the gradient of x is not made, and empty.
    """
    lies, results = _Map.of(x), _pool_gradients(base, x, weight)
    pointers = [lies.dense(part, axes) for part in (mean, maximum, index)]
    other, dx = (None, None) if base is None else (lies.like(base), results[0])
    _launch_gate_backward(
        lies, None, None, x, other, [weight], "product", False, False, pointers, axes, dx, None, results[1:]
    )
    return results
