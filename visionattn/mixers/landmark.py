"""Landmark attention: a token represents each block and gates attention to it (arXiv 2305.16300).

Official code: https://github.com/epfml/landmark-attention (Apache-2.0), llama/llama_mem.py.

Differs from the official code in:
- a form for images (ours): blocks are windows of a map, no token sees less than another, and a landmark is the mean of
  its window and a learnt vector, not a token of its own;
- a softmax in groups over any number of blocks (`landmark_softmax`; theirs holds 64), whose gradient is PyTorch's.

Golden: tests/golden/landmark_softmax_*.npz (official code) and landmark_[12]x*.npz (an independent implementation of
the form for images), outputs and gradients.
"""

from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.nn import functional as F

from visionattn.catalog import Card
from visionattn.ops import attention
from visionattn.ops.window_attention import partition_windows
from visionattn.utils.arguments import check_heads, check_positive, pair
from visionattn.utils.factory import FactoryKwargs

from ._common import WINDOWS, TokenMixer, convert_when_loading, join_projections, split_heads, usual_window

__all__ = ["LandmarkAttention", "landmark_softmax"]

Rotation = Callable[[torch.Tensor], torch.Tensor]


class LandmarkAttention(TokenMixer):
    """Attention to the own window and to others, gated by their landmarks. `(B, H, W, C) -> (B, H, W, C)`.

    A query's weights sum to one over the tokens of its window and the landmarks of the other windows; the weight of a
    landmark is handed on to the tokens of its window. One window is plain attention. Any H, W >= 1.

    Args:
        dim: Width C.
        num_heads: Heads, a divisor of `dim`.
        window: Height and width of a window, or one number for both. The last windows of a map may be smaller.
        topk: Other windows that a query of a head sees, those of the best landmarks; None: all.
        qkv_bias: Whether the projections to queries, keys and values have biases.
        attn_drop: Dropout of the attention weights inside windows.
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
        window: int | tuple[int, int] = 7,
        topk: int | None = None,
        qkv_bias: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        check_positive(topk=1 if topk is None else topk)
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.window = pair("window", window)
        self.topk = topk
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **dd)
        self.landmark = nn.Parameter(torch.empty(dim, **dd))
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)
        self.init_weights()
        convert_when_loading(self)

    def init_weights(self) -> None:
        """Initialises the landmarks' vector."""
        nn.init.normal_(self.landmark, std=0.02)

    @staticmethod
    def to_native(state_dict: Mapping[str, torch.Tensor], prefix: str = "") -> dict[str, torch.Tensor]:
        """Weights with layers `q`, `k` and `v` under the names used here; other entries as they are.

        Args:
            state_dict: The weights.
            prefix: What the names of this module's entries begin with.
        """
        return join_projections(state_dict, prefix, ("q", "k", "v"))

    def forward_tokens(
        self, x: torch.Tensor, grid: tuple[int, int], prefix: int = 0, *, rotate: Rotation | None = None
    ) -> torch.Tensor:
        """Attention of tokens, `(B, prefix + H * W, C) -> (B, prefix + H * W, C)`.

        Args:
            x: The tokens, extra ones first.
            grid: `(H, W)`.
            prefix: Number of extra tokens: every query sees them as it sees its own window, and they see all tokens.
            rotate: Rotates queries and keys `(B, num_heads, N, C / num_heads)` by their positions; a landmark's key
                is the mean of rotated ones.
        """
        q, k, v = self._heads(x)
        if rotate is not None:
            q, k = rotate(q), rotate(k)
        dropped = self.attn_drop.p if self.training else 0.0
        if grid[0] <= self.window[0] and grid[1] <= self.window[1]:
            # One window. Its landmark, which nobody sees, keeps a gradient, zero, for who asks for it.
            out = attention(q, k, v, dropout_p=dropped) + 0 * self.landmark
            return self.proj_drop(self.proj(out))
        inside, gates, extra = self._levels(q, k, grid, prefix)
        inside, extra = self.attn_drop(inside), self.attn_drop(extra)
        values = self._windows(v[:, :, prefix:], grid)
        # (B, heads, U, N, d): what each query takes from each window, then what it takes of that.
        taken = inside @ values
        out = (taken * gates.mT.unsqueeze(-1)).sum(2)
        if prefix:
            out = out + extra @ v[:, :, :prefix]
        out = out.transpose(1, 2).flatten(2)
        if prefix:
            out = torch.cat([attention(q[:, :, :prefix], k, v, dropout_p=dropped), out], 1)
        return self.proj_drop(self.proj(out))

    def weights(self, x: torch.Tensor) -> torch.Tensor:
        """The attention weights, `(B, num_heads, N, N)`, of a map `(B, H, W, C)`."""
        grid = (x.shape[1], x.shape[2])
        q, k, _ = self._heads(x.flatten(1, 2))
        inside, gates, _ = self._levels(q, k, grid, 0)
        rows = (inside * gates.mT.unsqueeze(-1)).permute(0, 1, 3, 2, 4).flatten(3)
        places = self._windows(torch.arange(1, k.shape[2] + 1, device=x.device).view(1, 1, -1, 1), grid).flatten()
        return rows[..., places.argsort()[-k.shape[2] :]]

    def gates(self, x: torch.Tensor) -> torch.Tensor:
        """The total weight of each window for each position, `(B, num_heads, H, W, windows)`, windows row by row."""
        grid = (x.shape[1], x.shape[2])
        q, k, _ = self._heads(x.flatten(1, 2))
        return self._levels(q, k, grid, 0)[1].unflatten(2, grid)

    def _heads(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values, `(B, num_heads, N, C / num_heads)` each."""
        return split_heads(self.qkv(x), self.num_heads)

    def _windows(self, x: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """Patches by windows, `(B, heads, H * W, d) -> (B, heads, U, n, d)`, with zeros beyond the map."""
        batch, heads = x.shape[:2]
        windows = partition_windows(x.flatten(0, 1).unflatten(1, grid), self.window)
        return windows.view(batch, heads, -1, *windows.shape[1:])

    def _levels(
        self, q: torch.Tensor, k: torch.Tensor, grid: tuple[int, int], prefix: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Weights of the patches: inside each window, of each window and of each extra token.

        `(B, heads, U, N, n)`, `(B, heads, N, U)` and `(B, heads, N, prefix)`.
        """
        device = q.device
        real = self._windows(torch.ones(1, 1, grid[0] * grid[1], 1, device=device), grid)
        rows, columns = (torch.arange(side, device=device) // by for side, by in zip(grid, self.window, strict=True))
        own = (rows.unsqueeze(1) * -(-grid[1] // self.window[1]) + columns).flatten()
        mine = own.unsqueeze(1) == torch.arange(real.shape[2], device=device)
        q = q[:, :, prefix:] * q.shape[-1] ** -0.5
        keys = self._windows(k[:, :, prefix:], grid)
        scores = q.unsqueeze(2) @ keys.mT
        scores = scores.masked_fill(real.squeeze(-1).unsqueeze(3) == 0, float("-inf"))
        # A key's part that comes of the learnt vector; biases are in the mean.
        dim = self.landmark.shape[0]
        learnt = F.linear(self.landmark, self.qkv.weight[dim : 2 * dim]).view(1, self.num_heads, 1, -1)
        landmarks = keys.sum(3) / real.sum(3).to(keys.dtype) + learnt.to(keys.dtype)
        levels = q @ landmarks.mT
        if self.topk is not None and self.topk < real.shape[2] - 1:
            best = levels.detach().masked_fill(mine, float("-inf")).topk(self.topk, -1).indices
            chosen = torch.zeros_like(levels, dtype=torch.bool).scatter(-1, best, True)
            levels = levels.masked_fill(~chosen, float("-inf"))
        # A softmax over the tokens of the own window beside landmarks is one over the logarithm of their sum.
        levels = torch.where(mine, scores.logsumexp(-1).mT, levels)
        levels = torch.cat([q @ k[:, :, :prefix].mT, levels], -1).softmax(-1)
        return scores.softmax(-1), levels[..., prefix:], levels[..., :prefix]


def landmark_softmax(scores: torch.Tensor, blocks: int, block_size: int) -> torch.Tensor:
    """The official grouped softmax, for a query after some blocks. `(..., T) -> (..., T)`.

    Keys are `blocks` blocks of `block_size`, whose last is the landmark, and the query's own section. Landmarks share a
    softmax with the own section; the weight of each goes to the other tokens of its block, and it keeps none.

    Args:
        scores: Of each query and key.
        blocks: Number of blocks, at least 0.
        block_size: Keys of a block, at least 2.

    Raises:
        ValueError: If an argument is out of range or the blocks leave no key of the own section.
    """
    if blocks < 0 or block_size < 2 or blocks * block_size >= scores.shape[-1]:
        raise ValueError(
            "blocks must be at least 0, block_size at least 2 and both together less than the "
            f"{scores.shape[-1]} keys, got blocks={blocks}, block_size={block_size}"
        )
    before, section = scores.split((blocks * block_size, scores.shape[-1] - blocks * block_size), -1)
    before = before.unflatten(-1, (blocks, block_size))
    top = torch.cat([before[..., -1], section], -1).softmax(-1)
    inside = before[..., :-1].softmax(-1) * top[..., :blocks].unsqueeze(-1)
    return torch.cat([F.pad(inside, (0, 1)).flatten(-2), top[..., blocks:]], -1)


CARD = Card(
    name="landmark",
    title="Landmark attention",
    kind="mixer",
    factory=LandmarkAttention,
    summary="attention to the own window and, by gates from a landmark each, to the others",
    flow="((q | k and a landmark of each window) -> @ -> softmax in two levels | v) -> @ -> proj",
    paper="arXiv:2305.16300",
    code="https://github.com/epfml/landmark-attention",
    license="Apache-2.0",
    placement="in every block in place of attention",
    avoid="to save time: scores of all pairs are computed in every window, and landmarks only weigh the windows",
    columnar=("nano", "tiny"),
    keywords=usual_window,
    cases={
        "": {"num_heads": 3, "window": 4},
        "topk": {"num_heads": 3, "window": (3, 2), "topk": 2},
    },
    floor=WINDOWS,
    cost="N^2",
    keeps_weights=True,
    maps=True,
    discrete=True,
    reference="landmark",
)
