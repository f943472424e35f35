"""ResNets, ResNeXts and wide ResNets with a plug-in in every residual block, before the addition.

Where the plug-in goes: CBAM (arXiv 1807.06521), https://github.com/Jongchan/attention-module (MIT),
MODELS/model_resnet.py; triplet attention (arXiv 2010.03045), https://github.com/landskape-ai/triplet-attention (MIT),
MODELS/resnet.py. The papers of the others have no published code for ResNets: their place here is our choice.

Differs from the official code in: any input size instead of 224 px only; timm's initialisation of the convolutions
outside the plug-ins (Kaiming normal by fan-out everywhere) instead of PyTorch's default in the shortcuts.

Golden: tests/golden/cbam_resnet*.npz and triplet_resnet*.npz (logits and the means of the stages).
"""

import re
from collections.abc import Callable
from typing import Any

from torch import nn

from visionattn.plugins import resolve_plugin

from ..builder import StateDict, family_cfgs, register_network, rename_keys
from ..hosts.resnet import HOSTS, SmallStemResNet, resnet_cfg

__all__ = ["ResNet"]

# Plug-in -> its paper and official code.
_SOURCES = {
    "cbam": ("arXiv:1807.06521", "https://github.com/Jongchan/attention-module"),
    "triplet": ("arXiv:2010.03045", "https://github.com/landskape-ai/triplet-attention"),
    **dict.fromkeys(("ela_t", "ela_b", "ela_s", "ela_l"), ("arXiv:2403.01123", "https://github.com/Xuwei86/ELA_Code")),
    "ulsam": ("arXiv:2006.15102", "https://github.com/Nandan91/ULSAM"),
    "coord": ("arXiv:2103.02907", "https://github.com/houqb/CoordAttention"),
    "bmta": ("arXiv:2510.15527", "https://github.com/virAditya/satellite-image-classification-eurosat"),
}
# timm's own layers, in the narrow host only, for comparison: name -> paper and code.
_TIMM_LAYERS = {
    "se": ("arXiv:1709.01507", "https://github.com/hujie-frank/SENet"),
    "eca": ("arXiv:1910.03151", "https://github.com/BangguWu/ECANet"),
}
# Registered name -> host and plug-in; the plain networks are what the narrow ones are compared with.
_MODELS: dict[str, tuple[str, str | None]] = {
    "va_resnet10n": ("resnet10n", None),
    "va_resnet18n": ("resnet18n", None),
    **{f"va_resnet10n_{layer}": ("resnet10n", layer) for layer in _TIMM_LAYERS},
    **{f"va_{host}_{plugin}": (host, plugin) for host in HOSTS if host != "resnet18n" for plugin in _SOURCES},
}


class ResNet(SmallStemResNet):
    """timm's ResNet with a plug-in in every residual block. `(B, in_chans, H, W) -> (B, num_classes)`.

    Args:
        *args: As timm's ResNet: `block` and `layers` first.
        plugin: Name, class or config of the block to put in; none leaves the plain network.
        block_args: Further arguments of timm's residual blocks.
        **kwargs: As `SmallStemResNet`: `stem_stride`, `zero_init_last` and timm's.

    Raises:
        ValueError: If the plug-in is unknown.
    """

    def __init__(
        self,
        *args: Any,
        plugin: str | dict[str, Any] | Callable[..., nn.Module] | None = None,
        block_args: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        attention = {} if plugin is None else {"attn_layer": resolve_plugin(plugin)}
        super().__init__(*args, block_args={**(block_args or {}), **attention}, **kwargs)


def checkpoint_filter_fn(state_dict: StateDict, model: nn.Module) -> StateDict:
    """Maps the plug-in authors' checkpoints to our keys; our own and timm's pass through unchanged.

    Args:
        state_dict: Flat weights, without prefixes.
        model: The network they are for.
    """
    official = {type(m): m.official_keys for m in model.modules() if hasattr(m, "official_keys")}
    patterns = [
        (rf"^(layer\d\.\d+)\.{_official_name(cls)}\.{pattern}", rf"\1.se.{replacement}")
        for cls, keys in official.items()
        for pattern, replacement in keys
    ]
    return rename_keys(state_dict, patterns)


def _official_name(plugin: type[nn.Module]) -> str:
    """What the authors call the plug-in in a block, as a pattern: `cbam`, `triplet_attention`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", plugin.__name__).lower()


def _cfg(name: str, **kwargs: Any) -> dict[str, Any]:
    host, plugin = _MODELS[name]
    plain = ("arXiv:1512.03385", "https://github.com/huggingface/pytorch-image-models")
    return resnet_cfg(host, *{**_SOURCES, **_TIMM_LAYERS}.get(plugin, plain), **kwargs)


default_cfgs = family_cfgs(_MODELS, _cfg)

for _name, (_host, _plugin) in _MODELS.items():
    register_network(
        __name__,
        _name,
        f"{_host} {'without attention' if _plugin is None else f'with {_plugin} in every block'}.",
        ResNet,
        to_native=checkpoint_filter_fn,
        feature_cfg={"out_indices": (1, 2, 3, 4)},
        **HOSTS[_host],
        **({"block_args": {"attn_layer": _plugin}} if _plugin in _TIMM_LAYERS else {"plugin": _plugin}),
    )
