"""Counts the memory traffic and operations of PyTorch's operators: exact, and identical on every machine.

Tensors of the meta device have no content, so there the largest maps are counted at once. They take the plain formulas
that accelerators take; tensors of the CPU take the formulations written for it.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

__all__ = ["CATEGORIES", "Pass", "Traffic", "count_pass", "count_traffic", "saved_bytes"]

CATEGORIES = ("products", "reductions", "copies", "elementwise")
# Operators that only make room or another name.
_FREE = {"detach", "_unsafe_view", "_reshape_alias", "empty", "empty_like", "new_empty", "empty_strided", "alias"}
# What they write was not read before.
_OVERWRITE = {"copy_", "zero_", "fill_", "uniform_", "normal_", "bernoulli_"}
# Operators that read their first operand only where the result comes from, or write it only where the source goes.
_GATHER = {"gather", "index_select", "index", "embedding"}
_SCATTER = {"scatter_", "scatter_add_", "index_add_", "index_copy_", "index_put_", "_index_put_impl_"}
# Statistics first, then the result: both from memory.
_TWICE = {"native_batch_norm", "_native_batch_norm_legit", "native_batch_norm_backward", "_batch_norm_with_update"}
_TWICE |= {"batch_norm_backward", "cudnn_batch_norm", "cudnn_batch_norm_backward"}
_COPIES = {"clone", "copy_", "_to_copy", "cat", "stack", "roll", "constant_pad_nd", "contiguous", "sort", "argsort"}
_COPIES |= {"zeros_like", "new_zeros", "zeros", "zero_", "fill_", "ones_like", "slice_backward", "select_backward"}
_COPIES |= {"as_strided_copy", "flip", "repeat", *_GATHER, *_SCATTER, "scatter", "scatter_add", "im2col", "col2im"}
_REDUCTIONS = ("sum", "mean", "amax", "max", "min", "norm", "softmax", "pool", "var", "argmax", "cumsum", "logsumexp")


@dataclass(frozen=True)
class Pass:
    """One direction of a computation.

    Args:
        bytes: Read and written, each operand and result once an operator; views and room are free.
        flops: Of products and convolutions, a multiplication and an addition each being two.
        calls: Operators that move something.
        categories: The bytes of `products`, `reductions`, `copies` and the rest, `elementwise`.
    """

    bytes: int
    flops: int
    calls: int
    categories: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Traffic:
    """A training step.

    Args:
        forward: The forward pass.
        backward: The backward pass, to all inputs and parameters.
        saved: Bytes kept from one for the other, without parameters and buffers.
    """

    forward: Pass
    backward: Pass
    saved: int


def count_traffic(function: Callable[..., Any], *inputs: torch.Tensor) -> Traffic:
    """The memory traffic of one training step, a number without measurement noise.

    Args:
        function: A module, or a function of tensors.
        *inputs: Its arguments, all of one device. Gradients go to those with fractions.
    """
    saved = saved_bytes(function, *(_leaf(t) for t in inputs))
    inputs = tuple(_leaf(t) for t in inputs)
    out, forward = count_pass(lambda: function(*inputs))
    outputs = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor) and t.requires_grad]
    weights = [torch.ones_like(t) for t in outputs]
    leaves = [t for t in (*inputs, *_parameters(function)) if t.requires_grad]
    _, backward = count_pass(lambda: torch.autograd.grad(outputs, leaves, weights, allow_unused=True))
    return Traffic(forward, backward, saved)


def count_pass(run: Callable[[], Any]) -> tuple[Any, Pass]:
    """Runs a function and counts its memory traffic.

    On the meta device, fused attention counts as one operator that reads queries, keys and values and writes the
    result, as it is on accelerators.

    Returns:
        Its result and the count.
    """
    with _Counter() as counter, FusedAttention():
        out = run()
    return out, Pass(sum(counter.bytes.values()), counter.flops, counter.calls, dict(counter.bytes))


def saved_bytes(function: Callable[..., Any], *inputs: torch.Tensor) -> int:
    """Bytes that one forward pass keeps for the backward pass, without parameters and buffers.

    Memory that several operators keep counts once.
    """
    buffers = function.buffers() if isinstance(function, nn.Module) else ()
    own = {_storage(tensor) for tensor in (*_parameters(function), *buffers)}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if _storage(tensor) not in own:
            kept[_storage(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    # The output keeps the graph, the graph what was saved: no address is used twice.
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), FusedAttention():
        out = function(*inputs)
    total = sum(kept.values())
    del out
    return total


class _Counter(TorchDispatchMode):
    """Sums up what operators read, write and compute."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()
        self.flops = 0
        self.calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        packet = func.overloadpacket
        name = packet.__name__
        if func.is_view or name in _FREE:
            return out
        products = packet in flop_registry
        self.add(_category(name, products), _moved(func, name, args, kwargs, out))
        if products:
            self.flops += _flops(packet, args, kwargs, out)
        return out

    def add(self, category: str, amount: int, flops: int = 0) -> None:
        self.bytes[category] += amount
        self.flops += flops
        self.calls += 1


