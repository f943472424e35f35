"""RelatiViT: how two objects of a picture are related, read from a vision transformer (ICLR 2024, arXiv 2403.00729).

Official code: https://github.com/AlvinWen428/spatial-relation-benchmark (no licence file), models/relativit.py.

Differs from the official code in: all predicates' scores, not that of the one asked for; any timm vision transformer of
plain blocks; `fuse`, by which the patches of both objects tell each other what they show before they are pooled.

Golden: tests/golden/relativit_*.npz, from the official code (scores and the pair's embedding).
"""

from collections.abc import Mapping
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from visionattn.utils.arguments import check_choice, check_positive
from visionattn.utils.factory import FactoryKwargs

from .bidaf import CoAttention

__all__ = ["PairRelationViT"]

_POOLS = ("max", "avg", "lse")
_OWN = ("sub_sep_token", "obj_sep_token", "subj_indicate_embed", "obj_indicate_embed")
_LEAST = 4  # pixels of a box's side that are shown


class PairRelationViT(nn.Module):
    """Scores of what holds between a subject and an object of a picture. `(B, 3, H, W)` and boxes `-> (B, R)`.

    A vision transformer sees the picture, the picture with zeros outside of the subject's box, and the same of the
    object, one after the other in one sequence, with a separator before each of the latter two. The patches of both
    objects are pooled, and two layers score the predicates.

    Args:
        vit: A timm vision transformer with a class token and a position embedding; its head is not used.
        num_predicates: R.
        pool: Over the patches of an object: `max`, `avg` or `lse`, the logarithm of the sum of exponentials.
        roi: Whether only patches in the box are pooled.
        mask: Whether the patches of the whole picture see nothing of the other two sets.
        fuse: Whether each object's patches take what `CoAttention` finds in the other's before the pooling. The layer
            behind it begins with zeros: at first nothing changes.
        hidden: Width between the two layers.
        drop: Dropout there.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        TypeError: If `vit` is no `VisionTransformer` of timm.
        ValueError: If it has no class token or no position embedding, or another argument is not allowed.
    """

    def __init__(
        self,
        vit: nn.Module,
        num_predicates: int,
        *,
        pool: str = "max",
        roi: bool = False,
        mask: bool = True,
        fuse: bool = False,
        hidden: int = 512,
        drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(vit, VisionTransformer):
            raise TypeError(f"vit must be a VisionTransformer of timm, got {type(vit).__name__}")
        if vit.cls_token is None or vit.pos_embed is None:
            raise ValueError("vit must have a class token and a position embedding")
        check_positive(num_predicates=num_predicates, hidden=hidden)
        check_choice("pool", pool, _POOLS)
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        dim = vit.embed_dim
        self.vit, self.pool, self.roi, self.mask = vit, pool, roi, mask
        for name in _OWN:
            token = nn.init.trunc_normal_(torch.empty(1, 1, dim, **dd), std=0.02)
            self.register_parameter(name, nn.Parameter(token))
        self.fuse = CoAttention(dim, **dd) if fuse else None
        if self.fuse is not None:
            self.fused = nn.Linear(self.fuse.out_features, dim, **dd)
            nn.init.zeros_(self.fused.weight)
            nn.init.zeros_(self.fused.bias)
        score = (nn.Linear(2 * dim, hidden, **dd), nn.ReLU(), nn.Dropout(drop), nn.Linear(hidden, num_predicates, **dd))
        self.classifier = nn.Sequential(*score)

    @staticmethod
    def from_official(state_dict: Mapping[str, Any]) -> dict[str, Any]:
        """The entries of an official checkpoint under the names that this class has."""
        names = {key: key if key in _OWN else f"vit.{key}" for key in state_dict}
        return {
            key.removeprefix("vit.readout_head.") if "readout_head." in key else key: state_dict[old]
            for old, key in names.items()
        }

    def forward(self, image: torch.Tensor, subject_box: torch.Tensor, object_box: torch.Tensor) -> torch.Tensor:
        """The scores `(B, R)` of all predicates, without a sigmoid.

        Args:
            image: `(B, 3, H, W)`.
            subject_box: `(B, 4)`, `(y0, y1, x0, x1)` as shares of height and width, from 0 to 1.
            object_box: Likewise.

        Raises:
            ValueError: If the boxes do not fit the pictures.
        """
        return self.classifier(self.pair_embedding(image, subject_box, object_box))

    def pair_embedding(self, image: torch.Tensor, subject_box: torch.Tensor, object_box: torch.Tensor) -> torch.Tensor:
        """What the predicates are scored from: the pooled subject, then the pooled object, `(B, 2 D)`."""
        boxes = {"subject_box": subject_box, "object_box": object_box}
        for name, box in boxes.items():
            if box.shape != (len(image), 4):
                raise ValueError(f"{name} must be ({len(image)}, 4), got {tuple(box.shape)}")
        spans = [_pixels(box, image) for box in boxes.values()]
        subject, object_ = self._patches(image, spans)
        inside = [self._in_box(span, image) if self.roi else None for span in spans]
        if self.fuse is not None:
            told = [
                self.fused(self.fuse(subject, object_, inside[0], inside[1])[0]),
                self.fused(self.fuse(object_, subject, inside[1], inside[0])[0]),
            ]
            subject, object_ = subject + told[0], object_ + told[1]
        pooled = [self._pooled(x, seen) for x, seen in zip((subject, object_), inside, strict=True)]
        return torch.cat(pooled, 1)

    def _patches(self, image: torch.Tensor, spans: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """The subject's and the object's patches behind the last block, `(B, P, D)` each."""
        vit: Any = self.vit
        prefix = vit.num_prefix_tokens
        views = [image, *(image * _shown(span, image).to(image) for span in spans)]
        full, *parts = (vit._pos_embed(vit.patch_embed(view)) for view in views)
        count = full.shape[1] - prefix
        first = 0 if vit.no_embed_class else vit.pos_embed[:, :1]
        sequence = [full]
        own: Any = ((self.sub_sep_token, self.subj_indicate_embed), (self.obj_sep_token, self.obj_indicate_embed))
        for part, (separator, indicator) in zip(parts, own, strict=True):
            sequence += [(separator + first).expand(len(image), -1, -1), part[:, prefix:] + indicator]
        x = vit.norm_pre(torch.cat(sequence, 1))
        allowed = None
        if self.mask:
            place = torch.arange(x.shape[1], device=x.device)
            of_picture = (place >= prefix) & (place < prefix + count)
            allowed = ~(of_picture[:, None] & (place >= prefix + count))
        for block in vit.blocks:
            x = block(x, attn_mask=allowed)
        _, subject, _, object_ = vit.norm(x)[:, prefix + count - x.shape[1] :].split((1, count, 1, count), 1)
        return subject, object_

    def _in_box(self, span: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        """Which patches a box in pixels reaches, booleans `(B, P)`."""
        vit: Any = self.vit
        reached = []
        for axis, tokens in enumerate(vit.patch_embed.dynamic_feat_size(image.shape[-2:])):
            start = torch.arange(tokens, device=span.device) * vit.patch_embed.patch_size[axis]
            low, high = span[:, 2 * axis, None], span[:, 2 * axis + 1, None]
            reached.append((start + vit.patch_embed.patch_size[axis] > low) & (start < high))
        return (reached[0][:, :, None] & reached[1][:, None]).flatten(1)

    def _pooled(self, x: torch.Tensor, inside: torch.Tensor | None) -> torch.Tensor:
        if self.pool == "avg":
            return x.mean(1) if inside is None else (x * inside[..., None]).sum(1) / inside.sum(1, keepdim=True)
        if inside is not None:
            x = x.masked_fill(~inside[..., None], -torch.inf)
        return x.amax(1) if self.pool == "max" else x.logsumexp(1)


def _pixels(box: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """Boxes `(y0, y1, x0, x1)` in pixels, the last exclusive, at least four pixels wide where there are as many."""
    spans = []
    for axis, side in enumerate(image.shape[-2:]):
        low, high = ((box[:, 2 * axis + end] * side).long() for end in (0, 1))
        size = torch.minimum((high - low).clamp(min=_LEAST), side - low)
        spans += [low, low + size]
    return torch.stack(spans, 1)


def _shown(span: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """What boxes in pixels show, booleans `(B, 1, H, W)`."""
    rows, columns = (torch.arange(side, device=span.device) for side in image.shape[-2:])
    y0, y1, x0, x1 = span[..., None].unbind(1)
    return (((rows >= y0) & (rows < y1))[:, :, None] & ((columns >= x0) & (columns < x1))[:, None]).unsqueeze(1)
