"""Where the queries and keys of an attention lie in the image, whatever windows, shifts, reductions, clusters or
paddings lie between.

Forward-mode differentiation is the tracer. Every output of a module that has the layout of a map gets the tangent
`c(p) * u`: u a fixed direction over the channels, c(p) a coordinate of the token. All that happens to a token between
the last map and the queries (norms, projections, rolls, windows, gathers, rotations) happens to its tangent too, and is
the same linear map for every c; so `<t_c, t_1> / <t_1, t_1>` is the token's c. There are five passes: 1, y, x, number
of the extra token, number of the image. `t_1 = 0` marks padding; where the fit leaves a rest, a token was pooled from
several places and its position is their centre.
"""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.autograd import forward_ad

from ._evaluation import evaluating
from ._maps import MapFinder, MapLayout, modules_with_maps
from .tokens import inner_network

if TYPE_CHECKING:
    from .layer import Layer
    from .record import Record

__all__ = ["Places", "Positions", "locate"]

_COORDINATES = ("one", "y", "x", "prefix", "image")
# Convolutions of MViT that pool the maps of each head, `(B * heads, C, H, W)`.
_HEAD_MAPS = ("pool_q", "pool_k", "pool_v")


@dataclass(frozen=True)
class Places:
    """The positions of some tokens, `(B, windows, heads, N)` each.

    Args:
        y: Height in the grid, 0 at its upper edge and 1 at its lower one.
        x: Likewise from left to right.
        prefix: Number of the extra token, or -1.
        valid: Whether it is a token at all, not padding.
        spread: How far it was pooled from, in the unit of `y`; 0 for a token of one place.
        grid: `(H, W)` of the tokens.
        span: Sides of the grid over those of the image: above 1 where that was padded to whole cells, below 1 where it
            was cropped to them.
    """

    y: torch.Tensor
    x: torch.Tensor
    prefix: torch.Tensor
    valid: torch.Tensor
    spread: torch.Tensor
    grid: tuple[int, int]
    span: tuple[float, float] = (1.0, 1.0)

    def of_head(self, head: int) -> "Places":
        """The positions of one head, `(B, windows, 1, N)`."""
        parts = (self.y, self.x, self.prefix, self.valid, self.spread)
        y, x, prefix, valid, spread = (part[:, :, head : head + 1] for part in parts)
        return replace(self, y=y, x=x, prefix=prefix, valid=valid, spread=spread)

    @property
    def index(self) -> torch.Tensor:
        """Indices on the grid, row by row, followed by extra tokens; padding is -1."""
        height, width = self.grid
        rows = (self.y * height).floor().long().clamp(0, height - 1)
        columns = (self.x * width).floor().long().clamp(0, width - 1)
        index = torch.where(self.prefix >= 0, height * width + self.prefix, rows * width + columns)
        return torch.where(self.valid, index, -1)


