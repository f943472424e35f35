"""The gated layer around the attention of Mega and CHELA."""

from abc import ABC, abstractmethod

import torch
from torch import nn
from torch.nn import functional as F

from visionattn.utils.arguments import check_positive

__all__ = ["GatedSkeleton"]


class GatedSkeleton(nn.Module, ABC):
    """Queries, keys, gates and candidate from smoothed tokens, values from plain ones. `(B, H, W, C) -> (B, H, W, C)`.

    With m the smoothed map: u, z, r and a part of h come from m by one projection, queries and keys from z by a scale
    and a shift each. With A the attention, `h = silu(h' + h_proj(A v * r))`, and the layer is `x + u (h - x)`. It holds
    its own residual connection, which is left out here, for that of the host: **what comes out is the layer minus x**.

    A subclass says what is the norm in front (`norm_in`), how tokens are smoothed (`smooth`) and what attends (`read`).

    Args:
        dim: Width C.
        zdim: Width z of the queries and keys.
        hdim: Width e of the values.
        update_gate: Whether there is u. Without it what comes out is h, an ordinary residual branch.
        proj_drop: Dropout of h.

    Raises:
        ValueError: If a width is below 1.
    """

    def __init__(
        self,
        dim: int,
        *,
        zdim: int | None,
        hdim: int | None,
        update_gate: bool,
        proj_drop: float,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        zdim = max(1, dim // 2) if zdim is None else zdim
        hdim = 2 * dim if hdim is None else hdim
        check_positive(dim=dim, zdim=zdim, hdim=hdim)
        self.sizes = (dim if update_gate else 0, zdim, hdim, dim)
        self.v_proj = nn.Linear(dim, hdim, device=device, dtype=dtype)
        self.mx_proj = nn.Linear(dim, sum(self.sizes), device=device, dtype=dtype)
        self.h_proj = nn.Linear(hdim, dim, device=device, dtype=dtype)
        self.gamma, self.beta = (nn.Parameter(torch.empty(2, zdim, device=device, dtype=dtype)) for _ in range(2))
        self.proj_drop = nn.Dropout(proj_drop)
        for layer in (self.v_proj, self.mx_proj, self.h_proj):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        nn.init.normal_(self.gamma, std=0.02)
        nn.init.zeros_(self.beta)

    @abstractmethod
    def norm_in(self, x: torch.Tensor) -> torch.Tensor:
        """The norm before the layer."""

    @abstractmethod
    def smooth(self, x: torch.Tensor) -> torch.Tensor:
        """The smoothed map."""

    @abstractmethod
    def read(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """The output of attention, `(B, H, W, e)`, for maps of queries, keys and values."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = self.norm_in(x)
        update, z, reset, candidate = self.mx_proj(self.smooth(normed)).split(self.sizes, -1)
        q, k = self._queries_keys(z)
        read = self.read(q, k, F.silu(self.v_proj(normed)))
        h = self.proj_drop(F.silu(candidate + self.h_proj(read * F.silu(reset))))
        return update.sigmoid() * (h - x) if self.sizes[0] else h

    def queries_keys(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Maps of queries and keys, `(B, H, W, z)` each, for an input map of the layer."""
        return self._queries_keys(self.mx_proj(self.smooth(self.norm_in(x))).split(self.sizes, -1)[1])

    def _queries_keys(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        z = F.silu(z)
        q, k = (z * scale + shift for scale, shift in zip(self.gamma.unbind(0), self.beta.unbind(0), strict=True))
        return q, k
