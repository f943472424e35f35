"""BiFormer: bi-level routing attention (CVPR 2023, arXiv 2303.08810).

Official code: https://github.com/rayleizhu/BiFormer (MIT), ops/bra_legacy.py and ops/bra_nchw.py, and
models/_common.py for the attention of the last stage.

Differs from the official code in:
- maps are channels-last in both forms, and sides that the regions do not divide are always padded;
- the weights of the regions, which no published network uses, are left out, as are pooled keys and values;
- the routing is computed in float32 or wider, also under autocast;
- queries, keys and values are one layer `qkv`, the last projection is `proj` (`to_native` maps both official formats).

Golden: tests/golden/bra_*.npz and biformer_attnlepe_*.npz (outputs, input gradients, routing).
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from visionattn.catalog import BlockContext, Card, Floor
from visionattn.ops import (
    attention,
    nhwc_conv,
    region_pairs,
    route_regions,
    routed_attention,
    routed_self_attention,
)
from visionattn.utils.arguments import check_choice, check_heads, check_odd, check_positive

from ._common import split_heads
from .softmax import SoftmaxAttention

__all__ = ["BiLevelRoutingAttention", "LePEAttention"]

_OFFICIAL = (("qkv.qkv.", "qkv."), ("qkv_linear.", "qkv."), ("wo.", "proj."), ("output_linear.", "proj."))


class BiLevelRoutingAttention(nn.Module):
    """Attention of each region's tokens to those of a few regions. `(B, H, W, C) -> (B, H, W, C)`, any H, W >= 1.

    The map is cut into `n_win` by `n_win` regions. Each sees the `topk` ones whose mean key fits its mean query best,
    the same for all heads; the choice takes no gradient. A depthwise convolution of the values is added (LePE).

    Args:
        dim: Width of the tokens.
        num_heads: Number of heads, a divisor of `dim`.
        n_win: Regions along each side of the map: their number stays, their size follows the map.
        topk: Regions that each region sees, at most `n_win ** 2`.
        lepe: Side of the convolution of the values, odd; 0 leaves it out. The published networks have 5.
        scale: Factor of the scores, `dim ** -0.5` if None: the official code takes the whole width, not a head's.
        form: What happens to sides that `n_win` does not divide. `legacy`, of the published networks: the map is padded
            with zeros to `n_win` regions before the projection, and the padded tokens, which have the projection's bias
            as query, key and value, take part in everything. `nchw`: regions have `H // n_win` by `W // n_win` tokens,
            and there are as many as cover the map; queries, keys and values are padded with zeros, which the means of
            the regions leave out, but not the attention. Without padding both are the same.
        qkv_bias: Whether the projection to queries, keys and values has a bias.
        attn_drop: Dropout rate of the attention weights.
        proj_drop: Dropout rate of the result.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: If an argument is out of range; in forward, if `nchw` gets a side of less than `n_win` tokens.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        n_win: int = 7,
        topk: int = 4,
        lepe: int = 3,
        scale: float | None = None,
        form: str = "legacy",
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        check_positive(n_win=n_win)
        if not 1 <= topk <= n_win**2:
            raise ValueError(f"topk must be from 1 to the number of regions, {n_win**2}, got {topk}")
        if lepe:
            check_odd(lepe=lepe)
        check_choice("form", form, ("legacy", "nchw"))
        self.num_heads = num_heads
        self.n_win = n_win
        self.topk = topk
        self.scale = dim**-0.5 if scale is None else scale
        self.form = form
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **dd)
        self.lepe = nn.Conv2d(dim, dim, lepe, padding=lepe // 2, groups=dim, **dd) if lepe else None
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

    @staticmethod
    def to_native(state_dict: Mapping[str, torch.Tensor], prefix: str = "") -> dict[str, torch.Tensor]:
        """Official weights of either form under the names used here; other entries as they are.

        Args:
            state_dict: Weights in the official format.
            prefix: What the names of this module's entries begin with.
        """
        native = {}
        for key, value in state_dict.items():
            for official, own in _OFFICIAL:
                if key.startswith(prefix + official):
                    key = prefix + own + key.removeprefix(prefix + official)
                    value = value.flatten(1) if value.ndim == 4 else value  # pointwise convolutions
                    break
            native[key] = value
        return native

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        region, whole = self._regions(x)
        settings: dict[str, Any] = {
            "num_heads": self.num_heads,
            "region": region,
            "scale": self.scale,
            "convolution": None if self.lepe is None else (self.lepe.weight, self.lepe.bias),
            "dropout_p": self.attn_drop.p if self.training else 0.0,
        }
        if self.form == "legacy" or whole == x.shape[1:3]:
            out = routed_self_attention(_pad(x, *whole), self.qkv, topk=self.topk, **settings)
        else:
            qkv, table = self._routed(x, region, whole)
            out = routed_attention(qkv, table, **settings)
        if out.shape[1:3] != x.shape[1:3]:
            out = out[:, : x.size(1), : x.size(2)]
        return self.proj_drop(self.proj(out))

    def routing(self, x: torch.Tensor) -> torch.Tensor:
        """The regions that each region attends to, best first, `(B, regions, topk)`; indexed row by row."""
        return self._routed(x, *self._regions(x))[1]

    def weights(self, x: torch.Tensor) -> torch.Tensor:
        """What each position takes from each besides the convolution, `(B, num_heads, N, N)`, from `(B, H, W, C)`.

        It is zero between regions that are not chosen. The rows sum up to what the padding leaves.
        """
        region, whole = self._regions(x)
        qkv, table = self._routed(x, region, whole)
        q, k, _ = split_heads(qkv.flatten(1, 2), self.num_heads)
        scores = (q @ k.mT * self.scale).masked_fill(~region_pairs(table, whole, region).unsqueeze(1), float("-inf"))
        rows = scores.softmax(-1).unflatten(3, whole).unflatten(2, whole)
        height, width = x.shape[1:3]
        return rows[:, :, :height, :width, :height, :width].flatten(4).flatten(2, 3)

    def _regions(self, x: torch.Tensor) -> tuple[tuple[int, int], tuple[int, int]]:
        """Height and width of a region, and of the map of whole regions."""
        size = (x.size(1), x.size(2))
        if self.form == "nchw" and min(size) < self.n_win:
            raise ValueError(
                f"n_win must be at most the sides of the map with form='nchw', got n_win={self.n_win} and a map of "
                f"{size[0]} x {size[1]}"
            )
        height, width = (-(-side // self.n_win) if self.form == "legacy" else side // self.n_win for side in size)
        if self.form == "legacy":
            return (height, width), (height * self.n_win, width * self.n_win)
        return (height, width), (-(-size[0] // height) * height, -(-size[1] // width) * width)

    def _routed(
        self, x: torch.Tensor, region: tuple[int, int], whole: tuple[int, int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries, keys and values of whole regions, and the regions that each one sees."""
        if self.form == "legacy":
            qkv = self.qkv(_pad(x, *whole))
            return qkv, route_regions(qkv, region, self.topk)
        qkv = _pad(self.qkv(x), *whole)
        return qkv, route_regions(qkv, region, self.topk, (x.size(1), x.size(2)))


class LePEAttention(SoftmaxAttention):
    """Softmax attention and a depthwise convolution beside it: BiFormer's last stage. `(B, H, W, C) -> (B, H, W, C)`.

    Args:
        dim: Width of the tokens.
        num_heads: Number of heads, a divisor of `dim`; the published networks have 8 at any width.
        lepe: Side of the convolution, odd.
        lepe_on: What the convolution sees: the `input`, as the channels-last code has it, or the `values`.
        qkv_bias: Whether the projection to queries, keys and values has a bias.
        attn_drop: Dropout rate of the attention weights.
        proj_drop: Dropout rate of the result.
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
        lepe: int = 5,
        lepe_on: str = "input",
        qkv_bias: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(dim, num_heads=num_heads, qkv_bias=qkv_bias, attn_drop=attn_drop, proj_drop=proj_drop, **dd)
        check_odd(lepe=lepe)
        check_choice("lepe_on", lepe_on, ("input", "values"))
        self.lepe_on = lepe_on
        self.lepe = nn.Conv2d(dim, dim, lepe, padding=lepe // 2, groups=dim, **dd)

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
            grid: `(H, W)`.
            prefix: Number of extra tokens, which the convolution leaves out.
            rotate: As in softmax attention.
            bias: As in softmax attention.
        """
        q, k, v = self._heads(x)
        if rotate is not None:
            q, k = rotate(q), rotate(k)
        source = x if self.lepe_on == "input" else v.transpose(1, 2).flatten(2)
        local = nhwc_conv(
            source[:, prefix:].unflatten(1, grid),
            self.lepe.weight,
            self.lepe.bias,
            padding=self.lepe.kernel_size[0] // 2,
            groups=x.size(2),
        ).flatten(1, 2)
        if prefix:
            local = F.pad(local, (0, 0, prefix, 0))
        out = attention(q, k, v, mask=bias, dropout_p=self.attn_drop.p if self.training else 0.0)
        return self.proj_drop(self.proj(out + local))


def _pad(x: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """A map with zeros at the right and the bottom up to this size."""
    down, right = height - x.size(1), width - x.size(2)
    return F.pad(x, (0, 0, 0, right, 0, down)) if down or right else x


def _keywords(context: BlockContext) -> dict[str, Any]:
    """The paper's numbers of regions by stage, limited to the side of the map."""
    side = min(7, *(context.grid or (7, 7)))
    return {"lepe": 5, "n_win": side, "topk": min((1, 4, 16, 49)[context.stage], side**2)}


CARD = Card(
    name="biformer",
    title="BiFormer: bi-level routing attention",
    kind="mixer",
    factory=BiLevelRoutingAttention,
    summary="attention of each region to the few regions whose mean keys fit its mean query best",
    flow=(
        "(((q | k of the regions that fit) -> @ -> softmax | v of the same regions) -> @ | v -> depthwise conv) "
        "-> + -> proj"
    ),
    paper="arXiv:2303.08810",
    code="https://github.com/rayleizhu/BiFormer",
    license="MIT",
    placement="in every block in place of attention, with more regions from stage to stage; in the last stage all",
    avoid="on small maps, where finding the regions costs more than attention of all pairs, and where the choice "
    "must be learnt: it takes no gradient",
    pyramid=("nano", "micro", "tiny"),
    keywords=_keywords,
    cases={"": {"num_heads": 3, "n_win": 4, "topk": 3}},
    floor=Floor(14, 25, "windows, k, v once more by region means and v for the convolution, forward and back"),
    cost="N w, N^2 for a fixed number of regions",
    memory="N",
    keeps_weights=True,
    maps=True,
    discrete=True,
    reference="biformer",
)
