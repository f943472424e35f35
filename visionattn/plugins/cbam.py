"""CBAM: Convolutional Block Attention Module (ECCV 2018, arXiv 1807.06521).

Official code: https://github.com/Jongchan/attention-module (MIT), MODELS/cbam.py.

Differs from the official code in:
- the channel gate's hidden width is never below 1 (the official code builds a broken layer if channels < reduction);
- the map between the two gates is not stored.

Golden: tests/golden/cbam_*.npz (outputs, input gradients, running statistics).
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from visionattn.catalog import Card, Floor
from visionattn.ops import axis_gate, map_pools, nested_attention, nested_gate
from visionattn.utils.arguments import check_positive
from visionattn.utils.factory import FactoryKwargs

from ._common import PlaneGate

__all__ = ["CBAM", "ChannelGate"]

_POOLS = ("avg", "max", "lp", "lse")


class ChannelGate(nn.Module):
    """Scales each channel by a sigmoid of a shared MLP over its pooled values. `(B, C, H, W) -> (B, C, H, W)`.

    Args:
        channels: Width of the map.
        reduction: The hidden layer of the MLP has `max(channels // reduction, 1)` units.
        pool_types: Which pools over the positions feed the MLP, summed: any of `avg`, `max`, `lp` (2-norm), `lse`
            (log-sum-exp).

    Raises:
        ValueError: If `channels` or `reduction` is below 1, or a pool is unknown or missing.
    """

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 16,
        pool_types: Sequence[str] = ("avg", "max"),
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(channels=channels, reduction=reduction)
        unknown = [pool for pool in pool_types if pool not in _POOLS]
        if unknown or not pool_types:
            raise ValueError(f"pool_types must name at least one of {', '.join(_POOLS)}, got {tuple(pool_types)}")
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        self.pool_types = tuple(pool_types)
        hidden = max(channels // reduction, 1)
        self.fc1 = nn.Linear(channels, hidden, **dd)
        self.fc2 = nn.Linear(hidden, channels, **dd)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The official initialisation: PyTorch's default weights, biases zero."""
        for fc in (self.fc1, self.fc2):
            fc.reset_parameters()
            nn.init.zeros_(fc.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, gate = self.gate(x)
        return x * gate[:, :, None, None]

    def gate(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The map, to use in place of `x` (see `visionattn.ops.map_pools`), and the gate of its channels."""
        pools = {}
        if not {"avg", "max"}.isdisjoint(self.pool_types):
            x, pools["avg"], pools["max"] = map_pools(x)
        if "lp" in self.pool_types:
            pools["lp"] = torch.linalg.vector_norm(x.flatten(2), dim=-1)
        if "lse" in self.pool_types:
            pools["lse"] = x.flatten(2).logsumexp(-1)
        return x, self._scores(pools)

    def of_pools(self, mean: torch.Tensor, maximum: torch.Tensor) -> torch.Tensor:
        """The gate of the channels of their means and maxima, `(B, C)`, where there are no other pools."""
        return self._scores({"avg": mean, "max": maximum})

    def _scores(self, pools: dict[str, torch.Tensor]) -> torch.Tensor:
        pooled = torch.stack([pools[pool] for pool in self.pool_types])
        return self.fc2(F.relu(self.fc1(pooled))).sum(0).sigmoid()


class CBAM(nn.Module):
    """A channel gate, then a spatial gate. `(B, C, H, W) -> (B, C, H, W)`, any H, W >= 1.

    The paper puts one into every residual block, before the addition.

    Args:
        channels: Width of the map.
        reduction: Divides `channels` to the hidden width of the channel gate (at least 1).
        kernel_size: Side of the spatial gate's convolution, odd; the paper found 7 better than 3.
        pool_types: Pools of the channel gate: any of `avg`, `max`, `lp`, `lse`.
        no_spatial: Leave the spatial gate out (the paper's ablation).

    Raises:
        ValueError: If an argument is out of range.
    """

    # Whether `forward` takes what comes after: `relu(plugin(x) + residual)` in one pass over the map.
    fuses_residual = True
    # (pattern, replacement) pairs that turn the author's parameter names into ours.
    official_keys = (
        (r"ChannelGate\.mlp\.1\.", "channel_gate.fc1."),
        (r"ChannelGate\.mlp\.3\.", "channel_gate.fc2."),
        (r"SpatialGate\.spatial\.", "spatial_gate."),
    )

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 16,
        kernel_size: int = 7,
        pool_types: Sequence[str] = ("avg", "max"),
        no_spatial: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        self.channel_gate = ChannelGate(channels, reduction=reduction, pool_types=pool_types, **dd)
        self.spatial_gate = None if no_spatial else PlaneGate(kernel_size, zero_init=True, **dd)

    def reset_parameters(self) -> None:
        """The official initialisation of both gates."""
        self.channel_gate.reset_parameters()
        if self.spatial_gate is not None:
            self.spatial_gate.reset_parameters()

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None, relu: bool = False) -> torch.Tensor:
        if self.spatial_gate is not None and {"avg", "max"}.issuperset(self.channel_gate.pool_types):
            return nested_attention(x, self.channel_gate.of_pools, self.spatial_gate, residual, relu)
        y, channel = self.channel_gate.gate(x)
        if self.spatial_gate is None:
            return axis_gate(y, channel[:, :, None, None], residual=residual, relu=relu)
        return nested_gate(y, channel, self.spatial_gate, residual, relu)

    def gates(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """The factors of the channels `(B, C, 1, 1)` and of the positions `(B, 1, H, W)`."""
        _, channel = self.channel_gate.gate(x)
        channel = channel[:, :, None, None]
        if self.spatial_gate is None:
            return {"channel": channel}
        y = x * channel
        return {"channel": channel, "spatial": self.spatial_gate(torch.stack((y.amax(1), y.mean(1)), dim=1))}


CARD = Card(
    name="cbam",
    title="CBAM: Convolutional Block Attention Module",
    kind="plugin",
    factory=CBAM,
    summary="channel gate, then spatial gate",
    flow=(
        "(. | (mean, MLP | max, same MLP) -> + -> sigmoid) -> * -> (. | mean and max over channels -> 7x7 conv -> "
        "sigmoid) -> *"
    ),
    paper="arXiv:1807.06521",
    code="https://github.com/Jongchan/attention-module",
    license="MIT",
    placement="in every residual block, before the addition",
    avoid="where time counts: the spatial gate waits for the channel gate, and each goes over the whole map",
    hosts=("resnet", "mobilenet", "narrow"),
    floor=Floor(4, 6, "the second pool needs the first gate, the product both: R, R, R and W; back R dy, R x twice"),
    maps=True,
    reference="cbam",
)
