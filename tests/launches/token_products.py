"""Products of tokens in the first two stages of DaViT, at 224 pixels and 128 images."""

import torch

from visionattn.ops.triton.token_products import mixture_of_tokens, sums_of_products

from . import Call, meta


def _calls(channels: int, side: int, dtype: torch.dtype = torch.bfloat16, slow: bool = True) -> list[Call]:
    tokens = meta(128, side * side, channels, dtype=dtype)
    matrix, bias = meta(128, channels, channels, dtype=dtype), meta(128, 1, channels, dtype=dtype)
    name, dot = f"{channels}-{str(dtype).removeprefix('torch.')}", dtype != torch.float32
    return [
        Call(f"{name}-moments", sums_of_products, (tokens, None), dot=dot, slow=slow),
        Call(f"{name}-mixed", mixture_of_tokens, (tokens, matrix, tokens, matrix, bias), dot=dot, slow=slow),
    ]


CALLS = [
    *_calls(96, 56, slow=False),
    *_calls(192, 28),
    *_calls(128, 56),
    *_calls(96, 56, torch.float16),
    *_calls(96, 56, torch.float32),
    *_calls(192, 28, torch.float32),
]
