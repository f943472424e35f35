"""Weighted means of all values of a sequence, each channel with its own decay over distance (RWKV's WKV).

The decay is the same at every token, so what a token gets from those before it is a running sum of values that grow
with their place, times a factor that shrinks with its own. Places count from the middle, which keeps both factors in
range. Time and memory are linear in the tokens, and no loop runs over them.
"""

from math import log

import torch

from ._autocast import widened, without_autocast

__all__ = ["bidirectional_wkv"]


def bidirectional_wkv(
    k: torch.Tensor, v: torch.Tensor, decay: torch.Tensor, first: torch.Tensor, *, decay_offset: int = 1
) -> torch.Tensor:
    """`sum_i c_ti v_i / sum_i c_ti` in each channel, `(B, N, C)`, in float32 at least.

    `c_ti` is `exp(k_i - decay (|t - i| - decay_offset))`, and `exp(k_t + first)` of the token itself.

    Args:
        k: Keys, `(B, N, C)`.
        v: Values, `(B, N, C)`.
        decay: Per step, `(C,)`; below 0 what is far counts more. Over all N it counts to 80, beyond which exponentials
            leave the range (of float32; 700 of float64).
        first: Of each token for itself, `(C,)`, up to the same.
        decay_offset: 1: a neighbour has no decay. 0: it has one step of it.
    """
    with without_autocast(k):
        k, v, decay, first = (widened(part) for part in (k, v, decay, first))
        length, width = k.shape[1], k.shape[2]
        most = log(torch.finfo(k.dtype).max) * 0.9
        decay, first = decay.clamp(-most / length, most / length), first.clamp(-most, most)
        keys = (k - k.detach().amax(1, keepdim=True)).exp()
        own = torch.cat((keys * v, keys), 2)
        place = (torch.arange(length, device=k.device, dtype=k.dtype) - (length - 1) / 2).unsqueeze(1)
        grow = (place[:-1] * decay).exp().repeat(1, 2)
        shrink = ((decay_offset - place[1:]) * decay).exp().repeat(1, 2)
        before = (own[:, :-1] * grow).cumsum(1) * shrink
        # The same from the other end.
        after = ((own[:, 1:].flip(1) * grow).cumsum(1) * shrink).flip(1)
        none = torch.zeros_like(own[:, :1])
        total = own * first.exp().repeat(2) + torch.cat((none, before), 1) + torch.cat((after, none), 1)
        return total[..., :width] / total[..., width:]
