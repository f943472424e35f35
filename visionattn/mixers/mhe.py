"""MHE: heads that share one projection and differ by an embedding each (multiple head embeddings, arXiv 2310.07911).

Official code: https://github.com/HUIYINXUE/simpleMHE (no licence file), which holds no code yet: written from the
formulas of the paper.

Differs from the official code in: not known. The heads' keys and values are never made: embeddings of keys are moved to
the queries, those of values to the results.

Golden: tests/golden/mhe_*.npz (outputs and input gradients of an independent literal implementation).
"""

from collections.abc import Callable

import torch
from torch import nn

from visionattn.catalog import Card, Floor
from visionattn.ops import attention
from visionattn.utils.arguments import check_choice, check_heads, check_positive
from visionattn.utils.factory import FactoryKwargs

from ._common import TokenMixer

__all__ = ["MultiHeadEmbeddingAttention"]


class MultiHeadEmbeddingAttention(TokenMixer):
    """Softmax attention with one shared query, key and value and head embeddings. `(B, H, W, C)`, same out, any H, W.

    Over attention with one head it has three vectors a head more.

    Args:
        dim: Width C.
        num_heads: Heads.
        head_dim: Width of a head; by default `dim / num_heads`, which must then be whole.
        mode: How an embedding e enters a projection p: `mul`, p * (e + 1), or `add`, p + e.
        embed_std: Deviation of the embeddings at the start. Heads start almost alike with the default.
        qkv_bias: Whether the projections to queries, keys and values have biases.
        attn_drop: Dropout of the attention weights.
        proj_drop: Dropout after the output projection.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        head_dim: int | None = None,
        mode: str = "mul",
        embed_std: float = 0.02,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if head_dim is None:
            check_heads(dim, num_heads)
            head_dim = dim // num_heads
        check_positive(num_heads=num_heads, head_dim=head_dim)
        check_choice("mode", mode, ("mul", "add"))
        if not embed_std >= 0:
            raise ValueError(f"embed_std must be at least 0, got {embed_std}")
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.mode = mode
        self.embed_std = embed_std
        self.q, self.k, self.v = (nn.Linear(dim, head_dim, bias=qkv_bias, **dd) for _ in range(3))
        self.embed_q, self.embed_k, self.embed_v = (
            nn.Parameter(torch.empty(num_heads, head_dim, **dd)) for _ in range(3)
        )
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(num_heads * head_dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)
        self.init_weights()

    def init_weights(self) -> None:
        """Initialises the embeddings."""
        for embedding in (self.embed_q, self.embed_k, self.embed_v):
            nn.init.normal_(embedding, std=self.embed_std)

    def forward_tokens(
        self,
        x: torch.Tensor,
        grid: tuple[int, int],
        prefix: int = 0,
        *,
        rotate: Callable[[torch.Tensor], torch.Tensor] | None = None,
        bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attention of tokens, `(B, prefix + H * W, C) -> (B, prefix + H * W, C)`.

        Args:
            x: The tokens, extra ones first.
            grid: `(H, W)`, which makes no difference here.
            prefix: Number of extra tokens, likewise.
            rotate: Rotates queries and keys `(B, num_heads, N, head_dim)` by their positions.
            bias: Added to the scores; broadcasts to `(B, num_heads, N, N)`.
        """
        count, dropped = x.shape[1], self.attn_drop.p if self.training else 0.0
        v = self.v(x).unsqueeze(1)
        if rotate is None and bias is None:
            # All heads have the same keys and values: their queries are those of one head.
            q = self._shared_queries(self.q(x)).flatten(1, 2).unsqueeze(1)
            out = attention(q, self.k(x).unsqueeze(1), v, dropout_p=dropped).unflatten(1, (self.num_heads, count))
            out = out.transpose(1, 2)
        else:
            q, k = self._embed(self.q(x), self.embed_q), self._embed(self.k(x), self.embed_k)
            if rotate is not None:
                q, k = rotate(q), rotate(k)
            v = v.expand(-1, self.num_heads, -1, -1)
            out = attention(q, k, v, mask=bias, dropout_p=dropped).unflatten(-1, (self.num_heads, -1))
        # Weights sum to one: what every value has in common can be put to the result.
        out = out * (self.embed_v + 1) if self.mode == "mul" else out + self.embed_v
        return self.proj_drop(self.proj(out.flatten(2)))

    def weights(self, x: torch.Tensor) -> torch.Tensor:
        """The attention weights, `(B, num_heads, N, N)`, of a map `(B, H, W, C)` or tokens `(B, N, C)`."""
        tokens = x.flatten(1, -2)
        q, k = self._embed(self.q(tokens), self.embed_q), self._embed(self.k(tokens), self.embed_k)
        return (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)

    def _embed(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        """`(B, N, head_dim) -> (B, num_heads, N, head_dim)`."""
        embedding = embedding.unsqueeze(1)
        return x.unsqueeze(1) * (embedding + 1) if self.mode == "mul" else x.unsqueeze(1) + embedding

    def _shared_queries(self, q: torch.Tensor) -> torch.Tensor:
        """Queries `(B, num_heads, N, head_dim)` whose scores with unembedded keys equal the heads' own."""
        if self.mode == "mul":
            return q.unsqueeze(1) * ((self.embed_q + 1) * (self.embed_k + 1)).unsqueeze(1)
        # Embeddings of keys add the same to all scores of a query. They keep a gradient, zero, for who asks for it.
        return self._embed(q, self.embed_q + 0 * self.embed_k)


CARD = Card(
    name="mhe",
    title="MHE: multiple head embeddings attention",
    kind="mixer",
    factory=MultiHeadEmbeddingAttention,
    summary="softmax attention whose heads share one projection and differ by an embedding",
    flow=(
        "((q with each head's vector | k with each head's vector) -> @ -> softmax | v with each head's vector) -> "
        "@ -> proj"
    ),
    paper="arXiv:2310.07911",
    code="https://github.com/HUIYINXUE/simpleMHE",
    placement="in every block in place of attention",
    avoid="to save time: it saves projections, while each head still has scores of all pairs",
    pyramid=("nano",),
    columnar=("nano", "tiny"),
    cases={"": {"num_heads": 3}, "add": {"num_heads": 3, "mode": "add", "head_dim": 10}},
    floor=Floor(4, 6, "x in, o out, q, k, v of a head's width; back do and x in, dx out; projections"),
    cost="N^2",
    memory="N",
    maps=True,
    reference="mhe",
)
