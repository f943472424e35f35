"""Linear attention with a decaying state, in parallel over chunks of tokens.

The decays between two tokens of a chunk are products of the gates between them. Chunks are put together from pairs of
blocks, of one token, two, four and so on, and every product starts or ends where two blocks meet: all factors are gates
themselves, nothing is divided and no logarithm is taken. So gates may be zero, and nothing can overflow. The states
between chunks come from the same pairing. Time and memory are linear in the tokens.
"""

import torch
from torch.nn import functional as F

from ._autocast import widened, without_autocast

__all__ = ["gated_scan", "linear_recurrence"]


def gated_scan(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, decay: torch.Tensor, *, chunk: int = 64
) -> torch.Tensor:
    """Queries read from a state that each token decays and then updates. `(..., N, e)`, in float32 at least.

    With S the state, `(d, e)`, zero at first: `S_t = diag(decay_t) S_{t-1} + k_t v_t^T` and `o_t = q_t S_t`.

    Args:
        q: Queries, `(..., N, d)`.
        k: Keys, `(..., N, d)`.
        v: Values, `(..., N, e)`.
        decay: What part of each row of the state remains, `(..., N, d)`, from 0 to 1.
        chunk: Tokens that are taken together, rounded up to a power of two. It makes no difference to the result.

    Raises:
        ValueError: If `chunk` is below 1.
    """
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    length = q.size(-2)
    size = min(_power_of_two(chunk), _power_of_two(length))
    with without_autocast(q):
        # What is padded comes last, where no token reads it.
        q, k, v, decay = (
            F.pad(widened(part), (0, 0, 0, -length % size)).unflatten(-2, (-1, 1)) for part in (q, k, v, decay)
        )
        out = (q * k).sum(-1, keepdim=True) * v
        # Products of the gates from the start of a block up to a token, and behind the token up to its end.
        inside, behind = decay, torch.ones_like(decay)
        while inside.size(-2) < size:
            q_right, k_left, v_left = _halves(q)[1], _halves(k)[0], _halves(v)[0]
            (inside_left, inside_right), (behind_left, behind_right) = _halves(inside), _halves(behind)
            read = _read(q_right * inside_right, k_left * behind_left, v_left)
            out_left, out_right = _halves(out)
            out = torch.cat((out_left, out_right + read), -2)
            inside, behind = (
                torch.cat((inside_left, inside_right * inside_left[..., -1:, :]), -2),
                torch.cat((behind_left * inside_right[..., -1:, :], behind_right), -2),
            )
            q, k, v = (part.unflatten(-3, (-1, 2)).flatten(-3, -2) for part in (q, k, v))
        chunks = q.size(-3)
        if chunks > 1:
            added = (k * behind)[..., :-1, :, :].mT @ v[..., :-1, :, :]
            state = linear_recurrence(inside[..., :-1, -1, :].unsqueeze(-1), added)
            read = (q * inside)[..., 1:, :, :] @ state
            out = torch.cat((out[..., :1, :, :], out[..., 1:, :, :] + read), -3)
        return out.flatten(-3, -2)[..., :length, :]


def linear_recurrence(decay: torch.Tensor, added: torch.Tensor) -> torch.Tensor:
    """`s_t = decay_t * s_{t-1} + added_t` with `s_{-1} = 0`, for all t, by pairing neighbours. `(..., N, d, e)`.

    Args:
        decay: `(..., N, d, 1)`.
        added: `(..., N, d, e)`.
    """
    length = added.size(-3)
    if length == 1:
        return added
    even = length // 2 * 2
    first, second = (decay[..., start:even:2, :, :] for start in (0, 1))
    odd = linear_recurrence(
        first * second, second * added[..., :even:2, :, :] + added[..., 1:even:2, :, :]
    )  # The states of every second token.
    rest = decay[..., 2::2, :, :] * odd[..., : (length - 1) // 2, :, :] + added[..., 2::2, :, :]
    others = torch.cat((added[..., :1, :, :], rest), -3)
    pairs = torch.stack((others[..., : even // 2, :, :], odd), -3).flatten(-4, -3)
    return pairs if even == length else torch.cat((pairs, others[..., -1:, :, :]), -3)


def _halves(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The left and the right block of each pair, `(..., n / 2, size, d)` each of `(..., n, size, d)`."""
    left, right = x.unflatten(-3, (-1, 2)).unbind(-3)
    return left, right


def _read(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """The contribution of the previous block's keys to each query of a block."""
    if q.size(-2) == 1:  # Products of single rows are slow as matrices.
        return (q * k).sum(-1, keepdim=True) * v
    return q @ k.mT @ v


def _power_of_two(number: int) -> int:
    """The smallest power of two that is not less."""
    return 1 << (number - 1).bit_length()
