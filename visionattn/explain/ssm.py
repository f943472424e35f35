"""Hidden attention of selective state-space layers: the matrix that a scan multiplies its input by.

The Hidden Attention of Mamba Models (ACL 2025, arXiv 2403.01590).

Official code: https://github.com/AmeenAli/HiddenMambaAttn (no licence file at its root), selective_scan_interface.py.

Differs from the official code in:
- no kernel and no Mamba package: plain tensors, in their own precision;
- a class token's row is that of the matrix; the official vector leaves out the token's own decay and its own entry;
- rows of both directions of any length, not of position 98 alone.

Golden: tests/golden/explain_mamba_attention_*.npz.
"""

import torch
from torch.nn import functional as F

__all__ = ["hidden_attention"]


def hidden_attention(
    delta: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    *,
    delta_bias: torch.Tensor | None = None,
    row: int | None = None,
    backward: bool = False,
) -> torch.Tensor:
    """The matrix alpha of a scan `h_t = exp(d_t A) h_{t-1} + d_t B_t x_t`, `y_t = C_t h_t`: y is `alpha x`.

    `alpha_ij = sum_n C_in exp(A_n (d_{j+1} + ... + d_i)) d_j B_jn` for j <= i, else 0, with `d = softplus(delta +
    bias)`. The skip `D x`, the gate and the convolution of a Mamba block are outside of it. A bidirectional layer has
    the sum of its two matrices. One matrix a channel; `rollout_matrix` takes their layers as `(B, layers, D, L, L)`.

    Args:
        delta: Step sizes before their softplus, `(B, D, L)`.
        A: Decays `(D, N)`, negative.
        B: What the input writes, `(B, N, L)`, or in groups of channels `(B, G, N, L)`.
        C: What is read, likewise.
        delta_bias: `(D,)`.
        row: Makes one row only, such as the class token's: `(B, D, L)`. Needs no L x L memory.
        backward: The inputs are those of the sequence in reverse, and the matrix is that of the plain order.

    Returns:
        `(B, D, L, L)`, or `(B, D, L)` with `row`.

    Raises:
        ValueError: If shapes do not fit or there is no such row.
    """
    batch, channels, length = delta.shape
    B, C = (part.unsqueeze(1) if part.ndim == 3 else part for part in (B, C))
    groups, states = B.shape[1], A.shape[-1]
    if (
        A.shape != (channels, states)
        or B.shape != C.shape
        or B.shape != (batch, groups, states, length)
        or channels % groups
    ):
        raise ValueError(
            f"delta {tuple(delta.shape)} must be (B, D, L), A {tuple(A.shape)} (D, N), B {tuple(B.shape)} and C "
            f"{tuple(C.shape)} (B, N, L) or (B, G, N, L) with G a divisor of D"
        )
    if row is not None and not 0 <= row < length:
        raise ValueError(f"row must lie in 0..{length - 1}, got {row}")
    step = F.softplus(delta if delta_bias is None else delta + delta_bias[:, None])
    passed = step.cumsum(2)
    first = None if row is None else (length - 1 - row if backward else row)
    rows = slice(first, None if first is None else first + 1)
    # The time between two positions; a later one writes nothing.
    apart = passed[..., rows].unsqueeze(3) - passed.unsqueeze(2)
    index = torch.arange(length, device=delta.device)
    later = index > index[rows, None]
    result = torch.zeros_like(apart)
    for state in range(states):
        read, write = (part[:, :, state].repeat_interleave(channels // groups, 1) for part in (C, B))
        decay = (apart * A[:, state, None, None]).masked_fill(later, float("-inf")).exp()
        result += read[..., rows].unsqueeze(3) * decay * (step * write).unsqueeze(2)
    if backward:
        result = result.flip(2, 3)
    return result if row is None else result.squeeze(2)
