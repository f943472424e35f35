"""Building networks through timm with weights that are checked: state dicts, their names and what must fit."""

import logging
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from timm.models import build_model_with_cfg, resolve_pretrained_cfg
from torch import nn

from visionattn.utils.quantization import SCALE
from visionattn.utils.state_dict import StateDict, check_finite, name_some, network_weights, unwrap

from .modifications import apply_modifications

__all__ = [
    "Converter",
    "StateDict",
    "build_model",
    "check_state_dict",
    "chosen_maps",
    "rename_keys",
    "unwrap",
]

_logger = logging.getLogger(__name__)

# What our training, DistributedDataParallel and torch.compile put before a network's names.
_FOREIGN = ("backbone.", "module.", "_orig_mod.")

Converter = Callable[[StateDict, nn.Module], StateDict]


def rename_keys(
    state_dict: StateDict, patterns: Iterable[tuple[str, str | Callable[[re.Match[str]], str]]]
) -> StateDict:
    """A state dict with each `(regular expression, replacement)` applied to its keys in turn."""
    renamed = {}
    for key, value in state_dict.items():
        for pattern, replacement in patterns:
            key = re.sub(pattern, replacement, key)
        renamed[key] = value
    return renamed


def check_state_dict(state_dict: StateDict, model: nn.Module, free: Iterable[str] = ()) -> None:
    """Raises one error that names every missing, unknown, wrongly shaped or wrongly typed entry of a state dict.

    Counters of batch normalisation may be missing (old files lack them); they do not change what a network computes.

    Args:
        state_dict: The entries to load.
        model: The network they are for.
        free: Prefixes of modules whose shapes may differ because the loader adapts or drops them (first convolution,
            classifier).

    Raises:
        ValueError: If anything does not fit.
    """
    own = model.state_dict()
    adaptable = tuple(free)
    missing = [
        k for k in own if k not in state_dict and not k.endswith("num_batches_tracked") and not _below(k, adaptable)
    ]
    unknown = [k for k in state_dict if k not in own and not _below(k, adaptable)]
    shapes = [
        f"{k} is {tuple(v.shape)}, the model has {tuple(own[k].shape)}"
        for k, v in state_dict.items()
        if k in own and v.shape != own[k].shape and not _below(k, adaptable)
    ]
    types = [
        f"{k} is {v.dtype}, the model has {own[k].dtype}"
        for k, v in state_dict.items()
        if k in own and own[k].is_floating_point() and not v.is_floating_point()
    ]
    found = {"missing": missing, "not in the model": unknown, "wrong shape": shapes, "wrong type": types}
    faults = [f"{what}: {name_some(names, 8)}" for what, names in found.items() if names]
    if faults:
        raise ValueError(f"the weights do not fit {type(model).__name__}; " + "; ".join(faults))


def chosen_maps(indices: int | Iterable[int] | None, count: int) -> list[int]:
    """Indices of the intermediate maps that timm's argument `indices` selects.

    Args:
        indices: The last so many, these (negative ones count from the end), or all.
        count: How many there are.

    Raises:
        ValueError: If one is out of range, or none is asked for.
    """
    if isinstance(indices, int):
        wanted = list(range(count - indices, count))
    else:
        wanted = [index + count if index < 0 else index for index in (range(count) if indices is None else indices)]
    if not wanted or not 0 <= min(wanted) <= max(wanted) < count:
        raise ValueError(f"indices must choose from {count} maps, got {indices}")
    return wanted


def build_model(
    model_cls: Callable[..., nn.Module],
    variant: str,
    pretrained: bool,
    *,
    to_native: Converter,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    modifications: Sequence[dict[str, Any]] = (),
    **kwargs: Any,
) -> nn.Module:
    """timm's builder, with checked weights.

    Args:
        model_cls: The network's class, or a function that builds it.
        variant: Registered name.
        pretrained: Whether to load weights.
        to_native: Maps a flat state dict in any format the family knows to the network's own keys.
        pretrained_cfg: As in timm.
        pretrained_cfg_overlay: As in timm; `dict(file=PATH)` loads a local file.
        modifications: What to do to the network before it gets its weights, as `model.modifications` lists it.
        **kwargs: For the network's constructor and timm's builder.

    Raises:
        ValueError: If the weights do not fit the network.
    """
    cfg = resolve_pretrained_cfg(variant, pretrained_cfg, pretrained_cfg_overlay)

    def filter_fn(checkpoint: dict[str, Any], model: nn.Module) -> StateDict:
        state_dict = to_native(network_weights(checkpoint), model)
        source = str(cfg.file or cfg.hf_hub_id or cfg.url or "the weights")
        check_finite(state_dict, source)
        free: list[str] = []
        if getattr(model, "num_classes", cfg.num_classes) != cfg.num_classes:
            free.append(str(cfg.classifier))
            _report_new_head(state_dict, model, cfg, source)
        if getattr(model, "in_chans", 3) != cfg.input_size[0]:
            free.append(str(cfg.first_conv))
        check_state_dict(state_dict, model, free)
        # timm loads strictly: entries that may be missing are given the network's own values.
        own = model.state_dict()
        return {**{k: v for k, v in own.items() if k.endswith("num_batches_tracked")}, **state_dict}

    def modified(**arguments: Any) -> nn.Module:
        model = model_cls(**arguments)
        vars(model)["pretrained_cfg"] = {"input_size": cfg.input_size}  # `attach` runs the network on that size
        return apply_modifications(model, modifications)

    model = build_model_with_cfg(
        modified if modifications else model_cls,
        variant,
        pretrained,
        pretrained_cfg=pretrained_cfg,
        pretrained_cfg_overlay=pretrained_cfg_overlay,
        pretrained_filter_fn=filter_fn,
        **kwargs,
    )
    model.register_load_state_dict_pre_hook(_with_own_names)
    return model


def _report_new_head(state_dict: StateDict, model: nn.Module, cfg: Any, source: str) -> None:
    """Reports which entries are not loaded because the number of classes differs.

    Raises:
        ValueError: If the weights have as many classes as the network after all, which timm would drop.
    """
    own = model.state_dict()
    new = [key for key in own if _below(key, (cfg.classifier,))]
    if new and all(key in state_dict and state_dict[key].shape == own[key].shape for key in new):
        raise ValueError(
            f"{source} has {model.num_classes} classes, its pretrained_cfg says {cfg.num_classes}: give "
            f"pretrained_cfg_overlay=dict(..., num_classes={model.num_classes})"
        )
    if new:
        text = "%s are new, for %d classes instead of %d; all other weights are loaded from %s"
        _logger.warning(text, ", ".join(new), model.num_classes, cfg.num_classes, source)


def _with_own_names(model: nn.Module, state_dict: StateDict, prefix: str, *args: Any) -> None:
    """Lets `load_state_dict`, and so timm's `checkpoint_path`, accept published files and training checkpoints."""
    if not prefix and any(key.startswith(_FOREIGN) or key.endswith(SCALE) for key in state_dict):
        renamed = network_weights(state_dict)
        state_dict.clear()
        state_dict.update(renamed)


def _below(key: str, modules: tuple[str, ...]) -> bool:
    return any(key.startswith(f"{module}.") for module in modules)
