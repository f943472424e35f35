"""The embedding of an image as a sum over layers, heads and positions.

Interpreting CLIP's Image Representation via Text-Based Decomposition (ICLR 2024, arXiv 2310.05916).

Official code: https://github.com/yossigandelsman/clip_prs (CC BY-NC 4.0; nothing is taken from it), prs_hook.py.

Differs from the official code in:
- towers of timm, with layer scale, registers and mean pooling, not open_clip's alone (see `open_clip_tower`);
- the last norm subtracts from each part the mean of its own channels, which is what a layer norm does to a sum; the
  official code spreads the mean of the sum evenly, so its parts differ by a constant;
- biases of the last norm, of the projections of attention and of the head are a part of their own; the official code
  spreads them over heads and tokens.

Golden: none; the sum of the parts is the embedding.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ._stream import read_stream

__all__ = ["EmbeddingTerms", "Readout", "decompose_embedding", "readout"]


@dataclass(frozen=True)
class EmbeddingTerms:
    """Parts whose sum is the embedding of an image.

    Args:
        start: Of the tokens before the first block `(B, D)`.
        attention: Of each token in each head `(B, layers, heads, T, D)`, extra tokens first.
        mlp: Of each layer's MLP `(B, layers, D)`.
        biases: Of the last norm, the head and the projections of attention `(B, D)`.
        prefix: Number of extra tokens.
        grid: `(H, W)` of the others.
    """

    start: torch.Tensor
    attention: torch.Tensor
    mlp: torch.Tensor
    biases: torch.Tensor
    prefix: int
    grid: tuple[int, int]

    @property
    def total(self) -> torch.Tensor:
        """The embedding `(B, D)`."""
        return self.start + self.attention.sum((1, 2, 3)) + self.mlp.sum(1) + self.biases

    @property
    def heads(self) -> torch.Tensor:
        """Of each head, summed over the tokens, `(B, layers, heads, D)`: what `text_span` takes, a head at a time."""
        return self.attention.sum(3)

    def map(self, direction: torch.Tensor, *, layers: Collection[int] | None = None) -> torch.Tensor:
        """How far the attention to each patch moves the embedding in a direction. `-> (B, H, W)`, of either sign.

        Args:
            direction: Such as the embedding of a text, or a row of a classifier minus the mean over the classes, `(D,)`
                or `(B, D)`.
            layers: Numbers of the layers; all without it.
        """
        chosen = self.attention if layers is None else self.attention[:, sorted(layers)]
        patches = chosen[..., self.prefix :, :].sum((1, 2))
        return (patches * (direction if direction.ndim == 1 else direction[:, None])).sum(-1).unflatten(1, self.grid)


@torch.no_grad()
def decompose_embedding(model: nn.Module, x: torch.Tensor, *, normalise: bool = False) -> EmbeddingTerms:
    """Splits the output of a network into what its parts contributed, given where attention went.

    The output is an image embedding for CLIP's towers (D: its width), logits for a classifier.

    Args:
        model: A `VisionTransformer` of timm's in evaluation mode whose output is one token, or the mean of the patches.
        x: Images `(B, C, H, W)`. The terms take `4 B layers heads T D` bytes: 58 MB an image of ViT-B/16 at 224 pixels.
        normalise: Divide by the length of the embedding, so that products with unit texts are cosines.

    Raises:
        ValueError: If the network is of another kind.
    """
    stream = read_stream(model, x)
    end = readout(model, stream.before(len(stream.v)), stream.prefix)
    attention, biases = [], end.biases
    for layer, weights in enumerate(stream.weights):
        seen = torch.einsum("br,bhrt->bht", end.rows, stream.probs[layer])
        written = end.project(weights.out)  # (heads, d, D)
        attention.append(torch.einsum("bht,bhtd,hde->bhte", seen, stream.v[layer], written))
        biases = biases + end.read(weights.out_bias.expand_as(stream.start))
    terms = [
        end.read(stream.start),
        torch.stack(attention, 1),
        torch.stack([end.read(part) for part in stream.mlp], 1),
        biases,
    ]
    if normalise:
        total = terms[0] + terms[1].sum((1, 2, 3)) + terms[2].sum(1) + terms[3]
        length = total.norm(dim=1)
        terms = [part / length.view(-1, *[1] * (part.ndim - 1)) for part in terms]
    start, attended, mlp, biases = terms
    return EmbeddingTerms(start, attended, mlp, biases, stream.prefix, stream.grid)


@dataclass(frozen=True)
class Readout:
    """What turns tokens into an embedding, linear for given statistics of the last norm.

    Args:
        rows: How much of each token is read, over its deviation, `(B, T)`.
        gain: Of the norm `(C,)`.
        head: `(D, C)`.
        biases: Of norm and head `(D,)`.
    """

    rows: torch.Tensor
    gain: torch.Tensor
    head: torch.Tensor
    biases: torch.Tensor

    def project(self, x: torch.Tensor) -> torch.Tensor:
        """Gain of the norm and head, but for the deviation. `(..., C) -> (..., D)`."""
        return (x - x.mean(-1, keepdim=True)) * self.gain @ self.head.T

    def read(self, x: torch.Tensor) -> torch.Tensor:
        """The part of the embedding that a part of the tokens makes. `(B, T, C) -> (B, D)`."""
        return self.project(torch.einsum("bt,btc->bc", self.rows, x))


def readout(model: nn.Module, tokens: torch.Tensor, prefix: int) -> Readout:
    """Of the tokens before the last norm, `(B, T, C)`."""
    network: Any = model
    pool = network.global_pool
    norms = [norm for norm in (network.norm, network.fc_norm) if not isinstance(norm, nn.Identity)]
    if len(norms) != 1 or not isinstance(norms[0], nn.LayerNorm) or network.attn_pool is not None:
        raise ValueError("the network must end in one layer norm and read a token or the mean of the patches")
    if pool not in ("token", "avg") or (pool == "token" and not prefix):
        raise ValueError(f"global_pool must be 'token' or 'avg', got {pool!r}")
    norm = norms[0]
    rows = torch.zeros_like(tokens[..., 0])
    if pool == "token":
        rows[:, 0] = 1
    else:
        rows[:, prefix:] = 1 / (tokens.shape[1] - prefix)
    if norm is network.fc_norm:
        tokens = torch.einsum("bt,btc->bc", rows, tokens).unsqueeze(1)
    rows = rows / (tokens.var(-1, correction=0) + norm.eps).sqrt()
    head: Any = network.head
    if isinstance(head, nn.Identity):
        weight, bias = torch.eye(tokens.shape[-1], device=tokens.device, dtype=tokens.dtype), None
    else:
        weight, bias = head.weight.detach(), head.bias
    biases = norm.bias.detach() @ weight.T
    return Readout(rows, norm.weight.detach(), weight, biases if bias is None else biases + bias.detach())
