"""FEAT's mixing in space and over frames: full-dimensional efficient attention (MICCAI 2025, arXiv 2506.04956).

Official code: https://github.com/Yaziwel/FEAT (no licence), rwkv/Restore_RWKV.py: RWKV's WKV from both ends. Names of
parameters are the official ones. Adaptive norms and gates of the diffusion model are left to the host.

Differs from the official code in:
- WKV follows the written formula for any number of tokens: the official kernel takes at most 64, adds 1e-6 below, and
  counts distances between its chunks as one more; `decay_offset=0` counts all of them so, as it does up to 16 tokens;
- the spatial mixer has no convolution over frames, and without `guidance` there is no `alpha`: such entries of official
  weights, which nothing uses, are passed over;
- a convolution in space and the residual connection around it are one convolution.

Golden: tests/golden/feat_wkv*.npz (outputs, input gradients; official modules, WKV by its formula).
"""

import torch
from torch import nn
from torch.nn import functional as F

from visionattn.catalog import Card
from visionattn.ops import bidirectional_wkv, nhwc_conv, widened
from visionattn.utils.arguments import check_choice, check_positive
from visionattn.utils.factory import FactoryKwargs

from ._feat import check_first, pass_over_unused

__all__ = ["WKVSpatialMixer", "WKVTemporalMixer"]


class _WKVMixer(nn.Module):
    """The base of both mixers. `passes` is the number of scans, each with its own decay."""

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
        self.register_load_state_dict_pre_hook(pass_over_unused)

    def _local(self, x: torch.Tensor) -> torch.Tensor:
        """Each map plus its depthwise convolution."""
        weight = self.dwconv2d.weight
        weight = weight + F.pad(weight.new_ones(1, 1, 1, 1), (1, 1, 1, 1))
        return nhwc_conv(x, weight, padding=1, groups=x.shape[-1])

    def _guided(self, v: torch.Tensor, first: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The values combined with the first layer's, and the term added after mixing."""
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
        check_first(x, first, self.guidance)
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
        check_first(x, first, self.guidance)
        batch, frames, height, width, dim = x.shape
        x = self._local(x.flatten(0, 1)).view(batch, frames, height * width, dim)
        # Neighbouring frames lie as rows of a map with one column for each position.
        weight = self.dwconv1d.weight.unsqueeze(-1)
        x = x + F.conv2d(x.permute(0, 3, 1, 2), weight, padding=(1, 0), groups=dim).permute(0, 2, 3, 1)
        k, (v, added) = self.key(x), self._guided(self.value(x), None if first is None else first.flatten(2, 3))
        k, v = (part.transpose(1, 2).flatten(0, 1) for part in (k, v))
        mixed = self._scan(0, k, v).unflatten(0, (batch, -1)).transpose(1, 2)
        return self._gated(x, mixed, added).view(batch, frames, height, width, dim)


CARD = Card(
    name="feat_wkv",
    title="FEAT's spatial WKV",
    kind="mixer",
    factory=WKVSpatialMixer,
    summary="means of all values that decay with the distance, along all rows, then along all columns",
    flow="(. | depthwise conv) -> + -> ((k | v) -> WKV along rows, then columns | receptance, sigmoid) -> * -> proj",
    paper="arXiv:2506.04956",
    code="https://github.com/Yaziwel/FEAT",
    placement="in every third block in turn with mixing over frames and channels; here in every block",
    avoid="where a position must choose what it reads: weights follow from distances and keys, never from the "
    "one that asks",
    pyramid=("nano", "micro"),
    cases={"": {}, "norm, offset 0": {"key_norm": True, "decay_offset": 0}},
    reference="feat_wkv",
)
