"""Star attention: blocks attend to themselves and to a shared anchor (arXiv 2411.17116).

Official code: https://github.com/NVIDIA/Star-Attention (Apache-2.0), model.py: inference of language models on several
hosts, where the anchor is the first block of the text.

Differs from the official code in: a form for images (ours): blocks are windows of a map, and the anchor is the pooled
map or the window in its middle. The second phase, in which further tokens see everything, is what extra tokens get
where a mixer of maps stands in a network that has some.

Golden: tests/golden/star_*.npz (outputs and input gradients of an independent implementation).
"""

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional as F

from visionattn.catalog import Card
from visionattn.ops import Windows, attention, merge_windows, partition_windows
from visionattn.utils.arguments import check_choice, check_heads, pair
from visionattn.utils.factory import FactoryKwargs

from ._common import WINDOWS, convert_when_loading, join_projections, split_heads, usual_window

__all__ = ["StarAttention"]


class StarAttention(nn.Module):
    """Softmax attention of each window to itself and to anchor tokens. `(B, H, W, C) -> (B, H, W, C)`, any H, W >= 1.

    The cost is linear in the positions, and yet everything reaches every token with `anchor="pool"`.

    Args:
        dim: Width C.
        num_heads: Heads, a divisor of `dim`.
        window: Height and width of a window, or one number for both. The last windows of a map may be smaller.
        anchor: `pool`: the map, pooled; `window`: the window with the position (H // 2, W // 2), whose own tokens see
            it once.
        anchor_size: Height and width of the pooled map, or one number for both.
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
        window: int | tuple[int, int] = 7,
        anchor: str = "pool",
        anchor_size: int | tuple[int, int] = 2,
        qkv_bias: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        check_choice("anchor", anchor, ("pool", "window"))
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.window = pair("window", window)
        self.anchor = anchor
        self.anchor_size = pair("anchor_size", anchor_size)
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **dd)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)
        convert_when_loading(self)

    @staticmethod
    def to_native(state_dict: Mapping[str, torch.Tensor], prefix: str = "") -> dict[str, torch.Tensor]:
        """Weights with layers `q`, `k` and `v` under the names used here; other entries as they are.

        Args:
            state_dict: The weights.
            prefix: What the names of this module's entries begin with.
        """
        return join_projections(state_dict, prefix, ("q", "k", "v"))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size = (x.shape[1], x.shape[2])
        q, k, v, mask = self._parts(x)
        out = attention(q, k, v, mask=mask, dropout_p=self.attn_drop.p if self.training else 0.0)
        return self.proj_drop(merge_windows(self.proj(out), size, self.window))

    def weights(self, x: torch.Tensor) -> torch.Tensor:
        """The attention weights, `(B, num_heads, N, N)`, of a map `(B, H, W, C)`."""
        size, count = (x.shape[1], x.shape[2]), x.shape[1] * x.shape[2]
        q, k, _, mask = self._parts(x)
        scores = q @ k.mT * q.shape[-1] ** -0.5
        rows = (scores if mask is None else scores.masked_fill(~mask, float("-inf"))).softmax(-1)
        tokens = Windows(size, self.window).tokens(x.device)
        blocks, slots = tokens.shape
        own, anchors = rows.unflatten(0, (-1, blocks)).split((slots, k.shape[2] - slots), -1)  # (B, U, heads, n, .)
        full = own.new_zeros(*own.shape[:-1], count + 1)  # the last for empty slots
        full = full.scatter_add(-1, tokens[None, :, None, None].expand_as(own), own)
        if self.anchor == "pool":
            pooled = self._pooled(torch.eye(count, device=x.device, dtype=rows.dtype).view(1, *size, count))
            full = torch.cat([full[..., :count] + anchors @ pooled.flatten(1, 2), full[..., count:]], -1)
        elif anchors.shape[-1]:
            place = tokens[self._middle(size)].expand_as(anchors)
            full = full.scatter_add(-1, place, anchors)
        order = tokens.flatten().argsort()[:count]
        return full.transpose(1, 2).flatten(2, 3)[:, :, order, :count]

    def _parts(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Queries, keys and values of the windows and anchors, `(B * U, heads, n, d)`, and the visibility mask."""
        size = (x.shape[1], x.shape[2])
        windows = self.qkv(partition_windows(x, self.window))
        q, k, v = split_heads(windows, self.num_heads)
        height, width = (-(-side // by) for side, by in zip(size, self.window, strict=True))
        blocks = height * width
        if self.anchor == "pool":
            weight, bias = self.qkv.weight.chunk(3)[1:], self.qkv.bias
            tokens = self._pooled(x).flatten(1, 2)
            both = F.linear(tokens, torch.cat(weight), None if bias is None else bias[x.shape[-1] :])
            more = both.unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        elif blocks > 1:
            more = tuple(part.unflatten(0, (-1, blocks))[:, self._middle(size)] for part in (k, v))
        else:
            more = None
        mask = self._seen(size, 0 if more is None else more[0].shape[2], x.device)
        if more is not None:
            k, v = (
                torch.cat([part, add.unsqueeze(1).expand(-1, blocks, -1, -1, -1).flatten(0, 1)], 2)
                for part, add in zip((k, v), more, strict=True)
            )
        if mask is not None:
            mask = mask[:, None, None].expand(x.shape[0], -1, -1, -1, -1).flatten(0, 1)
        return q, k, v, mask

    def _pooled(self, x: torch.Tensor) -> torch.Tensor:
        """The map, pooled to the size of the anchor."""
        return F.adaptive_avg_pool2d(x.permute(0, 3, 1, 2), self.anchor_size).permute(0, 2, 3, 1)

    def _middle(self, size: tuple[int, int]) -> int:
        """The index of the central window of a map."""
        row, column = (side // 2 // by for side, by in zip(size, self.window, strict=True))
        return row * -(-size[1] // self.window[1]) + column

    def _seen(self, size: tuple[int, int], anchors: int, device: torch.device) -> torch.Tensor | None:
        """The keys visible to the queries of each window, `(U, n + anchors)`; None: all."""
        even = all(side % by == 0 for side, by in zip(size, self.window, strict=True))
        if even and (self.anchor == "pool" or not anchors):
            return None
        real = Windows(size, self.window).tokens(device) < size[0] * size[1]
        if self.anchor == "pool":
            return F.pad(real, (0, anchors), value=True)
        if not anchors:
            return real
        middle = self._middle(size)
        others = torch.arange(real.shape[0], device=device) != middle
        return torch.cat([real, real[middle] & others.unsqueeze(1)], -1)


CARD = Card(
    name="star",
    title="Star attention",
    kind="mixer",
    factory=StarAttention,
    summary="attention in windows that all see one anchor too: the pooled map or the window in the middle",
    flow="cut into windows, each with the anchor -> ((q | k) -> @ -> softmax | v) -> @ -> proj -> join windows",
    paper="arXiv:2411.17116",
    code="https://github.com/NVIDIA/Star-Attention",
    license="Apache-2.0",
    placement="in every block in place of attention",
    avoid="where far detail matters: of other windows a position sees one anchor, pooled or from the middle",
    pyramid=("nano", "micro"),
    keywords=usual_window,
    cases={
        "": {"num_heads": 3, "window": 4},
        "window": {"num_heads": 3, "window": (4, 3), "anchor": "window"},
    },
    floor=WINDOWS,
    cost="N w",
    keeps_weights=True,
    maps=True,
    reference="star",
)
