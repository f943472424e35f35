"""Spectra of attention: Laplacians of its graphs, and how many directions its outputs use.

Hallucination Detection in LLMs Using Spectral Features of Attention Maps (EMNLP 2025, arXiv 2502.17598).

Official code: https://github.com/graphml-lab-pwr/lapeigvals (no licence file), hallucinations/features/laplacian.py.

Differs from the official code in:
- nothing of the caller's is overwritten;
- `laplacian_spectrum` is an analogue for images, whose attention is not causal: the spectrum of `D - (A + A') / 2`.

Golden: tests/golden/explain_lapeigvals_*.npz.
"""

import torch

__all__ = ["causal_laplacian", "effective_rank", "laplacian_spectrum"]


def causal_laplacian(attention: torch.Tensor) -> torch.Tensor:
    """Eigenvalues of the Laplacian of the graph over layers and tokens. `(layers, heads, T, T) -> (layers, heads, T)`.

    A token of a layer has edges to the later tokens of its layer and one up, to itself in the next layer; of a
    triangular matrix the eigenvalues are its diagonal: what leaves a token over the number of ways.

    Args:
        attention: Causal probabilities.

    Raises:
        ValueError: If there are fewer than two layers, or the matrices are not square.
    """
    if attention.ndim != 4 or len(attention) < 2 or attention.shape[-1] != attention.shape[-2]:
        raise ValueError(
            f"attention must be (layers, heads, T, T) with at least two layers, got {tuple(attention.shape)}"
        )
    tokens = attention.shape[-1]
    later = tokens - torch.arange(tokens, device=attention.device, dtype=attention.dtype)
    own = attention.diagonal(dim1=-2, dim2=-1)
    received = attention.sum(-2)
    first = (received[0] + own[1]) / (later + 1) - own[0]
    middle = (received[1:-1] - own[1:-1] + own[2:]) / later
    last = (received[-1] - own[-1]) / (later - 1).clamp_min(1)
    return torch.cat((first[None], middle, last[None]))


def laplacian_spectrum(attention: torch.Tensor) -> torch.Tensor:
    """Eigenvalues of `D - S`, `S = (A + A') / 2` and D its row sums, largest first. `(..., T, T) -> (..., T)`.

    The number of zeros is that of the parts into which a head's graph falls; the smallest above zero says how well it
    hangs together.
    """
    symmetric = (attention + attention.mT) / 2
    laplacian = torch.diag_embed(symmetric.sum(-1)) - symmetric
    return torch.linalg.eigvalsh(laplacian).flip(-1)


def effective_rank(outputs: torch.Tensor, share: float = 0.99) -> dict[str, torch.Tensor]:
    """The effective number of dimensions of features. `(N, C)`.

    Args:
        outputs: Such as those of one attention, tokens of many images.
        share: Of the variance.

    Returns:
        `eigenvalues` of the covariance `(C,)`, largest first; `directions` that hold the share of the variance; and the
        `effective` rank, exp of the entropy of the normalised eigenvalues.

    Raises:
        ValueError: If there are fewer than two rows, or the share is not in (0, 1].
    """
    if outputs.ndim != 2 or len(outputs) < 2 or not 0 < share <= 1:
        raise ValueError(
            f"outputs must be (N, C) with N of at least 2 and share in (0, 1], got {tuple(outputs.shape)}, {share}"
        )
    eigenvalues = torch.linalg.eigvalsh(torch.cov(outputs.double().T).view(outputs.shape[1], -1)).flip(0).clamp_min(0)
    shares = eigenvalues / eigenvalues.sum().clamp_min(torch.finfo(torch.float64).tiny)
    directions = (shares.cumsum(0) < share - 1e-12).sum() + 1
    return {
        "eigenvalues": eigenvalues,
        "directions": directions.clamp_max(len(shares)),
        "effective": torch.special.entr(shares).sum().exp(),
    }
