"""A linear memory trained at test time by gradient descent with momentum and decay, in parallel over chunks.

Within a block of tokens, what momentum and decay leave of each gradient are products of numbers, so the memory at any
token is known but for the errors that the gradients are made of. The errors depend on each other linearly, earlier on
later: one unit triangular matrix says how, and its inverse gives all of them at once. What a block makes of memory and
momentum is one matrix, and blocks are gone through by one product each. Time and memory are linear in the tokens,
whatever the chunk.
"""

from typing import NamedTuple

import torch
from torch.nn import functional as F

from ._autocast import widened, without_autocast

__all__ = ["memory_scan"]

# Tokens of a block, about. What a token costs grows with it, and the number of steps between blocks falls.
_BLOCK = 64


def memory_scan(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    step: torch.Tensor,
    log_momentum: torch.Tensor,
    log_keep: torch.Tensor,
    memory: torch.Tensor,
    *,
    chunk: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What queries read from a memory right after the update by their own token, and the errors of the updates.

    `e_t = k_t M - v_t` with M as it was at the start of the chunk of t, `S_t = momentum_t S_{t-1} - step_t (2 / d)
    k_t^T e_t`, `M_t = keep_t M_{t-1} + S_t` and `y_t = q_t M_t`. Memory and momentum go on from chunk to chunk.

    Args:
        q: Queries, `(..., N, d)`.
        k: Keys, `(..., N, d)`.
        v: Values, `(..., N, e)`.
        step: Learning rates, `(..., N)`.
        log_momentum: Logarithm of what remains of the momentum, `(..., N)`.
        log_keep: Logarithm of what remains of the memory, `(..., N)`.
        memory: The memory at the start, `(..., d, e)`, broadcast to the others.
        chunk: Tokens whose errors are taken from the same memory; 1: each token's from the one before.

    Returns:
        y and e, `(..., N, e)` each, in float32 at least.

    Raises:
        ValueError: If `chunk` is below 1.
    """
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    length = q.size(-2)
    chunk = min(chunk, length)
    # Blocks of several whole chunks, a power of two of them, or chunks of several blocks.
    per_block = 1 << max(0, (min(_BLOCK, length) // chunk).bit_length() - 1)
    per_chunk = -(-chunk // _BLOCK)
    part = -(-chunk // per_chunk)

    def cut(x: torch.Tensor) -> torch.Tensor:
        """Splits into blocks, `(..., blocks, tokens, width)`; padding causes no update."""
        x = F.pad(widened(x), (0, 0, 0, -length % (chunk * per_block))).unflatten(-2, (-1, chunk))
        x = F.pad(x, (0, 0, 0, part * per_chunk - chunk)).flatten(-3, -2)
        return x.unflatten(-2, (-1, part * per_block))

    def join(x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(-3, -2).unflatten(-2, (-1, part * per_chunk))[..., :chunk, :]
        return x.flatten(-3, -2)[..., :length, :]

    with without_autocast(q):
        real = cut(q.new_ones(length, 1)).mT
        q, k, v = cut(q), cut(k), cut(v)
        left = _what_is_left(
            cut(step.unsqueeze(-1)), cut(log_momentum.unsqueeze(-1)), cut(log_keep.unsqueeze(-1)), real
        )
        rate = 2 / k.size(-1)
        # Errors are linear in what memory, momentum and, in chunks of several blocks, the memory at their start were.
        if per_chunk > 1:
            nothing = torch.zeros_like(k)
            known, target = torch.cat((nothing, nothing, k), -1), v
        else:
            known, target = _errors(k, v, left, chunk, rate)
        keys = rate * k
        learnt = torch.cat((left.weight[..., -1, :, None] * keys, left.gradient.mT * keys), -1).mT
        change = learnt @ known
        size, device = k.size(-1), k.device
        eye = torch.eye(size, device=device, dtype=k.dtype)
        memory_row = torch.cat((left.memory[..., -1:, :] * eye, left.momentum[..., -1:, :] * eye), -1)
        momentum_row = torch.cat((torch.zeros_like(left.kept * eye), left.kept * eye), -1)
        transition = F.pad(torch.cat((memory_row, momentum_row), -2), (0, known.size(-1) - 2 * size)) - change
        states = _go_through(transition, learnt @ target, widened(memory), per_chunk)
        errors = known @ states - target
        read = torch.cat((left.memory * q, left.momentum * q), -1) @ states[..., : 2 * size, :]
        out = read - rate * (left.weight * (q @ k.mT)) @ errors
        return join(out), join(errors)


class _Left(NamedTuple):
    """The retention factors at each token of a block.

    Attributes:
        memory: In the memory, of the memory at the start of the block, `(..., tokens, 1)`.
        momentum: In the memory, of the momentum at the start, `(..., tokens, 1)`.
        weight: In the memory, of the gradient of each token, with its learning rate, `(..., tokens, tokens)`.
        kept: In the momentum at the end, of the momentum at the start, `(..., 1, 1)`.
        gradient: In the momentum at the end, of the gradient of each token, likewise, `(..., 1, tokens)`.
    """

    memory: torch.Tensor
    momentum: torch.Tensor
    weight: torch.Tensor
    kept: torch.Tensor
    gradient: torch.Tensor


def _what_is_left(step: torch.Tensor, log_momentum: torch.Tensor, log_keep: torch.Tensor, real: torch.Tensor) -> _Left:
    """Retention from the per-token factors, `(..., tokens, 1)`; `real` marks tokens that are not padding."""
    momentum, keep = log_momentum.cumsum(-2), log_keep.cumsum(-2)
    later = torch.ones(step.size(-2), step.size(-2), device=step.device, dtype=torch.bool).triu(1)
    # The momentum of a token reaches the memory there and is kept from there on.
    reaches = (keep - keep.mT).masked_fill(later, float("-inf")).exp() * real
    lasts = (momentum - momentum.mT).masked_fill(later, float("-inf")).exp() * step.mT
    return _Left(
        memory=keep.exp(),
        momentum=reaches @ momentum.exp(),
        weight=reaches @ lasts,
        kept=momentum[..., -1:, :].exp(),
        gradient=lasts[..., -1:, :],
    )


def _errors(
    k: torch.Tensor, v: torch.Tensor, left: _Left, chunk: int, rate: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Errors of a block of whole chunks: the factors of memory and momentum at its start, and what is taken off."""
    if k.size(-2) == chunk:
        return torch.cat((k, torch.zeros_like(k)), -1), v

    def at_start(x: torch.Tensor, first: float) -> torch.Tensor:
        """The value before each chunk, for each of its tokens."""
        before = F.pad(x[..., chunk - 1 : -1 : chunk, :], (0, 0, 1, 0), value=first)
        return before.repeat_interleave(chunk, -2)

    depends = rate * at_start(left.weight, 0.0) * (k @ k.mT)
    parts = (at_start(left.memory, 1.0) * k, at_start(left.momentum, 0.0) * k, v)
    solved = _solve(depends, torch.cat(parts, -1), chunk)
    return solved.split((2 * k.size(-1), v.size(-1)), -1)


def _solve(lower: torch.Tensor, right: torch.Tensor, chunk: int) -> torch.Tensor:
    """`(I + lower)^-1 right`."""
    if torch.compiler.is_exporting():  # ONNX has no such operator.
        return _inverse(lower, chunk) @ right
    return torch.linalg.solve_triangular(lower, right, upper=False, unitriangular=True)


def _inverse(lower: torch.Tensor, chunk: int) -> torch.Tensor:
    """`(I + lower)^-1` of a matrix that is zero on the blocks of its diagonal and above, by pairing blocks.

    Each step is a step of substitution, so that it is as exact; the series of powers is not.

    Args:
        lower: `(..., n, n)`.
        chunk: Side of the blocks; n is a power of two of them.
    """
    size, side = lower.size(-1), chunk
    inverse = torch.eye(chunk, device=lower.device, dtype=lower.dtype)
    inverse = inverse.expand(*lower.shape[:-2], size // chunk, chunk, chunk)
    while side < size:
        blocks = lower.unflatten(-1, (-1, 2 * side)).unflatten(-3, (-1, 2 * side)).diagonal(dim1=-4, dim2=-2)
        corner = blocks.movedim(-1, -3)[..., side:, :side]
        first, second = inverse.unflatten(-3, (-1, 2)).unbind(-3)
        corner = -second @ corner @ first
        upper = F.pad(first, (0, side))
        inverse = torch.cat((upper, torch.cat((corner, second), -1)), -2)
        side *= 2
    return inverse.squeeze(-3)


def _go_through(transition: torch.Tensor, added: torch.Tensor, memory: torch.Tensor, per_chunk: int) -> torch.Tensor:
    """Memory, momentum and, if chunks have several blocks, the memory at their start, at the start of each block.

    Args:
        transition: What a block makes of them, `(..., blocks, 2 * d, 2 or 3 * d)`.
        added: What it adds, `(..., blocks, 2 * d, e)`.
        memory: At the start, `(..., d, e)`.
        per_chunk: Blocks of a chunk.
    """
    size, count = transition.size(-2) // 2, transition.size(-3)
    memory = memory.expand(*added.shape[:-3], size, added.size(-1))
    state = torch.cat((memory, torch.zeros_like(memory)), -2)
    states = []
    for block, (change, new) in enumerate(zip(transition.unbind(-3), added.unbind(-3), strict=True)):
        if per_chunk > 1:
            if block % per_chunk == 0:
                memory = state[..., :size, :]
            states.append(torch.cat((state, memory), -2))
        else:
            states.append(state)
        if block + 1 < count:
            state = change @ states[-1] + new
    return torch.stack(states, -3)
