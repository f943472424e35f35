"""DaViT: attention between tokens in windows and between channels in groups (ECCV 2022, arXiv 2204.03645).

Official code: https://github.com/dingmyu/davit (MIT), davit.py.

Differs from the official code in:
- padded tokens can be left out of the windows;
- with many tokens the channel attention is made of their second moments, so neither queries, keys nor values exist:
  equal in exact arithmetic, and closer to it in half precision, where the scores are sums over all tokens;
- the scale of the channel attention can take the number of tokens into account.

Golden: tests/golden/davit_{chanattn,winattn}_module_*.npz (outputs and input gradients).
"""

from typing import Any

import torch
from torch import nn

from visionattn.catalog import BlockContext, Card, Floor
from visionattn.ops import channel_attention, prefer_moments, projected_channel_attention
from visionattn.utils.arguments import check_choice, check_heads
from visionattn.utils.factory import FactoryKwargs

from ._common import WINDOWS, WindowMixer
from ._position import PositionConv

__all__ = ["ChannelAttention", "SpatialWindowAttention"]

# Which of q, k, v stands for the rows of the scores, which for their columns, which is mixed. The official code scores
# its keys against its values and mixes its queries.
_ROLES = {"dim": (1, 2, 0), "tokens": (0, 1, 2)}


class SpatialWindowAttention(WindowMixer):
    """Softmax attention in windows side by side. `(B, H, W, C) -> (B, H, W, C)`, any H, W >= 1.

    Args:
        dim: Width of the tokens.
        num_heads: Number of heads, a divisor of `dim`.
        window_size: Height and width of a window in tokens, or one number for both.
        qkv_bias: Whether the projection to queries, keys and values has a bias.
        attn_drop: Dropout rate of the attention weights.
        proj_drop: Dropout rate of the result.
        pad_mask: `none`: padded tokens take part, as in the official code. `exact`: the tokens of the map leave them
            out.

    Raises:
        ValueError: If an argument is out of range.
    """


class ChannelAttention(nn.Module):
    """Softmax attention between the channels of each group, over the whole map. `(B, H, W, C) -> (B, H, W, C)`.

    Any H, W >= 1, at a cost linear in their product.

    Args:
        dim: Width of the tokens.
        num_heads: Number of groups, a divisor of `dim`.
        qkv_bias: Whether the projection to queries, keys and values has a bias.
        attn_drop: Dropout rate of the attention weights.
        proj_drop: Dropout rate of the result.
        scale: What the scores, which are sums over all tokens, are divided by the root of. `dim`: the width of a group,
            as officially, so that the softmax sharpens as maps grow. `tokens`: the number of tokens; queries, keys and
            values then have their ordinary roles, as in Florence-2's networks.
        moments: Whether to work on the second moments of the tokens, where the weights of `qkv` and `proj` are read but
            the layers not called, so that hooks and adapters on them see nothing. None: where that is faster.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        scale: str = "dim",
        moments: bool | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        check_choice("scale", scale, _ROLES)
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.scale = scale
        self.moments = moments
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **dd)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.flatten(1, 2)
        count, dim = tokens.shape[1:]
        arguments = {
            "num_heads": self.num_heads,
            "scale": (dim // self.num_heads if self.scale == "dim" else count) ** -0.5,
            "roles": _ROLES[self.scale],
            "dropout_p": self.attn_drop.p if self.training else 0.0,
        }
        moments = prefer_moments(count, dim) if self.moments is None else self.moments
        if moments:
            layers = (self.qkv.weight, self.qkv.bias, self.proj.weight, self.proj.bias)
            out = projected_channel_attention(tokens, *layers, **arguments)
        else:
            out = self.proj(channel_attention(self.qkv(tokens), **arguments))
        return self.proj_drop(out.view(x.shape))


_DAVIT: dict[str, Any] = {
    "kind": "mixer",
    "paper": "arXiv:2204.03645",
    "code": "https://github.com/dingmyu/davit",
    "license": "MIT",
}


def _mixers(context: BlockContext, **dd: Any) -> dict[str, nn.Module]:
    return (_WINDOWS, _CHANNELS)[context.block % 2].build_mixers(context, **dd)


def _position(context: BlockContext, **dd: Any) -> nn.Module:
    return PositionConv(context.dim, **dd)


_WINDOWS = Card(
    **_DAVIT,
    name="davit_windows",
    title="DaViT: spatial window attention",
    factory=SpatialWindowAttention,
    summary="attention in windows side by side",
    flow="cut into windows -> ((q | k) -> @ -> softmax | v) -> @ -> proj -> join windows",
    placement="in every first of two blocks",
    avoid="alone: windows stand side by side and never move, so nothing passes from one to the next",
    cases={"": {"num_heads": 3, "window_size": 4}},
    floor=WINDOWS,
    cost="N w",
    keeps_weights=True,
    maps=True,
    reference="window",
)
_CHANNELS = Card(
    **_DAVIT,
    name="davit_channels",
    title="DaViT: channel group attention",
    factory=ChannelAttention,
    summary="attention between the channels of a group, over the whole map",
    flow="((channels of q | channels of k) -> @ -> softmax | channels of v) -> @ -> proj",
    placement="in every second of two blocks",
    avoid="alone: channels are compared over the whole map, and no position ever reads another one",
    # The official code drops no attention weights here.
    keywords=lambda context: {"attn_drop": 0.0},
    cases={"": {"num_heads": 3}},
    floor=Floor(3, 5, "x' x from R, then R and W: no projected map; back R x, R dy twice, W dx"),
    reference="davit",
)
CARDS = (
    Card(
        **_DAVIT,
        name="davit",
        title="DaViT: windows and channels in turns",
        factory=None,
        summary="attention between tokens in windows and between channels in groups, in turns",
        flow="softmax attention in windows -> softmax attention between channels",
        placement="in every block in place of attention",
        avoid="where maps of all layers are wanted: every other block mixes channels and has no weights between places",
        pyramid=("nano", "micro", "tiny", "small", "base"),
        mixers=_mixers,
        position=_position,
        cost="N w",
        maps=True,
    ),
    _WINDOWS,
    _CHANNELS,
)
