"""Plain vision transformers with deconstructed attention in all or some of their blocks (arXiv 2510.11602).

The forms that need no other tokens are those of `visionattn.mixers.DeconstructedAttention`. Three take queries and keys
from elsewhere, and values from the map as ever:

- `static`: from what the first block's attention sees of the same picture, its normalised embeddings;
- `random`: from random embeddings that never change, which pass through the network's own blocks beside the pictures;
- `fixed`: likewise, from one picture that never changes (`source`; `store_source` puts one there).

`blocks` says where: `all`, or `odd` (the first, the third, ...) with plain attention in the others, the paper's
hybrids, or numbers from 0.

Official code: none found; the paper's models are of language. Embeddings of patches and their positions in the place
of those of words are ours.

Differs from the official code in: not known.

Golden: of the mixer only.
"""

from collections.abc import Iterable
from typing import Any

import torch
from timm.layers import to_2tuple
from torch import nn
from torch.nn import functional as F

from visionattn.mixers.deconstructed import DeconstructedAttention
from visionattn.utils.arguments import check_choice
from visionattn.utils.transparent import hide_child

from ..hosts.backbone import imagenet_cfg
from ..hosts.columnar import BlockContext, Columnar, Tokens, quarters
from ..registry import Network, register_family

__all__ = ["DeconstructedVisionTransformer"]

KINDS = ("softmax", "taylor", "relu", "self_gate", "uniform", "mlp", "static", "random", "fixed")


