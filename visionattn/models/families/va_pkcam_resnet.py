"""ResNets whose channel attention also sees earlier layers (PKCAM), on timm's ResNet.

Paper: arXiv 2211.07521. Official code: https://github.com/eslambakr/EMCA (no licence), Code/eca_resnet_multi_scale.py.

Differs from the official code in: the descriptors travel from block to block as arguments and return values; the
weights that it holds in the first block of each stage without using them do not exist (see plugins/pkcam.py).

Golden: tests/golden/pkcam_*.npz (blocks in both modes, logits and the means of the stages).
"""

import logging
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from visionattn.plugins.pkcam import PKCAM

from ..builder import StateDict, rename_keys
from ..hosts.cross_layer import CrossLayerResNet
from ..hosts.resnet import HOSTS, resnet_cfg
from ..registry import Network, register_family

__all__ = ["HistoryPKCAM", "PKCAMResNet"]

_logger = logging.getLogger(__name__)

# What a stage sees of the stem and the stages before it, each of which is a sequence with one entry for every block.
_SEEN: dict[str, Callable[[Sequence[Sequence[Any]]], Sequence[Any]]] = {
    "none": lambda history: (),
    "history": lambda history: [stage[-1] for stage in history],
    "last": lambda history: history[-1][-1:],
    "all": lambda history: history[-1],
}
# Variant -> what of earlier stages, and whether the earlier blocks of the same stage.
_VARIANTS = {
    "stage": ("history", False),
    "stage_last": ("last", False),
    "stage_all": ("all", False),
    "block": ("none", True),
    "block_stage": ("history", True),
    "block_stage_last": ("last", True),
    "block_stage_all": ("all", True),
}