@dataclass(frozen=True)
class Positions:
    """The positions of the queries and keys of an attention."""

    queries: Places
    keys: Places

    @property
    def shared(self) -> bool:
        """Whether they are the same for all heads."""
        indices = (self.queries.index, self.keys.index)
        return all(bool((index == index[:, :, :1]).all()) for index in indices)

    def of_head(self, head: int) -> "Positions":
        """The positions of one head."""
        return Positions(self.queries.of_head(head), self.keys.of_head(head))

    def find(self, query: tuple[float, float] | int, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Window and row of a query, `(B, heads)` each.

        Args:
            query: `(y, x)` in pixels of images of this size, or the number of an extra token.
            size: `(H, W)` of the images.

        Raises:
            ValueError: If there is no such query.
        """
        places = self.queries
        if isinstance(query, int):
            found = places.valid & (places.prefix == query)
            if not found.any():
                raise ValueError(f"query must be (y, x) or the number of an extra token; there is no token {query}")
            distance = 1.0 - found.float()
        else:
            if not (0 <= query[0] < size[0] and 0 <= query[1] < size[1]):
                raise ValueError(f"query must lie inside the image of {size[0]} x {size[1]} pixels, got {query}")
            y, x = ((at + 0.5) / (side * span) for at, side, span in zip(query, size, places.span, strict=True))
            # In cells, so that the nearest centre is that of the cell which holds the pixel.
            rows, columns = ((places.y - y) * places.grid[0], (places.x - x) * places.grid[1])
            distance = torch.maximum(rows.abs(), columns.abs())
            distance = distance.masked_fill(~places.valid | (places.prefix >= 0), math.inf)
            if not distance.isfinite().any():
                raise ValueError("the queries of this attention are extra tokens: query must be the number of one")
        nearest = distance.transpose(1, 2).flatten(2).argmin(-1)
        return nearest // distance.shape[3], nearest % distance.shape[3]


def locate(record: "Record") -> list[Positions | None]:
    """The positions of every attention of a record; None if it has none.

    Raises:
        ValueError: If the network cannot be traced.
    """
    known = [_global(layer, record) for layer in record]
    if all(found is not None or layer.kind == "channel" for found, layer in zip(known, record, strict=True)):
        return known
    return _trace(record)


def _global(layer: "Layer", record: "Record") -> Positions | None:
    """Positions of global attention in a plain transformer."""
    grid, prefix = record.tokens.grid, record.tokens.prefix
    batch, windows, heads, queries, keys = layer.shape
    if layer.kind == "channel" or grid is None or windows != 1:
        return None
    sides = [_row_by_row(count, grid, prefix, (batch, heads), record.images.device) for count in (queries, keys)]
    if sides[0] is None or sides[1] is None or (queries != keys and queries > max(prefix, 1)):
        return None
    size, patch = record.images.shape[-2:], record.tokens.patch or (1, 1)
    span = (grid[0] * patch[0] / size[0], grid[1] * patch[1] / size[1])
    return Positions(replace(sides[0], span=span), replace(sides[1], span=span))


def _row_by_row(
    count: int, grid: tuple[int, int], prefix: int, shape: tuple[int, int], device: torch.device
) -> Places | None:
    area = grid[0] * grid[1]
    if count == area:
        prefix = 0
    elif count in (1, prefix):  # extra tokens alone, or the latent query of a pooling head
        prefix, area = count, 0
    elif count != prefix + area:
        return None
    patch = torch.arange(count, device=device) - prefix
    extra = patch < 0
    rows, columns = patch.clamp_min(0) // grid[1], patch.clamp_min(0) % grid[1]
    y, x = (rows + 0.5) / grid[0], (columns + 0.5) / grid[1]
    number = torch.where(extra, patch + prefix, -1)
    parts = (y, x, number, torch.ones_like(extra), torch.zeros_like(y))
    y, x, number, valid, spread = (part.expand(shape[0], 1, shape[1], -1) for part in parts)
    return Places(y, x, number, valid, spread, grid)


def _trace(record: "Record") -> list[Positions | None]:
    from .capture import capture

    model: Any = record.model
    if hasattr(network := inner_network(model), "unroll"):
        raise ValueError(f"{type(network).__name__} keeps its tokens in an order of its own: positions are not known")
    x = record.images.detach()
    found: dict[str, list[Any]] = {}
    for name in _COORDINATES:
        tracer = _Tracer(name, MapFinder(model, x))
        try:
            # Of a level of its own: tangents of one pass must not meet those of the next.
            with torch.no_grad(), warnings.catch_warnings(), forward_ad.dual_level(), _hooked(model, tracer):
                # PyTorch's own, of how it takes derivatives apart.
                warnings.filterwarnings(
                    "ignore", message=r".*torch\.jit\.script.* is deprecated", category=FutureWarning
                )
                with capture(model, reduce=_tangents) as traced:
                    model(x)
                found[name] = [layer.reduced for layer in traced]
                if len(traced) != len(record):
                    raise RuntimeError(f"{len(traced)} attentions in place of {len(record)} when it is differentiated")
        except (NotImplementedError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"positions of {type(model).__name__} cannot be traced: {reason}") from error
    spans = MapFinder(model, x).spans
    return [_positions([found[name][layer.index] for name in _COORDINATES], layer, spans) for layer in record]


def _tangents(layer: "Layer") -> list[torch.Tensor | None]:
    """The tangents of queries and keys, `(B, windows, heads, N, d)`."""
    tangents = {name: forward_ad.unpack_dual(layer.raw[name]).tangent for name in ("q", "k")}
    return [None if tangent is None else layer.laid_out(name, tangent).double() for name, tangent in tangents.items()]


@contextmanager
def _hooked(model: nn.Module, tracer: "_Tracer") -> Iterator[None]:
    """The network in evaluation mode with the tracer hooked to every module that may output a map."""
    handles = [
        module.register_forward_hook(tracer.of_heads if name.rpartition(".")[2] in _HEAD_MAPS else tracer)
        for name, module in modules_with_maps(model)
    ]
    try:
        with evaluating(model):
            yield
    finally:
        for handle in handles:
            handle.remove()


class _Tracer:
    """Gives every map the tangent of one coordinate."""

    def __init__(self, name: str, maps: MapFinder) -> None:
        self.name, self.maps = name, maps

    def __call__(self, module: nn.Module, args: Any, out: Any) -> Any:
        found = self.maps.find(module, out)
        if found is None or not out.is_floating_point():
            return None
        primal = forward_ad.unpack_dual(out).primal
        direction = _direction(out.shape[found.channels], primal)
        tangent = found.lay(*self._coordinate(found)).to(primal) * found.along_channels(direction)
        return forward_ad.make_dual(primal, tangent.expand_as(primal).contiguous())

    def of_heads(self, module: nn.Module, args: Any, out: Any) -> Any:
        """The same for a map with the heads of an image side by side on its first axis."""
        parts = out.unflatten(0, (self.maps.batch, -1)).unbind(1)
        marked = [self(module, args, part.contiguous()) for part in parts]
        return None if marked[0] is None else torch.stack(marked, 1).flatten(0, 1)

    def _coordinate(self, found: MapLayout) -> tuple[torch.Tensor, torch.Tensor]:
        """This coordinate of each token of a map, `(B, H, W)`, and of the extra tokens, `(B, prefix)`."""
        rows, columns = ((torch.arange(side, dtype=torch.float64) + 0.5) / side for side in found.grid)
        image = torch.arange(self.maps.batch, dtype=torch.float64)
        one, zero = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        patches, extra = {
            "one": (one, one),
            "y": (rows[:, None], zero),
            "x": (columns[None], zero),
            "prefix": (zero, torch.arange(1, found.prefix + 1)),
            "image": (image[:, None, None], image[:, None]),
        }[self.name]
        return patches.expand(len(image), *found.grid), extra.expand(len(image), found.prefix)


def _direction(channels: int, like: torch.Tensor) -> torch.Tensor:
    """A direction over the channels, the same wherever there are so many."""
    return torch.randn(channels, generator=torch.Generator().manual_seed(channels)).to(like)


def _positions(
    traces: list[list[torch.Tensor | None]], layer: "Layer", spans: dict[tuple[int, int], tuple[float, float]]
) -> Positions | None:
    if layer.kind == "channel":
        return None
    queries, keys = (_places([trace[side] for trace in traces]) for side in (0, 1))
    if queries is None or keys is None:
        return None
    if not (queries.valid & (queries.prefix < 0)).any():  # extra tokens alone have no grid of their own
        queries = replace(queries, grid=keys.grid)
    elif keys.grid != queries.grid and _are_cells(keys, queries.grid):  # no query may be routed to the first token
        keys = replace(keys, grid=queries.grid)
    queries, keys = (replace(places, span=spans.get(places.grid, (1.0, 1.0))) for places in (queries, keys))
    return Positions(queries, keys)


def _are_cells(places: Places, grid: tuple[int, int]) -> bool:
    """Whether tokens are single cells of a grid, not pooled from several."""
    patches = places.valid & (places.prefix < 0)
    cells = [part[patches] * side - 0.5 for part, side in zip((places.y, places.x), grid, strict=True)]
    centred = all(((part - part.round()).abs() < 0.01).all() for part in cells)
    return bool(patches.any()) and centred and bool((places.spread[patches] < 1e-3).all())


def _places(tangents: list[torch.Tensor | None]) -> Places | None:
    """Positions from the tangents of the five coordinates, `(B, windows, heads, N, d)`."""
    if any(tangent is None for tangent in tangents):
        return None
    one, *others = (tangent for tangent in tangents if tangent is not None)
    weight = one.square().sum(-1)
    valid = weight > 1e-9 * weight.amax()
    safe = weight.clamp_min(1e-300)
    y, x, prefix, image = ((other * one).sum(-1) / safe for other in others)
    expected = torch.arange(len(image), device=image.device).view(-1, 1, 1, 1)
    if not valid.any() or ((image - expected).abs() * valid).amax() > 0.01:
        return None
    outside = [((part < -0.01) | (part > 1.01)) & valid for part in (y, x)]
    if outside[0].any() or outside[1].any():  # several places with weights of both signs
        return None
    rest = [
        ((other - value[..., None] * one).square().sum(-1) / safe)
        for other, value in zip(others[:2], (y, x), strict=True)
    ]
    spread = torch.stack(rest).amax(0).sqrt()
    patches = valid & (prefix < 0.5)
    grid = (1, 1)
    if patches.any():
        grid = (round(0.5 / y[patches].amin().item()), round(0.5 / x[patches].amin().item()))
    number = prefix.round().long() - 1
    return Places(y.float(), x.float(), number, valid, spread.float() * valid, grid)
