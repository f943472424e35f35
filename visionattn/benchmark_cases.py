"""What the benchmark compares: plug-ins, mixers and whole networks, each with a rival of the same weights."""

import importlib
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from types import ModuleType

import timm
import torch
from timm.models.davit import ChannelAttention as TimmChannelAttention
from timm.models.davit import WindowAttention as TimmWindowAttention
from timm.models.twins import GlobalSubSampleAttn, LocallyGroupedAttn
from torch import nn

import visionattn.models  # noqa: F401  (registers the networks)
from visionattn import mixers
from visionattn.plugins import PLUGINS, resolve_plugin

from .benchmark import Case

__all__ = ["LAYOUTS", "mixer_cases", "network_cases", "plugin_cases", "window_cases"]

LAYOUTS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}
# Networks that timm has too.
NETWORKS = ("twins_svt_small", "twins_pcpvt_small", "davit_tiny")


def plugin_cases(
    names: Sequence[str], shapes: Sequence[tuple[int, ...]], layouts: Sequence[str], naive: Path
) -> list[Case]:
    """Plug-ins against their papers' formulas written down literally.

    Args:
        names: Names in `PLUGINS`.
        shapes: Shapes (B, C, H, W).
        layouts: `NCHW`, `NHWC` or both.
        naive: Folder with `<name>.py`, or `<name up to the first _>.py`, for each; its `naive_of(plugin)` gives the
            literal module with the plug-in's weights.

    Raises:
        FileNotFoundError: If there is no literal formula of a plug-in.
        ValueError: If a name is unknown.
    """
    for name in names:
        resolve_plugin(name)
    literal = {name: _literal(naive, name, name.split("_")[0]) for name in names}

    def build(name: str, channels: int) -> tuple[nn.Module, nn.Module]:
        ours = _moved(PLUGINS[name](channels))
        return ours, literal[name](ours)

    return [
        Case(name, "literal", shape, partial(build, name, shape[1]), layout, LAYOUTS[layout])
        for name, shape, layout in product(names, shapes, layouts)
    ]


def mixer_cases(naive: Path) -> list[Case]:
    """Mixers against timm's own modules, and against official formulations where timm has none.

    Args:
        naive: Folder with the formulations `mixers_<name>.py`.

    Raises:
        FileNotFoundError: If one is missing.
    """
    stages = ((4, 56, 56), (4, 28, 28), (4, 14, 14), (4, 7, 7))
    cases = []
    for i, stage in enumerate(stages):
        dim, heads = 96 * 2**i, 3 * 2**i
        channels = partial(mixers.ChannelAttention, dim, num_heads=heads)
        their_channels = partial(TimmChannelAttention, dim, heads, qkv_bias=True)
        windows = partial(mixers.SpatialWindowAttention, dim, num_heads=heads)
        cases += [
            _against_timm("DaViT channels", (*stage, dim), channels, their_channels),
            _against_timm("DaViT windows", (*stage, dim), windows, partial(_TimmWindows, dim, heads)),
        ]
    for i, stage in enumerate(stages):
        dim, heads, ratio = 64 * 2**i, 2 * 2**i, 8 // 2**i
        local = partial(mixers.LocallyGroupedAttention, dim, num_heads=heads, pad_mask="none")
        to_summary = partial(mixers.GlobalSubsampledAttention, dim, num_heads=heads, sr_ratio=ratio)
        cases += [
            _against_timm("Twins local", (*stage, dim), local, partial(LocallyGroupedAttn, dim, heads, ws=7)),
            _against_timm(
                "Twins global", (*stage, dim), to_summary, partial(GlobalSubSampleAttn, dim, heads, sr_ratio=ratio)
            ),
        ]
    for shape, heads in (((2, 56, 56, 96), 3), ((2, 28, 28, 192), 6), ((2, 14, 14, 384), 12)):
        content = partial(mixers.FeatureSpaceLocalAttention, shape[-1], num_heads=heads)
        cases.append(_against_literal("BOAT", shape, content, _literal(naive, "mixers_boat")))
    for shape, heads in (((4, 56, 56, 64), 1), ((4, 28, 28, 128), 2), ((4, 14, 14, 320), 5)):
        linear = partial(mixers.FocusedLinearAttention, shape[-1], num_heads=heads, grid_size=shape[1:3])
        cases.append(_against_literal("FLatten", shape, linear, _literal(naive, "mixers_flatten")))
    return cases


