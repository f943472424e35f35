"""FLatten: focused linear attention (ICCV 2023, arXiv 2308.00442).

Official code: https://github.com/LeapLabTHU/FLatten-Transformer (no licence file), models/flatten_*.py.

Differs from the official code in:
- one class serves the four hosts (Swin, PVT, PVTv2, CSwin), on any map; the positional encoding is interpolated to the
  map in the forward pass, as the official loader does once;
- q, k and v are one layer `qkv` everywhere (`to_native` joins PVT's `q` and `kv`);
- CSwin's two depthwise convolutions of the values are one, with the sum of their kernels;
- with reduced keys, the values return to the full map in two dimensions, not along the flattened index
  (`legacy_interpolation` does that);
- the power is taken of the direction of a token, which neither overflows nor vanishes, and half precision attends in
  float32;
- windows may reach beyond the map, where keys have next to no weight.

Golden: tests/golden/flatten_*_module_*.npz (outputs and input gradients).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from visionattn.catalog import BlockContext, Card, Floor
from visionattn.ops import focused_attention, focused_features, nhwc_conv
from visionattn.ops._dispatch import wants_kernels
from visionattn.ops.focused_attention import split_parts
from visionattn.utils.arguments import check_heads, check_positive, pair
from visionattn.utils.factory import FactoryKwargs

__all__ = ["FocusedLinearAttention"]

# A key that the ReLU shuts, wherever a positional encoding may lift it: its weight is that of the 1e-6 alone.
_SHUT = -1e4


class FocusedLinearAttention(nn.Module):
    """Linear attention with sharpened features and a convolution of the values. `(B, H, W, C) -> (B, H, W, C)`.

    The cost is linear in the positions, so that every one can attend to the whole map. Any H, W >= 1.

    Args:
        dim: Width C.
        num_heads: Heads, a divisor of `dim`.
        grid_size: Rows and columns of the map for which the positional encoding of the keys is stored; it is
            interpolated to others. None leaves the encoding out.
        focusing_factor: Power of the features, at least 1; more sharpens the attention.
        kernel_size: Side of the depthwise convolution of the values, odd. Its kernels are shared by the heads.
        lepe: Add a 3x3 depthwise convolution of the values with kernels of its own for each channel (CSwin).
        window_size: Rows and columns of the windows to attend in, at most the map; None for the whole map.
        sr_ratio: Keys and values come from a map reduced by this factor in both directions (PVT).
        pool_size: Keys and values come from a map pooled to this side ("linear" PVTv2, which takes 7).
        legacy_interpolation: Bring reduced values back to the map along the flattened index, as the official code does.
        qkv_bias: Whether the projections to q, k and v have biases.
        proj_drop: Dropout after the output projection.

    Raises:
        ValueError: If an argument is out of range, or several of `window_size`, `sr_ratio` and `pool_size` are used.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        grid_size: int | tuple[int, int] | None = None,
        focusing_factor: int = 3,
        kernel_size: int = 5,
        lepe: bool = False,
        window_size: int | tuple[int, int] | None = None,
        sr_ratio: int = 1,
        pool_size: int | None = None,
        legacy_interpolation: bool = False,
        qkv_bias: bool = True,
        proj_drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        if focusing_factor < 1 or focusing_factor != int(focusing_factor):
            raise ValueError(f"focusing_factor must be an integer of at least 1, got {focusing_factor}")
        smallest = 3 if lepe else 1
        if kernel_size < smallest or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd and at least {smallest} (lepe={lepe}), got {kernel_size}")
        check_positive(sr_ratio=sr_ratio, pool_size=1 if pool_size is None else pool_size)
        if (window_size is not None) + (sr_ratio > 1) + (pool_size is not None) > 1:
            raise ValueError(
                "only one of window_size, sr_ratio and pool_size can be used, got "
                f"window_size={window_size}, sr_ratio={sr_ratio}, pool_size={pool_size}"
            )
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.focusing_factor = int(focusing_factor)
        self.window_size = None if window_size is None else pair("window_size", window_size)
        self.sr_ratio = sr_ratio
        self.pool_size = pool_size
        self.legacy_interpolation = legacy_interpolation
        self.grid_size = None if grid_size is None else pair("grid_size", grid_size)
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **dd)
        reduced = sr_ratio > 1 or pool_size is not None
        self.sr = nn.Conv2d(dim, dim, sr_ratio, stride=sr_ratio, **dd) if reduced else None
        self.norm = nn.LayerNorm(dim, **dd) if reduced else None
        self.scale = nn.Parameter(torch.empty(1, 1, dim, **dd))
        if self.grid_size is None:
            self.register_parameter("positional_encoding", None)
        else:
            # Of the keys' map.
            height, width = (pool_size or max(side // sr_ratio, 1) for side in self.grid_size)
            self.grid_size = (height, width)
            self.positional_encoding = nn.Parameter(torch.empty(1, height * width, dim, **dd))
        head_dim = dim // num_heads
        self.dwc = nn.Conv2d(head_dim, head_dim, kernel_size, padding=kernel_size // 2, groups=head_dim, **dd)
        self.get_v = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, **dd) if lepe else None
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)
        self.init_weights()

    def init_weights(self) -> None:
        """The official initialisation of parameters outside layers: zero."""
        nn.init.zeros_(self.scale)
        if self.positional_encoding is not None:
            nn.init.zeros_(self.positional_encoding)

    @staticmethod
    def to_native(state_dict: Mapping[str, torch.Tensor], prefix: str = "") -> dict[str, torch.Tensor]:
        """Official weights under the names used here; other entries as they are.

        Args:
            state_dict: Weights in the format of any of the official hosts.
            prefix: What the names of this module's entries begin with. For CSwin, the name of the block.
        """
        inner = f"{prefix}attns.0."
        native = {prefix + k[len(inner) :] if k.startswith(inner) else k: v for k, v in state_dict.items()}
        for kind in ("weight", "bias"):
            if f"{prefix}q.{kind}" in native:
                native[f"{prefix}qkv.{kind}"] = torch.cat(
                    [native.pop(f"{prefix}{name}.{kind}") for name in ("q", "kv")]
                )
        return native

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj_drop(self.proj(self.attend(*self._project(x))))

    def weights(self, x: torch.Tensor) -> torch.Tensor:
        """What each position takes from each before the convolution, `(B, num_heads, N, M)`, from `(B, H, W, C)`.

        M is N unless keys come from a reduced map.
        """
        q, k, _ = split_parts(*self._project(x))
        if self.window_size is None:
            return self._weights(q, k)
        batch, height, width, _ = x.shape
        size = (min(height, self.window_size[0]), min(width, self.window_size[1]))
        inside = self._weights(_windows(q, size), _windows(k, size, _SHUT)).unflatten(0, (batch, -1))
        places = torch.arange(1, height * width + 1, device=x.device).view(1, height, width, 1)
        at = _windows(places, size).flatten(1)  # 0: padding
        result = inside.new_zeros(batch, self.num_heads, height * width + 1, height * width + 1)
        for window, numbers in enumerate(at):
            result[:, :, numbers[:, None], numbers] = inside[:, window]
        return result[:, :, 1:, 1:]

    def _weights(self, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        """Of maps whose positions all see each other."""
        keys, encoding = k.flatten(1, 2), self._encoding(k.shape[1:3])
        keys = keys if encoding is None else keys + encoding
        features = (
            focused_features(part, self.scale.flatten(), self.focusing_factor) for part in (q.flatten(1, 2), keys)
        )
        first, second = (part.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for part in features)
        scores = first @ second.mT
        return scores / (scores.sum(-1, keepdim=True) + 1e-6 * scores.shape[-1])

    def _project(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Queries, keys and values as maps; one map of all three where one product is quicker."""
        if self.sr is None and (not x.is_cpu or wants_kernels()):
            return self.qkv(x), None, None
        # Three products: parts of one product are no maps of their own, but would be copied to such.
        weights = self.qkv.weight.chunk(3)
        biases = (None,) * 3 if self.qkv.bias is None else self.qkv.bias.chunk(3)
        source = self._reduce(x) if self.sr is not None else x
        q, k, v = (F.linear(t, w, b) for t, w, b in zip((x, source, source), weights, biases, strict=True))
        return q, k, v

    def attend(self, q: torch.Tensor, k: torch.Tensor | None = None, v: torch.Tensor | None = None) -> torch.Tensor:
        """Everything between the projections. Maps `(B, H, W, C)`, those of k and v perhaps smaller; as q.

        Or q alone, with all three, `(B, H, W, 3 * C)`.
        """
        if self.window_size is None:
            return self._attend(q, k, v)
        q, k, v = split_parts(q, k, v)
        size = (min(q.shape[1], self.window_size[0]), min(q.shape[2], self.window_size[1]))
        out = self._attend(_windows(q, size), _windows(k, size, _SHUT), _windows(v, size))
        return _from_windows(out, q.shape)

    def _attend(self, q: torch.Tensor, k: torch.Tensor | None, v: torch.Tensor | None) -> torch.Tensor:
        weight, bias = self._convolution()
        reduced = v is not None and v.shape != q.shape
        out = focused_attention(
            *(t if t is None else t.flatten(1, 2) for t in (q, k, v)),
            self.scale.flatten(),
            self._encoding((q if k is None else k).shape[1:3]),
            num_heads=self.num_heads,
            focusing_factor=self.focusing_factor,
            convolution=None if reduced else (weight, bias),
            grid=tuple(q.shape[1:3]),
        ).unflatten(1, q.shape[1:3])
        if v is None or not reduced:
            return out
        restored = self._restore(v, q.shape)
        return nhwc_conv(restored, weight, bias, padding=weight.size(3) // 2, groups=q.size(3)) + out

    def _reduce(self, x: torch.Tensor) -> torch.Tensor:
        assert self.sr is not None and self.norm is not None
        x = x.permute(0, 3, 1, 2)
        if self.pool_size is not None:
            x = F.adaptive_avg_pool2d(x, self.pool_size)
        # Maps below the ratio become one position.
        pad = [max(self.sr_ratio - side, 0) for side in x.shape[2:]]
        x = self.norm(self.sr(F.pad(x, (0, pad[1], 0, pad[0])) if any(pad) else x).permute(0, 2, 3, 1))
        return x if self.pool_size is None else F.gelu(x)

    def _encoding(self, size: torch.Size) -> torch.Tensor | None:
        encoding: torch.Tensor | None = self.positional_encoding
        if encoding is not None and tuple(size) != self.grid_size:
            encoding = _resize(encoding.unflatten(1, self.grid_size), size, "bicubic").flatten(1, 2)
        return None if encoding is None else encoding.squeeze(0)

    def _restore(self, v: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        if self.legacy_interpolation:
            rows = F.interpolate(v.flatten(1, 2).mT, shape[1] * shape[2], mode="linear", align_corners=False)
            return rows.mT.unflatten(1, tuple(shape[1:3]))
        return _resize(v, shape[1:3], "bilinear")

    def _convolution(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight and bias over the channels of all heads."""
        assert self.dwc.bias is not None
        weight, bias = self.dwc.weight.repeat(self.num_heads, 1, 1, 1), self.dwc.bias.repeat(self.num_heads)
        if self.get_v is not None:
            assert self.get_v.bias is not None
            # Convolutions of the same map add up to one with the sum of the kernels.
            weight = weight + F.pad(self.get_v.weight, [self.dwc.kernel_size[0] // 2 - 1] * 4)
            bias = bias + self.get_v.bias
        return weight, bias


def _resize(x: torch.Tensor, size: torch.Size, mode: str) -> torch.Tensor:
    x = F.interpolate(x.permute(0, 3, 1, 2), tuple(size), mode=mode, align_corners=False)
    return x.permute(0, 2, 3, 1)


def _windows(x: torch.Tensor, size: tuple[int, int], value: float = 0.0) -> torch.Tensor:
    """`(B, H, W, C) -> (B * windows, *size, C)`, with a value at positions beyond the map."""
    pad = [-side % window for side, window in zip(x.shape[1:3], size, strict=True)]
    if any(pad):
        x = F.pad(x, (0, 0, 0, pad[1], 0, pad[0]), value=value)
    x = x.unflatten(2, (-1, size[1])).unflatten(1, (-1, size[0]))
    return x.transpose(2, 3).flatten(0, 2)


def _from_windows(x: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """The map of this shape from its windows."""
    batch, height, width, _ = shape
    rows, columns = (-(-side // window) for side, window in zip((height, width), x.shape[1:3], strict=True))
    x = x.unflatten(0, (batch, rows, columns)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
    return x[:, :height, :width]


def _keywords(context: BlockContext) -> dict[str, Any]:
    return {"grid_size": context.grid}


CARD = Card(
    name="flatten",
    title="FLatten: focused linear attention",
    kind="mixer",
    factory=FocusedLinearAttention,
    summary="linear attention with sharpened features, and a convolution of the values",
    flow="((focused q | (focused k | v) -> @) -> @ -> over the sum of weights | v -> depthwise conv) -> + -> proj",
    paper="arXiv:2308.00442",
    code="https://github.com/LeapLabTHU/FLatten-Transformer",
    placement="in the blocks of the first two stages in place of attention; in the common architecture in all",
    avoid="where windows of 7 x 7 suffice: they are faster on a CPU at 14 x 14 positions",
    pyramid=("nano", "micro", "tiny"),
    keywords=_keywords,
    cases={
        "": {"num_heads": 3, "grid_size": 8},
        "lepe": {"num_heads": 3, "grid_size": 8, "lepe": True},
        "reduced": {"num_heads": 3, "grid_size": 8, "sr_ratio": 2},
        "windows": {"num_heads": 3, "window_size": 4},
    },
    floor=Floor(11, 22, "k, v in: 2, then q, v in, o out: 3; back recomputes the features; projections"),
    keeps_weights=True,
    reference="flatten",
)
