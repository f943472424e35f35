"""Scatterbrain: Unifying Sparse and Low-rank Attention Approximation (NeurIPS 2021, arXiv 2110.15343).

Official code: https://github.com/HazyResearch/fly (Apache-2.0), src/models/attention/sblocal_attention.py and
sbsmyrf_attention.py. They own no projections; here these are one layer `qkv` and `proj`, as in softmax attention.

Differs from the official code in:
- windows of the map as a support, besides its band in raster order and its clusters;
- features and hashes are buffers, drawn once: theirs draws hashes at each call. `init_weights` draws them anew;
- extra tokens such as the class token have exact weights, as queries and as keys;
- clusters of queries and of keys have one size.

Golden: tests/golden/scatterbrain_*.npz (outputs, input gradients, clusters).
"""

from collections.abc import Callable, Mapping, Sequence
from math import log
from typing import Any

import torch
from torch import nn

from visionattn.catalog import BlockContext, Card, Floor
from visionattn.ops._autocast import wide
from visionattn.ops.exact_pairs import Band, Support, Tiles, hash_clusters, random_projection
from visionattn.ops.masked_attention import Blocks
from visionattn.ops.scatterbrain_attention import features, scatterbrain_attention
from visionattn.utils.arguments import check_choice, check_heads, check_positive, pair
from visionattn.utils.factory import FactoryKwargs

from ._common import TokenMixer, split_heads

__all__ = ["ScatterbrainAttention"]


