"""A score between two tokens as a few terms, and which earlier parts of the network wrote them.

Sparse Attention Decomposition Applied to Circuit Tracing (2024, arXiv 2410.00340).

Official code: https://github.com/gaabrielfranco/sparse-attention-decomposition (MIT), GPT-2 only.

Differs from the official code in:
- vision transformers, all pairs of tokens, any sign of the score;
- the constant that biases bring is a source of its own; the official code counts it in every source again;
- the last norm of a source is exact: a layer norm centres each part by its own channels.
"""

from dataclasses import dataclass

import torch
from torch import nn

from ._stream import HeadWeights, Stream, blocks_of, read_stream

__all__ = ["ScoreTerms", "score_terms"]


@dataclass(frozen=True)
class ScoreTerms:
    """The score of each image's pair of tokens, before its scale and softmax, as the sum of terms `(B, d)`.

    Args:
        score: `q . k`, `(B,)`.
        terms: `s_r (x_i . u_r) (v_r . x_j)`, one for each singular value.
        chosen: The fewest terms that make up the share asked for, bool `(B, d)`.
        singular: The singular values `(d,)`.
        query_sources: What each earlier part of the network brings to the chosen terms through the query's token,
            `(B, sources)`; they add up to the sum of the chosen terms.
        key_sources: Likewise through the key's token.
        names: Of the sources: `start`, `layer 0 head 1`, `layer 0 bias`, `layer 0 mlp`, ..., `bias`.
    """

    score: torch.Tensor
    terms: torch.Tensor
    chosen: torch.Tensor
    singular: torch.Tensor
    query_sources: torch.Tensor
    key_sources: torch.Tensor
    names: list[str]


@torch.no_grad()
def score_terms(
    model: nn.Module, x: torch.Tensor, layer: int, head: int, query: int, key: int, *, share: float = 0.7
) -> ScoreTerms:
    """Splits the score of a pair of tokens by the singular vectors of `[W_Q, b_Q]' [W_K, b_K]`.

    Args:
        model: A `VisionTransformer` of timm's without norms of queries and keys, in evaluation mode.
        x: Images `(B, C, H, W)`.
        layer: Number of the block.
        head: Number of the head.
        query: Number of the token that looks, as the network counts them (0: the class token).
        key: Number of the token that is looked at.
        share: Of the score, from 0 to 1; terms are taken in the order of their size in its direction.

    Raises:
        ValueError: If an argument is out of range, or the network is of another kind.
    """
    blocks = blocks_of(model)
    if not 0 < share <= 1:
        raise ValueError(f"share must be above 0 and at most 1, got {share}")
    if not 0 <= layer < len(blocks):
        raise ValueError(f"layer must lie in 0..{len(blocks) - 1}, got {layer}")
    attn = blocks[layer].attn
    if not isinstance(attn.q_norm, nn.Identity) or not isinstance(attn.k_norm, nn.Identity):
        raise ValueError("queries and keys must not be normalised: their product is no bilinear form of the tokens")
    if not 0 <= head < attn.num_heads:
        raise ValueError(f"head must lie in 0..{attn.num_heads - 1}, got {head}")
    stream = read_stream(model, x)
    tokens = stream.before(layer)
    for name, number in (("query", query), ("key", key)):
        if not 0 <= number < tokens.shape[1]:
            raise ValueError(f"{name} must lie in 0..{tokens.shape[1] - 1}, got {number}")
    u, singular, v = _factors(stream.weights[layer], head)
    deviation = (tokens.var(-1, correction=0, keepdim=True) + blocks[layer].norm1.eps).sqrt()
    centred = (tokens - tokens.mean(-1, keepdim=True)) / deviation
    ones = centred.new_ones(len(x), 1)
    asked = torch.cat((centred[:, query], ones), 1) @ u.T
    told = torch.cat((centred[:, key], ones), 1) @ v.T
    terms = asked * singular * told
    score = terms.sum(1)
    chosen = _fewest(terms, score, share)
    parts, names = _sources(stream, layer)  # (B, sources, T, C)
    sides = []
    for token, directions, other in ((query, u, told), (key, v, asked)):
        seen = parts[:, :, token]
        seen = (seen - seen.mean(-1, keepdim=True)) / deviation[:, None, token]
        along = torch.cat((seen @ directions[:, :-1].T, directions[:, -1].expand(len(x), 1, -1)), 1)
        sides.append((along * (singular * other * chosen)[:, None]).sum(2))
    return ScoreTerms(score, terms, chosen, singular, sides[0], sides[1], [*names, "bias"])


def _factors(weights: HeadWeights, head: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Singular vectors `(d, C + 1)` and values of the form in tokens with a 1 appended, from factors of rank d."""
    q = torch.cat((weights.q[head], weights.q_bias[head, :, None]), 1)
    k = torch.cat((weights.k[head], weights.k_bias[head, :, None]), 1)
    (left, first), (right, second) = (torch.linalg.qr(part.T) for part in (q, k))
    u, singular, v = torch.linalg.svd(first @ second.T)
    return (left @ u).T, singular, (right @ v.T).T


def _fewest(terms: torch.Tensor, score: torch.Tensor, share: float) -> torch.Tensor:
    """The fewest terms, largest in the score's direction first, that reach a share of it."""
    toward = terms * torch.where(score >= 0, 1, -1)[:, None]
    ordered, order = toward.sort(1, descending=True)
    before = ordered.cumsum(1) - ordered
    wanted = before < share * score.abs()[:, None]
    return torch.zeros_like(wanted).scatter_(1, order, wanted)


def _sources(stream: Stream, layer: int) -> tuple[torch.Tensor, list[str]]:
    parts, names = [stream.start], ["start"]
    for number in range(layer):
        heads = stream.heads(number)
        parts += [*heads.unbind(1), stream.weights[number].out_bias.expand_as(stream.start), stream.mlp[number]]
        names += [f"layer {number} head {head}" for head in range(heads.shape[1])]
        names += [f"layer {number} bias", f"layer {number} mlp"]
    return torch.stack(parts, 1), names
