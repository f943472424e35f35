"""Triplet Attention: Rotate to Attend, Convolutional Triplet Attention Module (WACV 2021, arXiv 2010.03045).

Official code: https://github.com/landskape-ai/triplet-attention (MIT), triplet_attention.py and
MODELS/triplet_attention.py: the same mathematics under two sets of parameter names; both load here.

Differs from the official code in:
- the three gates are averaged and multiplied onto the map once: the same by distributivity, without permuted copies;
- the kernel's size is an argument (the paper's 3 needs an edit of the official file).

Golden: tests/golden/triplet_*.npz (outputs, input gradients, running statistics; logits of two ResNets).
"""

import torch
from torch import nn

from visionattn.catalog import Card
from visionattn.ops import axis_attention, axis_pools
from visionattn.utils.arguments import check_positive
from visionattn.utils.factory import FactoryKwargs

from ._common import ONE_POOL, PlaneGate

__all__ = ["TripletAttention"]


class TripletAttention(nn.Module):
    """Scales a map by the mean of three gates, one per pair of axes. `(B, C, H, W)`, same out, any H, W >= 1.

    The gates of the (C, W) and (H, C) planes convolve over the channels: their order matters, and pruning or shuffling
    channels changes the result. The paper puts one into every residual block, before the addition.

    Args:
        channels: Width of the map; no parameter depends on it.
        kernel_size: Side of the three convolutions, odd. The paper found 7 better for ResNets, 3 for MobileNetV2.
        no_spatial: Leave the gate of the (H, W) plane out.
        zero_init_spatial: Start the gate of the (H, W) plane at 0.5 everywhere, as the official ResNets do. Their
            MobileNetV2 and detectors start all three gates alike.

    Raises:
        ValueError: If `channels` is below 1 or `kernel_size` is not a positive odd number.
    """

    # Whether `forward` takes what comes after: `relu(plugin(x) + residual)` in one pass over the map.
    fuses_residual = True
    # (pattern, replacement) pairs that turn the author's parameter names into ours.
    official_keys = (
        *((rf"{plane}\.conv\.(?=conv\.|bn\.)", f"{plane}.") for plane in ("cw", "hc", "hw")),
        (r"ChannelGateH\.spatial\.", "cw."),
        (r"ChannelGateW\.spatial\.", "hc."),
        (r"SpatialGate\.spatial\.", "hw."),
    )

    def __init__(
        self,
        channels: int,
        *,
        kernel_size: int = 7,
        no_spatial: bool = False,
        zero_init_spatial: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(channels=channels)
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        self.cw = PlaneGate(kernel_size, **dd)
        self.hc = PlaneGate(kernel_size, **dd)
        self.hw = None if no_spatial else PlaneGate(kernel_size, zero_init=zero_init_spatial, **dd)

    def reset_parameters(self) -> None:
        """The official initialisation of the gates."""
        for gate in (self.cw, self.hc, self.hw):
            if gate is not None:
                gate.reset_parameters()

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None, relu: bool = False) -> torch.Tensor:
        axes = (2, 3) if self.hw is None else (2, 3, 1)
        pools = [(kind, axis) for axis in axes for kind in ("max", "mean")]
        broadcast = [(axis,) for axis in axes]
        return axis_attention(x, pools, broadcast, self._gates, join="sum", residual=residual, relu=relu)

    def gates(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """The gates of the planes (C, W), (H, C) and (H, W), `columns`, `rows` and `spatial`; `gate` is their mean."""
        axes = (2, 3) if self.hw is None else (2, 3, 1)
        parts = self._gates(*axis_pools(x, [(kind, axis) for axis in axes for kind in ("max", "mean")]))
        named = zip(("columns", "rows", "spatial"), (part * len(parts) for part in parts), strict=False)
        return {**dict(named), "gate": sum(parts[1:], parts[0])}

    def _gates(self, *pools: torch.Tensor) -> list[torch.Tensor]:
        over_h, over_w, *over_c = (torch.stack(pair, dim=1) for pair in zip(pools[::2], pools[1::2], strict=True))
        # The kernel of the second gate has its rows along H and its columns along C; the pool has these swapped.
        gates = [self.cw(over_h).transpose(1, 2), self.hc(over_w.mT).permute(0, 3, 2, 1)]
        if self.hw is not None:
            gates.append(self.hw(over_c[0]))
        # The small gates take the division.
        return [gate / len(gates) for gate in gates]


CARD = Card(
    name="triplet",
    title="Triplet attention",
    kind="plugin",
    factory=TripletAttention,
    summary="three gates over pairs of axes",
    flow=(
        "((. | max and mean over W, conv, norm, sigmoid) -> * | (. | max and mean over H, conv, norm, sigmoid) -> "
        "* | (. | max and mean over C, conv, norm, sigmoid) -> *) -> mean"
    ),
    paper="arXiv:2010.03045",
    code="https://github.com/landskape-ai/triplet-attention",
    license="MIT",
    placement="in every residual block, before the addition",
    avoid="where time counts: it pools and convolves over three pairs of axes, two of them across the channels",
    hosts=("resnet", "mobilenet", "narrow"),
    floor=ONE_POOL,
    maps=True,
    reference="triplet",
)
