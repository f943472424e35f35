"""PoolFormer's mixer: MetaFormer Is Actually What You Need for Vision (CVPR 2022, arXiv 2111.11418).

Official code: https://github.com/sail-sg/poolformer (Apache-2.0). Differs from the official code in: nothing.
Golden: none; the test says what a mean over neighbours is.
"""

import torch
from torch import nn
from torch.nn import functional as F

from visionattn.catalog import Card, Floor
from visionattn.ops import toeplitz_matrix
from visionattn.utils.arguments import check_odd

__all__ = ["AveragePool"]


class AveragePool(nn.Module):
    """The local average minus the input. `(B, H, W, C) -> (B, H, W, C)`, no parameters.

    Args:
        dim: Width of the map; like `device` and `dtype` only taken because every mixer takes it.
        pool_size: Side of the neighbourhood, odd. Positions outside the map do not count.

    Raises:
        ValueError: If `pool_size` is not a positive odd number.
    """

    def __init__(
        self,
        dim: int,
        *,
        pool_size: int = 3,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_odd(pool_size=pool_size)
        self.pool_size = pool_size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size, maps = self.pool_size, x.permute(0, 3, 1, 2)
        return F.avg_pool2d(maps, size, 1, size // 2, count_include_pad=False).permute(0, 2, 3, 1) - x

    def weights(self, x: torch.Tensor) -> torch.Tensor:
        """What each position takes from each, less itself, `(B, 1, N, N)`, of a map `(B, H, W, C)`."""
        kernel = x.new_ones(1, 1, self.pool_size, self.pool_size)
        near = toeplitz_matrix(kernel, x.size(1), x.size(2))
        matrix = near / near.sum(-1, keepdim=True) - torch.eye(near.size(1), dtype=x.dtype, device=x.device)
        return matrix.expand(x.size(0), 1, -1, -1)


CARD = Card(
    name="pool",
    title="PoolFormer: average pooling",
    kind="mixer",
    factory=AveragePool,
    summary="the mean of the neighbours less the position itself, no parameters",
    flow="(mean of the neighbours | times -1) -> +",
    paper="arXiv:2111.11418",
    code="https://github.com/sail-sg/poolformer",
    license="Apache-2.0",
    placement="in every block in place of attention",
    avoid="where something far, or chosen by what is there, has to be found: it averages neighbours and has no "
    "parameters",
    pyramid=("nano", "micro"),
    floor=Floor(2, 2, "R and W, each way"),
)
