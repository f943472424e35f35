"""FEAT: full-dimensional efficient attention for medical video generation (MICCAI 2025, arXiv 2506.04956).

Official code: https://github.com/Yaziwel/FEAT (no licence), rwkv/Restore_RWKV.py and rwkv/restormer_arch.py: mixing in
space and over frames by RWKV's WKV from both ends, between channels by Restormer's attention, and a feed-forward net
with a gate. Names of parameters are the official ones. Adaptive norms of the diffusion model are left to the host.

Differs from the official code in:
- WKV follows the written formula for any number of tokens: the official kernel takes at most 64, adds 1e-6 below, and
  counts distances between its chunks as one more; `decay_offset=0` counts all of them so, as it does up to 16 tokens;
- the spatial mixer has no convolution over frames, and without `guidance` there is no `alpha`: such entries of official
  weights, which nothing uses, are passed over;
- a convolution and the residual connection around it are one convolution.

Golden: tests/golden/feat_*.npz (outputs, input gradients; official modules, WKV by its formula).
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from visionattn.catalog import Card
from visionattn.ops import bidirectional_wkv, nhwc_conv, widened
from visionattn.ops._autocast import without_autocast
from visionattn.utils.arguments import check_choice, check_heads, check_positive
from visionattn.utils.factory import FactoryKwargs

__all__ = ["GatedDepthwiseFFN", "GlobalChannelAttention", "WKVSpatialMixer", "WKVTemporalMixer"]


class _WKVMixer(nn.Module):
    """What both mixers have. `passes` is the number of scans, each with a decay of its own."""

    passes: int
    unused: tuple[str, ...] = ()

    def __init__(
        self,
        dim: int,
        *,
        guidance: bool = False,
        key_norm: bool = False,
        decay_offset: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(dim=dim)
        check_choice("decay_offset", decay_offset, (0, 1))
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        self.guidance = guidance
        self.decay_offset = decay_offset
        self.spatial_decay, self.spatial_first = (nn.Parameter(torch.randn(self.passes, dim, **dd)) for _ in range(2))
        if guidance:
            self.alpha = nn.Parameter(torch.zeros(2, dim, **dd))
        self.dwconv2d = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False, **dd)
        self.key, self.value, self.receptance = (nn.Linear(dim, dim, bias=False, **dd) for _ in range(3))
        self.key_norm = nn.LayerNorm(dim, **dd) if key_norm else None
        self.output = nn.Linear(dim, dim, bias=False, **dd)
        self.register_load_state_dict_pre_hook(_pass_over)

    def _local(self, x: torch.Tensor) -> torch.Tensor:
        """Each map plus its depthwise convolution."""
        weight = self.dwconv2d.weight
        weight = weight + F.pad(weight.new_ones(1, 1, 1, 1), (1, 1, 1, 1))
        return nhwc_conv(x, weight, padding=1, groups=x.shape[-1])

    def _check(self, x: torch.Tensor, first: torch.Tensor | None) -> None:
        if (first is not None) != self.guidance:
            given = "none" if first is None else tuple(first.shape)
            raise ValueError(f"first must be given with guidance=True only; guidance is {self.guidance}, first {given}")
        if first is not None and first.shape != x.shape:
            raise ValueError(f"first must have the shape of x, {tuple(x.shape)}, got {tuple(first.shape)}")

    def _guided(self, v: torch.Tensor, first: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The values with what the first layer saw, and what is added after mixing."""
        if first is None:
            return v, None
        return v + self.alpha[0] * first, self.alpha[1] * (first - v)

    def _scan(self, number: int, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """One pass over sequences `(B, N, C)`."""
        decay, first = (widened(part[number]) / k.shape[1] for part in (self.spatial_decay, self.spatial_first))
        return bidirectional_wkv(k, v, decay, first, decay_offset=self.decay_offset)

    def _gated(self, x: torch.Tensor, mixed: torch.Tensor, added: torch.Tensor | None) -> torch.Tensor:
        out = (mixed if added is None else mixed + added).to(x.dtype)
        out = out if self.key_norm is None else self.key_norm(out)
        return self.output(out * self.receptance(x).sigmoid())


class WKVSpatialMixer(_WKVMixer):
    """WKV from both ends along all rows one after the other, then along all columns. `(B, H, W, C) -> (B, H, W, C)`.

    Any H, W >= 1. Decays count over the whole sequence, so the weights stretch with the map. There is no place for
    extra tokens: pool the mean.

    Args:
        dim: Width C.
        guidance: Whether the values are led by the tokens of the first layer, which `forward` then needs.
        key_norm: Whether a layer norm follows the mixing.
        decay_offset: 1: a neighbour has no decay. 0: it has one step of it.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: If `dim` is below 1 or `decay_offset` neither 0 nor 1.
    """

    passes = 2
    unused = ("dwconv1d.weight",)

    def forward(self, x: torch.Tensor, first: torch.Tensor | None = None) -> torch.Tensor:
        """The map after mixing.

        Args:
            x: `(B, H, W, C)`.
            first: What came out of the patch embedding, of the same shape, with `guidance`.
        """
        self._check(x, first)
        x = self._local(x)
        height, width = x.shape[1:3]
        k, (v, added) = self.key(x), self._guided(self.value(x), first)
        v = self._scan(0, k.flatten(1, 2), v.flatten(1, 2)).unflatten(1, (height, width))
        k, v = (part.transpose(1, 2).flatten(1, 2) for part in (k, v))
        return self._gated(x, self._scan(1, k, v).unflatten(1, (width, height)).transpose(1, 2), added)


class WKVTemporalMixer(_WKVMixer):
    """WKV from both ends over the frames of a video, at each position. `(B, F, H, W, C) -> (B, F, H, W, C)`.

    Args: as for `WKVSpatialMixer`.
    """

    passes = 1

    def __init__(
        self,
        dim: int,
        *,
        guidance: bool = False,
        key_norm: bool = False,
        decay_offset: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        super().__init__(dim, guidance=guidance, key_norm=key_norm, decay_offset=decay_offset, **dd)
        self.dwconv1d = nn.Conv1d(dim, dim, 3, padding=1, groups=dim, bias=False, **dd)

    def forward(self, x: torch.Tensor, first: torch.Tensor | None = None) -> torch.Tensor:
        """The video after mixing.

        Args:
            x: `(B, F, H, W, C)`.
            first: What came out of the patch embedding, of the same shape, with `guidance`.

        Raises:
            ValueError: If `x` has another number of dimensions, or `first` does not fit.
        """
        if x.ndim != 5:
            raise ValueError(f"WKVTemporalMixer takes videos (B, F, H, W, C), got {tuple(x.shape)}")
        self._check(x, first)
        batch, frames, height, width, dim = x.shape
        x = self._local(x.flatten(0, 1)).view(batch, frames, height * width, dim)
        # Neighbouring frames lie as rows of a map with one column for each position.
        weight = self.dwconv1d.weight.unsqueeze(-1)
        x = x + F.conv2d(x.permute(0, 3, 1, 2), weight, padding=(1, 0), groups=dim).permute(0, 2, 3, 1)
        k, (v, added) = self.key(x), self._guided(self.value(x), None if first is None else first.flatten(2, 3))
        k, v = (part.transpose(1, 2).flatten(0, 1) for part in (k, v))
        mixed = self._scan(0, k, v).unflatten(0, (batch, -1)).transpose(1, 2)
        return self._gated(x, mixed, added).view(batch, frames, height, width, dim)


class GlobalChannelAttention(nn.Module):
    """Attention between the channels of each head, whose vectors are whole maps. `(B, H, W, C) -> (B, H, W, C)`.

    Any H, W >= 1. A convolution of 3x3 follows the projections, so there is no place for extra tokens: pool the mean.

    Args:
        dim: Width C.
        num_heads: Heads, a divisor of `dim`.
        guidance: Whether the values are led by the tokens of the first layer, which `forward` then needs.
        bias: Whether the convolutions have biases.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: If `num_heads` does not divide `dim`.
    """

    unused: tuple[str, ...] = ()
    _check = _WKVMixer._check

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        guidance: bool = False,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.guidance = guidance
        self.temperature = nn.Parameter(torch.ones(num_heads, 1, 1, **dd))
        if guidance:  # the first two are used, as in the official code
            self.alpha = nn.Parameter(torch.zeros(2 * dim, **dd))
        self.qkv = nn.Conv2d(dim, 3 * dim, 1, bias=bias, **dd)
        self.qkv_dwconv = nn.Conv2d(3 * dim, 3 * dim, 3, padding=1, groups=3 * dim, bias=bias, **dd)
        self.project_out = nn.Conv2d(dim, dim, 1, bias=bias, **dd)
        self.register_load_state_dict_pre_hook(_pass_over)

    def forward(self, x: torch.Tensor, first: torch.Tensor | None = None) -> torch.Tensor:
        """The map after mixing.

        Args:
            x: `(B, H, W, C)`.
            first: What came out of the patch embedding, of the same shape, with `guidance`.
        """
        self._check(x, first)
        qkv = nhwc_conv(x, self.qkv.weight, self.qkv.bias)
        qkv = nhwc_conv(qkv, self.qkv_dwconv.weight, self.qkv_dwconv.bias, padding=1, groups=qkv.shape[-1])
        v, weights = self._values_weights(qkv)
        added = None
        if first is not None:
            v, added = v + first * self.alpha[0], self.alpha[1] * (first - v)
        heads = v.flatten(1, 2).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        out = (heads @ weights.to(heads.dtype).mT).transpose(1, 2).reshape(x.shape)
        return nhwc_conv(out if added is None else out + added, self.project_out.weight, self.project_out.bias)

    def channel_weights(self, x: torch.Tensor) -> torch.Tensor:
        """What each channel takes from each of its head, `(B, num_heads, d, d)`, of a map `(B, H, W, C)`."""
        qkv = nhwc_conv(x, self.qkv.weight, self.qkv.bias)
        qkv = nhwc_conv(qkv, self.qkv_dwconv.weight, self.qkv_dwconv.bias, padding=1, groups=qkv.shape[-1])
        return self._values_weights(qkv)[1]

    def _values_weights(self, qkv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The map of values and the weights of the channels, which are in float32 at least."""
        q, k, v = qkv.chunk(3, -1)
        with without_autocast(qkv):
            q, k = (widened(t).flatten(1, 2).unflatten(-1, (self.num_heads, -1)).permute(0, 2, 3, 1) for t in (q, k))
            # Scores are divided by lengths instead of the maps.
            q_length, k_length = (torch.linalg.vector_norm(t, dim=-1, keepdim=True).clamp_min(1e-12) for t in (q, k))
            scores = q @ k.mT / (q_length * k_length.mT)
            return v, (scores * widened(self.temperature)).softmax(-1)


class GatedDepthwiseFFN(nn.Module):
    """The feed-forward net after each of FEAT's mixers (Restormer's GDFN). `(B, H, W, C) -> (B, H, W, C)`.

    Args:
        dim: Width C.
        expansion: Hidden width over `dim`.
        bias: Whether the convolutions have biases.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: If the hidden width is below 1.
    """

    def __init__(
        self,
        dim: int,
        *,
        expansion: float = 4.0,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        hidden = int(dim * expansion)
        if hidden < 1:
            raise ValueError(f"expansion must leave a hidden width of 1 at least, got {expansion} of dim={dim}")
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        self.project_in = nn.Conv2d(dim, 2 * hidden, 1, bias=bias, **dd)
        self.dwconv = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden, bias=bias, **dd)
        self.project_out = nn.Conv2d(hidden, dim, 1, bias=bias, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nhwc_conv(x, self.project_in.weight, self.project_in.bias)
        gate, x = nhwc_conv(x, self.dwconv.weight, self.dwconv.bias, padding=1, groups=x.shape[-1]).chunk(2, -1)
        return nhwc_conv(F.gelu(gate) * x, self.project_out.weight, self.project_out.bias)


def _pass_over(module: Any, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Entries of official weights that nothing uses there."""
    for key in (*module.unused, *(() if module.guidance else ("alpha",))):
        state_dict.pop(f"{prefix}{key}", None)


CARDS = (
    Card(
        name="feat_wkv",
        title="FEAT's spatial WKV",
        kind="mixer",
        factory=WKVSpatialMixer,
        summary="means of all values that decay with the distance, along all rows, then along all columns",
        paper="arXiv:2506.04956",
        code="https://github.com/Yaziwel/FEAT",
        placement="in every third block in turn with mixing over frames and channels; here in every block",
        pyramid=("nano", "micro"),
        cases={"": {}, "norm, offset 0": {"key_norm": True, "decay_offset": 0}},
        reference="feat",
    ),
    Card(
        name="feat_channel",
        title="FEAT's global channel attention",
        kind="mixer",
        factory=GlobalChannelAttention,
        summary="attention between the channels of each head, normalised over the map, behind a convolution",
        paper="arXiv:2506.04956",
        code="https://github.com/Yaziwel/FEAT",
        placement="in every third block in turn with mixing in space and over frames; here in every block",
        pyramid=("nano", "micro"),
        cases={"": {"num_heads": 3}, "bias": {"num_heads": 6, "bias": True}},
        reference="feat",
    ),
)
