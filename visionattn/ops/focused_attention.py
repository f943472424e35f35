"""Linear attention with focused features: directions sharpened at equal norm."""

import torch
from torch.nn import functional as F

from ._autocast import wide, without_autocast
from ._dispatch import has_kernel
from ._modes import use_eager_kernel
from .eager.linear_attention import EPS, LinearAttention, heads, normaliser
from .nhwc_conv import nhwc_conv

__all__ = ["focused_attention", "focused_features", "formula", "split_parts"]

# Limits of the kernels: the width of a head, the side of the convolution, and the power, each step of which is code.
_WIDEST, _LARGEST, _SHARPEST = 64, 11, 16


def focused_features(t: torch.Tensor, scale: torch.Tensor, focusing_factor: int = 3) -> torch.Tensor:
    """`|y| * y^p / |y^p|` of `y = (relu(t) + 1e-6) / softplus(scale)`, with the norms over the last axis.

    Computed and given back in float32 or wider.

    Args:
        t: `(..., C)`.
        scale: `(C,)`.
        focusing_factor: The power p, an integer of at least 1; more sharpens the direction.
    """
    return _focus(t.to(wide(t)), _factor(scale), focusing_factor)


def _refuses(
    q: torch.Tensor,
    k: torch.Tensor | None,
    v: torch.Tensor | None,
    scale: torch.Tensor,
    positions: torch.Tensor | None = None,
    *,
    num_heads: int,
    focusing_factor: int = 3,
    quadratic: bool | None = None,
    convolution: tuple[torch.Tensor, torch.Tensor] | None = None,
    grid: tuple[int, int] | None = None,
) -> str:
    q, k, v = split_parts(q, k, v)
    if quadratic:
        return "only the linear order has one"
    if not q.dtype == k.dtype == v.dtype:
        return f"queries, keys and values are {q.dtype}, {k.dtype} and {v.dtype}"
    if any(t.stride(2) != 1 for t in (q, k, v)):
        return "the channels of a token do not lie together"
    if q.size(2) > _WIDEST * num_heads:
        return f"heads are wider than {_WIDEST}"
    if focusing_factor > _SHARPEST:
        return f"the power is more than {_SHARPEST}"
    if convolution is not None and convolution[0].size(3) > _LARGEST:
        return f"the convolution is larger than {_LARGEST}"
    if convolution is not None and not _fits(grid, q, v):
        return "the grid does not fit"
    return ""


@has_kernel("focused_attention", _refuses)
def focused_attention(
    q: torch.Tensor,
    k: torch.Tensor | None,
    v: torch.Tensor | None,
    scale: torch.Tensor,
    positions: torch.Tensor | None = None,
    *,
    num_heads: int,
    focusing_factor: int = 3,
    quadratic: bool | None = None,
    convolution: tuple[torch.Tensor, torch.Tensor] | None = None,
    grid: tuple[int, int] | None = None,
) -> torch.Tensor:
    """Means of the values with weights `f(q) f(k + positions)^T` in each head; f: `focused_features` of all channels.

    `(B, N, C), (B, M, C), (B, M, C), (C,) -> (B, N, C)` in the dtype of v; half precision is computed in float32, under
    autocast too: weights reach from 1e-12 to the squared length of a token.

    Args:
        q: Queries. Or queries, keys and values as one projection leaves them, `(B, N, 3 * C)`: where there are kernels,
            their gradient is then one tensor too, and no sum of three.
        k: Keys; None where q holds them.
        v: Values; None where q holds them.
        scale: A number for each channel, see `focused_features`.
        positions: The same for the keys of every image, `(M, C)`.
        num_heads: Divides C.
        focusing_factor: The power, an integer of at least 1.
        quadratic: Whether to form the N x M weights; otherwise the keys meet the values first. Only the speed differs.
            None does so where it halves the multiplications, that is for N = M below half a head's width.
        convolution: Weight `(C, 1, K, K)`, K odd, and bias `(C,)` of a depthwise convolution of the values, which is
            added to the result: where there are kernels, in the same pass. N = M only.
        grid: Rows and columns of the map whose tokens the values are, for the convolution.

    Raises:
        ValueError: If there is a convolution and no grid of N = M tokens.
    """
    packed = k is None
    q, k, v = split_parts(q, k, v)
    if packed:
        # Both products and the convolution would copy it, and keep all of q for their gradients.
        v = v.contiguous()
    if convolution is not None and not _fits(grid, q, v):
        raise ValueError(
            "a convolution needs as many queries as values and their grid (rows, columns), "
            f"got {q.size(1)}, {v.size(1)} and grid={grid}"
        )
    if quadratic is None:
        quadratic = 4 * q.size(1) * k.size(1) * num_heads < (q.size(1) + k.size(1)) * q.size(2)
    if positions is None:
        positions = k.new_zeros(()).expand(k.shape[1:])
    with without_autocast(q):
        factor = _factor(scale)
        if use_eager_kernel(q) and not quadratic:
            inputs = (q, k, v, positions, factor.to(q.dtype), num_heads, focusing_factor)
            out = LinearAttention.apply(formula, *inputs)[0]
        else:
            parts = q.to(wide(q)), k.to(wide(k)), v.to(wide(v)), positions.to(wide(positions))
            out = formula(*parts, factor, num_heads, focusing_factor, quadratic).to(v.dtype)
    if convolution is None:
        return out
    weight, bias = convolution
    values = nhwc_conv(v.unflatten(1, grid), weight, bias, padding=weight.size(3) // 2, groups=v.size(2))
    return values.flatten(1, 2) + out


def split_parts(
    q: torch.Tensor, k: torch.Tensor | None, v: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys and values, where the first holds them all too."""
    if k is None or v is None:
        q, k, v = q.chunk(3, -1)
    return q, k, v


def _fits(grid: tuple[int, int] | None, q: torch.Tensor, v: torch.Tensor) -> bool:
    return grid is not None and q.shape == v.shape and grid[0] * grid[1] == q.size(1)


def formula(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    positions: torch.Tensor,
    factor: torch.Tensor,
    num_heads: int,
    power: int,
    quadratic: bool = False,
) -> torch.Tensor:
    """The formula of `focused_attention`, for tensors of one dtype and the inverse softplus of the scale."""
    queries, keys = (heads(_focus(part, factor, power), num_heads) for part in (q, k + positions))
    values = heads(v, num_heads)
    if quadratic:
        weights = queries @ keys.mT
        out = weights @ values / (weights.sum(-1, keepdim=True) + keys.size(2) * EPS)
    else:
        kv, mean = keys.mT @ values / keys.size(2), keys.mean(2).unsqueeze(3)
        out = queries @ kv * normaliser(queries, mean)
    return out.transpose(1, 2).flatten(2)


def _focus(t: torch.Tensor, factor: torch.Tensor, power: int) -> torch.Tensor:
    y = (t.relu() + EPS) * factor
    length = torch.linalg.vector_norm(y, dim=-1, keepdim=True)
    # The power of y itself could overflow or vanish.
    direction = y / length
    result = direction
    for _ in range(power - 1):
        # The gradient of `pow` is slow.
        result = result * direction
    return result * (length / torch.linalg.vector_norm(result, dim=-1, keepdim=True))


def _factor(scale: torch.Tensor) -> torch.Tensor:
    return F.softplus(scale.to(wide(scale))).reciprocal()
