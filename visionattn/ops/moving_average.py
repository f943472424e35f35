"""The damped exponential moving average of Mega, along one axis of a map and from both sides.

The recurrence of each channel and state, `s_t = c s_{t-1} + p beta x_t`, is a convolution with a kernel of its powers.
Its kernels need no scan: all taps are made at once, and convolved by whichever form is fastest for their number.
"""

import torch
from torch.nn import functional as F

from ._autocast import widened, without_autocast
from .large_kernel_conv import large_kernel_conv

__all__ = ["ema_kernel", "moving_average"]


def ema_kernel(
    delta: torch.Tensor, alpha: torch.Tensor, beta: torch.Tensor, gamma: torch.Tensor, length: int
) -> torch.Tensor:
    """The weight of a token after 0, 1, ... tokens, `(D, length)`, in float32 at least.

    `k_t = sum_n p_n beta_n gamma_n c_n^t / sqrt(n)` with `p = sigmoid(delta)` and `c = 1 - p sigmoid(alpha)`.

    Args:
        delta: Weight of the new token before the sigmoid, `(D, n, 1)`.
        alpha: Damping before the sigmoid, `(D, n, 1)`.
        beta: From the token to its states, `(D, n, 1)`.
        gamma: From the states to the result, `(D, n)`.
        length: Number of taps.
    """
    with without_autocast(gamma):
        delta, alpha, beta, gamma = (widened(part.flatten(1)) for part in (delta, alpha, beta, gamma))
        # log c without 1 - p a, which rounds to zero: 1 - p a is p a times the sum below.
        powers = torch.logsumexp(torch.stack((-delta, -alpha, -delta - alpha)), 0)
        powers = powers + F.logsigmoid(delta) + F.logsigmoid(alpha)
        start = delta.sigmoid() * beta * gamma * gamma.size(1) ** -0.5
        times = torch.arange(length, device=gamma.device, dtype=gamma.dtype)
        return (start.unsqueeze(1) @ (powers.unsqueeze(2) * times).exp()).squeeze(1)


def moving_average(
    x: torch.Tensor,
    delta: torch.Tensor,
    alpha: torch.Tensor,
    beta: torch.Tensor,
    gamma: torch.Tensor,
    *,
    axis: int = 2,
    truncation: int | None = None,
) -> torch.Tensor:
    """The moving average of each row or column. `(B, H, W, C) -> (B, H, W, C)`, in float32 at least.

    Args:
        x: The map.
        delta: As the other parameters, see `ema_kernel`, of C rows, or of 2 C: those of the average that comes from
            the other end follow. Both include the position itself.
        alpha: See there.
        beta: See there.
        gamma: See there.
        axis: 1: along each column. 2: along each row.
        truncation: How many positions count at most, this one included; none: all.

    Raises:
        ValueError: If `axis` is neither, or the parameters have neither C nor 2 C rows.
    """
    if axis not in (1, 2):
        raise ValueError(f"axis must be 1 or 2, got {axis}")
    channels, rows = x.size(-1), gamma.size(0)
    if rows not in (channels, 2 * channels):
        raise ValueError(f"gamma must have {channels} rows or twice as many, as the map has channels, got {rows}")
    length = x.size(axis) if truncation is None else min(x.size(axis), truncation)
    taps = ema_kernel(delta, alpha, beta, gamma, length)
    # Backwards in time to the left of the centre, and forwards to its right; the centre belongs to both.
    kernel = F.pad(taps[:channels].flip(1), (0, length - 1))
    if rows > channels:
        kernel = kernel + F.pad(taps[channels:], (length - 1, 0))
    kernel = kernel.view(channels, 1, *((1, -1) if axis == 2 else (-1, 1)))
    with without_autocast(x):
        return large_kernel_conv(widened(x), kernel)
