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

from timm.layers import DropBlock2d
from timm.models.resnet import BasicBlock
from torch import nn

from visionattn.plugins.bmta import BalancedMultiTaskAttention

from ..builder import StateDict, rename_keys
from ..hosts.resnet import FEATURES, ResNet, resnet_cfg
from ..registry import Network, register_family

__all__ = ["BalancedNet"]


class BalancedNet(ResNet):
    """Basic residual blocks with balanced attention before every addition. `(B, in_chans, H, W) -> (B, num_classes)`.

    The stem keeps the resolution; the stages' features come at strides 1, 2, 4 and 8.

    Args:
        layers: Blocks of each of the four stages.
        drop_block_rates: DropBlock's rate in each stage, between the two convolutions of every block, in 7x7 squares.
        drop_rate: Dropout before the classifier.
        **kwargs: As `ResNet` and timm's.
    """

    def __init__(
        self,
        layers: Sequence[int] = (3, 3, 3, 2),
        *,
        drop_block_rates: Sequence[float] = (0.05, 0.1, 0.15, 0.2),
        drop_rate: float = 0.5,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            BasicBlock,
            tuple(layers),
            plugin=BalancedMultiTaskAttention,
            stem_stride=1,
            drop_rate=drop_rate,
            **kwargs,
        )
        for stage, rate in zip((self.layer1, self.layer2, self.layer3, self.layer4), drop_block_rates, strict=True):
            for block in stage:
                block.drop_block = DropBlock2d(rate, block_size=7)


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


register_family(
    __name__,
    {
        "va_balanced12_bmta": Network(
            "Eleven basic blocks with balanced attention, for 64 px images.",
            BalancedNet,
            {},
            resnet_cfg(
                "resnet18",
                "arXiv:2510.15527",
                "https://github.com/virAditya/satellite-image-classification-eurosat",
                num_classes=10,
                input_size=(3, 64, 64),
                pool_size=(8, 8),
                crop_pct=1.0,
            ),
            FEATURES,
        )
    },
    checkpoint_filter_fn,
)
