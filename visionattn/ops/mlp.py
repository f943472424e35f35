"""The MLP of a transformer's block: two linear layers with GELU between, on each token.

Written by hand for the CPU, it keeps the input and what enters the GELU for the backward pass, where PyTorch also keeps
the result of the norm and that of the GELU; both are made again from what lies in the cache. Where the hidden map would
be large, some tokens at a time go through both layers, so that it never lies in memory as a whole.
"""

from typing import Any

import torch
from torch.nn import functional as F

from ._eager import differentiable_backward, transformed, use_eager_kernel

__all__ = ["mlp"]

# Up to so many numbers, 8 MB in float32, the hidden map is worked on as a whole: it stays in the cache anyway. Larger
# ones go in runs of so many numbers, but not of fewer tokens: then the weights would be most of what is read.
_WHOLE, _RUN, _TOKENS = 2**21, 2**18, 256

Norm = tuple[torch.Tensor, torch.Tensor, float]


def mlp(
    x: torch.Tensor,
    up_weight: torch.Tensor,
    up_bias: torch.Tensor,
    down_weight: torch.Tensor,
    down_bias: torch.Tensor,
    *,
    norm: Norm | None = None,
    residual: bool = False,
) -> torch.Tensor:
    """`down(gelu(up(norm(x))))`, to which x is added on demand. `(..., C) -> (..., C')`.

    Args:
        x: The tokens.
        up_weight: `(hidden, C)`.
        up_bias: `(hidden,)`.
        down_weight: `(C', hidden)`.
        down_bias: `(C',)`.
        norm: Weight `(C,)`, bias `(C,)` and epsilon of a layer norm that goes first; none for tokens as they are.
        residual: Whether to add x to the result; C' is C then.
    """
    weight, bias, eps = norm or (None, None, 0.0)
    tensors = (x, weight, bias, up_weight, up_bias, down_weight, down_bias)
    if not use_eager_kernel(x) or x.numel() == 0 or torch.is_autocast_enabled("cpu") or transformed(*tensors):
        return _plain(*tensors, eps, residual)
    keep = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)
    tokens = x.reshape(-1, x.size(-1))
    return _Mlp.apply(tokens, *tensors[1:], eps, residual, keep).view(*x.shape[:-1], -1)


class _Mlp(torch.autograd.Function):
    """`(N, C) -> (N, C')`."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        up_weight: torch.Tensor,
        up_bias: torch.Tensor,
        down_weight: torch.Tensor,
        down_bias: torch.Tensor,
        eps: float,
        residual: bool,
        keep: bool,
    ) -> torch.Tensor:
        hidden, run = up_weight.size(0), _run(x.size(0), up_weight.size(0))
        out = x.new_empty(x.size(0), down_weight.size(0))
        room = x.new_empty(run, hidden)
        kept = x.new_empty(x.size(0), hidden) if keep else None
        statistics = []
        for start in range(0, x.size(0), run):
            at = slice(start, start + run)
            tokens, target = x[at], out[at]
            normed = tokens
            if weight is not None:
                normed, *some = torch.native_layer_norm(tokens, weight.shape, weight, bias, eps)
                statistics.append(some)
            activated = room[: len(tokens)]
            before = kept[at] if keep else activated
            torch.addmm(up_bias, normed, up_weight.mT, out=before)
            torch.ops.aten.gelu.out(before, out=activated)
            if residual:
                torch.add(tokens, down_bias, out=target)
                target.addmm_(activated, down_weight.mT)
            else:
                torch.addmm(down_bias, activated, down_weight.mT, out=target)
        if keep:
            mean, rstd = (torch.cat(parts) for parts in zip(*statistics, strict=True)) if statistics else (None, None)
            ctx.save_for_backward(x, weight, bias, up_weight, up_bias, down_weight, down_bias, kept, mean, rstd)
            ctx.eps, ctx.residual = eps, residual
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        *inputs, kept, mean, rstd = ctx.saved_tensors
        x, weight, bias, up_weight, _, down_weight, _ = inputs
        if torch.is_grad_enabled():
            norm = inputs[1:3] if weight is None else []
            given = [tensor for tensor in inputs if tensor is not None]

            def plain(x: torch.Tensor, *rest: torch.Tensor) -> tuple[torch.Tensor]:
                return (_plain(x, *norm, *rest, ctx.eps, ctx.residual),)

            first, *rest = differentiable_backward(plain, given, (grad,))
            return first, *norm, *rest, None, None, None
        _, *norm_wanted, up, up_bias, down, down_bias = ctx.needs_input_grad[:7]
        run = _run(x.size(0), up_weight.size(0))
        room = kept.new_empty(run, kept.size(1))
        x_grad = torch.empty_like(x)
        up_grad = torch.empty_like(up_weight) if up else None
        up_bias_grad = torch.zeros_like(up_weight[:, 0]) if up_bias else None
        down_grad = torch.empty_like(down_weight) if down else None
        norm_grads = [torch.zeros_like(weight) if wanted else None for wanted in norm_wanted]
        for start in range(0, x.size(0), run):
            at, beta = slice(start, start + run), int(start > 0)
            tokens, before, above = x[at], kept[at], grad[at]
            below = room[: len(tokens)]
            if down:
                activated = torch.ops.aten.gelu.out(before, out=below)
                torch.addmm(down_grad, above.mT, activated, beta=beta, out=down_grad)
            torch.mm(above, down_weight, out=below)
            torch.ops.aten.gelu_backward.grad_input(below, before, grad_input=below)
            if up_bias:
                up_bias_grad += below.sum(0)
            if up:
                normed = tokens if weight is None else F.layer_norm(tokens, weight.shape, weight, bias, ctx.eps)
                torch.addmm(up_grad, below.mT, normed, beta=beta, out=up_grad)
            if weight is None:
                torch.mm(below, up_weight, out=x_grad[at])
            else:
                part, *parts = torch.ops.aten.native_layer_norm_backward(
                    below @ up_weight, tokens, weight.shape, mean[at], rstd[at], weight, bias, [True, *norm_wanted]
                )
                x_grad[at] = part
                for total, part in zip(norm_grads, parts, strict=True):
                    if total is not None:
                        total += part
            if ctx.residual:
                x_grad[at] += above
        down_bias_grad = grad.sum(0) if down_bias else None
        return x_grad, *norm_grads, up_grad, up_bias_grad, down_grad, down_bias_grad, None, None, None


def _plain(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    up_weight: torch.Tensor,
    up_bias: torch.Tensor,
    down_weight: torch.Tensor,
    down_bias: torch.Tensor,
    eps: float,
    residual: bool,
) -> torch.Tensor:
    y = x if weight is None else F.layer_norm(x, weight.shape, weight, bias, eps)
    y = F.linear(F.gelu(F.linear(y, up_weight, up_bias)), down_weight, down_bias)
    return x + y if residual else y


def _run(tokens: int, hidden: int) -> int:
    """How many tokens go through both layers at a time."""
    return tokens if tokens * hidden <= _WHOLE else max(_TOKENS, _RUN // hidden)