class ScatterbrainAttention(TokenMixer):
    """Attention with exact weights nearby and random features elsewhere. `(B, H, W, C) -> (B, H, W, C)`.

    Any H, W >= 1. Cost grows linearly with the positions. With a support that covers all it is softmax attention.

    Args:
        dim: Width C.
        num_heads: Heads, a divisor of `dim`; all have the same features.
        nb_features: Number of random features; by default `d ln d` of the width d of a head. Even with `cosh`.
        support: Where weights are exact: `windows`, `band` (tokens close in raster order) or `clusters` (queries and
            keys that random hashes find alike, other ones for each image and head).
        window: Height and width of the windows.
        local_context: Number of tokens in the band, the query among them; an even number sees one more behind.
        cluster_size: Tokens in a cluster.
        n_hashes: Number of clusters that a query sees.
        cosh: Whether each direction serves for two features, of both signs.
        ortho_scaling: Whether all directions have one length; by default as normal vectors.
        softmax_eps: Added to each feature, relative to the largest.
        qkv_bias: Whether the projections to queries, keys and values have biases.
        qk_norm: Layer norms of the queries and keys of each head before their product.
        attn_drop: Dropout of exact weights.
        proj_drop: Dropout after the output projection.
        generator: Draws features and hashes; none is PyTorch's own.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: If an argument is out of range.
    """

    projection: torch.Tensor
    lsh_alpha: torch.Tensor

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        nb_features: int | None = None,
        support: str = "windows",
        window: int | Sequence[int] = (7, 7),
        local_context: int = 49,
        cluster_size: int = 24,
        n_hashes: int = 2,
        cosh: bool = True,
        ortho_scaling: bool = False,
        softmax_eps: float = 0.0,
        qkv_bias: bool = True,
        qk_norm: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        check_choice("support", support, ("windows", "band", "clusters"))
        check_positive(local_context=local_context, cluster_size=cluster_size, n_hashes=n_hashes)
        if not softmax_eps >= 0:
            raise ValueError(f"softmax_eps must be at least 0, got {softmax_eps}")
        width = dim // num_heads
        if nb_features is None:
            nb_features = max(int(width * log(width)) // 2 * 2, 2)
        if nb_features < 1 or (cosh and nb_features % 2):
            raise ValueError(
                f"nb_features must be at least 1, and even with cosh, got nb_features={nb_features}, cosh={cosh}"
            )
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.nb_features = nb_features
        self.support = support
        self.window = pair("window", window)
        self.local_context = local_context
        self.cluster_size = cluster_size
        self.cosh = cosh
        self.ortho_scaling = ortho_scaling
        self.softmax_eps = softmax_eps
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **dd)
        self.q_norm, self.k_norm = (nn.LayerNorm(width, eps=1e-6, **dd) if qk_norm else nn.Identity() for _ in range(2))
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)
        self.register_buffer("projection", torch.empty(nb_features // 2 if cosh else nb_features, width, **dd))
        if support == "clusters":
            self.register_buffer("lsh_alpha", torch.empty(width + 2, n_hashes, **dd))
        self.init_weights(generator)

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Redraws features and hashes."""
        if self.projection.is_meta:
            return
        drawn = random_projection(
            self.nb_features,
            self.projection.size(1),
            cosh=self.cosh,
            ortho_scaling=self.ortho_scaling,
            generator=generator,
        )
        self.projection.copy_(drawn)
        if self.support == "clusters":
            self.lsh_alpha.copy_(torch.randn(self.lsh_alpha.shape, generator=generator))

    def forward_tokens(
        self,
        x: torch.Tensor,
        grid: tuple[int, int],
        prefix: int = 0,
        *,
        rotate: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Attention of tokens, `(B, prefix + H * W, C) -> (B, prefix + H * W, C)`.

        Args:
            x: The tokens, extra ones first.
            grid: `(H, W)`.
            prefix: Number of extra tokens, whose weights are exact.
            rotate: Rotates queries and keys `(B, num_heads, N, C / num_heads)` by their positions.
        """
        q, k, v = self._heads(x)
        if rotate is not None:
            q, k = rotate(q), rotate(k)
        out = scatterbrain_attention(
            q,
            k,
            v,
            self.projection,
            self.pairs(q, k, grid, prefix),
            prefix=prefix,
            cosh=self.cosh,
            softmax_eps=self.softmax_eps,
            dropout_p=self.attn_drop.p if self.training else 0.0,
        )
        return self.proj_drop(self.proj(out))

    def pairs(self, q: torch.Tensor, k: torch.Tensor, grid: tuple[int, int], prefix: int = 0) -> Support:
        """The pairs with exact weights, given queries and keys `(B, num_heads, N, C / num_heads)`."""
        if self.support == "band":
            return Band(self.local_context)
        if self.support == "windows":
            return Tiles(Blocks.tiles(grid, self.window, q.device))
        return hash_clusters(q[:, :, prefix:], k[:, :, prefix:], self.lsh_alpha, self.cluster_size)

    def weights(self, x: torch.Tensor, grid: tuple[int, int] | None = None, prefix: int = 0) -> torch.Tensor:
        """The attention weights, `(B, num_heads, N, N)`, of a map `(B, H, W, C)` or tokens `(B, N, C)`.

        Args:
            x: The map or the tokens, extra ones first.
            grid: Of tokens `(H, W)`.
            prefix: Number of extra tokens.

        Raises:
            ValueError: If there are tokens without a grid.
        """
        if x.ndim == 4:
            grid = (x.size(1), x.size(2))
        if grid is None:
            raise ValueError("weights of tokens need their grid here, got grid=None")
        q, k, _ = (part.to(wide(x)) for part in self._heads(x.flatten(1, -2)))
        scale = q.size(-1) ** -0.5
        scores = q @ k.mT * scale
        kept = self.pairs(q, k, grid, prefix).pairs(q.size(2) - prefix, q.device)
        phi_q, phi_k, level = features(
            q[:, :, prefix:], k[:, :, prefix:], self.projection.to(q), self.cosh, self.softmax_eps, scale
        )
        rough = (phi_q @ phi_k.mT).log() + level
        patches = scores[:, :, prefix:, prefix:].where(kept, rough)
        patches = torch.cat([scores[:, :, prefix:, :prefix], patches], -1)
        return torch.cat([scores[:, :, :prefix], patches], 2).softmax(-1).to(x.dtype)

    def _heads(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values, `(B, num_heads, N, C / num_heads)` each."""
        q, k, v = split_heads(self.qkv(x), self.num_heads)
        return self.q_norm(q), self.k_norm(k), v

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Also accepts the official name of the features."""
        official = state_dict.pop(f"{prefix}feature_map.projection_matrix", None)
        if official is not None:
            state_dict[f"{prefix}projection"] = official
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _keywords(context: BlockContext) -> Mapping[str, Any]:
    """Windows of at most 7 x 7 that are at most half the map in each direction."""
    return {"window": tuple(min(-(-side // 2), 7) for side in context.grid)} if context.grid else {}


CARD = Card(
    name="scatterbrain",
    title="Scatterbrain: unifying sparse and low-rank attention",
    kind="mixer",
    factory=ScatterbrainAttention,
    summary="softmax weights within windows, a band or clusters, and random features for all other pairs",
    flow="((q | k) -> (exact weights of near pairs | random features elsewhere) -> over their sum | v) -> @ -> proj",
    paper="arXiv:2110.15343",
    code="https://github.com/HazyResearch/fly",
    license="Apache-2.0",
    placement="in every block in place of attention, with its weights",
    avoid="where far weights must be right: random features are a weak approximation unless queries and keys are short",
    pyramid=("nano", "micro"),
    columnar=("nano", "tiny"),
    keywords=_keywords,
    cases={
        "": {"num_heads": 3, "window": (3, 3), "nb_features": 16},
        "band": {"num_heads": 3, "support": "band", "local_context": 6, "cosh": False},
        "clusters": {"num_heads": 3, "support": "clusters", "cluster_size": 8, "n_hashes": 2, "softmax_eps": 1e-3},
    },
    floor=Floor(13, 25, "k, v in, q in, o out: 4, windows once more: 3; back 7 and windows 6; projections"),
    cost="N w",
    keeps_weights=True,
    maps=True,
    discrete=True,
    reference="scatterbrain",
)
