"""Aggregated attention with a mixture of heads: MoH in TransNeXt (ICML 2025, arXiv 2410.11842).

Official code: https://github.com/SkyworkAI/MoH (Apache-2.0), MoH-ViT/attention_native.py; the attention itself is
TransNeXt's (CVPR 2024, arXiv 2311.17132).

Differs from the official code in:
- any map: masks and biases of positions, there tables of one image size, are made for the map in the forward pass;
- the loss of balance goes to the collector of the task, as in `moh`;
- the keys and values of the neighbours are parts of one padded map, not nine copies of it.

Golden: tests/golden/moh_aggattn_module_*.npz (outputs and input gradients).
"""

import torch
from torch import nn
from torch.nn import functional as F

from visionattn.catalog import Card, Floor
from visionattn.ops import nhwc_conv
from visionattn.ops.losses import Losses
from visionattn.ops.query_tiles import in_tiles
from visionattn.utils.arguments import check_odd, check_positive, pair
from visionattn.utils.factory import FactoryKwargs

from ._cosine import CosineParts, log_position_bias
from ._head_routing import HeadRouting

__all__ = ["MixtureOfHeadAggregatedAttention"]


class MixtureOfHeadAggregatedAttention(HeadRouting, CosineParts):
    """Attention to the neighbours and to a pooled map with some heads for each position. `(B, H, W, C)` to the same.

    That of MoH-ViT's first three stages: one softmax over both kinds of keys, of normed queries and keys; the weights
    of the neighbours are corrected by learned ones after it. Any H, W >= 1. Official names of parameters.

    Args:
        dim: Width C.
        num_heads: Heads, a divisor of `dim`.
        shared_heads: How many of them serve every token; by default a quarter, at least one.
        routed_heads: How many of the others serve each token; by default half of `num_heads`. 0 if all are shared.
        sr_ratio: By how much the pooled map is smaller in both directions.
        window_size: Side of the neighbourhood, odd.
        grid_size: Rows and columns of the map whose largest distances are the unit of positions; by default each map's
            own.
        balance_weight: Factor of the loss that keeps the load of the routed heads even; 0.01 in the paper.
        qkv_bias: Whether the projections to queries, keys and values have biases.
        attn_drop: Dropout of the attention weights.
        proj_drop: Dropout after the output projection.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: If `num_heads` does not divide `dim`, there are not so many heads of a kind, or a size is out of
            range.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        shared_heads: int | None = None,
        routed_heads: int | None = None,
        sr_ratio: int = 2,
        window_size: int = 3,
        grid_size: int | tuple[int, int] | None = None,
        balance_weight: float = 0.01,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        super().__init__(
            dim,
            num_heads=num_heads,
            shared_heads=shared_heads,
            routed_heads=routed_heads,
            balance_weight=balance_weight,
            **dd,
        )
        check_positive(sr_ratio=sr_ratio)
        check_odd(window_size=window_size)
        self.sr_ratio = sr_ratio
        self.window_size = window_size
        self.grid_size = None if grid_size is None else pair("grid_size", grid_size)
        head_dim, places = dim // num_heads, window_size**2
        self.add_cosine_parts(num_heads, head_dim, dd)
        self.relative_pos_bias_local = nn.Parameter(torch.empty(num_heads, places, **dd))
        self.learnable_tokens = nn.Parameter(torch.empty(num_heads, head_dim, places, **dd))
        self.learnable_bias = nn.Parameter(torch.zeros(num_heads, 1, places, **dd))
        nn.init.trunc_normal_(self.relative_pos_bias_local, std=0.0004)
        nn.init.trunc_normal_(self.learnable_tokens, std=0.02)
        self.q = nn.Linear(dim, dim, bias=qkv_bias, **dd)
        self.kv = nn.Linear(dim, 2 * dim, bias=qkv_bias, **dd)
        self.sr = nn.Conv2d(dim, dim, 1, **dd)
        self.norm = nn.LayerNorm(dim, eps=1e-5, **dd)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: torch.Tensor, losses: Losses | None = None) -> torch.Tensor:
        grid = (x.shape[1], x.shape[2])
        weights, means, v = self._attend(x)
        weights = weights.transpose(1, 2).unflatten(1, grid)
        out = means.transpose(1, 2).unflatten(1, grid)
        for place, value in enumerate(_neighbours(v, self.window_size)):
            out = out + weights[..., place : place + 1] * value
        gates = self.head_gates(x, losses).to(out.dtype)
        return self.proj_drop(self.proj((out * gates.unsqueeze(-1)).flatten(3)))

    def weights(self, x: torch.Tensor) -> torch.Tensor:
        """What each position takes from each, `(B, num_heads, N, N)`, of a map `(B, H, W, C)`.

        A pooled key stands for the mean of the positions that it is pooled from. The learnt weights of the neighbours
        and the gates of the heads are in it, so rows do not sum up to 1.
        """
        grid = (x.shape[1], x.shape[2])
        count = grid[0] * grid[1]
        each = torch.eye(count, device=x.device, dtype=x.dtype).unflatten(1, grid)
        pooled = F.adaptive_avg_pool2d(each, self._cells(grid)).flatten(1)  # the share of each position in each cell
        # With those shares in place of the values the means over the pooled map are its weights.
        local, far, _ = self._attend(x, pooled.T)
        numbers = torch.arange(count, device=x.device).view(1, *grid, 1, 1)
        near = torch.stack(_neighbours(numbers, self.window_size), -1).reshape(count, -1)
        inside = _inside(grid, self.window_size, x.device).flatten(0, 1)
        taken = far.scatter_add(-1, near.expand_as(local), local.to(far.dtype) * inside)
        return taken * self.head_gates(x, None).to(taken.dtype).flatten(1, 2).transpose(1, 2).unsqueeze(-1)

    def _cells(self, grid: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the pooled map."""
        return max(grid[0] // self.sr_ratio, 1), max(grid[1] // self.sr_ratio, 1)

    def _attend(
        self, x: torch.Tensor, far_v: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Weights of the neighbours, with the learnt ones, means over the pooled map, and values.

        `(B, heads, N, places)`, `(B, heads, N, d)` and `(B, H, W, heads, d)`. The means are of the pooled map's own
        values, or of others that are given for its cells.
        """
        grid = (x.shape[1], x.shape[2])
        places, cells = self.window_size**2, self._cells(grid)
        pooled = F.gelu(nhwc_conv(x, self.sr.weight, self.sr.bias))
        pooled = self.norm(F.adaptive_avg_pool2d(pooled.permute(0, 3, 1, 2), cells).permute(0, 2, 3, 1))
        far_k, own_v = self.kv(pooled.flatten(1, 2)).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        values = own_v if far_v is None else far_v
        inside = _inside(grid, self.window_size, x.device)
        length = (inside.sum(-1) + cells[0] * cells[1]).to(x.dtype).log()[..., None, None]
        # Heads of a position lie together: (B, H, W, heads, D).
        direction = F.normalize(self.q(x).unflatten(-1, (self.num_heads, -1)), dim=-1)
        scale = F.softplus(self.temperature).squeeze(-1)
        q = ((direction + self.query_embedding.squeeze(1)) * (scale * length)).to(direction.dtype)
        k, v = self.kv(x).unflatten(-1, (2, self.num_heads, -1)).unbind(3)
        near = _neighbours(F.normalize(k, dim=-1), self.window_size)
        local = torch.stack([(q * key).sum(-1) for key in near], -1) + self.relative_pos_bias_local
        local = local.masked_fill(~inside.unsqueeze(2), -torch.inf)
        table = log_position_bias(self.cpb_fc1, self.cpb_fc2, grid, cells, self.grid_size or grid)
        far_k = F.normalize(far_k, dim=-1)

        def some_rows(some: slice, *parts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            """The weights of the neighbours, and the mean over the pooled map."""
            own, near = (part.flatten(1, 2).transpose(1, 2) for part in parts)
            rows = self.attn_drop(torch.cat((near, own @ far_k.mT + table.bias(some)), -1).softmax(-1))
            near, far = rows.split([places, rows.size(-1) - places], dim=-1)
            return near.clone(), far.to(values.dtype) @ values  # a view of the rows would hold them all

        # Of a row of the map: scores, their bias, both together and the weights.
        numbers = 4 * local[:, 0].numel() // places * (places + cells[0] * cells[1])
        parts = in_tiles(some_rows, (q, local), numbers, dim=1, random=self.training and self.attn_drop.p > 0)
        weights, means = (torch.cat(part, 2) for part in zip(*parts, strict=True))
        correction = direction.flatten(1, 2).transpose(1, 2) @ self.learnable_tokens + self.learnable_bias
        return weights + correction, means, v


def _inside(grid: tuple[int, int], window: int, device: torch.device) -> torch.Tensor:
    """Which places of the window of each position are on the map, `(H, W, window ** 2)`."""
    offsets = torch.arange(window, device=device) - window // 2
    rows, columns = (torch.arange(side, device=device).unsqueeze(1) + offsets for side in grid)
    rows, columns = ((axis >= 0) & (axis < side) for axis, side in zip((rows, columns), grid, strict=True))
    return (rows[:, None, :, None] & columns[None, :, None, :]).flatten(2)


def _neighbours(x: torch.Tensor, window: int) -> list[torch.Tensor]:
    """Views of a padded map `(B, H, W, heads, D)`, one for each place of the window."""
    margin = window // 2
    height, width = x.shape[1], x.shape[2]
    padded = F.pad(x, (0, 0, 0, 0, margin, margin, margin, margin))
    return [padded[:, row : row + height, column : column + width] for row in range(window) for column in range(window)]


CARD = Card(
    name="moh_aggregated",
    title="MoH: aggregated attention with a mixture of heads",
    kind="mixer",
    factory=MixtureOfHeadAggregatedAttention,
    summary="attention to neighbours and a pooled map in one softmax, in which each position chooses some of the heads",
    flow=(
        "(((q | k of neighbours and of a pooled map) -> @ -> softmax | v of both) -> @ | router -> gates of the "
        "chosen heads) -> * -> proj"
    ),
    paper="arXiv:2410.11842",
    code="https://github.com/SkyworkAI/MoH",
    license="Apache-2.0",
    placement="in the blocks of the first three stages of MoH-ViT",
    avoid="on large maps: besides the neighbours each position sees the whole pooled map, so time grows with the "
    "square of N all the same",
    cases={
        "": {"num_heads": 6},
        "all shared": {"num_heads": 3, "shared_heads": 3, "routed_heads": 0, "sr_ratio": 4},
    },
    floor=Floor(13, 25, "q, k, v in, o out: 4; the map pooled: 2; back as much again with the gradients; projections"),
    cost="N^2 / r^2",
    memory="N",
    discrete=True,
    maps=True,
    reference="moh",
)
