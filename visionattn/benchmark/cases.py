"""What the benchmark compares: plug-ins, token mixers and whole networks, each with rivals of the same weights."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path

import timm
import torch
from timm.models.davit import ChannelAttention as TimmChannelAttention
from timm.models.twins import GlobalSubSampleAttn, LocallyGroupedAttn
from torch import nn

import visionattn.models  # noqa: F401  (registers the networks)
from visionattn import mixers
from visionattn.plugins import PLUGINS, resolve_plugin
from visionattn.profiling.roofline import FLOORS, Floor

from .contenders import (
    UNFIT,
    OnTokens,
    Rival,
    TimmWindows,
    fightingcv_plugin,
    literal,
    moved,
    timm_plugin,
    with_plugins,
)

__all__ = ["LAYOUTS", "MODES", "Case", "mixer_cases", "network_cases", "plugin_cases", "resnet_cases", "window_cases"]

# fwd: eval mode without gradients; f+b: train mode, with the gradients of the input and of all parameters.
MODES = ("fwd", "f+b")
LAYOUTS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}


@dataclass(frozen=True)
class Case:
    """Ours, its rivals, and what they are given.

    Args:
        suite: Which table it belongs to.
        name: What is compared.
        shape: Shape of the input.
        build: Makes ours.
        rivals: Name of each rival and what makes it of ours, with its weights. The first is the reference.
        layout: How the input lies in memory, `NCHW` or `NHWC`; empty if there is no choice.
        dtype: Of the input and the weights.
        modes: Which of `MODES`.
        unequal: Rivals that compute something else, for the same end, and are not checked.
        compiled: Whether to compile the reference, too.
        floor: The least that is moved, for the share of it that is reached.
        check_batch: Images of the check for equality, all by default.
        tolerance: Of the check in float32, see `measure`.
        exact_only: Whether to check in float32 only: in half precision rounding alone would decide, through many layers
            or about which tokens belong together.
        notes: Why a rival is left out.
    """

    suite: str
    name: str
    shape: tuple[int, ...]
    build: Callable[[], nn.Module]
    rivals: Mapping[str, Rival]
    layout: str = ""
    dtype: torch.dtype = torch.float32
    modes: tuple[str, ...] = MODES
    unequal: frozenset[str] = frozenset()
    compiled: bool = False
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
    compiled: bool = False,
) -> list[Case]:
    """Plug-ins against their papers' formulas written down literally, timm's layers and those of fightingcv-attention.

    Args:
        names: Names in `PLUGINS`.
        shapes: Shapes (B, C, H, W).
        layouts: `NCHW`, `NHWC` or both.
        dtype: Of all.
        modes: Which of `MODES`.
        compiled: Whether to compile the literal formula, too.

    Raises:
        FileNotFoundError: If there is no literal formula of a plug-in.
        ValueError: If a name is unknown.
    """
    cases = []
    for name, shape, layout in product(names, shapes, layouts):
        resolve_plugin(name)
        rivals, notes = {"official": literal(name.split("_")[0])}, {}
        if theirs := timm_plugin(name):
            rivals["timm"] = theirs
        try:
            if theirs := fightingcv_plugin(name):
                rivals["fightingcv"] = theirs
            elif name in UNFIT:
                notes["fightingcv"] = UNFIT[name]
        except ImportError:
            notes["fightingcv"] = "not installed; pip install fightingcv-attention"
        case = Case(
            "plugins",
            name,
            shape,
            lambda name=name, channels=shape[1]: moved(PLUGINS[name](channels)),
            rivals,
            layout,
            dtype,
            modes,
            compiled=compiled,
            floor=FLOORS.get(name),
            notes=notes,
        )
        cases.append(case)
    return cases


def mixer_cases(*, batch: int = 4, dtype: torch.dtype = torch.float32, stages: int = 4) -> list[Case]:
    """Mixers against timm's own modules, and against official formulations where timm has none.

    Args:
        batch: Images.
        dtype: Of all.
        stages: How many of the four stages of a network at 224 px.

    Raises:
        FileNotFoundError: If one is missing.
    """
    cases: list[Case] = []

    def add(name: str, floor: str, shape: tuple[int, ...], build: Callable[[], nn.Module], **rivals: Rival) -> None:
        build = partial(_moved, build)
        more = {"dtype": dtype, "floor": FLOORS.get(floor), "exact_only": name == "BOAT"}
        cases.append(Case("mixers", name, shape, build, rivals, **more))

    boat, flatten = literal("boat"), literal("flatten")
    for i, side in enumerate((56, 28, 14, 7)[:stages]):
        dim, heads = 96 * 2**i, 3 * 2**i
        shape, half = (batch, side, side, dim), (max(batch // 2, 1), side, side, dim)
        # The moments of the tokens need fewer passes only where there are more tokens than channels.
        channels = "davit channels" if 2 * side * side >= 3 * dim else "davit windows"
        add(
            "DaViT channels",
            channels,
            shape,
            partial(mixers.ChannelAttention, dim, num_heads=heads),
            timm=_timm(partial(TimmChannelAttention, dim, heads, qkv_bias=True)),
        )
        windows = partial(mixers.SpatialWindowAttention, dim, num_heads=heads)
        add("DaViT windows", "davit windows", shape, windows, timm=_timm(partial(TimmWindows, dim, heads)))
        if side > 7:
            content = partial(mixers.FeatureSpaceLocalAttention, dim, num_heads=heads)
            add("BOAT", "boat", half, content, official=boat)

        dim, heads, ratio = 64 * 2**i, 2 * 2**i, 8 // 2**i
        shape = (batch, side, side, dim)
        local = partial(mixers.LocallyGroupedAttention, dim, num_heads=heads, pad_mask="none")
        add("Twins local", "twins local", shape, local, timm=_timm(partial(LocallyGroupedAttn, dim, heads, ws=7)))
        summary = partial(mixers.GlobalSubsampledAttention, dim, num_heads=heads, sr_ratio=ratio)
        theirs = _timm(partial(GlobalSubSampleAttn, dim, heads, sr_ratio=ratio))
        add("Twins global", "twins global", shape, summary, timm=theirs)
        if side > 7:
            dim, heads = ((64, 1), (128, 2), (320, 5))[i]
            linear = partial(mixers.FocusedLinearAttention, dim, num_heads=heads, grid_size=side)
            add("FLatten", "flatten", (batch, side, side, dim), linear, official=flatten)
    return cases


def window_cases(
    shapes: Sequence[tuple[int, int]] = ((8, 14), (4, 28), (2, 56), (1, 112)), *, dtype: torch.dtype = torch.float32
) -> list[Case]:
    """Focused linear attention to the whole map against softmax attention in windows of 7x7, at equal widths.

    Args:
        shapes: Images and side of the map.
        dtype: Of all.
    """

    def windows(ours: nn.Module) -> nn.Module:
        return mixers.WindowAttention(96, num_heads=3, rel_pos=False)

    rival = "7x7 windows"
    cases = []
    for batch, side in shapes:
        build = partial(mixers.FocusedLinearAttention, 96, num_heads=3, grid_size=side)
        shape = (batch, side, side, 96)
        unequal = frozenset({rival})
        cases.append(Case("windows", "FLatten", shape, build, {rival: windows}, dtype=dtype, unequal=unequal))
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
    official = {
        "flatten_swin_tiny": with_plugins(literal("flatten"), mixers.FocusedLinearAttention),
        "boat_swin_tiny": with_plugins(literal("boat"), mixers.FeatureSpaceLocalAttention),
    }
    shape = (batch, 3, size, size)
    more = {"dtype": dtype, "check_batch": check_batch, "exact_only": True}
    cases = [
        Case("networks", f"va_{name}", shape, partial(_like_timm, name), {"timm": partial(_timms, name)}, **more)
        for name in ("twins_svt_small", "twins_pcpvt_small", "davit_tiny")
    ]
    return cases + [
        Case("networks", f"va_{name}", shape, partial(timm.create_model, f"va_{name}"), {"official": rival}, **more)
        for name, rival in official.items()
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
    """Training steps of a ResNet-50 with a plug-in in each block, against the literal formula, and without any.

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
        cls = type(PLUGINS[name](64))
        rival = with_plugins(literal(name.split("_")[0]), cls)
        rivals = {"official": rival, "none": lambda ours: timm.create_model("resnet50")}
        case = Case(
            "resnet50",
            f"va_resnet50_{name}",
            (batch, 3, size, size),
            lambda name=name: _moved_plugins(timm.create_model(f"va_resnet50_{name}")),
            rivals,
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


def _moved(build: Callable[[], nn.Module]) -> nn.Module:
    return moved(build())


def _moved_plugins(network: nn.Module) -> nn.Module:
    for module in network.modules():
        if hasattr(module, "official_keys"):
            moved(module)
    return network


def _timm(build: Callable[[], nn.Module]) -> Rival:
    def with_weights(ours: nn.Module) -> nn.Module:
        theirs = build()
        theirs.load_state_dict(ours.state_dict())
        return OnTokens(theirs)

    return with_weights


def _timms(name: str, ours: nn.Module | None = None) -> nn.Module:
    """timm's network, the same at each call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return timm.create_model(name)


def _like_timm(name: str) -> nn.Module:
    """Ours with the weights of timm's, through the file that a user would load."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "weights.pth"
        torch.save(_timms(name).state_dict(), file)
        return timm.create_model(f"va_{name}", pretrained=True, pretrained_cfg_overlay={"file": str(file)})
