"""Layer-wise relevance propagation through convolutional networks.

On Pixel-Wise Explanations for Non-Linear Classifier Decisions by Layer-Wise Relevance Propagation (PLoS ONE 2015);
rules as in Layer-Wise Relevance Propagation: An Overview (2019).

While it runs, one `torch.overrides.TorchFunctionMode` gives each operation a gradient whose product with the input is
the relevance: `z_r (z / z_r)` with the second factor held, z_r the operation with the rule's weights. Activations
become `x (f(x) / x)`. Gates and attention weights (sigmoid, tanh, softmax) and the statistics of norms are held, so
relevance passes through what they multiply. A batch norm behind a convolution is folded into it. Sums share in
proportion, max pooling gives all to the winner.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from visionattn.ops import use_backend
from visionattn.utils.arguments import check_choice

from ._target import Target, target_score

__all__ = ["FIRST_RULES", "RULES", "lrp"]

RULES = ("epsilon", "gamma", "alpha_beta")
FIRST_RULES = ("same", "w2", "box")

_LINEAR = {F.linear, F.conv1d, F.conv2d, F.conv3d, F.conv_transpose2d, torch.conv1d, torch.conv2d, torch.conv3d}
# What only scales: held at its value.
_HELD = {"sigmoid", "hardsigmoid", "tanh", "softmax", "_softmax", "sigmoid_", "hardsigmoid_", "tanh_"}
_ACTIVATIONS = {"gelu", "silu", "hardswish", "elu", "leaky_relu", "mish", "softplus", "prelu", "selu", "celu"}

Weighted = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]


def lrp(
    model: nn.Module,
    x: torch.Tensor,
    target: Target = None,
    *,
    rule: str = "epsilon",
    first: str = "same",
    epsilon: float = 1e-6,
    gamma: float = 0.25,
    alpha: float = 1.0,
    bias: bool = True,
    bounds: tuple[float, float] | None = None,
) -> torch.Tensor:
    """Relevance of every input number for a score. `(B, C, H, W) -> (B, C, H, W)`, of either sign.

    Without biases it adds up to the score.

    Args:
        model: The network, in evaluation mode: convolutions, linear layers, norms, activations, pooling, sums, gates.
        x: Images `(B, C, H, W)`.
        target: As for `explain.relevance`.
        rule: `epsilon`; `gamma`: positive weights count more; `alpha_beta`: positive parts times alpha minus negative
            ones times alpha - 1, by default positive ones alone.
        first: Rule of the first convolution: the `same`; `w2`: by squared weights; `box`: for inputs between bounds.
        epsilon: Added to the magnitude of every denominator.
        gamma: Of the rule `gamma`.
        alpha: Of the rule `alpha_beta`, at least 1.
        bias: Whether biases take their share (it is lost).
        bounds: Least and greatest input for `box`; by default those of x.

    Raises:
        ValueError: If an argument is out of range.
    """
    check_choice("rule", rule, RULES)
    check_choice("first", first, FIRST_RULES)
    if alpha < 1 or gamma < 0 or epsilon <= 0:
        raise ValueError(f"alpha must be at least 1, gamma 0 and epsilon above 0, got {alpha}, {gamma}, {epsilon}")
    rules = _Rules(rule, first, epsilon, gamma, alpha, bias, bounds or _bounds(x))
    mode = _Mode(rules)
    image = x.detach().clone().requires_grad_()
    # At a level of forward-mode differentiation our operations take their plain formulas, which the mode sees.
    with torch.enable_grad(), use_backend("torch"), forward_ad.dual_level(), mode:
        out = model(image)
    score = target_score(out, target)
    leaves = [image, *mode.leaves]
    grads = torch.autograd.grad(score, leaves, allow_unused=True)
    parts = [leaf.detach() * grad for leaf, grad in zip(leaves, grads, strict=True) if grad is not None]
    return torch.stack(parts).sum(0)


def _bounds(x: torch.Tensor) -> tuple[float, float]:
    low, high = x.detach().aminmax()
    return low.item(), high.item()


class _Rules(NamedTuple):
    rule: str
    first: str
    epsilon: float
    gamma: float
    alpha: float
    bias: bool
    bounds: tuple[float, float]

    def away(self, z: torch.Tensor) -> torch.Tensor:
        """Denominators, kept away from zero."""
        return z + torch.where(z >= 0, self.epsilon, -self.epsilon)

    def share(self, parts: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """The value of z with a gradient that gives parts their shares of its relevance."""
        parts = self.away(parts)
        return parts * (z / parts).detach()


class _Mode(TorchFunctionMode):
    """Runs operations with the gradients of the rules."""

    def __init__(self, rules: _Rules) -> None:
        super().__init__()
        self.rules = rules
        self.leaves: list[torch.Tensor] = []  # what the first operation takes besides the images
        self.begun = False
        # The last convolution, in case a batch norm follows: its output, input, weight, bias and operation.
        self.last: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None, Weighted] | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if func in _LINEAR:
            return self._linear(func, *args, **kwargs)
        if func is F.batch_norm:
            return self._batch_norm(*args, **kwargs)
        if func is F.layer_norm or func is F.group_norm:
            return self._norm(func, *args, **kwargs)
        if func is F.scaled_dot_product_attention:
            return func(args[0].detach(), args[1].detach(), *args[2:], **kwargs)
        out = func(*args, **kwargs)
        if name in _HELD:
            return out.detach()
        if name in _ACTIVATIONS:
            x = args[0].clone() if out is args[0] else args[0]
            return self.rules.share(x, out)
        return out

    def _linear(
        self,
        func: Any,
        input: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> torch.Tensor:
        def apply(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None) -> torch.Tensor:
            result: torch.Tensor = func(x, w, b, *args, **kwargs)
            return result

        if not input.requires_grad:
            return apply(input, weight, bias)
        initial, self.begun = not self.begun, True
        out = self._ruled(input, weight, bias, apply, initial)
        self.last = (out, input, weight, bias, apply) if func is not F.linear else None
        if initial and self.last is not None:
            self.first = out
        return out

    def _ruled(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, apply: Weighted, initial: bool
    ) -> torch.Tensor:
        rules = self.rules
        weight = weight.detach()
        bias = None if bias is None else bias.detach()
        with torch.no_grad():
            z = apply(x, weight, bias)
        kept = bias if rules.bias else None
        if initial and rules.first != "same":
            return self._first(x, weight, apply, z)
        if rules.rule == "gamma":
            more = None if kept is None else kept + rules.gamma * kept.clamp_min(0)
            return rules.share(apply(x, weight + rules.gamma * weight.clamp_min(0), more), z)
        if rules.rule == "epsilon":
            return rules.share(apply(x, weight, kept), z)
        up, down = weight.clamp_min(0), weight.clamp_max(0)
        above, below = x.clamp_min(0), x.clamp_max(0)
        gained = apply(above, up, None if kept is None else kept.clamp_min(0)) + apply(below, down, None)
        if rules.alpha == 1:
            return rules.share(gained, z)
        lost = apply(above, down, None if kept is None else kept.clamp_max(0)) + apply(below, up, None)
        return rules.alpha * rules.share(gained, z) - (rules.alpha - 1) * rules.share(lost, z)

    def _first(self, x: torch.Tensor, weight: torch.Tensor, apply: Weighted, z: torch.Tensor) -> torch.Tensor:
        if self.rules.first == "w2":
            ones = torch.ones_like(x).detach().requires_grad_()
            self.leaves = [ones]
            return self.rules.share(apply(ones, weight.square(), None), z)
        low, high = (torch.full_like(x, bound).detach().requires_grad_() for bound in self.rules.bounds)
        self.leaves = [low, high]
        up, down = weight.clamp_min(0), weight.clamp_max(0)
        return self.rules.share(apply(x, weight, None) - apply(low, up, None) - apply(high, down, None), z)

    def _batch_norm(
        self,
        input: torch.Tensor,
        mean: torch.Tensor | None,
        variance: torch.Tensor | None,
        weight: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> torch.Tensor:
        if training or mean is None or variance is None:
            raise ValueError("batch norms must use their running statistics: call model.eval()")
        scale = (variance + eps).rsqrt() * (1 if weight is None else weight)
        shift = (0 if bias is None else bias) - mean * scale
        found, self.last = self.last, None
        if found is not None and found[0] is input:
            _, x, kernel, own, apply = found
            folded = kernel * scale.view(-1, *[1] * (kernel.ndim - 1))
            shift = shift if own is None else shift + own * scale
            return self._ruled(x, folded, shift, apply, input is getattr(self, "first", None))
        shape = (1, -1, *[1] * (input.ndim - 2))
        scaled = input * scale.detach().view(shape)
        shifted = scaled + shift.detach().view(shape)
        return self.rules.share(shifted if self.rules.bias else scaled, shifted)

    def _norm(
        self,
        func: Any,
        input: torch.Tensor,
        shape: Any,
        weight: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
        eps: float = 1e-5,
    ) -> torch.Tensor:
        """A layer or group norm, of this normalized shape or number of groups, with the deviation held."""
        z = func(input.detach(), shape, weight, bias, eps)
        if func is F.layer_norm:
            axes = tuple(range(-len(shape), 0))
            centred = input - input.mean(axes, keepdim=True)
            deviation = (input.var(axes, correction=0, keepdim=True) + eps).sqrt().detach()
        else:
            groups = input.unflatten(1, (shape, -1))
            axes = tuple(range(2, groups.ndim))
            centred = (groups - groups.mean(axes, keepdim=True)).flatten(1, 2)
            deviation = (groups.var(axes, correction=0, keepdim=True) + eps).sqrt().detach()
            deviation = deviation.expand_as(groups).flatten(1, 2)
            weight = None if weight is None else weight.view(-1, *[1] * (input.ndim - 2))
        scaled = centred / deviation * (1 if weight is None else weight.detach())
        if self.rules.bias:
            scaled = scaled + (z - scaled).detach()
        return self.rules.share(scaled, z)
