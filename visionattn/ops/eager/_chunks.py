"""Parts of a map that stay in the cache while several passes go over them."""

from collections.abc import Iterator

import torch

__all__ = ["NUMBERS", "chunks", "images_of", "room_of"]

# Numbers in a part: 1 MB in float32. Twice as much is as fast while nothing else runs, and slower where other processes
# use the cache, too.
NUMBERS = 2**18


def chunks(rows: torch.Tensor, share: int = 1) -> Iterator[tuple[slice, slice]]:
    """Runs of images, or of rows of one image, of `(B, N, ...)`.

    Args:
        rows: What is cut.
        share: Divides the length of a run, where more than a few parts of that size are in use.
    """
    numbers = NUMBERS // share
    images, some = (max(1, numbers // max(1, size)) for size in (rows[0].numel(), rows[0, :1].numel()))
    for image in range(0, len(rows), images):
        for row in range(0, rows.size(1), some):
            yield slice(image, image + images), slice(row, row + some)


def images_of(x: torch.Tensor) -> int:
    """How many images are in a part, one at least; all on devices without a cache to think of."""
    return max(1, NUMBERS // max(1, x.shape[1:].numel()) if x.device.type == "cpu" else len(x))


def room_of(rows: torch.Tensor) -> torch.Tensor:
    """Memory for the longest of `chunks(rows)`."""
    at = next(chunks(rows))
    return torch.empty_like(rows[at])
