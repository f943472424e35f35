"""ResNets with a plug-in in every residual block, before the addition, on timm's ResNet.

Paper of the host: arXiv 1512.03385. Where the plug-in goes: CBAM (arXiv 1807.06521),
https://github.com/Jongchan/attention-module (MIT), MODELS/model_resnet.py; triplet attention (arXiv 2010.03045),
https://github.com/landskape-ai/triplet-attention (MIT), MODELS/resnet.py. ELA (arXiv 2403.01123) has no published code
for ImageNet ResNets: its place here is our choice.

Differs from the official code in: any input size instead of 224 px only; timm's initialisation of the convolutions
outside the plug-ins (Kaiming normal by fan-out everywhere) instead of PyTorch's default in the shortcuts.

Golden: tests/golden/cbam_resnet*.npz and triplet_resnet*.npz (logits and the means of the stages).
"""

import re
from collections.abc import Callable
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import ResNet as _ResNet
from timm.models import generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, Bottleneck
from torch import nn

from visionattn.plugins import resolve_plugin

from ._build import StateDict, build_model, packaged_cfgs, rename_keys

__all__ = ["ResNet"]

_HOSTS: dict[str, dict[str, Any]] = {
    # "n" for narrow: for images of 28 to 64 px, trained on a CPU in minutes.
    "resnet10n": {
        "block": BasicBlock,
        "layers": (1, 1, 1, 1),
        "channels": (16, 32, 64, 128),
        "stem_type": "deep",
        "stem_width": 8,
        "stem_stride": 2,
    },
    "resnet18": {"block": BasicBlock, "layers": (2, 2, 2, 2)},
    "resnet34": {"block": BasicBlock, "layers": (3, 4, 6, 3)},
    "resnet50": {"block": Bottleneck, "layers": (3, 4, 6, 3)},
    "resnet101": {"block": Bottleneck, "layers": (3, 4, 23, 3)},
}
# Registered name -> host and plug-in.
_MODELS: dict[str, tuple[str, str | None]] = {
    "va_resnet10n": ("resnet10n", None),
    **{f"va_{host}_{plugin}": (host, plugin) for host in _HOSTS for plugin in ("cbam", "ela_s", "triplet")},
}
# Plug-in -> its paper and official code.
_SOURCES = {
    None: ("arXiv:1512.03385", "https://github.com/huggingface/pytorch-image-models"),
    "cbam": ("arXiv:1807.06521", "https://github.com/Jongchan/attention-module"),
    "ela_s": ("arXiv:2403.01123", "https://github.com/Xuwei86/ELA_Code"),
    "triplet": ("arXiv:2010.03045", "https://github.com/landskape-ai/triplet-attention"),
}


class ResNet(_ResNet):
    """timm's ResNet with a plug-in in every residual block. `(B, in_chans, H, W) -> (B, num_classes)`.

    Args:
        *args: As timm's ResNet: `block` and `layers` first.
        plugin: Name, class or config of the block to put in; none leaves the plain network.
        stem_stride: Stride of the stem. 4 is the classic one; for small images 2 leaves the max-pool out and 1 (the
            official CIFAR mode) the first convolution's stride too, with 3x3 in place of 7x7. The stages' features come
            at 1, 2, 4 and 8 times this stride.
        zero_init_last: Start every residual branch at zero. Off, as in the plug-ins' papers.
        **kwargs: As timm's ResNet.

    Raises:
        ValueError: If the plug-in is unknown or `stem_stride` is neither 1, 2 nor 4.
    """

    def __init__(
        self,
        *args: Any,
        plugin: str | dict[str, Any] | Callable[..., nn.Module] | None = None,
        stem_stride: int = 4,
        zero_init_last: bool = False,
        block_args: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        block_args = dict(block_args or {})
        if plugin is not None:
            block_args["attn_layer"] = resolve_plugin(plugin)
        super().__init__(*args, zero_init_last=zero_init_last, block_args=block_args, **kwargs)
        if stem_stride not in (1, 2, 4):
            raise ValueError(f"stem_stride must be 1, 2 or 4, got {stem_stride}")
        if stem_stride < 4:
            self.maxpool = nn.Identity()
        if stem_stride == 1:
            self._keep_resolution()
        self.feature_info = [
            info | {"reduction": stem_stride * info["reduction"] // 4 if index else min(stem_stride, 2)}
            for index, info in enumerate(self.feature_info)
        ]

    def init_weights(self, zero_init_last: bool = False) -> None:
        """timm's start for the host, then the papers' own start for the plug-ins, which timm's overwrote."""
        super().init_weights(zero_init_last=zero_init_last)
        for module in self.modules():
            if hasattr(module, "official_keys"):
                module.reset_parameters()

    def _keep_resolution(self) -> None:
        deep = isinstance(self.conv1, nn.Sequential)
        strided = self.conv1[0] if deep else self.conv1
        conv = nn.Conv2d(
            strided.in_channels,
            strided.out_channels,
            kernel_size=3,
            padding=1,
            bias=False,
            device=strided.weight.device,
            dtype=strided.weight.dtype,
        )
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        if deep:
            self.conv1[0] = conv
        else:
            self.conv1 = conv

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Parameters that no weight decay should touch beyond biases and scales: none."""
        return set()


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
    paper, code = _SOURCES[plugin]
    small = _HOSTS[host].get("stem_stride", 4) < 4
    return {
        "url": "",
        "num_classes": 10 if small else 1000,
        "input_size": (3, 32, 32) if small else (3, 224, 224),
        "pool_size": (2, 2) if small else (7, 7),
        "crop_pct": 1.0 if small else 0.875,
        "interpolation": "bilinear",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "conv1.0" if small else "conv1",
        "classifier": "fc",
        "license": "apache-2.0",
        "paper_ids": paper,
        "origin_url": code,
        **kwargs,
    }


default_cfgs = generate_default_cfgs({**{name: _cfg(name) for name in _MODELS}, **packaged_cfgs(_MODELS, _cfg)})


def _register(name: str, host: str, plugin: str | None) -> None:
    def create(pretrained: bool = False, **kwargs: Any) -> ResNet:
        return build_model(
            ResNet,
            name,
            pretrained,
            to_native=checkpoint_filter_fn,
            feature_cfg={"out_indices": (1, 2, 3, 4)},
            **{**_HOSTS[host], "plugin": plugin, **kwargs},
        )

    create.__name__ = create.__qualname__ = name
    create.__doc__ = f"{host} {'without attention' if plugin is None else f'with {plugin} in every block'}."
    globals()[name] = register_model(create)


for _name, (_host, _plugin) in _MODELS.items():
    _register(_name, _host, _plugin)
