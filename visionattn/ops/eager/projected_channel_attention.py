"""Channel attention between two projections, which keeps its tokens and three matrices an image for the backward pass.

A one beside each token's channels makes biases columns of weights, and sums entries of the second moments.
"""

from typing import Any

import torch

from visionattn.ops.token_products import mixed_tokens, token_products

from ._function import EagerFunction, Tensors

__all__ = ["ProjectedChannelAttention", "image_layers", "through_layers"]


class ProjectedChannelAttention(EagerFunction):
    """Its inputs are those of `image_layers`."""

    @staticmethod
    def compute(x: torch.Tensor, *arguments: Any) -> tuple[torch.Tensor, ...]:
        layers, moments, attention = image_layers(x, *arguments)
        layers = layers.to(x.dtype)
        return through_layers(x, layers), layers, moments, attention

    @staticmethod
    def gradients(ctx: Any, grad: torch.Tensor) -> Tensors:
        x, qkv_weight, qkv_bias, proj_weight, proj_bias, kept, layers, moments, attention = ctx.saved_tensors
        num_heads, scale, roles = ctx.settings
        rows, columns, values = _parts(qkv_weight, qkv_bias, roles, attention.dtype)
        proj = _by_heads(proj_weight.to(attention.dtype), num_heads)
        dropped = attention if kept is None else attention * kept
        crossed = (rows @ moments).unflatten(1, (num_heads, -1))

        products, totals = token_products(x, grad)
        layers_grad = torch.cat((products, totals), 1).mT
        mixed = (proj @ dropped).transpose(1, 2).flatten(2)
        values_grad = mixed.flatten(0, 1).mT @ layers_grad.flatten(0, 1)
        mixed_grad = _by_heads(layers_grad @ values.mT, num_heads)
        proj_grad = (mixed_grad @ dropped.mT).sum(0).transpose(0, 1).flatten(1)
        attention_grad = proj.mT @ mixed_grad
        if kept is not None:
            attention_grad = attention_grad * kept
        scores_grad = attention * (attention_grad - (attention_grad * attention).sum(-1, keepdim=True)) * scale
        columns_grad = (scores_grad.mT @ crossed).sum(0).flatten(0, 1)
        crossed_grad = (scores_grad @ columns.unflatten(0, (num_heads, -1))).flatten(1, 2)
        rows_grad = (crossed_grad @ moments.mT).sum(0)

        x_grad = None
        if ctx.needs_input_grad[1]:
            moments_grad = rows.mT @ crossed_grad
            # Both factors of x x' are x, and so are those of x 1': one product with the sum of two halves serves them.
            moments_grad = (moments_grad + moments_grad.mT)[:, :-1]
            x_grad = mixed_tokens(grad, layers[..., :-1], x, moments_grad[..., :-1], moments_grad[..., -1:].mT)
        found = dict(zip(roles, (rows_grad, columns_grad, values_grad), strict=True))
        parts = torch.stack([found[role] for role in range(3)])
        bias_grad = None if qkv_bias is None else parts[..., -1].flatten()
        proj_bias_grad = None if proj_bias is None else totals.sum((0, 1))
        return x_grad, parts[..., :-1].flatten(0, 1), bias_grad, proj_grad, proj_bias_grad, None


def image_layers(
    x: torch.Tensor,
    qkv_weight: torch.Tensor,
    qkv_bias: torch.Tensor | None,
    proj_weight: torch.Tensor,
    proj_bias: torch.Tensor | None,
    kept: torch.Tensor | None,
    num_heads: int,
    scale: float,
    roles: tuple[int, int, int],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The linear layer that channel attention is for each image, the moments of its tokens, the attention weights.

    The layers are `(B, C, C + 1)`, their last column the bias; the moments `(B, C + 1, C + 1)`, of tokens with a one.

    Args:
        x: The tokens, `(B, N, C)`.
        qkv_weight: `(3 * C, C)`, the rows split [3, heads, d].
        qkv_bias: `(3 * C,)`.
        proj_weight: `(C, C)`.
        proj_bias: `(C,)`.
        kept: Factors of the attention weights, `(B, heads, d, d)`, as dropout makes them.
        num_heads: Number of heads.
        scale: Factor of the scores.
        roles: As in `visionattn.ops.channel_attention`.
    """
    squares, sums = token_products(x)
    count = torch.full_like(sums[..., :1], x.size(1))
    moments = torch.cat((torch.cat((squares, sums), 1), torch.cat((sums, count), 2).mT), 2)
    rows, columns, values = _parts(qkv_weight, qkv_bias, roles, squares.dtype)
    # The sum over the tokens of (rows x) (columns x)', head by head.
    crossed = (rows @ moments).unflatten(1, (num_heads, -1))
    attention = (crossed @ columns.unflatten(0, (num_heads, -1)).mT * scale).softmax(-1)
    dropped = attention if kept is None else attention * kept
    mixed = (_by_heads(proj_weight.to(squares.dtype), num_heads) @ dropped).transpose(1, 2).flatten(2)
    layers = mixed @ values
    if proj_bias is not None:
        layers = torch.cat((layers[..., :-1], layers[..., -1:] + proj_bias.unsqueeze(1)), -1)
    return layers, moments, attention


def through_layers(x: torch.Tensor, layers: torch.Tensor) -> torch.Tensor:
    """The tokens of each image through its linear layer, both of one dtype."""
    return torch.baddbmm(layers[..., -1:].mT, x, layers[..., :-1].mT)


def _parts(
    weight: torch.Tensor, bias: torch.Tensor | None, roles: tuple[int, int, int], dtype: torch.dtype
) -> list[torch.Tensor]:
    """The three layers in the order of the roles, `(C, C + 1)` each, their last column the bias."""
    column = weight.new_zeros(len(weight)) if bias is None else bias
    parts = torch.cat((weight, column.unsqueeze(1)), 1).to(dtype).chunk(3)
    return [parts[role] for role in roles]


def _by_heads(t: torch.Tensor, num_heads: int) -> torch.Tensor:
    """`(..., C, heads * d) -> (..., heads, C, d)`."""
    return t.unflatten(-1, (num_heads, -1)).transpose(-2, -3)
