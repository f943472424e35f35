"""Captures queries, keys, values and probabilities of every attention of a network without changing it.

While `capture` is entered, one `torch.overrides.TorchFunctionMode` sees every call of `scaled_dot_product_attention`
and every softmax over the last axis of a product of two tensors, whatever module makes it. There is no hook, no patched
class and no flag, so fused attention stays fused: outputs are the same bit for bit, and gradients flow through the
probabilities that are recorded beside them.
"""

import sys
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from visionattn.ops import use_backend

from ._layout import find_layout
from .layer import PARTS, Layer
from .record import Record

__all__ = ["Edit", "capture"]

# Softmaxes that may wait for their product with values; some mechanisms take two one after the other.
_OPEN = 2
# Called with an attention, whose probabilities are `(B, windows, heads, N, M)`; returns those to use instead.
Edit = Callable[[Layer], torch.Tensor]

_PRODUCTS = {"matmul", "__matmul__", "bmm", "einsum"}
# Whole attention modules of PyTorch, whose inside no mode sees.
_OPAQUE = {"multi_head_attention_forward", "_native_multi_head_attention", "_transformer_encoder_layer_fwd"}
_HEADS = ("num_heads", "heads", "n_heads")
# Who lays heads out before windows: a function of ours, and classes of timm's.
_HEADS_FIRST = {"block_sparse_attention", "MaskUnitAttention"}
_CHANNEL = ("channel_attention", "ChannelAttention", "XCA", "CrossCovariance")


@contextmanager
def capture(
    model: nn.Module,
    *,
    layers: Sequence[int] | None = None,
    keep: Collection[str] = ("probs", "q", "k", "v", "out"),
    reduce: Callable[[Layer], Any] | None = None,
    edit: Edit | None = None,
) -> Iterator[Record]:
    """Records every attention of a forward pass.

        with capture(model) as record:
            logits = model(x)
        record.gradients(logits[:, 281].sum())
        record[3].probs, record[3].grad

    Of a compiled network, capture the eager one. Attention dropout must be off where gradients are wanted. Gradient
    checkpointing is switched off inside, and kernels of ours are PyTorch's operations.

    Args:
        model: Any network.
        layers: Numbers of the attentions to hold, negative ones from the last; all without it. The others are listed
            without their tensors.
        keep: Which parts to hold, any of `probs`, `logits`, `q`, `k`, `v`, `out`.
        reduce: Makes of each attention, with all its parts, what is held in its `reduced` instead of the parts.
        edit: Changes the probabilities; then the explicit product is what the network goes on with.

    Raises:
        ValueError: If the network is compiled, an argument is out of range, or, on leaving, if nothing was recorded.
    """
    _refuse_compiled(model)
    if unknown := set(keep) - set(PARTS):
        raise ValueError(f"keep must be of {', '.join(PARTS)}, got {', '.join(sorted(unknown))}")
    record = Record(model)
    mode = _Mode(record, layers, () if reduce else keep, reduce, edit)
    with _without_checkpointing(model), use_backend("torch"), mode:
        yield record
    mode.finish()


def _refuse_compiled(model: nn.Module) -> None:
    """Inside what PyTorch has compiled nobody sees attention."""
    if hasattr(model, "_orig_mod"):
        raise ValueError("a compiled network cannot be captured: capture the eager model, model._orig_mod")
    for name, module in model.named_modules():
        compiled: Any = module
        if hasattr(compiled, "_orig_mod") or compiled._compiled_call_impl is not None:
            raise ValueError(f"a compiled network cannot be captured: {name or 'it'} is compiled, capture it eager")
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(f"a scripted network cannot be captured: {name or 'it'} is, capture what it was made of")


@contextmanager
def _without_checkpointing(model: nn.Module) -> Iterator[None]:
    """Disables gradient checkpointing, whose recomputation would run outside the mode."""
    switched: list[Any] = [module for module in model.modules() if getattr(module, "grad_checkpointing", None) is True]
    for module in switched:
        module.grad_checkpointing = False
    try:
        yield
    finally:
        for module in switched:
            module.grad_checkpointing = True


