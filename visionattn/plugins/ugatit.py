"""U-GAT-IT: class activation attention and adaptive layer-instance normalisation (ICLR 2020, arXiv 1907.10830).

Official code: https://github.com/znxlwm/UGATIT-pytorch (MIT), networks.py.

Differs from the official code in:
- the two scalings, their concatenation and the 1x1 convolution are one convolution, whose weight is computed first;
- with `normalize` the norm of the logits' weights is exact, for they have one row, and the channels are scaled by the
  normalised weights too; `legacy` scales by the others, as the official discriminators do;
- the parameters of AdaLIN that come from the whole map are made for any size, by pooling to the grid;
- a single value has variance 0; the official code gives NaN.

Golden: tests/golden/ugatit_*.npz (maps, logits, heat maps, parameters of AdaLIN, input gradients).
"""

import torch
from torch import nn
from torch.nn import functional as F

from visionattn.catalog import Card
from visionattn.ops import map_pools
from visionattn.ops.losses import add_loss, find_target
from visionattn.ops.pointwise_conv import pointwise_conv
from visionattn.ops.recomputed import with_mask_recomputed
from visionattn.utils.arguments import check_choice, check_positive, pair
from visionattn.utils.factory import FactoryKwargs

from ._common import Matrix
from ._layer_instance import LIN, AdaLIN, clip_rho_

__all__ = ["ILN", "LIN", "AdaLIN", "AdaLINBlock", "AdaLINParameters", "CAMAttention", "clip_rho_"]

ILN = LIN  # the official code's name