class FirstEmbeddings(nn.Module):
    """Takes queries and keys from the input of the first block of this kind. The state is those tokens."""

    cross_layer = True

    def __init__(self, mixer: DeconstructedAttention) -> None:
        super().__init__()
        self.mixer = mixer
        hide_child(self, "mixer")

    def forward(self, x: torch.Tensor, state: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        y, state = self.forward_tokens(x.flatten(1, 2), (x.shape[1], x.shape[2]), state=state)
        return y.view(x.shape), state

    def forward_tokens(
        self, x: torch.Tensor, grid: tuple[int, int], prefix: int = 0, *, state: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        source = x if state is None else state
        return self.mixer.forward_tokens(x, grid, prefix, source=source), source


class LastOfBatch(nn.Module):
    """Takes queries and keys from the last entry of a batch, which is not an image but a separate stream."""

    def __init__(self, mixer: DeconstructedAttention) -> None:
        super().__init__()
        self.mixer = mixer
        hide_child(self, "mixer")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mixer(x, x[-1:])

    def forward_tokens(self, x: torch.Tensor, grid: tuple[int, int], prefix: int = 0) -> torch.Tensor:
        return self.mixer.forward_tokens(x, grid, prefix, source=x[-1:])


class DeconstructedVisionTransformer(Columnar):
    """A plain vision transformer with a form of attention in its blocks. `(B, in_chans, H, W) -> (B, num_classes)`.

    Args:
        *args: As `Columnar`: dim, depth, num_heads.
        kind: The form: one of `softmax`, `taylor`, `relu`, `self_gate`, `uniform`, `mlp`, `static`, `random`, `fixed`.
        blocks: Which blocks have it: `all`, `odd` (the first, the third, ...), `even` or their numbers from 0; plain
            attention stands in the others.
        img_size: Nominal side of the picture, or height and width, as for `Columnar`.
        **kwargs: As `Columnar`.

    Raises:
        ValueError: If `kind` is unknown, or `blocks` names one that is not there.
    """

    def __init__(
        self,
        *args: Any,
        kind: str = "taylor",
        blocks: str | Iterable[int] = "all",
        img_size: int | tuple[int, int] = 224,
        **kwargs: Any,
    ) -> None:
        check_choice("kind", kind, KINDS)
        if isinstance(blocks, str):
            check_choice("blocks", blocks, ("all", "odd", "even"))
        chosen = blocks if isinstance(blocks, str) else frozenset(blocks)

        def mixers(context: BlockContext, **dd: Any) -> dict[str, nn.Module]:
            if isinstance(chosen, str):
                here = chosen == "all" or (chosen == "odd") == (context.block % 2 == 0)
            else:
                here = context.block in chosen
            return {"attn": _mixer(kind if here else "softmax", context, **dd)}

        super().__init__(*args, mixers=mixers, img_size=img_size, **kwargs)
        depth = len(self.blocks)
        if not isinstance(chosen, str) and not (chosen and chosen <= {*range(depth)}):
            raise ValueError(f"blocks must be some of 0 to {depth - 1}, got {sorted(chosen)}")
        self.kind = kind
        if kind in ("random", "fixed"):
            stem: Any = self.stem
            kernel: torch.Tensor = stem.conv.weight
            height, width = to_2tuple(img_size)
            shape: tuple[int, ...] = (self.in_chans, height, width)
            if kind == "random":
                shape = (kernel.shape[0], -(-height // kernel.shape[2]), -(-width // kernel.shape[3]))
            self.source: torch.Tensor
            self.register_buffer("source", torch.empty(1, *shape, device=kernel.device, dtype=kernel.dtype))
            nn.init.normal_(self.source, std=0.02 if kind == "random" else 1.0)

    def store_source(self, picture: torch.Tensor) -> None:
        """Stores the image from which the queries and keys of `kind='fixed'` come; until then it is noise.

        Args:
            picture: `(in_chans, H, W)`, normalised as the network's input; resized to the nominal size.

        Raises:
            ValueError: If the network is of another kind, or the picture has another number of channels.
        """
        if self.kind != "fixed":
            raise ValueError(f"only kind='fixed' has a picture as its source, this network is of kind={self.kind!r}")
        if picture.ndim != 3 or picture.shape[0] != self.in_chans:
            raise ValueError(f"picture must be ({self.in_chans}, H, W), got {tuple(picture.shape)}")
        with torch.no_grad():
            self.source.copy_(_resized(picture.unsqueeze(0).to(self.source), self.source.shape[2:], "bilinear"))

    def start(self, x: torch.Tensor) -> Tokens:
        flow = super().start(x)
        if self.kind not in ("random", "fixed"):
            return flow
        if self.kind == "fixed":
            source = super().start(_resized(self.source.to(x.dtype), x.shape[2:], "bilinear")).x
        else:  # nearest: other noise keeps its variance, an average would not
            noise = _resized(self.source, flow.grid, "nearest")
            patches = self.position(noise.permute(0, 2, 3, 1)).flatten(1, 2)
            source = torch.cat([flow.x[:1, : self.num_prefix_tokens], patches.to(flow.x.dtype)], 1)
        return flow._replace(x=torch.cat([flow.x, source.to(flow.x.dtype)]))

    def read(self, flow: Tokens, level: int, norm: bool) -> torch.Tensor:
        return super().read(self._pictures(flow), level, norm)

    def end(self, flow: Tokens) -> torch.Tensor:
        return super().end(self._pictures(flow))

    def _pictures(self, flow: Tokens) -> Tokens:
        """The images without the additional stream."""
        return flow._replace(x=flow.x[:-1]) if self.kind in ("random", "fixed") else flow


def _mixer(form: str, context: BlockContext, **dd: Any) -> nn.Module:
    external = form in ("static", "random", "fixed")
    mixer = DeconstructedAttention(context.dim, kind="external" if external else form, **context.keywords, **dd)
    if not external:
        return mixer
    return FirstEmbeddings(mixer) if form == "static" else LastOfBatch(mixer)


def _resized(x: torch.Tensor, size: Any, mode: str) -> torch.Tensor:
    return x if x.shape[2:] == tuple(size) else F.interpolate(x, size=tuple(size), mode=mode)


_CODE = {"paper_ids": "arXiv:2510.11602", "origin_url": "https://arxiv.org/abs/2510.11602"}
_CFG = imagenet_cfg(**_CODE, input_size=(3, 32, 32), pool_size=(8, 8), num_classes=10, crop_pct=1.0)
_NANO = {"dim": 64, "depth": 8, "num_heads": 2, "patch_size": 4, "img_size": 32}

register_family(
    __name__,
    {
        f"va_deconstructed_{kind}_nano": Network(
            f"A plain vision transformer for 32 px with the form {kind} of attention in all blocks.",
            DeconstructedVisionTransformer,
            {**_NANO, "kind": kind},
            _CFG,
            quarters,
        )
        for kind in KINDS
        if kind not in ("softmax", "taylor")  # those are va_vit_softmax_nano and va_vit_deconstructed_nano
    },
)