class _Mode(TorchFunctionMode):
    """A dispatch mode that observes the operations of a network and fills a record."""

    def __init__(
        self,
        record: Record,
        layers: Sequence[int] | None,
        keep: Collection[str],
        reduce: Callable[[Layer], Any] | None,
        edit: Edit | None,
    ) -> None:
        super().__init__()
        self.record, self.layers, self.kept, self.reduce, self.edit = record, layers, keep, reduce, edit
        self.paths = {id(module): name for name, module in record.model.named_modules()}
        self.products: deque[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = deque(maxlen=6)
        self.open: list[Layer] = []  # softmaxes whose product with the values is still to come
        self.made: dict[int, tuple[torch.Tensor, Layer]] = {}  # what was made of their probabilities, by its id

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.record.input is None:
            self._look_for_input(args)
        if func is F.scaled_dot_product_attention:
            return self._fused(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name in _OPAQUE:
            raise ValueError(
                "attention inside nn.MultiheadAttention cannot be captured: PyTorch computes it as one operation; use "
                "timm's form of this network"
            )
        if name in ("softmax", "_softmax"):
            return self._softmax(func, args, kwargs)
        out = func(*args, **kwargs)
        if isinstance(out, torch.Tensor):
            if name in _PRODUCTS:
                self._product(args, out)
            elif name == "baddbmm":
                self._product(args[1:3], None)  # something is added to the product
            elif self.open:
                self._follow(args, out)
        return out

    def _look_for_input(self, args: tuple[Any, ...]) -> None:
        """Finds the images: the input of the network's first operation on a map."""
        first = args[0] if args else None
        if isinstance(first, torch.Tensor) and first.ndim == 4 and self._caller(sys._getframe(2)) is not None:
            self.record.input = first

    def _caller(self, frame: Any) -> tuple[str, nn.Module, list[str]] | None:
        """The innermost running module of the network, and the functions between it and the operation."""
        functions = []
        while frame is not None:
            functions.append(frame.f_code.co_name)
            module = frame.f_locals.get("self")
            if isinstance(module, nn.Module) and id(module) in self.paths:
                return self.paths[id(module)], module, functions
            frame = frame.f_back
        return None

    def _fused(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        plain = (query, key, value)
        if forward_ad._current_level >= 0:  # the fused forms have no rule for tangents
            plain = tuple(forward_ad.unpack_dual(part).primal for part in plain)
        fused = F.scaled_dot_product_attention(
            *plain, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
        caller = self._caller(sys._getframe(2))
        if caller is None:
            return fused
        graded = torch.is_grad_enabled()
        if graded and dropout_p > 0:
            raise ValueError("attention dropout must be off where gradients are captured: call model.eval()")
        if enable_gqa:
            groups = query.size(-3) // key.size(-3)
            key, value = (part.repeat_interleave(groups, -3) for part in (key, value))
        scale = query.size(-1) ** -0.5 if scale is None else scale
        logits = query @ key.mT * scale
        if is_causal:
            attn_mask = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).tril()
        if attn_mask is not None:
            masked = attn_mask.dtype == torch.bool
            logits = logits.masked_fill(~attn_mask, float("-inf")) if masked else logits + attn_mask
        probs = logits.softmax(-1)
        if graded and not probs.requires_grad:
            probs.requires_grad_()
        layer = self._layer(caller, {"probs": probs, "logits": logits, "q": query, "k": key, "v": value}, scale)
        if self.edit is not None:
            probs = self._edited(layer)
        out = probs.to(value.dtype) @ value
        layer.raw["out"] = out
        self._done(layer)
        if self.edit is not None:
            return out.to(fused.dtype)
        # The value is the fused one bit for bit, the gradient that of the probabilities.
        return fused.detach() + (out - out.detach()).to(fused.dtype) if graded else fused

    def _softmax(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
        result: torch.Tensor = func(*args, **kwargs)
        dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
        logits = args[0] if args else kwargs["input"]
        if dim not in (-1, result.ndim - 1) or result.ndim < 3:
            return result
        made = next((made for made in reversed(self.products) if made[2].numel() == logits.numel()), None)
        caller = self._caller(sys._getframe(2)) if made is not None else None
        if made is None or caller is None:
            return result
        if torch.is_grad_enabled() and not result.requires_grad:
            result.requires_grad_()
        left, right, product = made
        # Keys are columns of a product's right side, those of einsum may be rows.
        raw = {"probs": result, "logits": logits, "q": left, "k": right}
        plain = product.data_ptr() == logits.data_ptr()  # no mask, bias or scale in between
        layer = self._layer(caller, raw, 1.0 if plain else None)
        if right.shape[-2] == left.shape[-1]:
            layer.turned.add("k")
        if self.edit is not None:
            result = self._edited(layer)
        self.open.append(layer)
        self.made[id(result)] = result, layer
        self._close(_OPEN)
        return result

    def _follow(self, args: tuple[Any, ...], out: torch.Tensor) -> None:
        """Notes what is made of open probabilities and as large as they: dropped, mixed over heads, turned."""
        for arg in args:
            _, layer = self.made.get(id(arg), (None, None))
            if layer is not None and out.numel() == layer.raw["probs"].numel():
                self.made[id(out)] = out, layer

    def _product(self, args: tuple[Any, ...], out: torch.Tensor | None) -> None:
        operands = [arg for arg in args if isinstance(arg, torch.Tensor)]
        if len(operands) != 2 or min(part.ndim for part in operands) < 2:
            return
        left, right = operands
        for weights, values, turned in ((left, right, False), (right, left, True)):
            _, layer = self.made.get(id(weights), (None, None))
            if layer is None:
                continue
            if weights.ndim == values.ndim and _is_turned(weights, layer.raw["probs"]) == turned:
                # Where channels are mixed, the probabilities may stand on the right, turned.
                layer.raw |= {name: part for name, part in (("v", values), ("out", out)) if part is not None}
                layer.turned |= {"v", "out"} if turned else set()
                self._finish(layer)
            return
        if out is not None:
            self.products.append((left, right, out))

    def _close(self, keep: int = 0) -> None:
        """Gives up the values of all softmaxes but the last ones."""
        for layer in self.open[: len(self.open) - keep]:
            layer.kind = "routing" if layer.kind == "spatial" else layer.kind
            self._finish(layer)

    def _finish(self, layer: Layer) -> None:
        self.open.remove(layer)
        self.made = {key: entry for key, entry in self.made.items() if entry[1] is not layer}
        self._done(layer)

    def _edited(self, layer: Layer) -> torch.Tensor:
        assert self.edit is not None
        shape = layer.raw["probs"].shape
        layer.raw["probs"] = layer.layout.undo(self.edit(layer), shape)
        return layer.raw["probs"]

    def _layer(
        self, caller: tuple[str, nn.Module, list[str]], raw: dict[str, torch.Tensor], scale: float | None
    ) -> Layer:
        path, module, functions = caller
        names = {type(module).__name__, *functions}
        counts = [value for name in _HEADS if isinstance(value := getattr(module, name, None), int)]
        lead = raw["probs"].shape[:-2]
        batch = self.record.input.shape[0] if self.record.input is not None else lead[0]
        layout = find_layout(lead, batch, counts[0] if counts else None, bool(names & _HEADS_FIRST))
        kind = "channel" if any(mark in name for mark in _CHANNEL for name in names) else "spatial"
        shape = tuple(layout.apply(raw["probs"]).shape)
        layer = Layer(len(self.record), path, kind, shape, layout, raw, scale=scale)
        self.record.append(layer)
        return layer

    def _done(self, layer: Layer) -> None:
        """Drops what is not kept, of this attention and of those that negative indices no longer refer to."""
        spread = {name: _spread(part, layer.raw["probs"]) for name, part in layer.raw.items()}
        layer.raw = {name: part for name, part in spread.items() if part is not None}
        if self.reduce is not None:
            layer.reduced = self.reduce(layer) if self._may_be_wanted(layer.index) else None
            layer.raw = {}
        layer.keep(self.kept)
        if self.layers is not None:
            for other in self.record:
                if not self._may_be_wanted(other.index) and other not in self.open:
                    other.raw, other.reduced = {}, None

    def _may_be_wanted(self, index: int) -> bool:
        return self.layers is None or any(
            index == layer if layer >= 0 else index - len(self.record) >= layer for layer in self.layers
        )

    def finish(self) -> None:
        """Closes the record and checks it."""
        self._close()
        count, name = len(self.record), type(self.record.model).__name__
        if self.record.input is None:
            raise ValueError(f"nothing was captured: call the network ({name}) on images inside the with block")
        if not count:
            raise ValueError(
                f"{name} has no attention that makes probabilities: use explain.cam, explain.gates or "
                "explain.mixer_weights"
            )
        for layer in self.layers or ():
            if not -count <= layer < count:
                raise ValueError(f"layers must lie in 0..{count - 1}: {name} has {count} attentions, got {layer}")
        if self.layers is not None:
            wanted = {layer % count for layer in self.layers}
            for other in self.record:
                if other.index not in wanted:
                    other.raw, other.reduced = {}, None


def _is_turned(weights: torch.Tensor, probs: torch.Tensor) -> bool | None:
    """Whether what was made of probabilities has their rows as columns; None if it has neither."""
    rows, columns = probs.shape[-2:]
    if rows == columns == weights.shape[-1] == weights.shape[-2]:
        by_row = [part.stride(-2) >= part.stride(-1) for part in (weights, probs)]
        return by_row[0] != by_row[1]
    return {(rows, columns): False, (columns, rows): True}.get((weights.shape[-2], weights.shape[-1]))


def _spread(part: torch.Tensor, probs: torch.Tensor) -> torch.Tensor | None:
    """Broadcasts a part to the leading axes of the probabilities; None if it has more: images that share them."""
    lead = probs.shape[:-2]
    if part.shape[:-2].numel() == lead.numel():
        return part
    return part.expand(*lead, *part.shape[-2:]) if part.shape[:-2].numel() < lead.numel() else None
