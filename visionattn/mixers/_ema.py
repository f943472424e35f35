"""Layers of damped exponential moving averages, as Mega has them."""

import torch
from torch import nn
from torch.nn import functional as F

from visionattn.ops import moving_average
from visionattn.utils.arguments import check_positive

__all__ = ["DampedEMA", "MultiHeadEMA"]


class _EMA(nn.Module):
    """The parameters of a moving average.

    Args:
        dim: Channels C.
        ndim: States of each channel.
        bidirectional: Whether a second one comes from the other end.
        truncation: How many positions count at most; none: all.

    Raises:
        ValueError: If a number is below 1.
    """

    def __init__(
        self,
        dim: int,
        *,
        ndim: int = 16,
        bidirectional: bool = True,
        truncation: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(dim=dim, ndim=ndim)
        if truncation is not None:
            check_positive(truncation=truncation)
        self.truncation = truncation
        shape = (2 * dim if bidirectional else dim, ndim)
        self.delta, self.alpha, self.beta = (
            nn.Parameter(torch.empty(*shape, 1, device=device, dtype=dtype)) for _ in range(3)
        )
        self.gamma = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.init_weights()

    def init_weights(self) -> None:
        """The official initialisation: states of alternating sign."""
        nn.init.normal_(self.delta, std=0.2)
        nn.init.normal_(self.alpha, std=0.2)
        nn.init.normal_(self.beta, std=0.02)
        nn.init.normal_(self.gamma)
        with torch.no_grad():
            self.beta[:, ::2] += 1
            self.beta[:, 1::2] -= 1

    def average(self, x: torch.Tensor, axis: int) -> torch.Tensor:
        """The moving average of a map `(B, H, W, C)` along its columns (1) or rows (2), in float32 at least."""
        return moving_average(x, self.delta, self.alpha, self.beta, self.gamma, axis=axis, truncation=self.truncation)


class DampedEMA(_EMA):
    """A moving average along one axis of a map, for each channel. `(B, H, W, C) -> (B, H, W, C)`, float32 at least.

    Arguments as for `MultiHeadEMA`.
    """

    def forward(self, x: torch.Tensor, axis: int = 2) -> torch.Tensor:
        return self.average(x, axis)


class MultiHeadEMA(_EMA):
    """Mega's moving average of sequences, a share of the input added, then SiLU. `(B, L, C) -> (B, L, C)`, any L >= 1.

    The names of its parameters are the official ones; the official module has the length first.

    Args:
        dim: Channels C.
        ndim: States of each channel.
        bidirectional: Whether a second average comes from the end.
        truncation: How many tokens count at most; none: all.
    """

    def __init__(
        self,
        dim: int,
        *,
        ndim: int = 16,
        bidirectional: bool = True,
        truncation: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(dim, ndim=ndim, bidirectional=bidirectional, truncation=truncation, device=device, dtype=dtype)
        self.omega = nn.Parameter(torch.randn(dim, device=device, dtype=dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.average(x.unsqueeze(1), 2).squeeze(1)
        return F.silu(y + self.omega * x).to(x.dtype)
