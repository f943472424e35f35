"""Normalisations of U-GAT-IT (arXiv 1907.10830) that mix the statistics of a channel and of the whole map."""

from typing import Any

import torch
from torch import nn

from visionattn.utils.arguments import check_positive

__all__ = ["LIN", "AdaLIN", "clip_rho_"]


class _LayerInstance(nn.Module):
    """`rho * x_instance + (1 - rho) * x_layer`, then a scale and a shift per channel."""

    rho_start: float

    def __init__(
        self,
        channels: int,
        *,
        eps: float = 1e-5,
        unbiased: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(channels=channels)
        self.eps, self.unbiased = eps, unbiased
        self.rho = nn.Parameter(torch.full((1, channels, 1, 1), self.rho_start, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """The official initialisation."""
        nn.init.constant_(self.rho, self.rho_start)

    def normalize(self, x: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
        """Normalises with `gamma` and `beta` `(B or 1, C, 1, 1)`. Both statistics come from those of the channels."""
        channels, count = x.shape[1], x.shape[2] * x.shape[3]
        one = int(self.unbiased)
        variance, mean = torch.var_mean(x, (2, 3), correction=0, keepdim=True)
        layer_mean = mean.mean(1, keepdim=True)
        spread = (variance + (mean - layer_mean).square()).mean(1, keepdim=True)
        of_one: Any
        of_all: Any
        of_one, of_all = (n / torch.sym_max(n - one, 1) for n in (count, channels * count))
        instance = torch.rsqrt(variance * of_one + self.eps)
        layer = torch.rsqrt(spread * of_all + self.eps)
        of_instance, of_layer = self.rho * instance, (1 - self.rho) * layer
        scale = (of_instance + of_layer) * gamma
        shift = beta - (of_instance * mean + of_layer * layer_mean) * gamma
        return torch.addcmul(shift.to(x.dtype), x, scale.to(x.dtype))


class AdaLIN(_LayerInstance):
    """Adaptive layer-instance normalisation, with scale and shift as inputs. `(B, C, H, W)`, same out.

    Variances are unbiased. After each optimiser step `clip_rho_` brings the mix back to [0, 1], as the authors do.

    Args:
        channels: Width of the map.
        eps: Added to the variances.
        unbiased: Whether variances are divided by one value less.

    Raises:
        ValueError: If `channels` is below 1.
    """

    rho_start = 0.9

    def forward(self, x: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
        """Normalises a map.

        Args:
            x: `(B, C, H, W)`.
            gamma: Scale, `(B, C)`.
            beta: Shift, `(B, C)`.

        Raises:
            ValueError: If `gamma` or `beta` has another shape.
        """
        for name, value in (("gamma", gamma), ("beta", beta)):
            if value.shape != x.shape[:2]:
                raise ValueError(f"{name} must be (B, C) = {tuple(x.shape[:2])}, got {tuple(value.shape)}")
        return self.normalize(x, gamma[:, :, None, None], beta[:, :, None, None])


class LIN(_LayerInstance):
    """Layer-instance normalisation with learnt scale and shift. `(B, C, H, W) -> (B, C, H, W)`.

    Takes the place of a `norm_layer` of timm's.

    Args:
        channels: Width of the map.
        eps: Added to the variances.
        unbiased: Whether variances are divided by one value less.

    Raises:
        ValueError: If `channels` is below 1.
    """

    rho_start = 0.0

    def __init__(
        self,
        channels: int,
        *,
        eps: float = 1e-5,
        unbiased: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(channels, eps=eps, unbiased=unbiased, device=device, dtype=dtype)
        self.gamma = nn.Parameter(torch.ones(1, channels, 1, 1, device=device, dtype=dtype))
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """The official initialisation."""
        super().reset_parameters()
        nn.init.ones_(self.gamma)
        nn.init.zeros_(self.beta)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.normalize(x, self.gamma, self.beta)


@torch.no_grad()
def clip_rho_(model: nn.Module) -> nn.Module:
    """Clips rho of every `AdaLIN` and `LIN` in a network to [0, 1]; call it after each optimiser step."""
    for module in model.modules():
        if isinstance(module, _LayerInstance):
            module.rho.clamp_(0, 1)
    return model
