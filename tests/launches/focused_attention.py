"""Focused attention in the first three stages of PVT and the first of Swin, at 224 pixels and 128 images."""

import torch

from visionattn.ops.triton.focused_attention import (
    depthwise_weight_gradients,
    focused_linear_attention,
    focused_linear_attention_backward,
)

from . import Call, meta

_PRODUCTS = ("means_kernel", "result_kernel", "queries_backward_kernel", "keys_backward_kernel")


def _calls(channels: int, heads: int, side: int, dtype: torch.dtype = torch.bfloat16, slow: bool = True) -> list[Call]:
    tokens, width = side * side, channels // heads
    maps = [meta(128, tokens, channels, dtype=dtype) for _ in range(3)]
    single = {"dtype": torch.float32}
    shared = [meta(tokens, channels, **single), meta(channels, **single), meta(channels, 1, 5, 5, **single)]
    means = [meta(128, heads, width, width, **single), meta(128, channels, **single)]
    name, settings = f"{channels}-{heads}-{str(dtype).removeprefix('torch.')}", (side, heads, 3)
    dot = _PRODUCTS if dtype != torch.float32 else False
    packed = (meta(128, tokens, 3 * channels, dtype=dtype), None, None)
    factor = meta(channels, **single)
    calls = []
    for label, parts in ((name, maps), (f"{name}-packed", packed)):
        forward, backward = (*parts, *shared, factor, *settings), (maps[0], *parts, *shared, *means, *settings)
        calls += [
            Call(label, focused_linear_attention, forward, dot=dot, slow=slow),
            Call(f"{label}-backward", focused_linear_attention_backward, backward, dot=dot, slow=slow),
        ]
    return calls


CALLS = [
    *_calls(64, 1, 56, slow=False),
    *_calls(128, 2, 28),
    *_calls(320, 5, 14),
    *_calls(96, 3, 56),
    *_calls(64, 1, 56, torch.float16),
    *_calls(64, 1, 56, torch.float32),
    *_calls(320, 5, 14, torch.float32),
    Call("weight", depthwise_weight_gradients, (meta(128, 3136, 64), meta(128, 3136, 64), 56, 5)),
]
