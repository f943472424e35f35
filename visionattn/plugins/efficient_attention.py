"""Efficient Attention: Attention with Linear Complexities (WACV 2021, arXiv 1812.01243).

Official code: https://github.com/cmsflash/efficient-attention (MIT), efficient_attention.py.

Differs from the official code in:
- where there are more positions than channels, keys are summed over them before they are projected to values, and the
  reprojection is folded into that summary, so neither values nor attention's output are made: the same up to rounding;
- widths that the heads do not divide are refused (the official code drops the channels left over);
- the paper's other form, without softmaxes, and its single-head widths are arguments too.

Golden: tests/golden/efficientattention_module_*.npz (outputs and input gradients).
"""

import torch
from torch import nn

from visionattn.catalog import Card
from visionattn.ops._modes import use_eager_kernel
from visionattn.ops.layout import as_rows
from visionattn.ops.pointwise_conv import pointwise_rows
from visionattn.utils.arguments import check_choice, check_positive
from visionattn.utils.factory import FactoryKwargs

__all__ = ["EfficientAttention"]

_NORMALIZATIONS = ("softmax", "scaling")
# Channels of a head below which PyTorch's softmax of NHWC maps is slower on the CPU than with positions innermost and
# both copies: 8 channels take 11 times as long over channels and 3 times over positions, 32 take 0.8 times.
_NARROW = 16
# Numbers of a map below which the calls of `_reader` cost more than its multiplications save on the CPU: with 6,272 it
# takes 1.15 times as long, with 25,088 0.8 to 1.1 times.
_WORTHWHILE = 2**14


