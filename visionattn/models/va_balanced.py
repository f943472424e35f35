"""The "12-layer" network of balanced multi-task attention, for small images, on timm's ResNet.

Paper: arXiv 2510.15527. Official code: https://github.com/virAditya/satellite-image-classification-eurosat (MIT),
models/balanced_12layer.py.

Differs from the official code in:
- it can be built: the official initialiser zeroes biases that do not exist; timm's start is used instead;
- DropBlock is timm's: the same mask for all channels and the same scaling, seeded by the DropBlock paper's formula.

Golden: tests/golden/bmta_balanced12_eval.npz (logits and the means of the stages).
"""

from collections.abc import Sequence
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import DropBlock2d
from timm.models import ResNet, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock
from torch import nn

from visionattn.plugins import BalancedMultiTaskAttention

from ._build import StateDict, build_model, packaged_cfgs, rename_keys

__all__ = ["BalancedNet"]

_NAME = "va_balanced12_bmta"


class BalancedNet(ResNet):
    """Basic residual blocks with balanced attention before every addition. `(B, in_chans, H, W) -> (B, num_classes)`.

    The stem keeps the resolution; the stages' features come at strides 1, 2, 4 and 8.

    Args:
        layers: Blocks of each of the four stages.
        drop_block_rates: DropBlock's rate in each stage, between the two convolutions of every block, in 7x7 squares.
        drop_rate: Dropout before the classifier.
        block_args: Further arguments of timm's `BasicBlock`.
        zero_init_last: Start every residual branch at zero.
        device: Where the parameters live.
        dtype: Their dtype.
        **kwargs: As timm's ResNet.
    """

    def __init__(
        self,
        layers: Sequence[int] = (3, 3, 3, 2),
        *,
        drop_block_rates: Sequence[float] = (0.05, 0.1, 0.15, 0.2),
        drop_rate: float = 0.5,
        block_args: dict[str, Any] | None = None,
        zero_init_last: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        super().__init__(
            BasicBlock,
            tuple(layers),
            drop_rate=drop_rate,
            block_args={"attn_layer": BalancedMultiTaskAttention, **(block_args or {})},
            zero_init_last=zero_init_last,
            **dd,
            **kwargs,
        )
        self.conv1 = nn.Conv2d(self.in_chans, self.bn1.num_features, 3, padding=1, bias=False, **dd)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.maxpool = nn.Identity()
        self.feature_info = [info | {"reduction": max(info["reduction"] // 4, 1)} for info in self.feature_info]
        for stage, rate in zip((self.layer1, self.layer2, self.layer3, self.layer4), drop_block_rates, strict=True):
            for block in stage:
                block.drop_block = DropBlock2d(rate, block_size=7)

    def init_weights(self, zero_init_last: bool = False) -> None:
        """timm's start for the host, then the author's own for the attention, which timm's overwrote."""
        super().init_weights(zero_init_last=zero_init_last)
        for module in self.modules():
            if isinstance(module, BalancedMultiTaskAttention):
                module.reset_parameters()

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Parameters that no weight decay should touch beyond biases and scales: none."""
        return set()


def checkpoint_filter_fn(state_dict: StateDict, model: nn.Module) -> StateDict:
    """Maps the author's names to ours; our own pass through unchanged.

    Args:
        state_dict: Flat weights, without prefixes.
        model: The network they are for.
    """
    trunk = (
        (r"^stem\.0\.", "conv1."),
        (r"^stem\.1\.", "bn1."),
        (r"^stage(\d)\.", r"layer\1."),
        (r"\.shortcut\.", ".downsample."),
        (r"\.attention\.", ".se."),
    )
    return rename_keys(state_dict, [*trunk, *BalancedMultiTaskAttention.official_keys])


def _cfg(name: str, **kwargs: Any) -> dict[str, Any]:
    return {
        "url": "",
        "num_classes": 10,
        "input_size": (3, 64, 64),
        "pool_size": (8, 8),
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "conv1",
        "classifier": "fc",
        "license": "apache-2.0",
        "paper_ids": "arXiv:2510.15527",
        "origin_url": "https://github.com/virAditya/satellite-image-classification-eurosat",
        **kwargs,
    }


default_cfgs = generate_default_cfgs({_NAME: _cfg(_NAME), **packaged_cfgs([_NAME], _cfg)})


@register_model
def va_balanced12_bmta(pretrained: bool = False, **kwargs: Any) -> BalancedNet:
    """Eleven basic blocks with balanced attention, for 64 px images."""
    return build_model(
        BalancedNet,
        _NAME,
        pretrained,
        to_native=checkpoint_filter_fn,
        feature_cfg={"out_indices": (1, 2, 3, 4)},
        **kwargs,
    )