class CAMAttention(nn.Module):
    """Mixes the channels, scaled by the weights of two classifiers of the picture. `(B, C, H, W) -> (B, C, H, W)`.

    One classifier sees the mean of each channel, the other the maximum; both tell two domains apart by one logit each.
    Their loss is what makes this attention: without it the block is a 1x1 convolution and an activation. It reaches the
    loss in either of two ways: `forward(x, return_logits=True)` also gives the logits `(B, 2)`; and in training, where
    the task knows the `domain` of each picture (`visionattn.ops.losses.known_targets`), the block reports the loss
    `cam` by `add_loss`.

    Args:
        channels: Width of the map.
        negative_slope: Of the activation: 0 in the generator, 0.2 in the discriminators.
        loss: Of the domains: `bce`, the generator's, or `least_squares`, the discriminators'.
        normalize: Whether the weights of the logits are divided by their norm, as in the discriminators.
        legacy: With `normalize`, whether the channels are scaled by the weights before that.

    Raises:
        ValueError: If `channels` is below 1 or `loss` is unknown.
    """

    # The names of a spectral norm; its vectors say nothing about a single row.
    official_keys = ((r"^(gap_fc|gmp_fc)\.weight_orig$", r"\1.weight"),)

    def __init__(
        self,
        channels: int,
        *,
        negative_slope: float = 0.0,
        loss: str = "bce",
        normalize: bool = False,
        legacy: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(channels=channels)
        check_choice("loss", loss, ("bce", "least_squares"))
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        self.negative_slope, self.loss = negative_slope, loss
        self.normalize, self.legacy = normalize, legacy
        self.gap_fc = Matrix(channels, 1, **dd)
        self.gmp_fc = Matrix(channels, 1, **dd)
        self.conv1x1 = nn.Conv2d(2 * channels, channels, 1, **dd)

    def extra_repr(self) -> str:
        return f"negative_slope={self.negative_slope:g}, loss={self.loss!r}, normalize={self.normalize}"

    def reset_parameters(self) -> None:
        """PyTorch's default initialisation, as in the official code."""
        for layer in (self.gap_fc, self.gmp_fc, self.conv1x1):
            layer.reset_parameters()

    def forward(self, x: torch.Tensor, return_logits: bool = False) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """The attended map, and with `return_logits` the logits of the mean and of the maximum, `(B, 2)`."""
        domain = find_target("domain") if self.training else None
        logits = None
        if return_logits or domain is not None:
            x, mean, maximum = map_pools(x)
            gap, gmp = self._logit_weights()
            logits = torch.cat((F.linear(mean, gap), F.linear(maximum, gmp)), dim=1)
        if domain is not None and logits is not None:
            add_loss("cam", self.domain_loss(logits, domain))
        mixed = pointwise_conv(x, self._mixing(), self.conv1x1.bias)
        out = with_mask_recomputed(F.leaky_relu, mixed, self.negative_slope)
        return (out, logits) if return_logits and logits is not None else out

    def domain_loss(self, logits: torch.Tensor, domain: torch.Tensor) -> torch.Tensor:
        """The loss of logits `(B, 2)` where `domain` `(B,)` says which of the two each picture is of, 0 or 1.

        Raises:
            ValueError: If there is not one domain a picture.
        """
        if domain.shape != logits.shape[:1]:
            raise ValueError(f"domain must be (B,) = ({len(logits)},), 0 or 1 each, got {tuple(domain.shape)}")
        wanted = domain.to(logits.dtype)[:, None].expand_as(logits)
        return F.binary_cross_entropy_with_logits(logits, wanted) if self.loss == "bce" else F.mse_loss(logits, wanted)

    @staticmethod
    def heatmap(attended: torch.Tensor) -> torch.Tensor:
        """The attention heat map: the sum of the result over channels. `(B, C, H, W) -> (B, 1, H, W)`."""
        return attended.sum(1, keepdim=True)

    def _logit_weights(self) -> tuple[torch.Tensor, torch.Tensor]:
        weights = self.gap_fc.weight, self.gmp_fc.weight
        return (F.normalize(weights[0]), F.normalize(weights[1])) if self.normalize else weights

    def _mixing(self) -> torch.Tensor:
        """The two scalings and the convolution of their results as one kernel."""
        raw = self.gap_fc.weight, self.gmp_fc.weight
        scales = torch.stack(raw if self.legacy else self._logit_weights())
        return (self.conv1x1.weight.flatten(1).unflatten(1, (2, -1)) * scales[:, 0]).sum(1)[:, :, None, None]


class AdaLINParameters(nn.Module):
    """Makes the scale and shift of `AdaLIN` of an attended map. `(B, C, H, W) -> (B, C), (B, C)`.

    Args:
        channels: Width of the map.
        light: See the mean of each channel only; otherwise the whole map, pooled to `grid` where it has another size.
        grid: Height and width, or one number for both; needed without `light`.

    Raises:
        ValueError: If `channels` is below 1, or `grid` is missing without `light` or given with it.
    """

    official_keys = ((r"^FC\.0\.", "fc1."), (r"^FC\.2\.", "fc2."))

    def __init__(
        self,
        channels: int,
        *,
        light: bool = True,
        grid: int | tuple[int, int] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(channels=channels)
        if light != (grid is None):
            raise ValueError(f"grid is needed without light, and only then, got light={light}, grid={grid}")
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        self.grid = (1, 1) if grid is None else pair("grid", grid)
        self.fc1 = nn.Linear(channels * self.grid[0] * self.grid[1], channels, bias=False, **dd)
        self.fc2 = nn.Linear(channels, channels, bias=False, **dd)
        self.gamma = nn.Linear(channels, channels, bias=False, **dd)
        self.beta = nn.Linear(channels, channels, bias=False, **dd)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if x.shape[2:] != self.grid:
            x = x.mean((2, 3), keepdim=True) if self.grid == (1, 1) else F.adaptive_avg_pool2d(x, self.grid)
        y = F.relu(self.fc2(F.relu(self.fc1(x.flatten(1)))))
        return self.gamma(y), self.beta(y)


class AdaLINBlock(nn.Module):
    """The generator's residual block: twice a 3x3 convolution and `AdaLIN`. `(B, C, H, W) -> (B, C, H, W)`.

    Args:
        channels: Width of the map.
    """

    def __init__(
        self, channels: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        self.conv1 = nn.Conv2d(channels, channels, 3, bias=False, **dd)
        self.norm1 = AdaLIN(channels, **dd)
        self.conv2 = nn.Conv2d(channels, channels, 3, bias=False, **dd)
        self.norm2 = AdaLIN(channels, **dd)

    def forward(self, x: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.norm1(self.conv1(_reflect(x)), gamma, beta))
        return x + self.norm2(self.conv2(_reflect(y)), gamma, beta)


def _reflect(x: torch.Tensor) -> torch.Tensor:
    # There is nothing to reflect in a single row or column.
    return F.pad(x, (1, 1, 1, 1), "reflect" if min(x.shape[2:]) > 1 else "replicate")


CARD = Card(
    name="cam",
    title="U-GAT-IT: class activation attention",
    kind="plugin",
    factory=CAMAttention,
    summary="mixes channels scaled by the weights of two domain classifiers, whose loss it reports",
    flow=(
        "((. | {weights of the mean's classifier}) -> * | (. | {weights of the maximum's classifier}) -> *) -> "
        "concat -> 1x1 conv -> leaky ReLU"
    ),
    paper="arXiv:1907.10830",
    code="https://github.com/znxlwm/UGATIT-pytorch",
    license="MIT",
    placement="between the encoder and the decoder of a generator, and before the last layer of a discriminator",
    avoid="without two domains: its weights are those of two classifiers of domains, whose loss has to be "
    "trained with it",
    cases={"": {}, "discriminator": {"negative_slope": 0.2, "normalize": True}},
    hosts=("narrow",),
    reference="ugatit",
)
