"""ResNets whose channel attention also sees earlier layers (PKCAM), on timm's ResNet.

Paper: arXiv 2211.07521. Official code: https://github.com/eslambakr/EMCA (no licence), Code/eca_resnet_multi_scale.py.

Differs from the official code in: the descriptors travel from block to block as arguments and return values; the
weights that it holds in the first block of each stage without using them do not exist (see plugins/pkcam.py).

Golden: tests/golden/pkcam_*.npz (blocks in both modes, logits and the means of the stages).
"""

import logging
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from timm.models import checkpoint
from timm.models.resnet import BasicBlock, Bottleneck
from torch import nn

from visionattn.plugins.pkcam import PKCAM

from ..builder import StateDict, chosen_maps, family_cfgs, register_network, rename_keys
from ..hosts.resnet import HOSTS, SmallStemResNet, resnet_cfg

__all__ = ["PKCAMBasicBlock", "PKCAMBottleneck", "PKCAMResNet"]

_logger = logging.getLogger(__name__)

Descriptors = tuple[torch.Tensor, ...]

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


class _AttendedBlock(nn.Module):
    """What the residual blocks share: they take earlier layers' descriptors and return their own beside the map."""

    def add(
        self, x: torch.Tensor, residual: torch.Tensor, stage: Sequence[torch.Tensor], block: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The scaled residual plus the shortcut, and the residual's descriptor."""
        residual, descriptor = self.se(residual, stage, block)
        if self.drop_path is not None:
            residual = self.drop_path(residual)
        residual += x if self.downsample is None else self.downsample(x)
        return residual, descriptor


class PKCAMBasicBlock(_AttendedBlock, BasicBlock):
    """timm's block of two 3x3 convolutions with PKCAM in the place of `se`."""

    def forward(
        self, x: torch.Tensor, stage: Sequence[torch.Tensor] = (), block: Sequence[torch.Tensor] = ()
    ) -> tuple[torch.Tensor, torch.Tensor]:
        residual = self.act1(self.drop_block(self.bn1(self.conv1(x))))
        residual = self.bn2(self.conv2(self.aa(residual)))
        out, descriptor = self.add(x, residual, stage, block)
        return self.act2(out), descriptor


class PKCAMBottleneck(_AttendedBlock, Bottleneck):
    """timm's bottleneck with PKCAM in the place of `se`."""

    def forward(
        self, x: torch.Tensor, stage: Sequence[torch.Tensor] = (), block: Sequence[torch.Tensor] = ()
    ) -> tuple[torch.Tensor, torch.Tensor]:
        residual = self.act1(self.bn1(self.conv1(x)))
        residual = self.act2(self.drop_block(self.bn2(self.conv2(residual))))
        residual = self.bn3(self.conv3(self.aa(residual)))
        out, descriptor = self.add(x, residual, stage, block)
        return self.act3(out), descriptor


class Stage(nn.ModuleList):
    """Blocks in a row, the first with its local gate only.

    Args:
        blocks: The blocks.
        within: Whether each block sees those before it in this stage.
    """

    def __init__(self, blocks: Sequence[nn.Module] = (), within: bool = False) -> None:
        super().__init__(blocks)
        self.within = within

    def forward(
        self, x: torch.Tensor, earlier: Sequence[torch.Tensor], checkpointing: bool = False
    ) -> tuple[torch.Tensor, Descriptors]:
        own: Descriptors = ()
        for block in self:
            arguments = (x, earlier, own if self.within else ()) if own else (x,)
            if checkpointing:
                x, descriptor = checkpoint(block, *arguments, use_reentrant=False)
            else:
                x, descriptor = block(*arguments)
            own = (*own, descriptor)
        return x, own


class PKCAMResNet(SmallStemResNet):
    """timm's ResNet with PKCAM in every residual block, before the addition. `(B, in_chans, H, W) -> (B, num_classes)`.

    Args:
        block: `PKCAMBasicBlock` or `PKCAMBottleneck`.
        layers: Number of blocks of each stage.
        earlier: Which earlier descriptors the blocks beyond the first of a stage see. `stage`: of the stem and of the
            last block of every earlier stage (the paper's); `stage_last`: of the last block of the previous stage;
            `stage_all`: of all its blocks (the first stage sees the stem in either); `block`: of the earlier blocks of
            the same stage; `block_stage`, `block_stage_last`, `block_stage_all`: both.
        inner: As in `PKCAM`.
        upsample: As in `PKCAM`.
        zero_init_last: Start every residual branch at zero. Off, as in the official code.
        official_start: Start with PyTorch's defaults everywhere, as the official code; otherwise as the other ResNets.
        **kwargs: As `SmallStemResNet`: `stem_stride` and timm's.

    Raises:
        ValueError: If `earlier`, `inner` or `upsample` is unknown, or the width of a stage is not a multiple of that of
            one before it.
    """

    def __init__(
        self,
        block: type[_AttendedBlock],
        layers: Sequence[int],
        *,
        earlier: str = "stage",
        inner: str = "eca",
        upsample: str = "tile",
        zero_init_last: bool = False,
        official_start: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> None:
        if earlier not in _VARIANTS:
            raise ValueError(f"earlier must be one of {', '.join(_VARIANTS)}, got {earlier!r}")
        dd = {"device": device, "dtype": dtype}
        self.official_start = official_start  # timm's constructor already starts the weights
        super().__init__(block, layers, zero_init_last=zero_init_last, **dd, **kwargs)
        self._seen, within = _VARIANTS[earlier]
        widths: list[Sequence[int]] = [(self.bn1.num_features,)]
        for info in self.feature_info[1:]:
            blocks = self.get_submodule(info["module"])
            for index, attended in enumerate(blocks):
                attended.se = PKCAM(
                    info["num_chs"],
                    stage_widths=_SEEN[self._seen](widths) if index else (),
                    block_count=index if within else 0,
                    inner=inner,
                    upsample=upsample,
                    **dd,
                )
            setattr(self, info["module"], Stage(blocks, within))
            widths.append((info["num_chs"],) * len(blocks))

    def init_weights(self, zero_init_last: bool = False) -> None:
        """The official start, PyTorch's default everywhere; or timm's, and that of PKCAM."""
        if not self.official_start:
            super().init_weights(zero_init_last=zero_init_last)
            return
        for module in self.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        for module in self.modules():
            if zero_init_last and isinstance(module, _AttendedBlock):
                module.zero_init_last()

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Parameters that no weight decay should touch beyond biases and scales: none."""
        return set()

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[torch.Tensor] | tuple[torch.Tensor, list[torch.Tensor]]:
        """The maps after the stem's activation (0) and after each stage (1 to 4).

        Args:
            x: Images.
            indices: Which maps to return: the last n, these (negative ones count from the end), or all.
            norm: Without effect, as in timm's ResNet.
            stop_early: Leave out the stages behind the last map that is returned.
            output_fmt: NCHW.
            intermediates_only: Return the list of maps alone.

        Returns:
            The last map and the list of maps, or the list alone.

        Raises:
            ValueError: If `output_fmt` is another, or an index is out of range.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be NCHW, got {output_fmt!r}")
        count = len(self.feature_info)
        wanted = chosen_maps(indices, count)
        x, maps = self._run(x, wanted, max(wanted) if stop_early else count - 1)
        return maps if intermediates_only else (x, maps)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """The map before pooling and classifier."""
        return self._run(x)[0]

    def _run(
        self, x: torch.Tensor, wanted: Sequence[int] = (), last: int = 4
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        x = self.act1(self.bn1(self.conv1(x)))
        maps = [x] if 0 in wanted else []
        x = self.maxpool(x)
        history: list[Descriptors] = [(x.mean((2, 3)),)]
        for index, stage in enumerate((self.layer1, self.layer2, self.layer3, self.layer4)[:last], 1):
            if len(stage):  # timm empties the stages that feature extraction does not need.
                x, descriptors = stage(x, _SEEN[self._seen](history), self.grad_checkpointing)
                history.append(descriptors)
            if index in wanted:
                maps.append(x)
        return x, maps


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


_BLOCKS = {BasicBlock: PKCAMBasicBlock, Bottleneck: PKCAMBottleneck}
# Registered name -> host.
_MODELS = {f"va_{host}_pkcam": host for host in ("resnet18n", "resnet18", "resnet34", "resnet50", "resnet101")}


def _cfg(name: str, **kwargs: Any) -> dict[str, Any]:
    return resnet_cfg(_MODELS[name], "arXiv:2211.07521", "https://github.com/eslambakr/EMCA", **kwargs)


default_cfgs = family_cfgs(_MODELS, _cfg)

for _name, _host in _MODELS.items():
    register_network(
        __name__,
        _name,
        f"{_host} with PKCAM in every block.",
        PKCAMResNet,
        to_native=checkpoint_filter_fn,
        # The stages hand descriptors on, so they cannot be run as a plain sequence.
        feature_cfg={"out_indices": (1, 2, 3, 4), "feature_cls": "getter"},
        **{**HOSTS[_host], "block": _BLOCKS[HOSTS[_host]["block"]]},
        # The narrow network is for comparison with its host.
        official_start=_host != "resnet18n",
    )
