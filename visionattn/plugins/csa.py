"""Class Semantics-based Attention for Action Detection (ICCV 2021, arXiv 2109.02613).

No code is published. What the paper's text leaves open is our reading: hidden widths, kernels, and the sum of both.

Golden: tests/golden/csa_*.npz (outputs and gates of an implementation of our own in float64).
"""

import torch
from torch import nn
from torch.nn import functional as F

from visionattn.catalog import Card
from visionattn.utils.arguments import check_choice, check_positive
from visionattn.utils.factory import FactoryKwargs

from ._condition import check_condition

__all__ = ["ClassSemanticAttention"]


class ClassSemanticAttention(nn.Module):
    """Scales a map by channel and spatial gates computed from features rich in class semantics.

    `(B, C, H, W), (B, R, h, w) -> (B, C, H, W)`, or `(B, C, L), (B, R, l) -> (B, C, L)` with `dims=1`. Without a second
    input the map decides itself.

    Args:
        channels: Width of the map.
        cond_channels: Width of the features that decide; `channels` without it.
        hidden: Width between the layers of both gates; a quarter of `channels` without it, at least 1.
        dims: 2 for maps, 1 for sequences.

    Raises:
        ValueError: If an argument is below 1 or `dims` is neither 1 nor 2.
    """

    condition_name = "semantics"

    def __init__(
        self,
        channels: int,
        *,
        cond_channels: int | None = None,
        hidden: int | None = None,
        dims: int = 2,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        cond_channels = channels if cond_channels is None else cond_channels
        hidden = max(channels // 4, 1) if hidden is None else hidden
        check_positive(channels=channels, cond_channels=cond_channels, hidden=hidden)
        check_choice("dims", dims, (1, 2))
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        self.channels, self.cond_channels, self.dims = channels, cond_channels, dims
        conv = nn.Conv1d if dims == 1 else nn.Conv2d
        self.channel = nn.Sequential()
        self.channel.add_module("fc1", nn.Linear(cond_channels, hidden, **dd))
        self.channel.add_module("relu", nn.ReLU())
        self.channel.add_module("fc2", nn.Linear(hidden, channels, **dd))
        self.position = nn.Sequential()
        self.position.add_module("conv1", conv(cond_channels, hidden, 3, padding=1, **dd))
        self.position.add_module("relu", nn.ReLU())
        self.position.add_module("conv2", conv(hidden, 1, 1, **dd))

    def reset_parameters(self) -> None:
        """PyTorch's default initialisation."""
        for layer in (*self.channel, *self.position):
            if not isinstance(layer, nn.ReLU):
                layer.reset_parameters()

    def gates(self, x: torch.Tensor, semantics: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """The factors of channels `(B, C, 1, 1)`, of positions `(B, 1, H, W)`, and their sum; inputs as forward."""
        semantics = self._semantics(x, semantics)
        channel = self.channel(semantics.mean(tuple(range(2, semantics.ndim)))).sigmoid()
        channel, spatial = channel.reshape(*channel.shape, *(1,) * self.dims), self.position(semantics).sigmoid()
        return {"channel": channel, "spatial": spatial, "gate": channel + spatial}

    def forward(self, x: torch.Tensor, semantics: torch.Tensor | None = None) -> torch.Tensor:
        """Scales a map.

        Args:
            x: `(B, C, H, W)`, or `(B, C, L)` with `dims=1`.
            semantics: The features that decide, `(B, cond_channels, h, w)` or `(B, cond_channels, l)`, resized to the
                map's positions where they have others.

        Raises:
            ValueError: If the semantics are missing where they have another width, or are of another shape or not
                finite.
        """
        return x * self.gates(x, semantics)["gate"].to(x.dtype)

    def _semantics(self, x: torch.Tensor, semantics: torch.Tensor | None) -> torch.Tensor:
        """The features that decide, in the map's size and type."""
        if semantics is None and self.cond_channels == self.channels:
            semantics = x
        elif semantics is not None or self.cond_channels != self.channels:
            check_condition(semantics, x, "semantics", (self.cond_channels, *"hw"[: self.dims]))
        assert semantics is not None
        if semantics.shape[2:] != x.shape[2:]:
            semantics = F.interpolate(semantics, x.shape[2:], mode="linear" if self.dims == 1 else "bilinear")
        return semantics.to(x.dtype)

    def example_condition(self, x: torch.Tensor) -> torch.Tensor:
        """A condition of the shape that a map needs."""
        return x.new_zeros(x.shape[0], self.cond_channels, *x.shape[2:])


CARD = Card(
    name="csa",
    title="Class Semantics-based Attention",
    kind="plugin",
    factory=ClassSemanticAttention,
    summary="gates of channels and of positions from features rich in class semantics, or from the map itself",
    flow="(. | (mean, MLP, sigmoid | convs, sigmoid) -> +) -> *",
    paper="arXiv:2109.02613",
    placement="on the encoded features of a detector of actions, before the localisation encoder",
    avoid="to reproduce the paper: no code is published, and widths, kernels and how both gates are joined are "
    "our reading",
    cases={"": {}, "wide": {"hidden": 24}},
    hosts=("narrow",),
    maps=True,
    reference="csa",
)
