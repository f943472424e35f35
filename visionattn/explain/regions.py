"""Explanations of a part of the image: where it looks, what is cut off from it, what it is by itself."""

from collections.abc import Collection

import torch
from torch import nn
from torch.nn import functional as F

from .capture import Edit
from .layer import Layer
from .positions import Places
from .record import Record

__all__ = ["knock_out_regions", "reencode", "region_attention"]

# Part of the image, bool `(H, W)` or `(B, H, W)` of any size that is laid over it, or the number of an extra token.
Region = torch.Tensor | int


def region_attention(record: Record, layer: int, region: Region) -> torch.Tensor:
    """Where a region looks in one layer, the mean over its tokens. `-> (B, heads, H, W)` on the grid of the keys.

    Args:
        record: Of a forward pass.
        layer: Number of the attention.
        region: A mask of the image, bool `(H, W)` or `(B, H, W)`, or the number of an extra token.

    Raises:
        ValueError: If no token lies in the region.
    """
    positions = record.positions(layer)
    inside = _inside(positions.queries, region).to(record[layer].probs)
    count = inside.sum((1, 3))  # (B, heads)
    if not (count > 0).all():
        raise ValueError("region must hold the centre of at least one token of every image")
    gathered = (record[layer].probs.detach() * inside.unsqueeze(4)).sum(3).float()  # (B, windows, heads, M)
    area = positions.keys.grid[0] * positions.keys.grid[1]
    index = positions.keys.index
    index = torch.where(index < 0, area, index).clamp_max(area)  # extra tokens and padding land beside the map
    flat = [part.transpose(1, 2).flatten(2) for part in (index, gathered)]
    result = gathered.new_zeros(*count.shape, area + 1).scatter_add_(2, *flat)[..., :area]
    return result.unflatten(2, positions.keys.grid) / count[..., None, None]


def knock_out_regions(record: Record, rows: Region, columns: Region, layers: Collection[int] | None = None) -> Edit:
    """A region of the image cannot see another, whatever windows a network has: an edit for `explain.edit`.

    Args:
        record: Of a forward pass of the same network on the same images, which says where tokens lie.
        rows: The region that is cut off, see `region_attention`.
        columns: The region that it cannot see.
        layers: Numbers of the attentions; all that have positions without it.
    """
    chosen = [layer.index for layer in record if layers is None or layer.index in layers]
    hidden = {}
    for index in chosen:
        if record.has(index):
            positions = record.positions(index)
            pair = _inside(positions.queries, rows), _inside(positions.keys, columns)
            hidden[index] = pair[0].unsqueeze(4) & pair[1].unsqueeze(3)

    def change(layer: Layer) -> torch.Tensor:
        if layer.index not in hidden:
            return layer.probs
        kept = layer.probs * ~hidden[layer.index]
        return kept / kept.sum(-1, keepdim=True).clamp_min(torch.finfo(kept.dtype).tiny)

    return change


@torch.no_grad()
def reencode(model: nn.Module, x: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """What a network says of boxes of its images alone: cut out, enlarged to the size of the images, run again.

    Args:
        model: The network, in evaluation mode.
        x: Images `(B, C, H, W)`.
        boxes: One for each image, left, upper, right and lower edge in pixels, `(B, 4)`; right and lower are outside.

    Returns:
        The network's output for `(B, C, H, W)`.

    Raises:
        ValueError: If a box is empty or not inside its image.
    """
    height, width = x.shape[-2:]
    if boxes.shape != (len(x), 4):
        raise ValueError(f"boxes must be ({len(x)}, 4), one for each image, got {tuple(boxes.shape)}")
    parts = []
    for image, box in zip(x, boxes.tolist(), strict=True):
        left, upper, right, lower = (round(edge) for edge in box)
        if not (0 <= left < right <= width and 0 <= upper < lower <= height):
            raise ValueError(f"boxes must lie inside {width} x {height} pixels and not be empty, got {box}")
        part = image[None, :, upper:lower, left:right]
        parts.append(F.interpolate(part, (height, width), mode="bilinear", antialias=True))
    result: torch.Tensor = model(torch.cat(parts))
    return result


def _inside(places: Places, region: Region) -> torch.Tensor:
    """Whether tokens are of a region, bool `(B, windows, heads, N)`."""
    if isinstance(region, int):
        return places.valid & (places.prefix == region)
    if region.dtype != torch.bool or region.ndim not in (2, 3):
        raise ValueError(f"a region must be bool (H, W) or (B, H, W), got {region.dtype} {tuple(region.shape)}")
    batch = len(places.y)
    masks = region.expand(batch, -1, -1) if region.ndim == 2 else region
    if len(masks) != batch:
        raise ValueError(f"a region must be one for all or for each of {batch} images, got {len(masks)}")
    height, width = masks.shape[1:]
    rows = (places.y * places.span[0] * height).long().clamp(0, height - 1)
    columns = (places.x * places.span[1] * width).long().clamp(0, width - 1)
    image = torch.arange(batch, device=masks.device).view(-1, 1, 1, 1)
    return masks[image, rows, columns] & places.valid & (places.prefix < 0)
