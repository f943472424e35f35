"""DHVT: a vision transformer with convolutions and head tokens for small data sets (NeurIPS 2022, arXiv 2210.05958).

Convolutions with overlap make the patches (SOPE), every block is head-interacted attention
(`visionattn.mixers.HeadInteractionAttention`) and a feed-forward with a depthwise convolution (DAFF). There is no
position embedding: the convolutions tell positions.

Official code: https://github.com/ArieSeirack/DHVT (Apache-2.0), vision_transformer.py. Its authors publish no weights;
their format loads.

Differs from the official code in: any input size and channels (there, square grids and three); plain instead of
synchronised batch normalisation in the stem (the same on one device); no distillation token, with which the official
network does not run.

Golden: tests/golden/dhvt_*.npz (parts, a block; logits, means and class tokens of the blocks).
"""

from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from visionattn.mixers.dhvt import HeadInteractionAttention
from visionattn.utils.factory import FactoryKwargs

from ..builder import StateDict, rename_keys
from ..hosts.backbone import imagenet_cfg
from ..hosts.columnar import BlockContext, Columnar, quarters
from ..hosts.published import TIMM_KEYS
from ..registry import Network, register_family

__all__ = ["DAFF", "SOPE", "dhvt"]


class DAFF(nn.Module):
    """Dynamic aggregation feed-forward: an inverted bottleneck, whose mean scales the class token.

    `(B, H, W, C) -> (B, H, W, C)`; with extra tokens see `forward_tokens`.

    Args:
        dim: Width C.
        ratio: Hidden width over `dim`.
        reduction: C over the width of what scales the class token.
        class_token: Whether there is a class token; without, there is nothing that scales it.
        drop: Dropout of the result.

    Raises:
        ValueError: If `reduction` is not from 1 to `dim`.
    """

    def __init__(
        self,
        dim: int,
        *,
        ratio: float = 4.0,
        reduction: int = 4,
        class_token: bool = True,
        drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not 1 <= reduction <= dim:
            raise ValueError(f"reduction must be from 1 to dim={dim}, got {reduction}")
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        hidden = int(dim * ratio)
        self.conv1 = nn.Conv2d(dim, hidden, 1, **dd)
        self.bn1 = nn.BatchNorm2d(hidden, **dd)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, **dd)
        self.bn2 = nn.BatchNorm2d(hidden, **dd)
        self.conv3 = nn.Conv2d(hidden, dim, 1, **dd)
        self.bn3 = nn.BatchNorm2d(dim, **dd)
        self.has_scale = class_token
        if class_token:
            self.compress = nn.Linear(dim, dim // reduction, **dd)
            self.excitation = nn.Linear(dim // reduction, dim, **dd)
        self.drop = nn.Dropout(drop)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.gelu(self.bn1(self.conv1(x.permute(0, 3, 1, 2))))
        x = x + F.gelu(self.bn2(self.conv2(x)))
        return self.drop(self.bn3(self.conv3(x)).permute(0, 2, 3, 1))

    def forward_tokens(self, x: torch.Tensor, grid: tuple[int, int], prefix: int = 0) -> torch.Tensor:
        """The same for tokens, `(B, prefix + H * W, C)`; extra tokens are only scaled per channel.

        Args:
            x: The tokens, extra ones first.
            grid: `(H, W)`.
            prefix: Number of extra tokens.

        Raises:
            ValueError: If there are some and this was built without a class token.
        """
        if prefix and not self.has_scale:
            raise ValueError(f"class_token must be True for {prefix} extra tokens, got False")
        patches = self(x[:, prefix:].unflatten(1, grid)).flatten(1, 2)
        if not prefix:
            return patches
        scale = self.excitation(F.gelu(self.compress(patches.mean(1, keepdim=True))))
        return torch.cat([x[:, :prefix] * scale, patches], 1)


class _Affine(nn.Module):
    """A scale and a shift of each channel. `(B, C, H, W) -> (B, C, H, W)`."""

    def __init__(self, channels: int, **dd: Any) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, channels, 1, 1, **dd))
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1, **dd))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.addcmul(self.beta, x, self.alpha)