class EfficientAttention(nn.Module):
    """Attention of linear cost: queries read a summary of all positions. `(B, C, H, W) -> (B, C, H, W)`, any H, W >= 1.

    `x + reprojection(rho(q) (rho(k)^T v))` in each head. With `softmax`, rho is a softmax over the channels of each
    query and over the positions of each key channel, so each key channel is one map over the whole picture; with
    `scaling` it divides by the root of the number of positions, which is the non-local block's dot product exactly.

    Args:
        channels: Width of the map.
        key_channels: Width of queries and keys, all heads together; `channels // 2` (at least one a head) if None.
        head_count: Heads; the paper has one.
        value_channels: Width of the values, all heads together; as `key_channels` if None.
        normalization: `softmax` or `scaling`.
        residual: Whether the map is added, as in a non-local block.
        zero_init_last: Start the reprojection at zero, so that with `residual` nothing changes at first.

    Raises:
        ValueError: If a width or `head_count` is below 1, `head_count` does not divide a width, or `normalization` is
            unknown.
    """

    # The names are the author's.
    official_keys = ()

    def __init__(
        self,
        channels: int,
        *,
        key_channels: int | None = None,
        head_count: int = 1,
        value_channels: int | None = None,
        normalization: str = "softmax",
        residual: bool = True,
        zero_init_last: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(channels=channels, head_count=head_count)
        if key_channels is None:
            key_channels = max(channels // 2 // head_count, 1) * head_count
        value_channels = key_channels if value_channels is None else value_channels
        check_positive(key_channels=key_channels, value_channels=value_channels)
        if key_channels % head_count or value_channels % head_count:
            raise ValueError(
                f"head_count must divide key_channels and value_channels, got head_count={head_count}, "
                f"key_channels={key_channels}, value_channels={value_channels}"
            )
        check_choice("normalization", normalization, _NORMALIZATIONS)
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        self.head_count = head_count
        self.normalization = normalization
        self.residual = residual
        self.zero_last = zero_init_last  # under the argument's name timm's ResNets look for a method
        self.keys = nn.Conv2d(channels, key_channels, 1, **dd)
        self.queries = nn.Conv2d(channels, key_channels, 1, **dd)
        self.values = nn.Conv2d(channels, value_channels, 1, **dd)
        self.reprojection = nn.Conv2d(value_channels, channels, 1, **dd)
        self.reset_parameters()

    def extra_repr(self) -> str:
        return f"head_count={self.head_count}, normalization={self.normalization!r}, residual={self.residual}"

    def reset_parameters(self) -> None:
        """PyTorch's default initialisation, the official one; the reprojection's may be zero."""
        for layer in (self.keys, self.queries, self.values, self.reprojection):
            layer.reset_parameters()
        if self.zero_last:
            nn.init.zeros_(self.reprojection.weight)
            if self.reprojection.bias is not None:
                nn.init.zeros_(self.reprojection.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, axis = as_rows(x)
        keys, queries = self._keys(rows, axis), self._queries(rows, axis)
        if not self._folds(rows, axis):
            out = self._unfolded(rows, axis, keys, queries).unflatten(3 - axis, x.shape[2:])
            return out.movedim(2 * axis - 1, 1)
        # Products are taken in the order in which their results lie as the map does.
        if axis == 2:
            reader, bias = self._reader(keys.mT, rows)
            out = torch.baddbmm(rows, queries, reader) if self.residual else queries @ reader
            out = out if bias is None else out + bias
            return out.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)
        reader, bias = self._reader(keys, rows.mT)
        out = torch.baddbmm(rows, reader.mT, queries) if self.residual else reader.mT @ queries
        out = out if bias is None else out + bias[:, None]
        return out.unflatten(2, x.shape[2:])

    def attention(self, x: torch.Tensor) -> torch.Tensor:
        """The weights of positions for each key channel, `(B, key_channels, H, W)`; with `softmax` they sum to 1."""
        rows, axis = as_rows(x)
        keys = self._keys(rows, axis)
        return (keys if axis == 1 else keys.mT).unflatten(2, x.shape[2:])

    def _keys(self, rows: torch.Tensor, axis: int) -> torch.Tensor:
        """The normalised keys, in the layout of `rows`; with `scaling` including the queries' factor."""
        keys = pointwise_rows(rows, axis, *_weight_bias(self.keys))
        return _softmax(keys, axis, 1, False) if self.normalization == "softmax" else keys / rows.shape[3 - axis]

    def _queries(self, rows: torch.Tensor, axis: int) -> torch.Tensor:
        queries = pointwise_rows(rows, axis, *_weight_bias(self.queries))
        if self.normalization == "scaling":
            return queries
        return _softmax(queries, axis, self.head_count, True)

    def _folds(self, rows: torch.Tensor, axis: int) -> bool:
        """Whether `_reader` takes fewer multiplications than values and reprojection, and that is worth its calls."""
        if use_eager_kernel(rows) and rows.numel() < _WORTHWHILE:
            return False
        count = rows.shape[3 - axis]
        query, value = self.keys.out_channels, self.values.out_channels
        mixed = query * value // self.head_count
        return self.keys.in_channels * (mixed + count * (query - value)) <= count * mixed

    def _unfolded(self, rows: torch.Tensor, axis: int, keys: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
        """The attended map, lying as `rows`, product by product: for maps of few positions and many channels."""
        values = pointwise_rows(rows, axis, *_weight_bias(self.values))
        keys, queries, values = (part.unflatten(axis, (self.head_count, -1)) for part in (keys, queries, values))
        if axis == 2:
            keys, queries, values = (part.transpose(1, 2) for part in (keys, queries, values))
            out = (queries @ (keys.mT @ values)).transpose(1, 2).flatten(2)
        else:
            out = ((values @ keys.mT) @ queries).flatten(1, 2)
        out = pointwise_rows(out, axis, *_weight_bias(self.reprojection))
        return out + rows if self.residual else out

    def _reader(self, keys: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The output per unit of each query channel: `(B, key_channels, N), (B, N, C) -> (B, key_channels, C)`.

        It is `rho(k)^T v` times the reprojection. Values are linear in the map, so that is summed up in their place.
        What is left to add is the reprojection's bias; after a softmax the weights of a query add up to 1 in each head,
        so its query channels share the bias, and nothing is left.
        """
        heads, softmax = (self.head_count, -1), self.normalization == "softmax"
        weight, bias = _weight_bias(self.values)
        last, last_bias = _weight_bias(self.reprojection)
        bias = bias.unflatten(0, heads).unsqueeze(1)
        if not softmax:
            bias = bias * keys.sum(2).unflatten(1, heads).unsqueeze(3)
        context = (keys @ rows).unflatten(1, heads) @ weight.unflatten(0, heads).mT + bias
        reader = (context @ last.unflatten(1, heads).permute(1, 2, 0)).flatten(1, 2)
        return (reader + last_bias / self.head_count, None) if softmax else (reader, last_bias)


def _weight_bias(layer: nn.Conv2d) -> tuple[torch.Tensor, torch.Tensor]:
    """The matrix of a convolution of one position, and its bias."""
    assert layer.bias is not None
    return layer.weight.flatten(1), layer.bias


def _softmax(rows: torch.Tensor, axis: int, heads: int, channels: bool) -> torch.Tensor:
    """Softmax over the channels of each head, or over the positions, in the shape of `rows`."""
    if axis == 2 and rows.shape[2] // heads < _NARROW and use_eager_kernel(rows):
        return _softmax(rows.mT.contiguous(), 1, heads, channels).mT
    if not channels:
        return rows.softmax(3 - axis)
    if heads == 1:
        return rows.softmax(axis)
    return rows.unflatten(axis, (heads, -1)).softmax(axis + 1).flatten(axis, axis + 1)


CARD = Card(
    name="efficientattention",
    title="Efficient Attention: Attention with Linear Complexities",
    kind="plugin",
    factory=EfficientAttention,
    summary="attention of linear cost by softmaxes over the keys' positions and the queries' channels",
    flow="(. | (q: softmax over channels | (k: softmax over positions | v) -> @) -> @ -> reprojection) -> +",
    paper="arXiv:1812.01243",
    code="https://github.com/cmsflash/efficient-attention",
    license="MIT",
    placement="behind the last stages of a ResNet and in the levels of a feature pyramid, as a non-local block",
    avoid="where positions must read different things: all draw on the same sums over the whole map, only in "
    "other mixtures",
    hosts=("narrow",),
    cases={
        "": {"head_count": 2},
        "wide values": {"key_channels": 8, "head_count": 4, "value_channels": 32, "residual": False},
        "scaling": {"head_count": 3, "normalization": "scaling"},
    },
    maps=True,
    reference="efficient_attention",
)
