"""The connectivity predictor of Sparsifiner: predicts the keys with large attention weights (arXiv 2303.13755)."""

import torch
from torch import nn
from torch.nn import functional as F

from visionattn.ops._autocast import wide, without_autocast
from visionattn.utils.factory import FactoryKwargs

__all__ = ["ConnectivityPredictor"]


class ConnectivityPredictor(nn.Module):
    """Approximates attention by a few coefficients per query over shared basis maps. `-> (B, heads, P, N)`.

    Args:
        dim: Width of a head.
        num_heads: Heads.
        grid: Nominal height and width of the map, to which the tables belong.
        prefix_tokens: Extra tokens that have rows in the tables.
        reduce_n: How many times fewer coefficients there are than tokens.
        reduce_c: How many times narrower the heads are in products.
        share: Whether one table takes keys together and gives attention maps.
        device: Of the parameters.
        dtype: Of the parameters.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        grid: tuple[int, int],
        prefix_tokens: int,
        reduce_n: int,
        reduce_c: int,
        share: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        self.grid = grid
        self.prefix_tokens = prefix_tokens
        self.scale = num_heads**-0.5  # the official code's: of their number, not of their width
        tokens = prefix_tokens + grid[0] * grid[1]
        self.proj_c_q = nn.Linear(dim, dim // reduce_c, **dd)
        self.proj_c_k = nn.Linear(dim, dim // reduce_c, **dd)
        self.proj_n = nn.Parameter(torch.empty(tokens, tokens // reduce_n, **dd))
        self.proj_back_n = self.proj_n if share else nn.Parameter(torch.empty(tokens, tokens // reduce_n, **dd))
        for table in (self.proj_n, self.proj_back_n):
            nn.init.trunc_normal_(table, std=0.02)

    def coefficients(self, q: torch.Tensor, k: torch.Tensor, grid: tuple[int, int], prefix: int) -> torch.Tensor:
        """The coefficient of each basis map in the attention of each patch, `(B, heads, P, n)`.

        Args:
            q: Queries `(B, heads, N, d)`, extra tokens of the tables first.
            k: Keys.
            grid: `(H, W)`.
            prefix: Number of extra tokens among them.
        """
        taken = self.proj_c_k(k).mT @ self.table(self.proj_n, grid, prefix)
        return (self.proj_c_q(q[:, :, prefix:]) @ taken * self.scale).softmax(-1)

    def table(self, table: torch.Tensor, grid: tuple[int, int], prefix: int) -> torch.Tensor:
        """Rows of a table for a grid and the first extra tokens, `(prefix + H * W, n)`."""
        front, patches = table[:prefix], table[self.prefix_tokens :]
        if grid != self.grid:
            maps = patches.mT.unflatten(1, self.grid)[None]
            with without_autocast(table):
                maps = F.interpolate(maps.to(wide(table)), grid, mode="bicubic", align_corners=False).to(table.dtype)
            patches = maps[0].flatten(1).mT
        return torch.cat([front, patches])
