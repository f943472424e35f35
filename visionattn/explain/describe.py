"""A map told in a sentence."""

import torch

__all__ = ["describe"]

_ROWS = ("upper", "middle", "lower")
_COLUMNS = ("left", "centre", "right")


def describe(saliency: torch.Tensor, *, label: str = "the prediction") -> str:
    """Where a map has its weight and how concentrated it is, for captions and screen readers.

    "For a cat, half of the weight lies on 8 % of the image; the upper left ninth holds most, 54 %."

    Args:
        saliency: `(H, W)` without negative values.
        label: What it explains.

    Raises:
        ValueError: If the map has another shape or negative values.
    """
    if saliency.ndim != 2 or (saliency < 0).any():
        raise ValueError(f"saliency must be (H, W) without negative values, got {tuple(saliency.shape)}")
    mass = saliency.double()
    total = mass.sum()
    if not total > 0:
        return f"For {label}, the map is empty."
    ordered = mass.flatten().sort(descending=True).values
    half = int((ordered.cumsum(0) < total / 2).sum()) + 1
    thirds = [_thirds(side).to(mass) for side in mass.shape]
    ninths = thirds[0] @ mass @ thirds[1].T / total
    row, column = divmod(int(ninths.argmax()), 3)
    where = "middle" if row == column == 1 else f"{_ROWS[row]} {_COLUMNS[column]}"
    share = ninths[row, column].item()
    return (
        f"For {label}, half of the weight lies on {100 * half / mass.numel():.0f} % of the image; "
        f"the {where} ninth holds most, {100 * share:.0f} %."
    )


def _thirds(side: int) -> torch.Tensor:
    """How much of each of `side` cells lies in each third, `(3, side)`."""
    edges = torch.arange(side + 1) / side
    return torch.stack(
        [(edges[1:].clamp_max((i + 1) / 3) - edges[:-1].clamp_min(i / 3)).clamp_min(0) * side for i in range(3)]
    )
