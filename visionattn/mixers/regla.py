"""ReGLA: refined gated linear attention (NAACL 2025, arXiv 2502.01578).

No official code was to be had; written from the abstract and a summary of the paper with its formulas: the feature
maps, the variance factor and the refined gate. The paper's are causal language models. Ours are the image form, two or
four directions that share all projections, and the norm, a root mean square for each head.

Differs from the official code in: not known.

Golden: tests/golden/regla_*.npz (outputs and input gradients of an independent literal implementation).
"""

from math import e

import torch
from torch import nn
from torch.nn import functional as F

from visionattn.catalog import Card
from visionattn.ops import cross_merge, cross_scan, gated_scan, recomputed, widened
from visionattn.utils.arguments import check_choice, check_heads, check_positive
from visionattn.utils.factory import FactoryKwargs

from ._gates import GateLinear

__all__ = ["ReGLA"]


class ReGLA(nn.Module):
    """Linear attention with a state that every token decays by a gate. `(B, H, W, C) -> (B, H, W, C)`, any H, W >= 1.

    The state runs over the map in several directions, whose results are added up and normalised. There is no place for
    extra tokens: pool the mean.

    Args:
        dim: Width C.
        num_heads: Heads, a divisor of `dim`.
        directions: 1: row by row. 2: and from the last position to the first. 4: and both column by column.
        refined: Whether a second gate bends the first between its square and `1 - (1 - g)^2`, so that its gradient does
            not vanish at 0 and 1. Without it this is gated linear attention (GLA).
        chunk: Tokens that are taken together, see `visionattn.ops.gated_scan`; makes no difference to the result.
        proj_drop: Dropout after the output projection.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        directions: int = 4,
        refined: bool = True,
        chunk: int = 64,
        proj_drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        check_choice("directions", directions, (1, 2, 4))
        check_positive(chunk=chunk)
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.directions = directions
        self.refined = refined
        self.chunk = chunk
        self.q, self.k, self.v = (nn.Linear(dim, dim, bias=False, **dd) for _ in range(3))
        self.gate = GateLinear(dim, dim, **dd)
        self.refine = GateLinear(dim, dim, **dd) if refined else None
        self.norm = nn.RMSNorm(dim // num_heads, eps=1e-5, **dd)
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)
        self.init_weights()

    def init_weights(self) -> None:
        """Initialises the gates from 0.88 to 0.998 over the features of a head, from fast to slow decay."""
        with torch.no_grad():
            start = torch.linspace(2, 6, self.norm.weight.numel(), device=self.gate.bias.device)
            self.gate.bias.copy_(start.repeat(self.num_heads))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self._scan(x, self.v(x)).unflatten(-1, (self.num_heads, -1))
        out = F.rms_norm(out, out.shape[-1:], self.norm.weight.to(out.dtype), self.norm.eps).flatten(-2)
        return self.proj_drop(self.proj(out.to(x.dtype)))

    def decay(self, x: torch.Tensor) -> torch.Tensor:
        """The decay of the state at each token and feature, from 0 to 1, in float32 at least. Shape of x."""
        gate = widened(self.gate(x)).sigmoid()
        if self.refine is None:
            return gate
        # (1 - r) g^2 + r (1 - (1 - g)^2)
        return gate.square() + 2 * widened(self.refine(x)).sigmoid() * gate * (1 - gate)

    def weights(self, x: torch.Tensor) -> torch.Tensor:
        """The attention matrix before the norm, `(B, num_heads, N, N)`, of a map `(B, H, W, C)`."""
        grid, count = (x.size(1), x.size(2)), x.size(1) * x.size(2)
        values = torch.eye(count, device=x.device, dtype=widened(x).dtype).view(1, *grid, count)
        rows = self._scan(x, values.expand(x.shape[0], -1, -1, -1).repeat(1, 1, 1, self.num_heads))
        return rows.flatten(1, 2).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def _scan(self, x: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """The sum of what each token reads in all directions, in the shape of the values."""
        # Before projections leave float32 under autocast: what follows needs it.
        q, k = (widened(part(x)).unflatten(-1, (self.num_heads, -1)) for part in (self.q, self.k))
        size = q.size(-1)
        q = (q - q.amax(-1, keepdim=True)).exp() * (1 / (e * (size * (e**2 - 1)) ** 0.5))
        k = (k - k.amax((1, 2, 4), keepdim=True)).exp()
        return recomputed(self._read, q.flatten(-2), k.flatten(-2), widened(values), self.decay(x))

    def _read(self, *maps: torch.Tensor) -> torch.Tensor:
        """The same of maps of queries, keys, values and decays."""
        q, k, v, decay = (
            cross_scan(part, self.directions).unflatten(-1, (self.num_heads, -1)).transpose(2, 3) for part in maps
        )
        out = gated_scan(q, k, v, decay, chunk=self.chunk)
        return cross_merge(out.transpose(2, 3).flatten(3), (maps[0].size(1), maps[0].size(2)))


CARD = Card(
    name="regla",
    title="ReGLA: refined gated linear attention",
    kind="mixer",
    factory=ReGLA,
    summary="linear attention with exponential features and a refined forget gate, scanned in four directions",
    flow="(q | (k | v | forget gate) -> scan in several directions) -> read by q -> norm -> proj",
    paper="arXiv:2502.01578",
    placement="in every block in place of attention",
    avoid="where time counts at less than some thousand positions: a map is scanned in four directions, each "
    "step on the one before",
    pyramid=("nano", "micro"),
    columnar=("nano", "tiny"),
    cases={
        "": {"num_heads": 3, "chunk": 8},
        "two directions, plain gate": {"num_heads": 3, "directions": 2, "refined": False},
    },
    maps=True,
    reference="regla",
)
