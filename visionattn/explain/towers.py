"""Models of the package open_clip: their image towers in timm's form, and embeddings of texts.

open_clip's own attention is one operation of PyTorch's, whose inside cannot be captured; the same weights in timm's
network can.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import nn

__all__ = ["open_clip_model", "open_clip_tower"]


def open_clip_model(
    name: str = "ViT-B-16", pretrained: str | None = "laion2b_s34b_b88k"
) -> tuple[nn.Module, Callable[[Sequence[str]], torch.Tensor]]:
    """The image tower of a model of open_clip's as a network of timm's, and what embeds texts for it.

        tower, embed = open_clip_model()
        terms = decompose_embedding(tower, x, normalise=True)
        terms.map(embed(["a photo of a dog"])[0])

    Args:
        name: As open_clip has it.
        pretrained: Likewise; none for its random start.

    Returns:
        The tower, and a function of N texts whose result is `(N, D)`, of length 1.

    Raises:
        ModuleNotFoundError: If open_clip is not installed.
        ValueError: If the tower is no plain vision transformer.
    """
    try:
        import open_clip
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "texts and towers of open_clip need the package open_clip_torch: pip install open_clip_torch"
        ) from error
    model = open_clip.create_model(name, pretrained=pretrained).eval()
    tokenizer = open_clip.get_tokenizer(name)

    @torch.no_grad()
    def embed(texts: Sequence[str]) -> torch.Tensor:
        found: torch.Tensor = nn.functional.normalize(model.encode_text(tokenizer(list(texts))), dim=1)
        return found

    return open_clip_tower(model.visual), embed


def open_clip_tower(visual: nn.Module) -> nn.Module:
    """open_clip's `VisionTransformer` (or OpenAI's) as timm's, with the same outputs, in evaluation mode.

    Raises:
        ValueError: If it is another network or has parts that timm's has not.
    """
    tower: Any = visual
    if not all(hasattr(tower, name) for name in ("conv1", "class_embedding", "transformer", "ln_post", "proj")):
        trunk = getattr(tower, "trunk", None)
        hint = ": its tower is timm's already, visual.trunk" if isinstance(trunk, nn.Module) else ""
        raise ValueError(f"visual must be a VisionTransformer of open_clip's, got {type(visual).__name__}{hint}")
    weights = visual.state_dict()
    width, _, *patch = weights["conv1.weight"].shape
    blocks = list(tower.transformer.resblocks)
    side = round((len(weights["positional_embedding"]) - 1) ** 0.5)
    quick = type(blocks[0].mlp.gelu).__name__ == "QuickGELU"
    model = VisionTransformer(
        img_size=(side * patch[0], side * patch[1]),
        patch_size=tuple(patch),
        embed_dim=width,
        depth=len(blocks),
        num_heads=blocks[0].attn.num_heads,
        mlp_ratio=len(weights["transformer.resblocks.0.mlp.c_fc.weight"]) / width,
        num_classes=weights["proj"].shape[1],
        pre_norm=True,
        norm_layer=lambda dim, **kwargs: nn.LayerNorm(dim, eps=tower.ln_post.eps, **kwargs),
        act_layer="quick_gelu" if quick else "gelu",
    )
    converted = checkpoint_filter_fn({f"visual.{key}": value for key, value in weights.items()}, model)
    try:
        model.load_state_dict(converted)
    except RuntimeError as error:
        raise ValueError(f"visual has parts that timm's network has not: {error}") from error
    return model.eval()
