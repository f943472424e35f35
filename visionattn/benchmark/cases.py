"""What the benchmark compares: plug-ins, mixers and whole networks, each with baselines of the same weights."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

import visionattn.models  # noqa: F401  (registers the networks)
from visionattn.catalog import BlockContext, Card, Floor, cards, get, resolve
from visionattn.mixers.flatten import FocusedLinearAttention
from visionattn.mixers.window import WindowAttention
from visionattn.testing.contracts import perturbed

from .contenders import (
    UNFIT,
    Baseline,
    FixedCondition,
    PairedImages,
    fightingcv_plugin,
    literal,
    timm_mixer,
    timm_plugin,
    with_baseline_blocks,
)
from .growth import degree

__all__ = ["LAYOUTS", "MODES", "Case", "frontend_cases", "mixer_cases", "network_cases", "plugin_cases"]
__all__ += ["resnet_cases", "window_cases"]

# fwd: eval mode without gradients; f+b: train mode, with the gradients of the input and of all parameters.
MODES = ("fwd", "f+b")
# Where rounding decides: which pairs are kept or, of what ends in a ReLU of the whole map, whether the gradient of one
# of its six million numbers passes.
_JUMPS = 1e-3
LAYOUTS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}


@dataclass(frozen=True)
class Case:
    """An implementation of ours, its baselines, and their inputs.

    Args:
        suite: Which table it belongs to.
        name: What is compared.
        shape: Shape of the input.
        build: Makes ours.
        baselines: Name of each baseline and what makes it of ours, with its weights. The first is the reference.
        layout: How the input lies in memory, `NCHW` or `NHWC`; empty if there is no choice.
        dtype: Of the input and the weights.
        modes: Which of `MODES`.
        unequal: Baselines that compute something else, for the same end, and are not checked.
        compiled: Which contenders are also timed through `torch.compile`: `ours`, and names of baselines.
        floor: The least that is moved, for the share of it that is reached.
        check_batch: Images of the check for equality, all by default.
        tolerance: Of the check in float32, see `measure`.
        exact_only: Whether to check in float32 only: in half precision rounding alone would decide, through many layers
            or about which tokens belong together.
        notes: Why a baseline is left out.
    """

    suite: str
    name: str
    shape: tuple[int, ...]
    build: Callable[[], nn.Module]
    baselines: Mapping[str, Baseline]
    layout: str = ""
    dtype: torch.dtype = torch.float32
    modes: tuple[str, ...] = MODES
    unequal: frozenset[str] = frozenset()
    compiled: tuple[str, ...] = ()
    floor: Floor | None = None
    check_batch: int | None = None
    tolerance: float = 1e-4
    exact_only: bool = False
    notes: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        dtype = "" if self.dtype == torch.float32 else str(self.dtype).removeprefix("torch.")
        return " ".join(part for part in (self.name, "x".join(map(str, self.shape)), self.layout, dtype) if part)


def plugin_cases(
    names: Sequence[str],
    shapes: Sequence[tuple[int, ...]],
    layouts: Sequence[str],
    *,
    dtype: torch.dtype = torch.float32,
    modes: tuple[str, ...] = MODES,
    compiled: tuple[str, ...] = (),
) -> list[Case]:
    """Plug-ins against their papers' literal formulas, timm's layers and those of fightingcv-attention.

    Gates with a second input get the same one in each call.

    Args:
        names: Names of plug-ins; those without a baseline give no case.
        shapes: Shapes (B, C, H, W).
        layouts: `NCHW`, `NHWC` or both.
        dtype: Of all.
        modes: Which of `MODES`.
        compiled: As in `Case`, of those that a plug-in has.

    Raises:
        ValueError: If a name is unknown.
    """
    return [
        case
        for name, shape, layout in product(names, shapes, layouts)
        if (case := _plugin_case(name, shape, layout, dtype=dtype, modes=modes, compiled=compiled))
    ]


def _plugin_case(
    name: str, shape: tuple[int, ...], layout: str, *, compiled: tuple[str, ...], **kwargs: Any
) -> Case | None:
    card = get("plugin", name)
    found, notes = {"official": literal(card), "timm": timm_plugin(name)}, {}
    try:
        found["fightingcv"] = fightingcv_plugin(name)
        if name in UNFIT:
            notes["fightingcv"] = UNFIT[name]
    except ImportError:
        notes["fightingcv"] = "not installed; pip install fightingcv-attention"
    baselines = {other: baseline for other, baseline in found.items() if baseline}
    if not baselines:
        return None
    return Case(
        "plugins",
        name,
        shape,
        lambda: _perturbed_plugin(card, shape),
        baselines,
        layout,
        compiled=tuple(other for other in compiled if other == "ours" or other in baselines),
        floor=card.floor,
        tolerance=_JUMPS if name == "cam" else Case.tolerance,
        notes=notes,
        **kwargs,
    )


def _perturbed_plugin(card: Card, shape: tuple[int, ...]) -> nn.Module:
    plugin: Any = perturbed(card.constructor(shape[1]))
    if not card.further_inputs:
        return plugin
    condition = plugin.example_condition(torch.empty(shape))
    return FixedCondition(plugin, torch.rand(condition.shape, generator=torch.Generator().manual_seed(2)))


def frontend_cases(
    shapes: Sequence[tuple[int, ...]] = ((2, 3, 224, 224),), *, dtype: torch.dtype = torch.float32
) -> list[Case]:
    """What stands before a backbone, against the papers' literal formulas.

    Args:
        shapes: Shapes (B, C, H, W) of pictures.
        dtype: Of all.
    """
    return [
        Case(
            "frontends",
            card.name,
            shape,
            partial(_perturbed_plugin, card, shape),
            {"official": baseline},
            layout,
            dtype,
            floor=card.floor,
        )
        for card, shape, layout in product(cards("frontend"), shapes, LAYOUTS)
        if (baseline := literal(card))
    ]


def mixer_cases(
    names: Sequence[str] = (),
    shapes: Sequence[tuple[int, ...]] = (),
    *,
    batch: int = 4,
    dtype: torch.dtype = torch.float32,
    stages: int = 3,
) -> list[Case]:
    """Mixers against timm's own modules, literal formulas and softmax attention of the same width and heads.

    What takes two sets of tokens, such as a bridge between encoders, gets halves of the batch, against its formula.
    Formulas that go position by position are compared on maps up to 14 x 14.

    Args:
        names: Names of mixers, all by default; those without a baseline give no case.
        shapes: Shapes (B, H, W, C); by default those of the stages of a network of the size base at 224 px, without the
            first for mixers of all pairs, which literal formulas hold.
        batch: Images, where the shapes are not given.
        dtype: Of all.
        stages: How many stages, the largest maps first; in the fourth a window is the map.

    Raises:
        ValueError: If a name is unknown, or of a mechanism that is no module of its own.
    """
    known = {card.name: card for card in cards("mixer") if card.standalone or _takes_pairs(card)}
    known |= {card.name: card for card in cards("head") if _takes_pairs(card)}
    for name in names:
        if name not in known:
            resolve("mixer", name)
    chosen = [known[name] for name in names] or known.values()
    usual = [(batch, side, side, 128 * 2**i) for i, side in enumerate((56, 28, 14)[:stages])]
    found = [
        _mixer_case(card, shape, dtype)
        for shape in shapes or usual
        for card in chosen
        if shapes or shape is not usual[0] or not card.reference or degree(card.cost.partition(",")[0]) < 2
    ]
    return [case for case in found if case]


def _mixer_case(card: Card, shape: tuple[int, ...], dtype: torch.dtype) -> Case | None:
    """The mixer as it is in the stage of a pyramid at 224 px whose maps are nearest in size, with heads of 32."""
    _, height, width, dim = shape
    stage = min(range(4), key=lambda stage: abs((56 >> stage) - height))
    place = BlockContext(stage=stage, block=0, dim=dim, num_heads=max(1, dim // 32), grid=(height, width))
    found = {
        "timm": timm_mixer(card.name, place.dim, place.num_heads, sr_ratio=8 // 2**place.stage),
        "official": literal(card, loops=max(height, width) <= 14),
    }
    baselines = {other: baseline for other, baseline in found.items() if baseline}
    if not baselines:
        return None
    if not _takes_pairs(card):
        softmax = get("mixer", "softmax")
        baselines["SDPA"] = lambda ours: softmax.build_in(place)

    def build() -> nn.Module:
        module = perturbed(card.build_in(place))
        return PairedImages(module, card.further_inputs == ("views",)) if _takes_pairs(card) else module

    return Case(
        "mixers",
        card.name,
        shape,
        build,
        baselines,
        dtype=dtype,
        unequal=frozenset({"SDPA"}),
        floor=card.floor,
        tolerance=_JUMPS if card.discrete else Case.tolerance,
        exact_only=card.discrete,
    )


def _takes_pairs(card: Card) -> bool:
    return card.reference is not None and len(card.further_inputs) == 1


def window_cases(
    shapes: Sequence[tuple[int, int]] = ((8, 14), (4, 28), (2, 56), (1, 112)), *, dtype: torch.dtype = torch.float32
) -> list[Case]:
    """Focused linear attention over the whole map against softmax attention in 7x7 windows, at equal widths.

    Args:
        shapes: Images and side of the map.
        dtype: Of all.
    """

    def windows(ours: nn.Module) -> nn.Module:
        return WindowAttention(96, num_heads=3, rel_pos=False)

    baseline = "7x7 windows"
    cases = []
    for batch, side in shapes:
        build = partial(FocusedLinearAttention, 96, num_heads=3, grid_size=side)
        shape = (batch, side, side, 96)
        unequal = frozenset({baseline})
        cases.append(Case("windows", "FLatten", shape, build, {baseline: windows}, dtype=dtype, unequal=unequal))
    return cases


def network_cases(
    *, size: int = 224, batch: int = 2, dtype: torch.dtype = torch.float32, check_batch: int | None = None
) -> list[Case]:
    """Twins and DaViT against timm's, FLatten and BOAT against themselves with official formulations inside.

    Args:
        size: Side of the picture.
        batch: Images.
        dtype: Of all.
        check_batch: Images of the check for equality.
    """
    official = {f"{name}_swin_tiny": _official_blocks(get("mixer", name)) for name in ("flatten", "boat")}
    shape = (batch, 3, size, size)
    more: dict[str, Any] = {"dtype": dtype, "check_batch": check_batch, "exact_only": True}
    cases = [
        Case("networks", f"va_{name}", shape, partial(_like_timm, name), {"timm": partial(_timms, name)}, **more)
        for name in ("twins_svt_small", "twins_pcpvt_small", "davit_tiny")
    ]
    return cases + [
        Case("networks", f"va_{name}", shape, partial(timm.create_model, f"va_{name}"), {"official": baseline}, **more)
        for name, baseline in official.items()
    ]


def resnet_cases(
    names: Sequence[str],
    *,
    size: int = 224,
    batch: int = 2,
    layout: str = "NHWC",
    dtype: torch.dtype = torch.float32,
    check_batch: int | None = None,
) -> list[Case]:
    """Training steps of a ResNet-50 with a plug-in in each block, against the literal formula and the plain network.

    Args:
        names: Plug-ins.
        size: Side of the picture.
        batch: Images.
        layout: `NCHW` or `NHWC`.
        dtype: Of all.
        check_batch: Images of the check for equality.
    """
    cases = []
    for name in names:
        official = _official_blocks(get("plugin", name))
        baselines = {"official": official, "none": lambda ours: timm.create_model("resnet50")}
        case = Case(
            "resnet50",
            f"va_resnet50_{name}",
            (batch, 3, size, size),
            partial(_perturbed_resnet, name),
            baselines,
            layout,
            dtype,
            modes=("f+b",),
            unequal=frozenset({"none"}),
            check_batch=check_batch,
            # Rounding grows to 1e-2 through 50 layers that normalise by few values.
            tolerance=5e-2,
            exact_only=True,
        )
        cases.append(case)
    return cases


def _official_blocks(card: Card) -> Baseline:
    """A network in which the literal formula replaces each block."""
    baseline = literal(card)
    if baseline is None:
        raise ValueError(f"visionattn.reference has no formula of {card.name} to compare the speed of a network with")
    return with_baseline_blocks(baseline, getattr(card.constructor, "func", card.constructor))


def _perturbed_resnet(plugin: str) -> nn.Module:
    network = timm.create_model(f"va_resnet50_{plugin}")
    for module in network.modules():
        if hasattr(module, "official_keys"):
            perturbed(module)
    return network


def _timms(name: str, ours: nn.Module | None = None) -> nn.Module:
    """timm's network, identical at each call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return timm.create_model(name)


def _like_timm(name: str) -> nn.Module:
    """Our network with timm's weights, loaded from a file as a user would."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "weights.pth"
        torch.save(_timms(name).state_dict(), file)
        return timm.create_model(f"va_{name}", pretrained=True, pretrained_cfg_overlay={"file": str(file)})
