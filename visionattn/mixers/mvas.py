"""MVAS: multi-view adaptive selection (MVAD, Learning Multi-view Anomaly Detection, TMM 2025, arXiv 2407.11935).

Official code: https://github.com/lewandofskee/MVAD, model/mvad.py.

It is the routing of BiFormer between the views of an object: the views lie below each other in one map, and regions see
those of the other views.

Differs from the official code in:
- all views are taken at once; projections are an option (`proj`); a single view, or a map, sees its own regions;
- the routing is computed in float32 or wider, also under autocast.

Golden: tests/golden/mvas_*.npz (outputs, input gradients, routing).
"""

import torch
from torch import nn
from torch.nn import functional as F

from visionattn.catalog import Card
from visionattn.ops import route_regions, routed_attention
from visionattn.utils.arguments import check_heads, check_positive
from visionattn.utils.factory import FactoryKwargs

from ._common import WINDOWS

__all__ = ["MultiViewWindowAttention"]


class MultiViewWindowAttention(nn.Module):
    """Attention of each region of a view to a few regions of the other views. `(B, V, H, W, C) -> (B, V, H, W, C)`.

    Every view is cut into `n_win` by `n_win` regions. Each sees the `topk` ones of all other views whose mean fits its
    own best, the same for all heads; the choice takes no gradient. Any H, W >= 1: views are padded with zeros, which
    take part in everything. A map `(B, H, W, C)` is a single view, which sees itself. By itself it has no parameters:
    tokens are queries, keys and values.

    Args:
        dim: Width C.
        num_heads: Heads, a divisor of `dim`.
        n_win: Regions along each side of a view.
        topk: Regions that each region sees.
        proj: Whether there are projections to queries, keys and values, and one of the result.
        scale: Factor of the scores, `dim ** -0.5` if None: the official code takes the whole width, not a head's.
        qkv_bias: Whether the projection to queries, keys and values has a bias.
        attn_drop: Dropout of the attention weights.
        proj_drop: Dropout of the result.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: If an argument is out of range; in forward, if there are less than `topk` regions to see, or the
            keys have another shape.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        n_win: int = 8,
        topk: int = 16,
        proj: bool = False,
        scale: float | None = None,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        check_positive(n_win=n_win, topk=topk)
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.n_win = n_win
        self.topk = topk
        self.scale = dim**-0.5 if scale is None else scale
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **dd) if proj else None
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim, **dd) if proj else None
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: torch.Tensor, keys: torch.Tensor | None = None) -> torch.Tensor:
        """Attention between views.

        Args:
            x: The views, which ask.
            keys: What is asked, of the same shape; `x` if None. The official blocks add positions to `x` only.
        """
        qkv, region, views = self._stack(x, keys)
        out = routed_attention(
            qkv,
            route_regions(qkv, region, self.topk, views=views),
            num_heads=self.num_heads,
            region=region,
            scale=self.scale,
            dropout_p=self.attn_drop.p if self.training else 0.0,
        )
        if x.ndim == 5:
            out = out.unflatten(1, (views, -1))
        out = out[..., : x.size(-3), : x.size(-2), :]
        return self.proj_drop(out if self.proj is None else self.proj(out))

    def routing(self, x: torch.Tensor, keys: torch.Tensor | None = None) -> torch.Tensor:
        """The regions that each region sees, best first, `(B, V * n_win ** 2, topk)`: view by view, row by row."""
        qkv, region, views = self._stack(x, keys)
        return route_regions(qkv, region, self.topk, views=views)

    def _stack(self, x: torch.Tensor, keys: torch.Tensor | None) -> tuple[torch.Tensor, tuple[int, int], int]:
        """Queries, keys and values of the stacked views, the region size, and the number of views."""
        if x.ndim not in (4, 5):
            raise ValueError(f"x must be views (B, V, H, W, C) or a map (B, H, W, C), got {tuple(x.shape)}")
        if keys is not None and keys.shape != x.shape:
            raise ValueError(f"keys must have the shape of x, {tuple(x.shape)}, got {tuple(keys.shape)}")
        views = x.size(1) if x.ndim == 5 else 1
        regions = max(views - 1, 1) * self.n_win**2
        if self.topk > regions:
            raise ValueError(
                f"topk must be at most the regions to see, {regions} with n_win={self.n_win} and {views} views, "
                f"got {self.topk}"
            )
        region = (-(-x.size(-3) // self.n_win), -(-x.size(-2) // self.n_win))
        padding = (0, 0, 0, region[1] * self.n_win - x.size(-2), 0, region[0] * self.n_win - x.size(-3))
        asks, asked = (None if t is None else F.pad(t, padding) if any(padding) else t for t in (x, keys))
        assert asks is not None
        if self.qkv is None:
            asked = asks if asked is None else asked
            qkv = torch.cat([asks, asked, asked], -1)
        elif asked is None:
            qkv = self.qkv(asks)
        else:
            parts = (x.size(-1), 2 * x.size(-1))
            biases = (None, None) if self.qkv.bias is None else self.qkv.bias.split(parts)
            weights = self.qkv.weight.split(parts)
            both = zip((asks, asked), weights, biases, strict=True)
            qkv = torch.cat([F.linear(part, weight, bias) for part, weight, bias in both], -1)
        return qkv if x.ndim == 4 else qkv.flatten(1, 2), region, views


CARD = Card(
    name="mvas",
    title="MVAS: multi-view adaptive selection",
    kind="mixer",
    factory=MultiViewWindowAttention,
    summary="attention of each region of a view of an object to the few regions of its other views that fit it best",
    flow="((q of a region | <views> -> k of the regions that fit) -> @ -> softmax | v of the same regions) -> @",
    paper="arXiv:2407.11935",
    code="https://github.com/lewandofskee/MVAD",
    placement="between the features of several views of an object, at each of their scales",
    avoid="on single pictures: it compares several views of one object",
    floor=WINDOWS,
    cost="N w",
    discrete=True,
    further_inputs=("views",),
    reference="mvas",
)
