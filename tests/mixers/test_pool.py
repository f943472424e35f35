"""PoolFormer's mixer against what a mean over neighbours is."""

import pytest
import torch

from visionattn.mixers import AveragePool


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (6, 4)], ids=str)
@pytest.mark.parametrize("pool_size", [1, 3, 5])
def test_is_the_mean_of_the_neighbours_less_the_position(size, pool_size):
    x = torch.randn(2, *size, 3, dtype=torch.float64)
    out, reach = AveragePool(3, pool_size=pool_size)(x), pool_size // 2
    for y, column in torch.ones(size).nonzero().tolist():
        near = x[:, max(y - reach, 0) : y + reach + 1, max(column - reach, 0) : column + reach + 1]
        torch.testing.assert_close(out[:, y, column], near.mean((1, 2)) - x[:, y, column])


@pytest.mark.parametrize("pool_size", [0, 2, -1])
def test_bad_arguments(pool_size):
    with pytest.raises(ValueError, match=f"pool_size must be a positive odd number, got {pool_size}"):
        AveragePool(8, pool_size=pool_size)
