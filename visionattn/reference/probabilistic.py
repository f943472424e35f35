"""Probabilistic attention (arXiv 2106.15338): squared distances of all pairs, step after step."""

from typing import Any

import torch
from torch import nn

from ._literal import Literal

__all__ = ["mixture", "naive_of", "probabilistic"]


def mixture(
    q: torch.Tensor,
    zeta: torch.Tensor,
    mu: torch.Tensor,
    alpha: float | torch.Tensor,
    beta: float | torch.Tensor,
    *,
    magnitude_priors: bool = False,
    pi: torch.Tensor | None = None,
    start: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    positions: tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None] = (None, None, None),
    key_iters: int = 0,
    key_prior: float | None = None,
    fixed: torch.Tensor | None = None,
    value_iters: int = 0,
    value_prior: float | None = None,
) -> torch.Tensor:
    """The official layer: tokens last, `(N, G, C, H)`, precisions a number or `(N, G, H)`, maps of pairs `(H, H)`.

    Args:
        q: Queries.
        zeta: Keys.
        mu: Values.
        alpha: Precision of the keys.
        beta: Precision of the values.
        magnitude_priors: Whether longer keys and values are likelier.
        pi: Prior of each pair, `(N, G, H, H)`.
        start: Values of the queries to compare.
        mask: Factors of the weights, `(H, H)`.
        positions: Embeddings `(C, H, H)` of the query and the key, of the key and the query, of the query and the key
            for the values. The result has one channel of content and one of position in turn with the last.
        key_iters: Steps of the keys.
        key_prior: Precision of their own place.
        fixed: Known values, and in the last channel where they are.
        value_iters: Steps of the values.
        value_prior: Precision of their own place.
    """
    q_pos, zeta_pos, v_pos = positions
    a, b = (p.unsqueeze(2) if isinstance(p, torch.Tensor) else p for p in (alpha, beta))

    def weigh() -> torch.Tensor:
        far = (q.unsqueeze(-1) - zeta.unsqueeze(-2)).square().sum(2)
        prior = torch.zeros_like(far) if pi is None else pi.log()
        if q_pos is not None:
            far = far + (q.unsqueeze(-1) - q_pos).square().sum(2)
        if zeta_pos is not None:
            far = far + (zeta.unsqueeze(-2) - zeta_pos.transpose(1, 2)).square().sum(2)
        if pi is None and magnitude_priors:
            long = zeta.square().sum(2).unsqueeze(-2)
            if q_pos is not None:
                long = long + q_pos.square().sum(0)
            if zeta_pos is not None:
                long = long + zeta.square().sum(2).unsqueeze(-2) + zeta_pos.transpose(1, 2).square().sum(0)
            values = mu.unsqueeze(-2) if v_pos is None else mu.unsqueeze(-2) + v_pos
            prior = a / 2 * long + b / 2 * values.square().sum(2)
        logs = prior - a / 2 * far
        if start is not None:
            logs = logs - b / 2 * (start.unsqueeze(-1) - mu.unsqueeze(-2)).square().sum(2)
        w = (logs - logs.amax(-1, keepdim=True)).exp()
        w = w if mask is None else w * mask
        return w / (w.sum(-1, keepdim=True) + 1e-20)

    w = weigh()
    for _ in range(key_iters):
        total, mass = q @ w, w.sum(-2).unsqueeze(2)
        zeta = total / mass if key_prior is None else (key_prior * zeta + a * total) / (key_prior + a * mass)
        w = weigh()
    if fixed is not None and (fixed[:, :, -1] > 0).any():
        for _ in range(value_iters):
            total, mass = fixed[:, :, :-1] @ w, fixed[:, :, -1:] @ w + 1e-20
            mu = total / mass if value_prior is None else (value_prior * mu + b * total) / (value_prior + b * mass)
            w = weigh()
    out = mu @ w.mT
    if v_pos is None:
        return out
    return torch.stack((out, torch.einsum("ngij,cij->ngci", w, v_pos)), 3).flatten(2, 3)


def probabilistic(
    module: Any, x: torch.Tensor, values: torch.Tensor | None = None, known: torch.Tensor | None = None
) -> torch.Tensor:
    """The output of `visionattn.mixers.ProbabilisticAttention` without dropout."""
    heads = module.num_heads

    def split(part: torch.Tensor) -> torch.Tensor:
        return part.flatten(1, 2).mT.unflatten(1, (heads, -1))

    q, k, v = (split(part) for part in module.qkv(x).chunk(3, -1))
    alpha: Any = q.size(2) ** -0.5
    if module.precision is not None:
        alpha = alpha * module.precision(x).flatten(1, 2).mT.exp()
    keys = k
    for _ in range(module.key_iters):  # values do not matter to them
        keys = _adapt(q, keys, alpha, module.theta)
    if values is not None and known is not None:
        flags = known.flatten(1).to(q.dtype)[:, None, None].expand(-1, heads, -1, -1)
        w = _attend(q, keys, alpha)
        total, mass = (flags * split(values)) @ w, flags @ w
        for _ in range(module.value_iters):
            b, prior = module.value_precision, module.value_theta
            v = total / mass if prior is None else (prior * v + b * total) / (prior + b * mass)
    return module.proj((v @ _attend(q, keys, alpha).mT).flatten(1, 2).mT).view(x.shape)


def _attend(q: torch.Tensor, k: torch.Tensor, alpha: Any) -> torch.Tensor:
    """Weights with the prior of long keys, the values left out. `(N, G, H, H)`."""
    a = alpha.unsqueeze(2) if isinstance(alpha, torch.Tensor) else alpha
    far = (q.unsqueeze(-1) - k.unsqueeze(-2)).square().sum(2)
    return (a / 2 * (k.square().sum(2).unsqueeze(-2) - far)).softmax(-1)


def _adapt(q: torch.Tensor, k: torch.Tensor, alpha: Any, prior: float | None) -> torch.Tensor:
    a = alpha.unsqueeze(2) if isinstance(alpha, torch.Tensor) else alpha
    w = _attend(q, k, alpha)
    total, mass = q @ w, w.sum(-2).unsqueeze(2)
    return total / mass if prior is None else (prior * k + a * total) / (prior + a * mass)


def naive_of(module: Any) -> nn.Module:
    """The literal module with the weights of a `ProbabilisticAttention`."""
    return Literal(probabilistic, module)
