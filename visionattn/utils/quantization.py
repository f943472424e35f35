"""8-bit and 4-bit weights for files packaged with the distribution: a quarter of the bytes, or an eighth.

A matrix or a kernel is stored under its own name, with one float32 step for each index of its first axis, the output
channel, under that name and `SCALE`: in eight bits as int8 of its shape, in four as uint8 with half as many output
channels, two to a byte. Everything else (biases, norms, counters, tables) stays as it is.
"""

import torch

__all__ = ["BITS", "SCALE", "pack", "unpack"]

BITS = (4, 8)
SCALE = "::scale"
# Shorter rows would hardly get smaller, with four bytes for their step.
_SHORTEST_ROW = 8
# A step of so many bits times a level is exact in float32, which makes packing what was unpacked change nothing.
_STEP_BITS = 12
# Four bits: steps that are tried, as shares of that of a row's largest weight. Cutting it off lets the others gain.
_SHARES = torch.linspace(0.5, 1, 26).tolist()


def pack(state_dict: dict[str, torch.Tensor], bits: int = 8) -> dict[str, torch.Tensor]:
    """Rounds the matrices and kernels of a state dict to eight bits, or to four with the least squared error.

    Args:
        state_dict: Flat weights.
        bits: 8 or 4.

    Raises:
        ValueError: If `bits` is neither, or a weight to be rounded is infinite or not a number.
    """
    if bits not in BITS:
        raise ValueError(f"bits must be 4 or 8, got {bits}")
    packed = {}
    for key, value in state_dict.items():
        packed[key] = value
        if value.is_floating_point() and value.ndim >= 2 and value[0].numel() >= _SHORTEST_ROW:
            if not value.isfinite().all():
                raise ValueError(f"{key} cannot be rounded to {bits} bits: it holds values that are not finite")
            rows = value.float().flatten(1)
            levels = 2 ** (bits - 1) - 1
            steps = _steps(rows.abs().amax(1) / levels)
            if bits == 4:
                tried = torch.stack([_steps(share * steps) for share in _SHARES])
                errors = [(_rounded(rows, some, levels) * some[:, None] - rows).square().sum(1) for some in tried]
                steps = tried.gather(0, torch.stack(errors).argmin(0, keepdim=True))[0]
            whole = _rounded(rows, steps, levels).to(torch.int8).view(value.shape)
            packed[key] = whole if bits == 8 else _halved(whole)
            packed[key + SCALE] = steps
    return packed


def unpack(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Restores float32 weights from packed ones; other state dicts pass through unchanged.

    Args:
        state_dict: Flat weights.
    """
    weights = {}
    for key, value in state_dict.items():
        if key.endswith(SCALE):
            continue
        steps = state_dict.get(key + SCALE)
        if steps is not None:
            whole = _doubled(value)[: len(steps)] if value.dtype == torch.uint8 else value
            value = whole * steps.view(-1, *[1] * (value.ndim - 1))
        weights[key] = value
    return weights


def _steps(steps: torch.Tensor) -> torch.Tensor:
    """Rounded up to `_STEP_BITS` bits."""
    fraction, exponent = torch.frexp(steps)
    return torch.ldexp((fraction * 2**_STEP_BITS).ceil() / 2**_STEP_BITS, exponent)


def _rounded(rows: torch.Tensor, steps: torch.Tensor, levels: int) -> torch.Tensor:
    """The nearest levels, of rows with a step each."""
    return (rows / steps.clamp(min=torch.finfo(torch.float32).tiny)[:, None]).round().clamp(-levels, levels)


def _halved(whole: torch.Tensor) -> torch.Tensor:
    """Two output channels to a byte, the first in its lower half; levels count from -8."""
    if len(whole) % 2:
        whole = torch.cat([whole, whole.new_zeros(1, *whole.shape[1:])])
    low, high = (whole + 8).to(torch.uint8).unflatten(0, (-1, 2)).unbind(1)
    return low | high << 4


def _doubled(halved: torch.Tensor) -> torch.Tensor:
    return torch.stack([halved & 15, halved >> 4], 1).flatten(0, 1).to(torch.int8) - 8
