"""HAN: Holistic Attention Network, its attention over layers and over channels and positions (ECCV 2020, 2008.08767).

Single Image Super-Resolution via a Holistic Attention Network, arXiv 2008.08767.

Official code: https://github.com/wwlCape/HAN (no licence file), src/model/han.py.

Differs from the official code in:
- the energies of layers are added up in float32 at least, so half precision does not overflow;
- the energies' sign of the paper and energies without the growth with the size of the map are arguments too;
- layers may come side by side in the channels of one map, as a concatenation has them;
- the volume's convolution is taken as a plane convolution of overlapping slabs of channels: the same numbers up to
  rounding.

Golden: tests/golden/han_*.npz (outputs and input gradients of both; a whole network put together of them).
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from visionattn.catalog import Card
from visionattn.ops._autocast import widened, without_autocast
from visionattn.ops.layout import memory_format
from visionattn.utils.arguments import check_choice, check_positive

__all__ = ["ChannelSpatialAttention", "LayerAttention"]

# Layers that HAN attends over: the outputs of ten residual groups and of the convolution behind them.
_LAYERS = 11
_ENERGIES = ("sum", "mean", "cosine")
_FAVOURS = ("unlike", "like")
# Channels of a slab of the volume, at most, without its two neighbours: wide enough for whole vector registers.
_SLAB = 30


class LayerAttention(nn.Module):
    """`gamma * (A F) + F`, A = the softmax of how little layers are alike; gamma starts at 0. Any H, W >= 1.

    `(B, N, C, H, W) -> (B, N * C, H, W)` from a stack of the maps F of N layers. A map `(B, N * C, H, W)` that holds
    them side by side, as `torch.cat` and the blocks of DenseNet put them, keeps its shape; there `layers` says how many
    they are. In the map of a single layer they are groups of its channels.

    Args:
        channels: Width of the map, or of each layer of a stack; it only chooses the default of `layers`.
        layers: Number of layers N. If None, a stack has as many as it has, and a map the largest number up to HAN's 11
            that divides its width.
        energy: How alike two layers are: `sum` is the sum of their products over channels and positions, which grows
            with the map, so that the softmax is nearly one-hot; `mean` is the mean of the products and `cosine` the
            cosine.
        favour: `unlike` gives most weight to layers that are least alike, as the official code does; `like` is the
            softmax of the energies themselves, as the paper has it.

    Raises:
        ValueError: If an argument is out of range, a stack does not hold `layers` maps, or a map's width is no multiple
            of `layers`.
    """

    # The names are the authors'.
    official_keys = ()

    def __init__(
        self,
        channels: int,
        *,
        layers: int | None = None,
        energy: str = "sum",
        favour: str = "unlike",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(channels=channels)
        if layers is not None:
            check_positive(layers=layers)
        check_choice("energy", energy, _ENERGIES)
        check_choice("favour", favour, _FAVOURS)
        self.layers = layers
        self.energy = energy
        self.favour = favour
        self.gamma = nn.Parameter(torch.empty(1, device=device, dtype=dtype))
        self.reset_parameters()

    def extra_repr(self) -> str:
        return f"layers={self.layers}, energy={self.energy!r}, favour={self.favour!r}"

    def reset_parameters(self) -> None:
        """The official initialisation, which changes nothing."""
        nn.init.zeros_(self.gamma)

    def weights(self, x: torch.Tensor) -> torch.Tensor:
        """The attention weights between layers, `(B, N, N)`, in float32 at least."""
        return self._weights(self._stacked(x))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        stack = self._stacked(x)
        weights = self.gamma * self._weights(stack)
        out = torch.baddbmm(stack, weights if weights.dtype == stack.dtype else weights.to(stack.dtype), stack)
        if x.ndim == 5:
            return out.view(x.shape[0], -1, *x.shape[3:])
        return out.view(x.shape).contiguous(memory_format=memory_format(x))

    def _stacked(self, x: torch.Tensor) -> torch.Tensor:
        """Every layer as one vector, `(B, N, C * H * W)`."""
        if x.ndim == 5:
            if self.layers not in (None, x.shape[1]):
                raise ValueError(f"a stack must hold layers={self.layers} maps, got {x.shape[1]}")
            return x.flatten(2)
        if x.ndim != 4:
            raise ValueError(
                f"layers come as a map (B, C, H, W) or a stack (B, N, C, H, W), got a tensor of shape {(*x.shape,)}"
            )
        batch, width, *size = x.shape
        layers = self.layers or max(count for count in range(1, _LAYERS + 1) if width % count == 0)
        if width % layers:
            raise ValueError(f"layers must divide the width of the map, got layers={layers} and {width} channels")
        return x.reshape(batch, layers, width // layers * size[0] * size[1])

    def _weights(self, stack: torch.Tensor) -> torch.Tensor:
        with without_autocast(stack):
            stack = widened(stack)
            if self.energy == "cosine":
                stack = F.normalize(stack, dim=2)
            energy = torch.bmm(stack, stack.mT)
            if self.energy == "mean":
                energy = energy / stack.shape[2]
            if self.favour == "unlike":
                # A softmax does not see the shift; the official code rounds so, which shows in sums this large.
                energy = energy.detach().amax(2, keepdim=True) - energy
            return energy.softmax(2)


class ChannelSpatialAttention(nn.Module):
    """`x + gamma * x * gate`, the gate of each value a sigmoid of its neighbours in channels and positions.

    `(B, C, H, W) -> (B, C, H, W)`, any H, W >= 1. The map is a volume of one channel, C deep, and a 3 x 3 x 3
    convolution makes the gate; gamma starts at 0. There are 29 parameters, whatever the width.

    Args:
        channels: Width of the map, only taken because every plug-in takes it.

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
        # The volume's kernel, its depth as channels: weights of five axes would refuse to become channels_last.
        self.conv = nn.Conv2d(3, 1, 3, device=device, dtype=dtype)
        self.register_load_state_dict_pre_hook(_flatten_kernel)
        self.gamma = nn.Parameter(torch.empty(1, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The official initialisation: PyTorch's default convolution, and a factor that changes nothing."""
        self.conv.reset_parameters()
        nn.init.zeros_(self.gamma)

    def gates(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """The attention of the map, of its shape; `gate` is the resulting factor of the map."""
        neighbours = self._volume_conv(x).sigmoid()
        return {"neighbours": neighbours, "gate": 1 + self.gamma * neighbours}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = self.gamma * self._volume_conv(x).sigmoid()
        return torch.addcmul(x, x, gate.to(x.dtype))

    def _volume_conv(self, x: torch.Tensor) -> torch.Tensor:
        """The 3-D convolution, computed as one 2-D convolution with many channels.

        A slab of channels, with the neighbours before and behind, is one picture of a batch; a banded matrix of the
        kernel's three planes takes it to the slab's own channels.
        """
        batch, channels, height, width = x.shape
        slabs = -(-channels // _SLAB)
        deep = -(-channels // slabs)
        pictures = F.pad(x, (0, 0, 0, 0, 1, slabs * deep - channels + 1))
        if slabs > 1:
            pictures = pictures.unfold(1, deep + 2, deep).permute(0, 1, 4, 2, 3).reshape(-1, deep + 2, height, width)
        # Repeating the planes with one zero more than a row has entries moves them on by one in each row.
        planes = F.pad(self.conv.weight[0].flatten(1), (0, 0, 0, deep)).repeat(deep, 1)
        band = planes[: deep * (deep + 2)].view(deep, deep + 2, 3, 3)
        bias = None if self.conv.bias is None else self.conv.bias.expand(deep)
        out = F.conv2d(pictures, band, bias, padding=1)
        return out if slabs == 1 else out.view(batch, slabs * deep, height, width)[:, :channels]


def _flatten_kernel(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Converts the authors' kernel `(1, 1, 3, 3, 3)` to ours, `(1, 3, 3, 3)`."""
    key = f"{prefix}conv.weight"
    if key in state_dict and state_dict[key].ndim == 5:
        state_dict[key] = state_dict[key].flatten(0, 1)


CARDS = (
    Card(
        name="lam",
        title="HAN's layer attention module",
        kind="plugin",
        factory=LayerAttention,
        summary="each layer takes from the layers that are least like it",
        flow="(. | (products of layers -> softmax | layers as values) -> @ -> times gamma) -> +",
        placement="over the outputs of all residual groups, stacked or concatenated, before their fusion",
        avoid="on one layer: it compares several with each other, and all of them have to be held",
        hosts=("narrow",),
        cases={"": {}, "mean": {"layers": 6, "energy": "mean", "favour": "like"}, "cosine": {"energy": "cosine"}},
        reference="han",
        paper="arXiv:2008.08767",
        code="https://github.com/wwlCape/HAN",
    ),
    Card(
        name="csam",
        title="HAN's channel-spatial attention module",
        kind="plugin",
        factory=ChannelSpatialAttention,
        summary="gate of every value by a 3 x 3 x 3 convolution over channels and positions",
        flow="(. | (. | 3x3x3 conv -> sigmoid -> times gamma) -> *) -> +",
        placement="on the output of the last residual group",
        avoid="where it should learn much: it is one 3 x 3 x 3 kernel for all channels and positions",
        hosts=("narrow",),
        maps=True,
        reference="han",
        paper="arXiv:2008.08767",
        code="https://github.com/wwlCape/HAN",
    ),
)
