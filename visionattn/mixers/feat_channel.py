"""FEAT's mixing of channels: full-dimensional efficient attention (MICCAI 2025, arXiv 2506.04956).

Official code: https://github.com/Yaziwel/FEAT (no licence), rwkv/restormer_arch.py, with the names of its parameters:
Restormer's attention between channels (arXiv 2111.09881), which can be led by the first layer, and its feed-forward
net, which follows each of FEAT's mixers. Adaptive norms and gates of the diffusion model are left to the host.

Differs from the official code in: without `guidance` there is no `alpha`; that entry of official weights, which nothing
uses, is passed over.

Golden: tests/golden/feat_channelattn_*.npz, feat_ffn_*.npz (official outputs, input gradients).
"""

import torch
from torch import nn
from torch.nn import functional as F

from visionattn.catalog import Card
from visionattn.ops import nhwc_conv, widened
from visionattn.ops._autocast import without_autocast
from visionattn.utils.arguments import check_heads
from visionattn.utils.factory import FactoryKwargs

from ._feat import check_first, pass_over_unused

__all__ = ["GatedDepthwiseFFN", "GlobalChannelAttention"]


class GlobalChannelAttention(nn.Module):
    """Attention between the channels of each head, each represented by its whole map. `(B, H, W, C) -> (B, H, W, C)`.

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
        self.register_load_state_dict_pre_hook(pass_over_unused)

    def forward(self, x: torch.Tensor, first: torch.Tensor | None = None) -> torch.Tensor:
        """The map after mixing.

        Args:
            x: `(B, H, W, C)`.
            first: What came out of the patch embedding, of the same shape, with `guidance`.
        """
        check_first(x, first, self.guidance)
        qkv = nhwc_conv(x, self.qkv.weight, self.qkv.bias)
        qkv = nhwc_conv(qkv, self.qkv_dwconv.weight, self.qkv_dwconv.bias, padding=1, groups=qkv.shape[-1])
        v, weights = self._values_weights(qkv)
        added = None
        if first is not None:
            v, added = v + first * self.alpha[0], self.alpha[1] * (first - v)
        # The weights meet the last projection instead of the map: one product over the positions, not two.
        with without_autocast(x):
            proj = widened(self.project_out.weight.flatten(1)).unflatten(1, (self.num_heads, -1)).transpose(0, 1)
            mixed = (proj @ weights).transpose(1, 2).flatten(2)
        out = (v.flatten(1, 2) @ mixed.to(v.dtype).mT).view(x.shape)
        if added is not None:
            return out + nhwc_conv(added, self.project_out.weight, self.project_out.bias)
        return out if self.project_out.bias is None else out + self.project_out.bias

    def channel_weights(self, x: torch.Tensor) -> torch.Tensor:
        """The attention weights between channels, `(B, num_heads, d, d)`, of a map `(B, H, W, C)`."""
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


CARD = Card(
    name="feat_channel",
    title="FEAT's global channel attention",
    kind="mixer",
    factory=GlobalChannelAttention,
    summary="attention between the channels of each head, normalised over the map, behind a convolution",
    flow=(
        "1x1 conv, depthwise 3x3 conv -> ((channels of q | channels of k) -> @ -> softmax | channels of v) -> @ -> proj"
    ),
    paper="arXiv:2506.04956",
    code="https://github.com/Yaziwel/FEAT",
    placement="in every third block in turn with mixing in space and over frames; here in every block",
    avoid="alone: it compares channels, and positions meet in a 3 x 3 convolution only",
    pyramid=("nano", "micro"),
    cases={"": {"num_heads": 3}, "bias": {"num_heads": 6, "bias": True}},
    reference="feat_channel",
)