def window_cases() -> list[Case]:
    """Focused linear attention to the whole map against softmax attention in windows of 7x7, at equal widths."""
    cases = []
    for batch, side in ((8, 14), (4, 28), (2, 56), (1, 112)):
        linear = partial(mixers.FocusedLinearAttention, 96, num_heads=3, grid_size=side)
        windows = partial(mixers.WindowAttention, 96, num_heads=3, rel_pos=False)
        shape = (batch, side, side, 96)
        cases.append(Case("FLatten", "7x7 windows", shape, partial(_pair, linear, windows), equal=False))
    return cases


def network_cases(names: Sequence[str] = NETWORKS, size: int = 224, batch: int = 2) -> list[Case]:
    """Networks against timm's, with its weights."""

    def build(name: str) -> tuple[nn.Module, nn.Module]:
        theirs = timm.create_model(name)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "weights.pth"
            torch.save(theirs.state_dict(), file)
            overlay = {"file": str(file)}
            return timm.create_model(f"va_{name}", pretrained=True, pretrained_cfg_overlay=overlay), theirs

    shape = (batch, 3, size, size)
    return [Case(f"va_{name}", "timm", shape, partial(build, name)) for name in names]


class _OnTokens(nn.Module):
    """timm's modules take `(B, N, C)` and the size of the map."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size = (x.size(1), x.size(2))
        tokens = x.flatten(1, 2)
        out = self.module(tokens) if isinstance(self.module, TimmChannelAttention) else self.module(tokens, size)
        return out.view(x.shape)


class _TimmWindows(nn.Module):
    """timm's DaViT cuts the windows in the block, around the module."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.attn = TimmWindowAttention(dim, (7, 7), num_heads, qkv_bias=True)

    def forward(self, tokens: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        grid = size[0] // 7, size[1] // 7
        x = tokens.unflatten(1, (grid[0], 7, grid[1], 7)).transpose(2, 3).reshape(-1, 49, tokens.size(2))
        x = self.attn(x).view(-1, *grid, 7, 7, tokens.size(2)).transpose(2, 3)
        return x.reshape(tokens.shape)

    def load_state_dict(self, state_dict, *args, **kwargs):
        return self.attn.load_state_dict(state_dict, *args, **kwargs)


def _pair(ours: Callable[[], nn.Module], rival: Callable[[], nn.Module]) -> tuple[nn.Module, nn.Module]:
    return ours(), rival()


def _against_timm(
    name: str, shape: tuple[int, ...], ours: Callable[[], nn.Module], theirs: Callable[[], nn.Module]
) -> Case:
    def build() -> tuple[nn.Module, nn.Module]:
        mixer, rival = _moved(ours()), theirs()
        rival.load_state_dict(mixer.state_dict())
        return mixer, _OnTokens(rival)

    return Case(name, "timm", shape, build)


def _against_literal(
    name: str,
    shape: tuple[int, ...],
    ours: Callable[[], nn.Module],
    naive_of: Callable[[nn.Module], nn.Module],
) -> Case:
    def build() -> tuple[nn.Module, nn.Module]:
        mixer = _moved(ours())
        return mixer, naive_of(mixer)

    return Case(name, "literal", shape, build)


def _moved(module: nn.Module) -> nn.Module:
    """A module away from its start, where gates and tables may be constant."""
    with torch.no_grad():
        for tensor in module.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_((0.2 if tensor.ndim < 2 or tensor.numel() < 4096 else 0.02) * torch.rand(tensor.shape))
    return module


def _literal(folder: Path, *names: str) -> Callable[[nn.Module], nn.Module]:
    stem = next((name for name in names if (folder / f"{name}.py").is_file()), None)
    if stem is None:
        raise FileNotFoundError(f"no literal formula of {names[0]} in {folder}; --naive names the folder (tests/naive)")
    # A package of its own, so that its files may import each other, whatever the folder is called.
    package = ModuleType(f"_literal_{abs(hash(folder.resolve()))}")
    package.__path__ = [str(folder.resolve())]
    sys.modules.setdefault(package.__name__, package)
    return importlib.import_module(f"{package.__name__}.{stem}").naive_of