class HistoryPKCAM(PKCAM):
    """PKCAM in a ResNet block, which selects its inputs from the history of all previous layers.

    Args:
        channels: Width of the map.
        widths: Widths of the history: of the stem, of the blocks of each earlier stage, of those before in this stage.
        earlier: As in `PKCAMResNet`.
        **kwargs: As `PKCAM`: inner, upsample, device, dtype.
    """

    def __init__(self, channels: int, widths: Sequence[Sequence[int]], *, earlier: str, **kwargs: Any) -> None:
        self.earlier = earlier
        stage_widths, block_widths = self._seen(widths)
        super().__init__(channels, stage_widths=stage_widths, block_count=len(block_widths), **kwargs)

    def forward(  # type: ignore[override]  # the history stands for what PKCAM takes
        self, x: torch.Tensor, history: Sequence[Sequence[torch.Tensor]]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The scaled map and the own descriptor."""
        return super().forward(x, *self._seen(history))

    def gates(  # type: ignore[override]
        self, x: torch.Tensor, history: Sequence[Sequence[torch.Tensor]]
    ) -> dict[str, torch.Tensor]:
        """The factor of the channels, `(B, C, 1, 1)`. Arguments as for a call."""
        return super().gates(x, *self._seen(history))

    def _seen(self, history: Sequence[Sequence[Any]]) -> tuple[Sequence[Any], Sequence[Any]]:
        """The descriptors of earlier stages and of the same stage; the first block of a stage sees neither."""
        of_stages, within = _VARIANTS[self.earlier]
        *stages, own = history
        return _SEEN[of_stages](stages) if own else (), own if within else ()


class PKCAMResNet(CrossLayerResNet):
    """A ResNet with PKCAM in every residual block, before the addition. `(B, in_chans, H, W) -> (B, num_classes)`.

    Args:
        block: timm's `BasicBlock` or `Bottleneck`.
        layers: Number of blocks of each stage.
        earlier: Which earlier descriptors the blocks beyond the first of a stage see. `stage`: of the stem and of the
            last block of every earlier stage (the paper's); `stage_last`: of the last block of the previous stage;
            `stage_all`: of all its blocks (the first stage sees the stem in either); `block`: of the earlier blocks of
            the same stage; `block_stage`, `block_stage_last`, `block_stage_all`: both.
        inner: As in `PKCAM`.
        upsample: As in `PKCAM`.
        official_start: Start with PyTorch's defaults everywhere, as the official code; otherwise as the other ResNets.
        **kwargs: As `ResNet`: `stem_stride`, `zero_init_last` and timm's.

    Raises:
        ValueError: If `earlier`, `inner` or `upsample` is unknown, or the width of a stage is not a multiple of that of
            one before it.
    """

    def __init__(
        self,
        block: type[nn.Module],
        layers: Sequence[int],
        *,
        earlier: str = "stage",
        inner: str = "eca",
        upsample: str = "tile",
        official_start: bool = True,
        **kwargs: Any,
    ) -> None:
        if earlier not in _VARIANTS:
            raise ValueError(f"earlier must be one of {', '.join(_VARIANTS)}, got {earlier!r}")
        self.official_start = official_start  # timm's constructor already starts the weights
        attention = partial(HistoryPKCAM, earlier=earlier, inner=inner, upsample=upsample)
        super().__init__(block, layers, attention=attention, **kwargs)

    def init_weights(self, zero_init_last: bool = False) -> None:
        """The official initialisation, PyTorch's default everywhere; or timm's, and that of PKCAM."""
        if not self.official_start:
            super().init_weights(zero_init_last=zero_init_last)
            return
        module: Any
        for module in self.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        for module in self.modules():
            if zero_init_last and hasattr(module, "zero_init_last"):
                module.zero_init_last()


# The author's names of everything but the attention, in turn.
_OFFICIAL_KEYS = (
    (r"^pre\.0\.", "conv1."),
    (r"^pre\.1\.", "bn1."),
    (r"^linear\.", "fc."),
    (r"^stage(\d)\.", r"layer\1."),
    (r"\.shortcut\.", ".downsample."),
    *((rf"\.residual\.{3 * n}\.", f".conv{n + 1}.") for n in range(3)),
    *((rf"\.residual\.{3 * n + 1}\.", f".bn{n + 1}.") for n in range(3)),
    *((rf"^(layer\d\.\d+)\.{pattern}", rf"\1.se.{replacement}") for pattern, replacement in PKCAM.official_keys),
)


def checkpoint_filter_fn(state_dict: StateDict, model: nn.Module) -> StateDict:
    """Maps the author's checkpoints to our keys; our own pass through unchanged.

    Args:
        state_dict: Flat weights, without prefixes.
        model: The network they are for.
    """
    if not any(key.startswith("stage") for key in state_dict):
        return state_dict
    own = model.state_dict()
    learned = any(".upsample." in key for key in own)
    native, dropped = {}, []
    renamed = rename_keys(state_dict, _OFFICIAL_KEYS)
    for official, (key, value) in zip(state_dict, renamed.items(), strict=True):
        unused = re.match(r"layer\d\.0\.se\.(?!local_gate)", key) or (learned and ".se.stage_gate.upsample." in key)
        if unused and key not in own:
            dropped.append(official)
        elif ".se." in key and key in own and value.numel() == own[key].numel():
            native[key] = value.reshape(own[key].shape)
        else:
            native[key] = value
    if dropped:
        _logger.info("left out %d weights that the official code never uses: %s", len(dropped), ", ".join(dropped))
    return native


register_family(
    __name__,
    {
        f"va_{host}_pkcam": Network(
            f"{host} with PKCAM in every block.",
            PKCAMResNet,
            # The narrow network is for comparison with its host.
            {**HOSTS[host], "official_start": host != "resnet18n"},
            resnet_cfg(host, "arXiv:2211.07521", "https://github.com/eslambakr/EMCA"),
            # The stages hand descriptors on, so they cannot be run as a plain sequence.
            {"out_indices": (1, 2, 3, 4), "feature_cls": "getter"},
        )
        for host in ("resnet18n", "resnet18", "resnet34", "resnet50", "resnet101")
    },
    checkpoint_filter_fn,
)
