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
from torch import nn

from visionattn.plugins.bam import BAM
from visionattn.utils.factory import FactoryKwargs

from ..builder import StateDict, rename_keys
from ..hosts.resnet import FEATURES, HOSTS, ResNet, resnet_cfg
from ..registry import Network, register_family

__all__ = ["BAMResNet"]

# A BAM is the first thing in the stage after the one that the paper counts it to. So a stage's feature is what the
# stage gives, before BAM, and all of timm's walks over stages hold.
_OFFICIAL_KEYS = (*((rf"^bam{stage}\.", f"layer{stage + 1}.bam.") for stage in (1, 2, 3)), *BAM.official_keys)


class BAMResNet(ResNet):
    """timm's ResNet with one BAM after stage 1, 2 and 3. `(B, in_chans, H, W) -> (B, num_classes)`.

    The features of a stage are read before the BAM that follows it, as in the official code's stages.

    Args:
        *args: As timm's ResNet: `block` and `layers` first.
        bam: Further arguments of each BAM.
        device: Where the parameters live.
        dtype: Their dtype.
        **kwargs: As `ResNet`: `stem_stride`, `zero_init_last` and timm's.

    Raises:
        ValueError: If an argument of BAM is out of range.
    """

    def __init__(
        self,
        *args: Any,
        bam: dict[str, Any] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> None:
        dd: FactoryKwargs = {"device": device, "dtype": dtype}
        super().__init__(*args, **dd, **kwargs)
        for before, stage in ((1, "layer2"), (2, "layer3"), (3, "layer4")):
            gate = BAM(self.feature_info[before]["num_chs"], **(bam or {}), **dd)
            setattr(self, stage, nn.Sequential(OrderedDict(bam=gate, **dict(getattr(self, stage).named_children()))))

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns of layer names, in order; a BAM belongs to the first block of its stage."""
        if coarse:
            return super().group_matcher(coarse=True)
        return {"stem": r"^conv1|bn1|maxpool", "blocks": [(r"^layer(\d+)\.(\d+)", None), (r"^layer(\d+)\.bam", (0,))]}


def checkpoint_filter_fn(state_dict: StateDict, model: nn.Module) -> StateDict:
    """Maps the author's checkpoints to our keys; our own pass through unchanged.

    Args:
        state_dict: Flat weights, without prefixes.
        model: The network they are for.
    """
    return rename_keys(state_dict, _OFFICIAL_KEYS)


register_family(
    __name__,
    {
        f"va_{host}_bam": Network(
            f"{host} with a BAM after stage 1, 2 and 3.",
            BAMResNet,
            arguments,
            resnet_cfg(host, "arXiv:1807.06514", "https://github.com/Jongchan/attention-module"),
            FEATURES,
        )
        for host, arguments in HOSTS.items()
        if host != "resnet18n"
    },
    checkpoint_filter_fn,
)
