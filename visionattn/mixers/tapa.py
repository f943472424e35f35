"""TAPA: positions as phases that depend on the tokens (arXiv 2509.12635), in a form for maps.

Official code: none. The paper has one axis, of language; two phases, of rows and columns, are ours.

Differs from the official code in: not known; there is no causal order here.

Golden: tests/golden/tapa_*.npz, of an independent implementation of the same formulas.
"""

from math import pi

import torch
from torch import nn
from torch.nn import functional as F

from visionattn.catalog import Card
from visionattn.ops import attention
from visionattn.ops._autocast import wide, without_autocast
from visionattn.ops.layout import tabulated
from visionattn.ops.query_tiles import in_tiles
from visionattn.utils.arguments import check_choice, check_heads
from visionattn.utils.factory import FactoryKwargs

from ._common import WINDOWS, TokenMixer, accept_split_qkv, split_heads

__all__ = ["TokenAwarePhaseAttention"]

# Scores and phases of a batch that are kept for the backward pass: cosines take longer than all else.
_KEPT = 1 << 26


class TokenAwarePhaseAttention(TokenMixer):
    """Attention whose scores oscillate with distance at a token-dependent frequency. `(B, H, W, C) -> (B, H, W, C)`.

    A part of the features of each head gives amplitudes, the rest the phases of rows and columns:
    `s = q_a k_a / sqrt(d_a) * cos(2 pi (|dy|^alpha q_r k_r + |dx|^alpha q_c k_c) / sqrt(d_p))`. There are no parameters
    for positions, and any H, W >= 1 are taken. Extra tokens have distance 0 to all. Time and memory grow with N^2.

    Args:
        dim: Width C.
        num_heads: Heads, a divisor of `dim`.
        amplitude: Features of a head that give the amplitude; the others, an even number, are halved between rows and
            columns. By default half of them; all of them is plain attention.
        alpha: Exponent of the distances, at least 0; distance 0 stays 0.
        phase: What gives the speed: `quadratic`, the product of query and key, or `linear`, their sum, the paper's
            ablation.
        qkv_bias: Whether the projections to queries, keys and values have biases.
        attn_drop: Dropout of the attention weights.
        proj_drop: Dropout after the output projection.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: If `num_heads` does not divide `dim`, `amplitude` leaves no even number of features, or `alpha` or
            `phase` is not allowed.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        amplitude: int | None = None,
        alpha: float = 0.1,
        phase: str = "quadratic",
        qkv_bias: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        width = dim // num_heads
        if amplitude is None and width % 4:
            raise ValueError(f"without amplitude the width of a head must be a multiple of 4, got {dim} / {num_heads}")
        amplitude = width // 2 if amplitude is None else amplitude
        if not 1 <= amplitude <= width or (width - amplitude) % 2:
            raise ValueError(
                f"amplitude must be in 1 to {width}, the width of a head, and leave an even number, got {amplitude}"
            )
        if not alpha >= 0:
            raise ValueError(f"alpha must be at least 0, got {alpha}")
        check_choice("phase", phase, ("quadratic", "linear"))
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.amplitude = amplitude
        self.alpha = alpha
        self.phase = phase
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **dd)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)
        accept_split_qkv(self)
        self.init_weights()

    def init_weights(self) -> None:
        """Initialises phases to about 0.01, close to plain attention (our choice)."""
        with torch.no_grad():
            heads = self.qkv.weight.unflatten(0, (3, self.num_heads, -1))
            heads[:2, :, self.amplitude :] *= 0.1

    def forward_tokens(
        self, x: torch.Tensor, grid: tuple[int, int], prefix: int = 0, *, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Attention of tokens, `(B, prefix + H * W, C) -> (B, prefix + H * W, C)`.

        Args:
            x: The tokens, extra ones first.
            grid: `(H, W)` of the others.
            prefix: Number of extra tokens.
            bias: Added to the scores; broadcasts to `(B, num_heads, N, N)`.
        """
        q, k, v = self._heads(x)
        if self.amplitude == q.shape[3]:
            dropped = self.attn_drop.p if self.training else 0.0
            return self.proj_drop(self.proj(attention(q, k, v, mask=bias, dropout_p=dropped)))

        def some_queries(some: slice, q: torch.Tensor) -> torch.Tensor:
            own = bias if bias is None or bias.shape[-2] == 1 else bias[..., some, :]
            return self.attn_drop(self._weights(some, q, k, grid, prefix, own)) @ v

        numbers = 3 * q[..., 0].numel()  # scores and two phases of a query
        dropped = self.training and self.attn_drop.p > 0
        parts = in_tiles(some_queries, (q,), numbers, kept=_KEPT, random=dropped)
        return self.proj_drop(self.proj(torch.cat(parts, 2).transpose(1, 2).flatten(2)))

    def weights(self, x: torch.Tensor) -> torch.Tensor:
        """The attention weights, `(B, num_heads, N, N)`, of a map `(B, H, W, C)`."""
        q, k, _ = self._heads(x.flatten(1, 2))
        return self._weights(slice(None), q, k, (x.shape[1], x.shape[2]), 0, None)

    def _heads(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values, `(B, num_heads, N, C / num_heads)` each."""
        return split_heads(self.qkv(x), self.num_heads)

    def _weights(
        self,
        some: slice,
        q: torch.Tensor,
        k: torch.Tensor,
        grid: tuple[int, int],
        prefix: int,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        """The attention weights of some queries, whose `q` this is."""
        dtype = q.dtype
        each = (q.shape[3] - self.amplitude) // 2
        with without_autocast(q):  # phases are worth nothing in half precision
            q, k = q.to(wide(q)), k.to(wide(k))
            parts = (self.amplitude, each, each)
            (q_a, *q_p), (k_a, *k_p) = q.split(parts, -1), k.split(parts, -1)
            scores = q_a * self.amplitude**-0.5 @ k_a.mT
            if each:
                extra, here = scores.split([prefix, scores.shape[3] - prefix], -1)
                down, across = (self._speed(mine, theirs[:, :, prefix:]) for mine, theirs in zip(q_p, k_p, strict=True))
                rows, columns = self._distances(some, grid, prefix, q, 2 * pi * each**-0.5)
                here = here * torch.addcmul(down * rows, across, columns).cos()
                scores = torch.cat([extra, here], -1) if prefix else here
            scores = scores if bias is None else scores + bias
            return scores.softmax(-1).to(dtype)

    def _speed(self, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        """The frequency of each pair's phase, `(B, num_heads, n, N)`."""
        if self.phase == "quadratic":
            return q @ k.mT
        return q.sum(-1, keepdim=True) + k.sum(-1).unsqueeze(-2)

    def _distances(
        self, some: slice, grid: tuple[int, int], prefix: int, like: torch.Tensor, factor: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The distances of some tokens from those of the map, down and across, to the power of alpha, times a factor.

        `(n, H * W)` each; those of extra tokens are 0.
        """
        height, width = grid
        place = torch.arange(-prefix, height * width, device=like.device)[some]
        row, column = torch.where(place < 0, height, place // width), torch.where(place < 0, width, place % width)
        down, across = (F.pad(self._powers(side, like) * factor, (0, 0, 0, 1)) for side in grid)
        return tabulated(down[row].repeat_interleave(width, 1)), tabulated(across[column].repeat(1, height))

    def _powers(self, side: int, like: torch.Tensor) -> torch.Tensor:
        places = torch.arange(side, device=like.device, dtype=like.dtype)
        distances = (places.unsqueeze(1) - places).abs()
        return distances**self.alpha * (distances > 0)  # 0^0 is 0 here


CARD = Card(
    name="tapa",
    title="TAPA: token-aware phase attention",
    kind="mixer",
    factory=TokenAwarePhaseAttention,
    summary="attention with scores turned by distances, each pair of tokens at its own speed",
    flow=(
        "(((amplitudes of q | amplitudes of k) -> @ | (phases of q | phases of k) -> @ -> times distance, cos) -> "
        "* -> softmax | v) -> @ -> proj"
    ),
    paper="arXiv:2509.12635",
    placement="in every block in place of attention and of an encoding of positions",
    avoid="where positions in two dimensions must be proven: the paper is about language, phases of rows and "
    "columns are ours",
    columnar=("nano", "tiny"),
    cases={
        "": {"num_heads": 3},
        "uneven": {"num_heads": 2, "amplitude": 2},
    },
    floor=WINDOWS,
    cost="N^2",
    memory="N",
    keeps_weights=True,
    maps=True,
    reference="tapa",
)