class SOPE(nn.Module):
    """Sequential overlapping patch embedding: 3x3 convolutions of stride 2. `(B, H, W, C) -> (B, H', W', dim)`.

    Args:
        in_chans: Channels of the picture.
        dim: Width of the last convolution; each one before has half as much.
        patch_size: By how much all together make the picture smaller, a power of 2; sides are rounded up.

    Raises:
        ValueError: If `patch_size` is no power of 2, or `dim` cannot be halved as often as needed.
    """

    def __init__(
        self,
        in_chans: int,
        dim: int,
        *,
        patch_size: int = 16,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if patch_size < 2 or patch_size & (patch_size - 1):
            raise ValueError(f"patch_size must be a power of 2 from 2 on, got {patch_size}")
        if dim < 1 or dim % (patch_size // 2):
            raise ValueError(f"dim must be a multiple of patch_size / 2 = {patch_size // 2}, got {dim}")
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        widths = [in_chans, *(dim >> halvings for halvings in reversed(range(patch_size.bit_length() - 1)))]
        steps: list[nn.Module] = []
        for before, after in pairwise(widths):
            conv = nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False, **dd)
            steps += [nn.Sequential(conv, nn.BatchNorm2d(after, **dd)), nn.GELU()]
        # No activation behind the last convolution, unless it is the only one.
        self.proj = nn.Sequential(*(steps if patch_size == 2 else steps[:-1]))
        self.pre_affine = _Affine(in_chans, **dd)
        self.post_affine = _Affine(dim, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.post_affine(self.proj(self.pre_affine(x.permute(0, 3, 1, 2)))).permute(0, 2, 3, 1)


def dhvt(*args: Any, patch_size: int = 16, mlp_ratio: float = 4.0, class_token: bool = True, **kwargs: Any) -> Columnar:
    """A columnar transformer with DHVT's parts. `(B, in_chans, H, W) -> (B, num_classes)`, any H, W >= 1.

    Args:
        *args: As `Columnar`: dim, depth, num_heads.
        patch_size: Side of the patches, a power of 2.
        mlp_ratio: Hidden width of the feed-forwards over the width.
        class_token: Whether there is a class token.
        **kwargs: As `Columnar`.
    """

    def mixers(context: BlockContext, **dd: Any) -> dict[str, nn.Module]:
        return {"attn": HeadInteractionAttention(context.dim, **context.keywords, **dd)}

    def mlp(context: BlockContext, **dd: Any) -> nn.Module:
        # Registers and prompts are scaled as the class token is.
        extra = class_token or any(kwargs.get(name) for name in ("num_registers", "num_prompts"))
        return DAFF(context.dim, ratio=mlp_ratio, class_token=extra, drop=context.proj_drop, **dd)

    return Columnar(
        *args,
        mixers=mixers,
        mlp=mlp,
        stem=partial(SOPE, patch_size=patch_size),
        patch_size=patch_size,
        position=False,
        class_token=class_token,
        **kwargs,
    )


_OFFICIAL = ((r"^patch_embed\.", "stem."), *TIMM_KEYS)


def checkpoint_filter_fn(state_dict: StateDict, model: nn.Module) -> StateDict:
    """Maps the official format to our keys; our own pass through.

    For other channels of the picture the stem's first scale and shift become the means over the channels, and timm
    adapts the first convolution.

    Args:
        state_dict: Flat weights, without prefixes.
        model: The network they are for.
    """
    native = rename_keys(state_dict, _OFFICIAL)
    own = model.state_dict()
    for key in ("stem.pre_affine.alpha", "stem.pre_affine.beta"):
        if key in native and native[key].shape != own[key].shape:
            native[key] = native[key].mean(1, keepdim=True).expand(own[key].shape).clone()
    return native


_CODE = {"paper_ids": "arXiv:2210.05958", "origin_url": "https://github.com/ArieSeirack/DHVT"}


def _network(size: str, patch_size: int, heads: int) -> Network:
    small = patch_size < 16
    side, classes = (32, 10) if small else (224, 1000)
    cells = side // patch_size
    return Network(
        f"DHVT, {size}, with patches of {patch_size} px for {side} px.",
        dhvt,
        {
            **{"dim": {"tiny": 192, "small": 384}[size], "num_heads": heads, "patch_size": patch_size},
            **{"img_size": side, "global_pool": "token"},
        },
        imagenet_cfg(
            **_CODE,
            first_conv="stem.proj.0.0",
            input_size=(3, side, side),
            pool_size=(cells, cells),
            num_classes=classes,
            **({"crop_pct": 1.0} if small else {}),
        ),
        quarters,
    )


register_family(
    __name__,
    {
        **{f"va_dhvt_{size}_p16": _network(size, 16, heads) for size, heads in (("tiny", 3), ("small", 6))},
        **{
            f"va_dhvt_{size}_cifar_p{patch_size}": _network(size, patch_size, heads)
            for size, heads in (("tiny", 4), ("small", 8))
            for patch_size in (2, 4)
        },
    },
    checkpoint_filter_fn,
)
