"""ResNets with a BAM between their stages, on timm's ResNet.

Paper: arXiv 1807.06514; of the host: arXiv 1512.03385. Official code: https://github.com/Jongchan/attention-module
(MIT), MODELS/model_resnet.py.

Differs from the official code in: any input size instead of 224 px only; timm's initialisation of the convolutions
outside BAM (Kaiming normal by fan-out everywhere) instead of PyTorch's default in the shortcuts.

Golden: tests/golden/bam_resnet50_eval.npz (logits and the means of the stages).
"""

from collections import OrderedDict
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import ResNet, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, Bottleneck
from torch import nn

from visionattn.plugins import BAM

from ._build import StateDict, build_model, packaged_cfgs, rename_keys

__all__ = ["BAMResNet"]

_MODELS: dict[str, dict[str, Any]] = {
    "va_resnet18_bam": {"block": BasicBlock, "layers": (2, 2, 2, 2)},
    "va_resnet34_bam": {"block": BasicBlock, "layers": (3, 4, 6, 3)},
    "va_resnet50_bam": {"block": Bottleneck, "layers": (3, 4, 6, 3)},
    "va_resnet101_bam": {"block": Bottleneck, "layers": (3, 4, 23, 3)},
}
# A BAM is the first thing in the stage after the one that the paper counts it to. So a stage's feature is what the
# stage gives, before BAM, and all of timm's walks over stages hold.
_OFFICIAL_KEYS = (*((rf"^bam{stage}\.", f"layer{stage + 1}.bam.") for stage in (1, 2, 3)), *BAM.official_keys)


class BAMResNet(ResNet):
    """timm's ResNet with one BAM after stage 1, 2 and 3. `(B, in_chans, H, W) -> (B, num_classes)`.

    The features of a stage are read before the BAM that follows it, as in the official code's stages.

    Args:
        *args: As timm's ResNet: `block` and `layers` first.
        bam: Further arguments of each BAM.
        zero_init_last: Start every residual branch at zero. Off, as in the paper's code.
        device: Where the parameters live.
        dtype: Their dtype.
        **kwargs: As timm's ResNet.

    Raises:
        ValueError: If an argument of BAM is out of range.
    """

    def __init__(
        self,
        *args: Any,
        bam: dict[str, Any] | None = None,
        zero_init_last: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        super().__init__(*args, zero_init_last=zero_init_last, **dd, **kwargs)
        for before, stage in ((1, "layer2"), (2, "layer3"), (3, "layer4")):
            gate = BAM(self.feature_info[before]["num_chs"], **(bam or {}), **dd)
            setattr(self, stage, nn.Sequential(OrderedDict(bam=gate, **dict(getattr(self, stage).named_children()))))

    def init_weights(self, zero_init_last: bool = False) -> None:
        """timm's start for the host, then the official start of every BAM."""
        super().init_weights(zero_init_last=zero_init_last)
        for module in self.modules():
            if isinstance(module, BAM):
                module.reset_parameters()

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns of the layers' names, in order; a BAM goes with the first block of its stage."""
        if coarse:
            return super().group_matcher(coarse=True)
        return {"stem": r"^conv1|bn1|maxpool", "blocks": [(r"^layer(\d+)\.(\d+)", None), (r"^layer(\d+)\.bam", (0,))]}

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Parameters that no weight decay should touch beyond biases and scales: none."""
        return set()


def checkpoint_filter_fn(state_dict: StateDict, model: nn.Module) -> StateDict:
    """Maps the author's checkpoints to our keys; our own pass through unchanged.

    Args:
        state_dict: Flat weights, without prefixes.
        model: The network they are for.
    """
    return rename_keys(state_dict, _OFFICIAL_KEYS)


def _cfg(name: str, **kwargs: Any) -> dict[str, Any]:
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bilinear",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "conv1",
        "classifier": "fc",
        "license": "apache-2.0",
        "paper_ids": "arXiv:1807.06514",
        "origin_url": "https://github.com/Jongchan/attention-module",
        **kwargs,
    }


default_cfgs = generate_default_cfgs({**{name: _cfg(name) for name in _MODELS}, **packaged_cfgs(_MODELS, _cfg)})


def _register(name: str, host: dict[str, Any]) -> None:
    def create(pretrained: bool = False, **kwargs: Any) -> BAMResNet:
        return build_model(
            BAMResNet,
            name,
            pretrained,
            to_native=checkpoint_filter_fn,
            feature_cfg={"out_indices": (1, 2, 3, 4)},
            **{**host, **kwargs},
        )

    create.__name__ = create.__qualname__ = name
    create.__doc__ = f"{name.split('_')[1]} with a BAM after stage 1, 2 and 3."
    globals()[name] = register_model(create)


for _name, _host in _MODELS.items():
    _register(_name, _host)
