"""PKCAM: Previous Knowledge Channel Attention Module (NeurIPS 2021 workshop on autonomous driving, arXiv 2211.07521).

Official code: https://github.com/eslambakr/EMCA (no licence), Code/eca_resnet_multi_scale.py.

Differs from the official code in:
- earlier descriptors come in and the own one goes out as arguments; no list is changed in place;
- a block that sees no earlier layer (the first of a stage) has its local gate only; the official one also holds the
  other weights and never uses them, which breaks DistributedDataParallel;
- the 1-D and 2-D forms of the mixing weights, which give the same numbers, are one vector here;
- learned upsampling doubles what is half as wide and tiles the rest, where the official code fails;
- SE works as the inner attention (two linear layers without biases, as in the SENet paper); the official one crashes.

Golden: tests/golden/pkcam_block_*.npz (outputs, input gradients, running statistics of whole residual blocks).
"""

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from visionattn.catalog import Card
from visionattn.utils.arguments import check_choice
from visionattn.utils.factory import FactoryKwargs

__all__ = ["PKCAM"]


def _along_channels(
    channels: int, out: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> nn.Conv2d:
    """ECA's convolution over a `(1, 1, B, C)` batch of vectors; the kernel grows with the logarithm of C.

    Taking the batch for the height of one image makes the backward pass many times faster than a 1-D convolution's.
    """
    size = int((math.log2(channels) + 1) / 2)
    size += 1 - size % 2
    return nn.Conv2d(1, out, (1, size), padding=(0, size // 2), bias=False, device=device, dtype=dtype)


class ECAGate(nn.Module):
    """A sigmoid of one short convolution along the channels. `(B, C) -> (B, C)`."""

    def __init__(self, channels: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None):
        super().__init__()
        self.conv = _along_channels(channels, 1, device, dtype)

    def forward(self, descriptor: torch.Tensor) -> torch.Tensor:
        return self.conv(descriptor[None, None])[0, 0].sigmoid()


class SEGate(nn.Module):
    """A sigmoid of two linear layers with a ReLU between them. `(B, C) -> (B, C)`."""

    def __init__(self, channels: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None):
        super().__init__()
        hidden = max(channels // 16, 1)
        self.fc1 = nn.Linear(channels, hidden, bias=False, device=device, dtype=dtype)
        self.fc2 = nn.Linear(hidden, channels, bias=False, device=device, dtype=dtype)

    def forward(self, descriptor: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.relu(self.fc1(descriptor))).sigmoid()


class WeightedSum(nn.Module):
    """The sum of `count` tensors with one learned weight each. `count * (B, C) -> (B, C)`."""

    def __init__(self, count: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, count, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The initialisation of a linear layer with `count` inputs."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    def forward(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        stacked = torch.stack(tuple(tensors))
        return (self.weight @ stacked.flatten(1)).view(stacked.shape[1:])


_INNER = {"eca": ECAGate, "se": SEGate}
_UPSAMPLE = ("tile", "learned")


class GlobalGate(nn.Module):
    """The gate of a learned mixture of earlier descriptors and the own one, in this order.

    Args:
        channels: Width of the own descriptor.
        widths: Widths of the earlier ones, each a divisor of `channels`.
        inner: As in `PKCAM`.
        upsample: As in `PKCAM`.
    """

    def __init__(
        self,
        channels: int,
        widths: Sequence[int],
        *,
        inner: str,
        upsample: str,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        self.channels = channels
        self.upsample = None
        if upsample == "learned" and any(2 * width == channels for width in widths):
            self.upsample = _along_channels(channels, 2, **dd)
        self.mix = WeightedSum(len(widths) + 1, **dd)
        self.gate = _INNER[inner](channels, **dd)

    def forward(self, earlier: Sequence[torch.Tensor], own: torch.Tensor) -> torch.Tensor:
        return self.gate(F.relu(self.mix([*map(self.widen, earlier), own])))

    def widen(self, descriptor: torch.Tensor) -> torch.Tensor:
        width = descriptor.shape[1]
        if width == self.channels:
            return descriptor
        if self.upsample is not None and 2 * width == self.channels:
            return F.relu(self.upsample(descriptor[None, None]))[0].transpose(0, 1).flatten(1)
        return descriptor.repeat(1, self.channels // width)


class PKCAM(nn.Module):
    """Scales channels by a gate computed from averages of this layer and of earlier layers.

    `(B, C, H, W), earlier descriptors (B, C_i) -> (B, C, H, W), own descriptor (B, C)`, any H, W >= 1. A descriptor is
    the mean of each channel over the positions, before the scaling. A narrow one is repeated as a whole: channel c of
    the wide layer sees channel c modulo the narrow width. The scale is 1 plus a sigmoid, so it lies between 1 and 2.

    It needs more than a map, so `list_plugins` leaves it out; `va_resnet*_pkcam` are its hosts.

    Args:
        channels: Width of the map.
        stage_widths: Widths of the descriptors from earlier stages, each a divisor of `channels`; none: no such gate.
        block_count: Number of descriptors from earlier blocks of the stage, all as wide as the map; 0: no such gate.
        inner: What turns a descriptor into a gate: `eca` or `se` (hidden width channels // 16).
        upsample: How a stage descriptor is widened: `tile` repeats it; `learned` doubles one that is half as wide by a
            convolution, shared by all of them, and repeats the others.

    Raises:
        ValueError: If an argument is out of range, or the descriptors given to a call are not those announced.
    """

    # (pattern, replacement) pairs that turn the author's parameter names into ours; the shapes differ in ones only.
    official_keys = (
        (r"ECA_excitation_local\.0\.", "local_gate.conv."),
        (r"ECA_excitation_global_stage\.0\.", "stage_gate.gate.conv."),
        (r"ECA_excitation_global_block\.0\.", "block_gate.gate.conv."),
        (r"stage_in_fusion\.0\.", "stage_gate.mix."),
        (r"block_in_fusion\.0\.", "block_gate.mix."),
        (r"learnable_upsample_ms\.0\.", "stage_gate.upsample."),
        (r"out_fusion\.0\.", "mix."),
    )

    def __init__(
        self,
        channels: int,
        *,
        stage_widths: Sequence[int] = (),
        block_count: int = 0,
        inner: str = "eca",
        upsample: str = "tile",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if channels < 1 or block_count < 0:
            raise ValueError(
                f"channels must be at least 1 and block_count at least 0, got channels={channels}, "
                f"block_count={block_count}"
            )
        if any(width < 1 or channels % width for width in stage_widths):
            raise ValueError(f"each of stage_widths must divide channels={channels}, got {tuple(stage_widths)}")
        check_choice("inner", inner, _INNER)
        check_choice("upsample", upsample, _UPSAMPLE)
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        self.stage_widths = tuple(stage_widths)
        self.block_widths = (channels,) * block_count
        self.local_gate = _INNER[inner](channels, **dd)
        self.stage_gate = self.block_gate = self.mix = None
        if self.stage_widths:
            self.stage_gate = GlobalGate(channels, self.stage_widths, inner=inner, upsample=upsample, **dd)
        if self.block_widths:
            self.block_gate = GlobalGate(channels, self.block_widths, inner=inner, upsample="tile", **dd)
        gates = 1 + bool(self.stage_widths) + bool(self.block_widths)
        if gates > 1:
            self.mix = WeightedSum(gates, **dd)

    def reset_parameters(self) -> None:
        """The official initialisation: PyTorch's default everywhere."""
        for module in self.modules():
            reset = getattr(module, "reset_parameters", None)
            if module is not self and callable(reset):
                reset()

    def forward(
        self, x: torch.Tensor, stage: Sequence[torch.Tensor] = (), block: Sequence[torch.Tensor] = ()
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scales a map and describes it.

        Args:
            x: The map.
            stage: Descriptors of earlier stages, `(B, width)` each, in the order of `stage_widths`.
            block: Descriptors of earlier blocks of this stage, `(B, C)` each, earliest first.

        Returns:
            The scaled map and the own descriptor, for later layers.
        """
        gate, own = self._gate(x, stage, block)
        return x * gate, own

    def gates(
        self, x: torch.Tensor, stage: Sequence[torch.Tensor] = (), block: Sequence[torch.Tensor] = ()
    ) -> dict[str, torch.Tensor]:
        """The factor of the channels, `(B, C, 1, 1)`. Arguments as for a call."""
        return {"channel": self._gate(x, stage, block)[0]}

    def _gate(
        self, x: torch.Tensor, stage: Sequence[torch.Tensor], block: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The factor of the channels and the own descriptor."""
        for name, given, expected in (("stage", stage, self.stage_widths), ("block", block, self.block_widths)):
            widths = tuple(descriptor.shape[1] for descriptor in given)
            if widths != expected:
                raise ValueError(f"{name} must hold descriptors of widths {expected}, got {widths}")
        own = x.mean((2, 3))
        gates = [self.local_gate(own)]
        if self.stage_gate is not None:
            gates.append(self.stage_gate(stage, own))
        if self.block_gate is not None:
            gates.append(self.block_gate(block, own))
        gate = gates[0] if self.mix is None else self.mix(gates).sigmoid()
        return (1 + gate)[:, :, None, None], own


CARD = Card(
    name="pkcam",
    title="PKCAM: Previous Knowledge Channel Attention Module",
    kind="plugin",
    factory=PKCAM,
    summary="channel gates that also see earlier layers",
    flow=(
        "(. | mean -> (own gate | (. | <stage>) -> mix, gate | (. | <block>) -> mix, gate) -> weighted sum -> 1 + "
        "sigmoid) -> *"
    ),
    paper="arXiv:2211.07521",
    code="https://github.com/eslambakr/EMCA",
    placement="in every residual block of a ResNet, before the addition; descriptors go from block to block",
    avoid="where blocks must stand by themselves, or stages have one block: it reads the descriptors of earlier layers",
    further_inputs=("stage", "block"),
)
