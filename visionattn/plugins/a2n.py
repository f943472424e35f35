"""A2N: Attention in Attention Network for Image Super-Resolution (arXiv 2104.09497).

Official code: https://github.com/haoyuc/A2N (no licence file), code/model/aan.py.

Differs from the official code in:
- the hidden width of the branches' weights is never below 1 (the official code builds a broken layer if
  channels < reduction).

Golden: tests/golden/a2n_*.npz (outputs and input gradients of the block; whole networks put together of it).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from visionattn.catalog import Card
from visionattn.utils.arguments import check_choice, check_positive
from visionattn.utils.factory import FactoryKwargs

from ._common import Matrix, PointwiseConv
from ._resolve import resolve_plugin

__all__ = ["AttentionInAttention", "DynamicBranch", "PixelAttention"]

_SLOPE = 0.2


class PixelAttention(nn.Module):
    """Scales each value by a sigmoid of a pointwise convolution. `(B, C, H, W) -> (B, C, H, W)`, any H, W >= 1.

    Args:
        channels: Width of the map.

    Raises:
        ValueError: If `channels` is below 1.
    """

    # The names are the authors'.
    official_keys = ()

    def __init__(
        self, channels: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        check_positive(channels=channels)
        self.conv = PointwiseConv(channels, channels, 1, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """The official initialisation: PyTorch's default."""
        self.conv.reset_parameters()

    def gates(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """The factors of the map, of its shape."""
        return {"pixels": self.conv(x).sigmoid()}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gates(x)["pixels"]


class DynamicBranch(nn.Module):
    """`p * attention(x) + (1 - p) * plain(x)`, p chosen for each image. `(B, C, H, W) -> (B, C, H, W)`.

    p is a softmax over two numbers which an MLP makes of the channels' means, so a network can do without attention
    where it does not help. The temperature keeps p near 1/2 at the start.

    Args:
        channels: Width of the map.
        attention: A plug-in: a name of `list_plugins()`, a class, or a dict with `type` and further arguments.
        plain: What stands beside it, in the same forms; nothing, so `plain(x) = x`, if None.
        reduction: Divides `channels` to the hidden width of the MLP (at least 1).
        temperature: Divides the two numbers.

    Raises:
        ValueError: If an argument is out of range or a plug-in unknown.
    """

    def __init__(
        self,
        channels: int,
        *,
        attention: str | dict[str, Any] | Callable[..., nn.Module],
        plain: str | dict[str, Any] | Callable[..., nn.Module] | None = None,
        reduction: int = 4,
        temperature: float = 30.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(channels=channels, reduction=reduction)
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        self.temperature = temperature
        hidden = max(channels // reduction, 1)
        self.fc1 = Matrix(channels, hidden, **dd)
        self.fc2 = Matrix(hidden, 2, **dd)
        self.attention = resolve_plugin(attention)(channels, **dd)
        self.plain = nn.Identity() if plain is None else resolve_plugin(plain)(channels, **dd)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature:g}"

    def reset_parameters(self) -> None:
        """The official initialisation: PyTorch's default weights; branches initialise themselves."""
        for part in (self.fc1, self.fc2, self.attention, self.plain):
            reset = getattr(part, "reset_parameters", None)
            if callable(reset):
                reset()

    def weights(self, x: torch.Tensor) -> torch.Tensor:
        """The shares of attention and of the plain branch, `(B, 2)`; they add up to 1."""
        return (self.fc2(self.fc1(x.mean((2, 3))).relu()) / self.temperature).softmax(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        share = self.weights(x)[:, :1, None, None]
        plain = self.plain(x)
        return torch.lerp(plain, self.attention(x).to(plain.dtype), share.to(plain.dtype))


class _Attention(nn.Module):
    """The attention branch: pixel attention with a larger receptive field, between two convolutions."""

    def __init__(
        self, channels: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        self.k1 = _conv(channels, 3, **dd)
        self.k2 = nn.Conv2d(channels, channels, 1, **dd)
        self.k3 = _conv(channels, 3, **dd)
        self.k4 = _conv(channels, 3, **dd)

    def reset_parameters(self) -> None:
        for layer in (self.k1, self.k2, self.k3, self.k4):
            layer.reset_parameters()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = self.k2(F.leaky_relu(self.k1(x), _SLOPE, inplace=True)).sigmoid()
        return self.k4(self.k3(x) * gate)


def _conv(
    channels: int, kernel_size: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> nn.Conv2d:
    padding = kernel_size // 2
    return nn.Conv2d(channels, channels, kernel_size, padding=padding, bias=False, device=device, dtype=dtype)


class AttentionInAttention(nn.Module):
    """A residual block whose attention branch is weighed against a plain one. `(B, C, H, W) -> (B, C, H, W)`.

    Pointwise convolution and leaky ReLU; then, in a `DynamicBranch`, convolutions with pixel attention beside one
    convolution; leaky ReLU, pointwise convolution, and the map is added. Any H, W >= 1.

    Args:
        channels: Width of the map.
        reduction: Divides `channels` to the hidden width of the branches' weights (at least 1).
        temperature: Of the softmax over the branches.
        plain_size: Side of the plain branch's convolution: 3 in A2N, 1 in the smaller A2N-M.

    Raises:
        ValueError: If an argument is out of range.
    """

    # (pattern, replacement) pairs that turn the authors' parameter names into ours.
    official_keys = (
        (r"\bADM\.0\.", "branches.fc1."),
        (r"\bADM\.2\.", "branches.fc2."),
        (r"\bnon_attention\.", "branches.plain."),
        (r"(?<!branches\.)\battention\.", "branches.attention."),
    )

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 4,
        temperature: float = 30.0,
        plain_size: int = 3,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_choice("plain_size", plain_size, (1, 3))
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        self.branches = DynamicBranch(
            channels,
            attention=_Attention,
            plain=partial(_conv, kernel_size=plain_size),
            reduction=reduction,
            temperature=temperature,
            **dd,
        )
        self.conv_first = _conv(channels, 1, **dd)
        self.conv_last = _conv(channels, 1, **dd)

    def reset_parameters(self) -> None:
        """The official initialisation: PyTorch's default everywhere."""
        for part in (self.conv_first, self.branches, self.conv_last):
            part.reset_parameters()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.branches(F.leaky_relu(self.conv_first(x), _SLOPE, inplace=True))
        return x + self.conv_last(F.leaky_relu(out, _SLOPE, inplace=True)).to(x.dtype)


CARDS = (
    Card(
        name="a2n",
        title="A2N's attention-in-attention block",
        kind="plugin",
        factory=AttentionInAttention,
        summary="convolutions with pixel attention beside a plain one, weighed for each image",
        flow=(
            "(. | 1x1 conv, leaky ReLU -> (convs with pixel attention | conv | mean, MLP, softmax) -> weighted "
            "sum -> leaky ReLU, 1x1 conv) -> +"
        ),
        placement="as the residual block of a super-resolution network",
        avoid="in classifiers: it is a block of super-resolution, whose convolutions have the full width of the map",
        hosts=("narrow",),
        cases={"": {}, "A2N-M": {"plain_size": 1, "temperature": 4.0}},
        maps=True,
        reference="a2n",
        paper="arXiv:2104.09497",
        code="https://github.com/haoyuc/A2N",
    ),
    Card(
        name="pixelattention",
        title="A2N's pixel attention",
        kind="plugin",
        factory=PixelAttention,
        summary="gate of every value by a pointwise convolution",
        flow="(. | 1x1 conv -> sigmoid) -> *",
        placement="behind the convolutions of a super-resolution network's upsampler",
        avoid="where the surroundings should decide: the gate of a position follows from that position alone",
        maps=True,
        reference="a2n",
        paper="arXiv:2104.09497",
        code="https://github.com/haoyuc/A2N",
    ),
)
