"""Window attention spelt out: each query asks of each key of its window whether it may look at it."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from ._literal import Literal

LOOPS = True


def window_attention(
    x: torch.Tensor,
    qkv: nn.Module,
    num_heads: int,
    window: Sequence[int],
    shift: Sequence[int] = (0, 0),
    bias: Callable[[int, int, int], torch.Tensor] | None = None,
    mask_padding: bool = False,
) -> torch.Tensor:
    """`bias(head, dy, dx)` is the bias of a query that lies dy below and dx to the right of its key."""
    batch, height, width, _ = x.shape
    tall, wide = (-(-side // w) * w for side, w in zip((height, width), window, strict=True))
    padded = x.new_zeros(batch, tall, wide, x.shape[3])
    padded[:, :height, :width] = x
    q, k, v = qkv(padded).view(batch, tall, wide, 3, num_heads, -1).unbind(3)
    out = x.new_zeros(batch, tall, wide, num_heads, q.shape[-1])
    for top in range(0, tall, window[0]):
        for left in range(0, wide, window[1]):
            places = [(y, x) for y in range(top, top + window[0]) for x in range(left, left + window[1])]
            rolled = [(y + shift[0], x + shift[1]) for y, x in places]
            tokens = [(y % tall, x % wide) for y, x in rolled]
            for i, (y, x_) in enumerate(tokens):
                keys, biases = [], []
                for j, (ky, kx) in enumerate(tokens):
                    together = all(
                        (rolled[i][a] >= (tall, wide)[a]) == (rolled[j][a] >= (tall, wide)[a]) for a in (0, 1)
                    )
                    real = ky < height and kx < width
                    if not together or (mask_padding and not real and y < height and x_ < width):
                        continue
                    keys.append(j)
                    distance = (places[i][0] - places[j][0], places[i][1] - places[j][1])
                    biases.append(
                        torch.stack([bias(h, *distance) if bias else x.new_zeros(()) for h in range(num_heads)])
                    )
                where = [tokens[j] for j in keys]
                key = torch.stack([k[:, a, b] for a, b in where], -2)
                value = torch.stack([v[:, a, b] for a, b in where], -2)
                scores = (key @ q[:, y, x_].unsqueeze(-1)).squeeze(-1) * q.shape[-1] ** -0.5 + torch.stack(biases, -1)
                out[:, y, x_] = (scores.softmax(-1).unsqueeze(-2) @ value).squeeze(-2)
    return out[:, :height, :width].flatten(3)


def naive_of(module: nn.Module) -> Literal:
    """The literal module with the weights of a `WindowAttention`, or of another mixer in windows."""

    def formula(mixer: Any, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[1:3]
        arguments: dict[str, Any] = {"mask_padding": mixer.masks_padding(height, width)}
        if not hasattr(mixer, "relative_position_bias_table"):
            return mixer.proj(window_attention(x, mixer.qkv, mixer.num_heads, mixer.window_size, **arguments))
        window, shift = mixer.windows(height, width)
        tall, wide = mixer.window_size
        table = mixer.relative_position_bias_table.view(2 * tall - 1, 2 * wide - 1, -1)
        arguments["bias"] = lambda head, dy, dx: table[dy + tall - 1, dx + wide - 1, head]
        return mixer.proj(window_attention(x, mixer.qkv, mixer.num_heads, window, shift, **arguments))

    return Literal(formula, module)