class FusedAttention(TorchFunctionMode):
    """Keeps attention on the meta device in one piece."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention and args[0].device.type == "meta":
            mask = (kwargs or {}).get("attn_mask", args[3] if len(args) > 3 else None)
            return _MetaAttention.apply(mask, *args[:3])
        return func(*args, **(kwargs or {}))


class _MetaAttention(torch.autograd.Function):
    """Attention results without content; the backward pass recomputes the scores, as fused kernels do."""

    @staticmethod
    def forward(ctx: Any, mask: torch.Tensor | None, *qkv: torch.Tensor) -> torch.Tensor:
        q, k, v = qkv
        out = q.new_empty((*q.shape[:-1], v.size(-1)))
        sums = q.new_empty(q.shape[:-1], dtype=torch.float32)
        tensors = [*qkv, out, sums, *([] if mask is None else [mask])]
        ctx.save_for_backward(*tensors)
        # Two products with the scores forward, five backward.
        ctx.flops = 2 * sums.numel() * k.size(-2) * (q.size(-1) + v.size(-1))
        _add_product(tensors, ctx.flops)
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        q, k, v, *_ = tensors = ctx.saved_tensors
        mask_grad = torch.empty_like(tensors[-1]) if ctx.needs_input_grad[0] else None
        grads = [torch.empty_like(t) for t in (q, k, v)]
        _add_product([*tensors, grad, *grads, *([] if mask_grad is None else [mask_grad])], 5 * ctx.flops // 2)
        return mask_grad, *grads


def _add_product(tensors: Sequence[torch.Tensor], flops: int) -> None:
    counter = _get_current_dispatch_mode()
    if isinstance(counter, _Counter):
        counter.add("products", sum(map(_touched, tensors)), flops)


def _moved(func: Any, name: str, args: Any, kwargs: Any, out: Any) -> int:
    """Bytes that an operator reads and writes."""
    read: dict[int, torch.Tensor] = {}
    written: dict[int, torch.Tensor] = {id(t): t for t in tree_leaves(out) if isinstance(t, torch.Tensor)}
    training = True
    for position, argument in enumerate(func._schema.arguments):
        value = args[position] if position < len(args) else kwargs.get(argument.name)
        if argument.name in ("train", "training"):
            training = bool(value)
        writes = argument.alias_info is not None and argument.alias_info.is_write
        for tensor in tree_leaves(value):
            if isinstance(tensor, torch.Tensor):
                if writes:
                    written[id(tensor)] = tensor
                if not (writes and (argument.is_out or name in _OVERWRITE)):
                    read[id(tensor)] = tensor
    if name in _GATHER | _SCATTER:
        first, others = args[0], [t for t in tree_leaves((args[1:], kwargs)) if isinstance(t, torch.Tensor)]
        reached = out if name in _GATHER else max(others, key=torch.Tensor.numel)
        share = min(_touched(first), reached.numel() * first.element_size())
        # What is gathered is read and written; what is scattered is read, and written into what was read.
        return share + sum(map(_touched, others)) + (_touched(out) if name in _GATHER else share)
    passes = 2 if name in _TWICE and training else 1
    return passes * sum(map(_touched, read.values())) + sum(map(_touched, written.values()))


def _flops(packet: Any, args: Any, kwargs: Any, out: Any) -> int:
    if packet is not torch.ops.aten.convolution_backward:
        return int(flop_registry[packet](*args, **kwargs, out_val=out))
    # PyTorch's own formula forgets that the weight's gradient has groups.
    grad, x, weight, *_ = args
    transposed, mask = args[7], args[10]
    return 2 * (x if transposed else grad).numel() * weight[0].numel() * sum(map(bool, mask[:2]))


def _category(name: str, products: bool) -> str:
    if products:
        return "products"
    if name in _COPIES:
        return "copies"
    reduces = any(word in name for word in _REDUCTIONS) and name not in ("maximum", "minimum")
    return "reductions" if reduces else "elementwise"


def _touched(tensor: torch.Tensor) -> int:
    """Bytes of a tensor, repeated ones once."""
    sides = [size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride or size == 0]
    return math.prod(sides) * tensor.element_size()


def _storage(tensor: torch.Tensor) -> int:
    """What tensors of the same memory share, on every device."""
    return StorageWeakRef(tensor.untyped_storage()).cdata


def _parameters(function: Callable[..., Any]) -> tuple[nn.Parameter, ...]:
    return tuple(function.parameters()) if isinstance(function, nn.Module) else ()


def _leaf(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().requires_grad_(tensor.is_floating_point())
