"""8-bit weights for files packaged with the distribution: a quarter of the bytes.

A matrix or a kernel is stored as int8 under its own name, with one float32 step for each index of its first axis, the
output channel, under that name and `SCALE`. Everything else (biases, norms, counters, tables) stays as it is.
"""

import torch

__all__ = ["SCALE", "pack", "unpack"]

SCALE = "::scale"
# Shorter rows would hardly get smaller, with four bytes for their step.
_SHORTEST_ROW = 8
_LEVELS = 127
# A step of so many bits times a level is exact in float32, which makes packing what was unpacked change nothing.
_STEP_BITS = 12


def pack(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rounds the matrices and kernels of a state dict to eight bits.

    Args:
        state_dict: Flat weights.

    Raises:
        ValueError: If a weight to be rounded is infinite or not a number.
    """
    packed = {}
    for key, value in state_dict.items():
        packed[key] = value
        if value.is_floating_point() and value.ndim >= 2 and value[0].numel() >= _SHORTEST_ROW:
            if not value.isfinite().all():
                raise ValueError(f"{key} cannot be rounded to eight bits: it holds values that are not finite")
            rows = value.float().flatten(1)
            fraction, exponent = torch.frexp(rows.abs().amax(1) / _LEVELS)
            steps = torch.ldexp((fraction * 2**_STEP_BITS).ceil() / 2**_STEP_BITS, exponent)
            rounded = (rows / steps.clamp(min=torch.finfo(torch.float32).tiny)[:, None]).round()
            packed[key] = rounded.to(torch.int8).view(value.shape)
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
        weights[key] = value if steps is None else value * steps.view(-1, *[1] * (value.ndim - 1))
    return weights
