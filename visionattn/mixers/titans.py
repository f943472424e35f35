"""Titans: a memory that is trained at test time, with momentum and decay (arXiv 2501.00663).

There is no official code. Conventions are those of https://github.com/lucidrains/titans-pytorch (MIT), of which nothing
is copied. Ours is the image form: a linear memory, read in two or four directions with the same weights. The paper's
memory may be an MLP, whose gradients have no closed form; that is not offered.

Differs from the official code in: not known.

Golden: tests/golden/titans_*.npz (outputs and input gradients of an independent literal implementation).
"""

import torch
from torch import nn
from torch.nn import functional as F

from visionattn.catalog import Card
from visionattn.ops import cross_merge, cross_scan, memory_scan, recomputed, widened
from visionattn.utils.arguments import check_choice, check_heads, check_positive
from visionattn.utils.factory import FactoryKwargs

from ._gates import GateLinear

__all__ = ["TitansMemory"]


class TitansMemory(nn.Module):
    """Reads from a linear memory trained token by token. `(B, H, W, C) -> (B, H, W, C)`, any H, W >= 1.

    At each token the memory takes a step down the gradient of its squared error, with momentum, and forgets a little;
    then the query reads from it. How far, how much momentum and how little, each token says itself. Results of all
    directions are added up and normalised. There is no place for extra tokens: pool the mean.

    Args:
        dim: Width C.
        num_heads: Heads, a divisor of `dim`, with a memory each.
        chunk: Tokens whose errors are taken from the same memory, that at the start of the chunk. 1 is the exact online
            rule; H * W or more takes all from the memory that was learnt before. Time hardly depends on it.
        max_step: The largest learning rate.
        directions: 1: row by row. 2: and from the last position to the first. 4: and both column by column.
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
        chunk: int = 16,
        max_step: float = 1.0,
        directions: int = 2,
        proj_drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        check_positive(chunk=chunk)
        check_choice("directions", directions, (1, 2, 4))
        if not max_step > 0:
            raise ValueError(f"max_step must be greater than 0, got {max_step}")
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        size = dim // num_heads
        self.num_heads = num_heads
        self.chunk = chunk
        self.max_step = max_step
        self.directions = directions
        self.q, self.k, self.v = (nn.Linear(dim, dim, bias=False, **dd) for _ in range(3))
        self.step = GateLinear(dim, num_heads, bias=-2.0, **dd)
        self.momentum = GateLinear(dim, num_heads, **dd)
        self.decay = GateLinear(dim, num_heads, bias=-4.0, **dd)
        self.memory = nn.Parameter(torch.empty(num_heads, size, size, **dd))
        nn.init.normal_(self.memory, std=0.02)
        self.norm = nn.RMSNorm(size, eps=1e-5, **dd)
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = recomputed(self._read, *self._maps(x, F.silu(widened(self.v(x)))), widened(self.memory))
        out = out.unflatten(-1, (self.num_heads, -1))
        out = F.rms_norm(out, out.shape[-1:], self.norm.weight.to(out.dtype), self.norm.eps).flatten(-2)
        return self.proj_drop(self.proj(out.to(x.dtype)))

    def surprise(self, x: torch.Tensor) -> torch.Tensor:
        """The mean squared error of the memory at each token, `(directions, B, num_heads, N)`, in scan order."""
        return self._scan(*self._maps(x, F.silu(widened(self.v(x)))), widened(self.memory))[1].square().mean(-1)

    def weights(self, x: torch.Tensor) -> torch.Tensor:
        """The weight of each value in each output before the norm, `(B, num_heads, N, N)`, of a map.

        Positions read more than that: what the memory held at the start.
        """
        count = x.size(1) * x.size(2)
        values = torch.eye(count, device=x.device, dtype=widened(x).dtype).view(1, *x.shape[1:3], count)
        values = values.repeat(x.shape[0], 1, 1, self.num_heads)
        empty = values.new_zeros(*self.memory.shape[:2], count)
        rows = self._read(*self._maps(x, values), empty)
        return rows.flatten(1, 2).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def _maps(self, x: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Queries, keys, values, learning rates, and logarithms of momentum and retention, `(B, H, W, .)`."""
        q, k = (F.silu(widened(part(x))).unflatten(-1, (self.num_heads, -1)) for part in (self.q, self.k))
        q, k = (part * (part.square().sum(-1, keepdim=True) + 1e-6).rsqrt() for part in (q, k))
        step = self.max_step * widened(self.step(x)).sigmoid()
        momentum, keep = F.logsigmoid(widened(self.momentum(x))), F.logsigmoid(-widened(self.decay(x)))
        return q.flatten(-2), k.flatten(-2), values, step, momentum, keep

    def _scan(self, *parts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The output and the errors, `(directions, B, num_heads, N, e)` each, of the maps and the memory."""
        *maps, memory = parts
        q, k, v, step, momentum, keep = (
            cross_scan(part, self.directions).unflatten(-1, (self.num_heads, -1)).transpose(2, 3) for part in maps
        )
        rate, faded, kept = (part.squeeze(-1) for part in (step, momentum, keep))
        return memory_scan(q, k, v, rate, faded, kept, memory, chunk=self.chunk)

    def _read(self, *parts: torch.Tensor) -> torch.Tensor:
        """The sum of what is read in all directions, `(B, H, W, num_heads * e)`."""
        grid = (parts[0].size(1), parts[0].size(2))
        return cross_merge(self._scan(*parts)[0].transpose(2, 3).flatten(3), grid)


CARD = Card(
    name="titans",
    title="Titans: memory that learns at test time",
    kind="mixer",
    factory=TitansMemory,
    summary="a matrix that learns keys and values by gradient descent as it is scanned, from both ends",
    flow="(q | (k | v | step, momentum, forgetting) -> memory learns token by token) -> read by q -> norm -> proj",
    paper="arXiv:2501.00663",
    placement="in every block in place of attention",
    avoid="at some hundred positions: softmax attention over them needs no memory, and no scan that goes token "
    "by token",
    pyramid=("nano", "micro"),
    columnar=("nano", "tiny"),
    cases={
        "": {"num_heads": 3, "chunk": 5},
        "online, four directions": {"num_heads": 3, "chunk": 1, "directions": 4},
        "long chunks": {"num_heads": 3, "chunk": 100},
    },
    maps=True,
    reference="titans",
)
