"""The rows of the diagnostics: which mechanism stands in which network."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, Literal

import timm
import torch
from timm.layers import SEModule
from torch import nn

from visionattn.catalog import Card, cards, get
from visionattn.models.families.va_stm import STM
from visionattn.models.families.va_vit import vit
from visionattn.plugins import attach

from ..stems import conv_stem
from .recipe import Recipe

__all__ = ["Row", "choose_rows", "list_rows"]

Host = Literal["cnn", "pyramid", "columnar"]


class AverageBlend(nn.Module):
    """A null plug-in: the mean of a map and its average over the positions. `(B, C, H, W) -> (B, C, H, W)`."""

    def __init__(self, channels: int) -> None:
        super().__init__()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x + x.mean((2, 3), keepdim=True)) / 2


class GatedConv(nn.Module):
    """The mixer of MambaOut (arXiv 2405.07992): a gate times features that a depthwise convolution has mixed.

    `(B, H, W, C) -> (B, H, W, C)`.

    Args:
        dim: Width of the map.
        kernel_size: Side of the convolution, odd; 7 as in the paper.
    """

    def __init__(
        self,
        dim: int,
        *,
        kernel_size: int = 7,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd: Any = {"device": device, "dtype": dtype}
        self.fc1 = nn.Linear(dim, 2 * dim, **dd)
        self.conv = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim, **dd)
        self.fc2 = nn.Linear(dim, dim, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, features = self.fc1(x).chunk(2, -1)
        mixed = self.conv(features.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.fc2(nn.functional.gelu(gate) * mixed)


class AverageMixer(nn.Module):
    """A null mixer: what the mean of all positions differs by from each. `(B, H, W, C) -> (B, H, W, C)`."""

    def __init__(self, dim: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((1, 2), keepdim=True) - x


_AVERAGE = Card(
    name="average_pooling",
    title="The average of all positions",
    kind="mixer",
    factory=AverageMixer,
    summary="the mean of all positions less the position itself, no parameters",
    paper="none",
)
_GATED_CONV = Card(
    name="gated_conv",
    title="MambaOut: gated convolution",
    kind="mixer",
    factory=GatedConv,
    summary="a gate times features that a 7x7 depthwise convolution has mixed",
    paper="arXiv:2405.07992",
)


@dataclass(frozen=True)
class Row:
    """A mechanism in the network that all of its kind share.

    Args:
        host: `cnn` for plug-ins; `pyramid` or `columnar` for mixers, by their cards.
        mechanism: Its name; `plain` for the network without any.
        baseline: Whether it is one of the baselines that stand first.
        cost: Growth of time with the number of positions, from the card.
    """

    host: Host
    mechanism: str
    baseline: bool = False
    cost: str = "N"

    @property
    def name(self) -> str:
        """`<host>/<mechanism>`."""
        return f"{self.host}/{self.mechanism}"

    def build(self, recipe: Recipe, classes: int, **dd: Any) -> nn.Module:
        """The untrained network, `(B, 3, H, W) -> (B, classes)`."""
        if self.host == "cnn":
            model = timm.create_model(**recipe.cnn, num_classes=classes, **dd)
            plugin = _NULLS.get(self.mechanism, self.mechanism)
            # A batch of two: BAM normalises single vectors.
            shape = (2, 3, recipe.size, recipe.size)
            return model if plugin is None else attach(model, plugin, start="paper", example_input=shape)
        own = {card.name: card for card in (_AVERAGE, _GATED_CONV)}
        card = own.get(self.mechanism) or get("mixer", self.mechanism)
        common = {"num_classes": classes, "img_size": recipe.size, **dd}
        if self.host == "pyramid":
            pyramid = STM(card, **recipe.pyramid, layer_scale=1.0, **common)
            pyramid.stem = conv_stem(3, recipe.pyramid["dims"][0], **dd)
            return pyramid
        return vit(card, **recipe.columnar, stem=conv_stem, global_pool="avg", **common)


# Plug-ins that have no card: none, timm's squeeze-and-excitation, and the null.
_NULLS: Mapping[str, Callable[..., nn.Module] | None] = MappingProxyType(
    {"plain": None, "se": partial(SEModule, rd_ratio=1 / 4, rd_divisor=4), "average_pooling": AverageBlend}
)
BASELINES: Mapping[Host, tuple[str, ...]] = MappingProxyType(
    {
        "cnn": ("plain", "se", "average_pooling"),
        "pyramid": ("pool", "average_pooling", "gated_conv"),
        "columnar": ("pool", "average_pooling", "deconstructed", "gated_conv"),
    }
)
# Mixers of the default run, one of each kind of attention, in the order in which they are trained; those whose steps
# take three times as long as the others' are left to `--rows all`.
MIXERS = (
    *("softmax", "swin", "linear", "twins", "pvt", "dual_attention", "davit", "scatterbrain", "biformer", "flatten"),
    *("rala", "lkca", "convnext", "mega", "sparsifiner", "tapa"),
)


def list_rows(every_mixer: bool = False) -> list[Row]:
    """All rows: the baselines of each host, which come first, then plug-ins, then mixers.

    The first row of a host is what its others are compared with. Mechanisms with a second input have no row: there is
    none here that all rows could be given.

    Args:
        every_mixer: All mixers with a host of their own in place of the default selection, one of each kind.
    """
    rows = [Row(host, name, baseline=True) for host, names in BASELINES.items() for name in names]
    rows += [Row("cnn", card.name, cost=card.cost) for card in cards("plugin") if card.standalone]
    known = {row.name for row in rows}
    hosted = {card.name: card for card in cards("mixer") if card.pyramid or card.columnar}
    for name in (*MIXERS, *(name for name in hosted if name not in MIXERS and every_mixer)):
        row = Row("pyramid" if hosted[name].pyramid else "columnar", name, cost=hosted[name].cost)
        rows += [row] if row.name not in known else []
    return rows


def choose_rows(names: Sequence[str]) -> list[Row]:
    """Rows by their names, or by those of their mechanisms alone, with the first baseline of each of their hosts.

    Args:
        names: Empty for the default rows, `all` alone for those with every mixer.

    Raises:
        ValueError: If there is no such row.
    """
    if not names:
        return list_rows()
    rows = list_rows(every_mixer=True)
    if list(names) == ["all"]:
        return rows
    for name in names:
        if not any(name in (row.name, row.mechanism) for row in rows):
            raise ValueError(f"--rows: there is no row {name!r}; there are: {', '.join(row.name for row in rows)}")
    chosen = [row for row in rows if {row.name, row.mechanism} & set(names)]
    return [row for row in rows if row in chosen or row in {first_of(one.host) for one in chosen}]


def first_of(host: Host) -> Row:
    """What the rows of a host are compared with."""
    return Row(host, BASELINES[host][0], baseline=True)
