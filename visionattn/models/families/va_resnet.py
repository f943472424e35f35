"""ResNets, ResNeXts and wide ResNets with a plug-in in every residual block, before the addition.

Where the plug-in goes: CBAM (arXiv 1807.06521), https://github.com/Jongchan/attention-module (MIT),
MODELS/model_resnet.py; triplet attention (arXiv 2010.03045), https://github.com/landskape-ai/triplet-attention (MIT),
MODELS/resnet.py. The papers of the others have no published code for ResNets: their place here is our choice.

Differs from the official code in: any input size instead of 224 px only; timm's initialisation of the convolutions
outside the plug-ins (Kaiming normal by fan-out everywhere) instead of PyTorch's default in the shortcuts.

Golden: tests/golden/cbam_resnet*.npz and triplet_resnet*.npz (logits and the means of the stages).
"""

import re
from typing import Any

from torch import nn

from visionattn.catalog import cards

from ..builder import StateDict, rename_keys
from ..hosts.resnet import FEATURES, HOSTS, ResNet, resnet_cfg
from ..registry import Network, card_source, register_family

# timm's own layers, in the narrow host only, for comparison: name -> paper and code.
_TIMM_LAYERS = {
    "se": ("arXiv:1709.01507", "https://github.com/hujie-frank/SENet"),
    "eca": ("arXiv:1910.03151", "https://github.com/BangguWu/ECANet"),
}
_PLAIN = ("arXiv:1512.03385", "https://github.com/huggingface/pytorch-image-models")


def checkpoint_filter_fn(state_dict: StateDict, model: nn.Module) -> StateDict:
    """Maps the plug-in authors' checkpoints to our keys; our own and timm's pass through unchanged.

    Args:
        state_dict: Flat weights, without prefixes.
        model: The network they are for.
    """
    official: dict[Any, Any] = {type(m): m.official_keys for m in model.modules() if hasattr(m, "official_keys")}
    patterns = [
        (rf"^(layer\d\.\d+)\.{_official_name(cls)}\.{pattern}", rf"\1.se.{replacement}")
        for cls, keys in official.items()
        for pattern, replacement in keys
    ]
    return rename_keys(state_dict, patterns)


def _official_name(plugin: type[nn.Module]) -> str:
    """The authors' name for the plug-in in a block, as a pattern: `cbam`, `triplet_attention`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", plugin.__name__).lower()


def _network(host: str, paper: str, code: str, content: str, **arguments: object) -> Network:
    return Network(f"{host} {content}.", ResNet, {**HOSTS[host], **arguments}, resnet_cfg(host, paper, code), FEATURES)


# The plain networks are what the narrow ones are compared with.
_NETWORKS = {f"va_{host}": _network(host, *_PLAIN, "without attention") for host in ("resnet10n", "resnet18n")}
_NETWORKS |= {
    f"va_resnet10n_{name}": _network(
        "resnet10n", *source, f"with timm's {name} in every block", block_args={"attn_layer": name}
    )
    for name, source in _TIMM_LAYERS.items()
}
_NETWORKS |= {
    f"va_{host}_{card.name}": _network(host, *card_source(card), f"with {card.name} in every block", plugin=card.name)
    for host in HOSTS
    for card in cards("plugin")
    if host != "resnet18n" and ("narrow" if host == "resnet10n" else "resnet") in card.hosts
}

register_family(__name__, _NETWORKS, checkpoint_filter_fn)
