"""The norms that Mega's layers choose from, over the last axis."""

import torch
from torch import nn
from torch.nn import functional as F

__all__ = ["NORMS", "sequence_norm"]

NORMS = ("layer", "scale", "rms", "batch")


class _ScaleNorm(nn.Module):
    """Divides by the root mean square; one scale for all channels."""

    def __init__(self, eps: float, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.eps = eps
        self.scalar = nn.Parameter(torch.ones(1, device=device, dtype=dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, x.shape[-1:], eps=self.eps) * self.scalar


class _BatchNorm(nn.BatchNorm1d):
    """Batch normalisation over all positions and images."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.flatten(0, -2)).view(x.shape)


def sequence_norm(
    kind: str, dim: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> nn.Module:
    """A norm of tokens, `(..., dim) -> (..., dim)`, with an eps of 1e-5.

    Args:
        kind: `layer`, `scale`, `rms` or `batch`.
        dim: Width.
        device: Of the parameters.
        dtype: Of the parameters.
    """
    if kind == "scale":
        return _ScaleNorm(1e-5, device, dtype)
    norms = {"layer": nn.LayerNorm, "rms": nn.RMSNorm, "batch": _BatchNorm}
    return norms[kind](dim, eps=1e-5, device=device, dtype=dtype)
