"""Attention prompting on images: what a text asks about stays bright, the rest is dimmed.

Attention Prompting on Image for Large Vision-Language Models (ECCV 2024, arXiv 2409.17143).

Official code: https://github.com/yu-rp/apiprompting (MIT), API/API_CLIP.

Differs from the official code in: any tower that `decompose_embedding` takes, and its centring of the last norm's
parts, which the scaling of the maps removes.

Golden: tests/golden/explain_attention_prompt_*.npz.
"""

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from visionattn.utils.arguments import check_odd

from ._stream import read_stream
from .clip import readout
from .maps import min_max

__all__ = ["prompt_image", "prompt_mask", "text_guided_mask"]


@torch.no_grad()
def text_guided_mask(model: nn.Module, x: torch.Tensor, text: torch.Tensor, *, layer: int = -2) -> torch.Tensor:
    """Where an image shows what a text says, in 0..1. `-> (B, H, W)` on the grid of the patches.

    Args:
        model: A CLIP tower of timm's, see `decompose_embedding`; the paper's is ViT-L/14 at 336 pixels.
        x: Images `(B, C, H, W)`.
        text: Embedding of the text, `(D,)` or `(B, D)`.
        layer: Number of the block whose attention and output are read; the paper's is the last but one.
    """
    stream = read_stream(model, x)
    count = len(stream.v)
    if not -count <= layer < count:
        raise ValueError(f"layer must lie in {-count}..{count - 1}, got {layer}")
    layer %= count
    end = readout(model, stream.before(count), stream.prefix)
    unit = F.normalize(text, dim=-1).expand(len(x), -1)
    weights = stream.weights[layer]
    seen = torch.einsum("br,bhrt->bht", end.rows, stream.probs[layer])
    asked = torch.einsum("hde,be->bhd", end.project(weights.out), unit)
    attended = torch.einsum("bht,bhtd,bhd->bt", seen, stream.v[layer], asked)
    made = torch.einsum("btd,bd->bt", end.project(stream.before(layer + 1)), unit)
    attended, made = (part[:, stream.prefix :].unflatten(1, stream.grid) for part in (attended, made))
    return prompt_mask(attended, made)


def prompt_mask(
    attended: torch.Tensor, patches: torch.Tensor, *, kernel_size: int = 3, enhance: float = 5.0
) -> torch.Tensor:
    """One mask of both maps. `2 x (B, H, W) -> (B, H, W)` in 0..1.

    What the class token takes from a patch counts where it is large; what the patch itself says where it is small, as
    patches of the background take up what the whole image shows.

    Args:
        attended: What the class token takes from each patch, along the text.
        patches: What each patch says along the text.
        kernel_size: Side of the mean that smooths both, odd.
        enhance: How steep the sigmoid of the first is.

    Raises:
        ValueError: If the shapes differ or `kernel_size` is not a positive odd number.
    """
    check_odd(kernel_size=kernel_size)
    if attended.shape != patches.shape or attended.ndim != 3:
        raise ValueError(f"maps must have one shape (B, H, W), got {tuple(attended.shape)} and {tuple(patches.shape)}")
    scaled = min_max(attended)
    mean, deviation = scaled.mean((1, 2), keepdim=True), scaled.std((1, 2), keepdim=True)
    bright = (enhance * (scaled - mean) / deviation.clamp_min(torch.finfo(scaled.dtype).tiny)).sigmoid()
    first, second = (_smooth(part, kernel_size) for part in (bright, min_max(-patches)))
    return min_max(first + second - first * second)


def prompt_image(images: torch.Tensor, mask: torch.Tensor, *, grey: float = 0.0) -> torch.Tensor:
    """Images dimmed outside of a mask. `(B, C, H, W), (B, h, w) -> (B, C, H, W)`.

    Args:
        images: In 0..1 or any range in which `grey` means something.
        mask: In 0..1; enlarged by Lanczos' filter, as the official code does.
        grey: What images become where the mask is 0.
    """
    height, width = images.shape[-2:]
    large = [
        np.asarray(Image.fromarray(one).resize((width, height), Image.Resampling.LANCZOS))
        for one in mask.detach().float().cpu().numpy()
    ]
    share = torch.from_numpy(np.stack(large)).to(images).clamp(0, 1).unsqueeze(1)
    return images * share + grey * (1 - share)


def _smooth(maps: torch.Tensor, kernel_size: int) -> torch.Tensor:
    padded = F.pad(maps[:, None], (kernel_size // 2,) * 4, mode="replicate")
    return F.avg_pool2d(padded, kernel_size, 1)[:, 0]
