"""One plain vision transformer for all mixers (ViT, ICLR 2021, arXiv 2010.11929): the test bed for global mixers.

Everything but the mixer is the same: patches, a learnt position embedding, blocks of a mixer and an MLP, the mean of
the patches or a class token (`global_pool='token'`) before the classifier.

Official code: https://github.com/google-research/vision_transformer (Apache-2.0). Weights of timm's plain vision
transformers and DeiT load into `va_vit_softmax_*`.

Differs from the official code in: any input size; extra tokens get no position embedding (what theirs adds to the class
token becomes part of it when weights are loaded); the size nano for 32 px is ours.

Golden: none; the test compares the network with timm's.
"""

from typing import Any

from torch import nn

from visionattn.catalog import Card, cards, get

from ..builder import StateDict, rename_keys
from ..hosts.backbone import imagenet_cfg
from ..hosts.columnar import Columnar, quarters
from ..hosts.published import TIMM_KEYS
from ..registry import Network, card_source, register_family

__all__ = ["vit"]


def vit(mixer: str | Card, *args: Any, **kwargs: Any) -> Columnar:
    """A plain vision transformer with a mixer. `(B, in_chans, H, W) -> (B, num_classes)`.

    Args:
        mixer: Name of a mixer's card, or a card.
        *args: As `Columnar`: dim, depth, num_heads.
        **kwargs: As `Columnar`: class_token, num_registers, num_prompts, global_pool and others.

    Raises:
        ValueError: If there is no such mixer, or an argument does not fit.
    """
    card = get("mixer", mixer) if isinstance(mixer, str) else mixer
    kwargs.setdefault("no_weight_decay_parts", (".embed_",))
    return Columnar(*args, mixers=card.build_mixers, block_position=card.position, **kwargs)


def checkpoint_filter_fn(state_dict: StateDict, model: nn.Module) -> StateDict:
    """Maps timm's plain vision transformers, whose names are DeiT's, to our keys; our own pass through.

    Args:
        state_dict: Flat weights, without prefixes.
        model: The network they are for.
    """
    if "pos_embed" not in state_dict:
        return state_dict
    native = rename_keys(state_dict, TIMM_KEYS)
    position, own = native["position.weight"], model.state_dict()["position.weight"]
    extra = position.shape[1] - own.shape[1] * own.shape[2]
    if extra == 1 and "cls_token" in native:
        native["cls_token"] = native["cls_token"] + position[:, :1]
        position = position[:, 1:]
    if position.numel() == own.numel():
        native["position.weight"] = position.reshape(own.shape)
    return native


_SIZES: dict[str, dict[str, Any]] = {
    "nano": {"dim": 64, "depth": 8, "num_heads": 2, "patch_size": 4, "img_size": 32},
    "tiny": {"dim": 192, "depth": 12, "num_heads": 3},
}


def _network(card: Card, size: str) -> Network:
    paper, code = card_source(card)
    small = {"input_size": (3, 32, 32), "pool_size": (8, 8), "num_classes": 10, "crop_pct": 1.0}
    return Network(
        f"A plain vision transformer with {card.name}, size {size}.",
        vit,
        {"mixer": card.name, **_SIZES[size]},
        imagenet_cfg(paper_ids=paper, origin_url=code, **(small if size == "nano" else {"pool_size": (14, 14)})),
        quarters,
    )


register_family(
    __name__,
    {f"va_vit_{card.name}_{size}": _network(card, size) for card in cards("mixer") for size in card.columnar},
    checkpoint_filter_fn,
)
