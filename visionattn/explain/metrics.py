"""Metrics of maps against masks and against other maps.

Attention IoU (CVPR 2025, arXiv 2503.19846).

Official code: https://github.com/aaronserianni/attention-iou (MIT), bias_scorer.py.

Differs from the official code in: maps without mass. Where one of the two has none the score is 0, where neither has
any it is NaN; officially both are NaN.

Segmentation scores as in https://github.com/hila-chefer/Transformer-Explainability (MIT), utils/metrices.py, and DINO's
share of the mass.

Golden: tests/golden/explain_attention_iou_*.npz, explain_segmentation_score_*.npz.
"""

from collections.abc import Callable

import torch
from torch.nn import functional as F

from visionattn.utils.arguments import check_positive

from .maps import min_max, upsample

__all__ = ["MeanScores", "attention_iou", "mask_score", "mass_in_mask", "pointing_game", "segmentation_scores"]

# Of some maps and masks, a number for each image, or several by name.
Score = Callable[..., torch.Tensor | dict[str, torch.Tensor]]


def attention_iou(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The agreement of two maps, from 0 (disjoint) to 1 (equal up to a factor). `2 x (B, H, W) -> (B,)`.

    `sum(a b) / sum(((a + b) / 2)^2)` of maps with the sum 1.

    Raises:
        ValueError: If the shapes differ, or a map has negative values.
    """
    _check(a, b)
    masses = [values.sum((1, 2), keepdim=True) for values in (a, b)]
    a, b = (torch.where(mass > 0, values / mass, 0) for values, mass in zip((a, b), masses, strict=True))
    return (a * b).sum((1, 2)) / ((a + b) / 2).square().sum((1, 2))


def mask_score(maps: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """`attention_iou` of maps and masks, which are reduced to the size of the maps. `(B, h, w), (B, H, W) -> (B,)`."""
    size = tuple(maps.shape[1:])
    reduced = F.interpolate(masks[:, None].to(maps.dtype), size, mode="bilinear", antialias=True)[:, 0]
    return attention_iou(maps, reduced / (1e-7 + reduced.amax((1, 2), keepdim=True)))


def pointing_game(maps: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Whether the largest value of a map lies in its mask, 1 or 0. `(B, h, w), (B, H, W) -> (B,)`."""
    reduced = F.interpolate(masks[:, None].float(), tuple(maps.shape[1:]), mode="nearest")[:, 0]
    return reduced.flatten(1).gather(1, maps.flatten(1).argmax(1, keepdim=True))[:, 0].gt(0).to(maps.dtype)


def mass_in_mask(maps: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """The share of a map's mass in its mask, NaN for a map without mass. `2 x (B, H, W) -> (B,)`.

    Raises:
        ValueError: If the shapes differ, or a map has negative values.
    """
    _check(maps, masks)
    return (maps * masks).sum((1, 2)) / maps.sum((1, 2))


def segmentation_scores(maps: torch.Tensor, masks: torch.Tensor, *, mass: float = 0.6) -> dict[str, torch.Tensor]:
    """How well maps segment what masks show. `(B, h, w), (B, H, W) -> (B,)` each, unless another shape is given.

    Maps are enlarged bilinearly and scaled to 0..1; foreground is what lies above a map's mean.

    - `accuracy`: share of the pixels that are right;
    - `iou` `(B, 2)`: of background and foreground;
    - `average_precision`: of both classes, pooled;
    - `mass_iou`: of the patches that hold the largest `mass` of the map, the last one included;
    - `f_measure`: with a weight of 0.3 on the recall;
    - `mass_inside`: share of the enlarged map's mass in the mask.

    Args:
        maps: On any grid, without negative values.
        masks: Of the images, 0 or 1.
        mass: Share of the map's mass, above 0 and at most 1.

    Raises:
        ValueError: If `mass` or a shape is out of range.
    """
    if not 0 < mass <= 1:
        raise ValueError(f"mass must be above 0 and at most 1, got {mass}")
    size = tuple(masks.shape[1:])
    enlarged = upsample(maps, size)
    scaled = min_max(enlarged)
    found, true = scaled > scaled.mean((1, 2), keepdim=True), masks.bool()
    overlaps = [_overlap(~found, ~true), _overlap(found, true)]
    hits, claimed, wanted = ((part.sum((1, 2))).to(maps.dtype) for part in (found & true, found, true))
    precision, recall = hits / claimed.clamp_min(1), hits / wanted.clamp_min(1)
    f_measure = 1.3 * precision * recall / (0.3 * precision + recall).clamp_min(torch.finfo(maps.dtype).tiny)
    kept = F.interpolate(_largest(maps, mass)[:, None].to(maps.dtype), size, mode="nearest")[:, 0].bool()
    return {
        "accuracy": (found == true).to(maps.dtype).mean((1, 2)),
        "iou": torch.stack(overlaps, 1),
        "average_precision": torch.stack([_average_precision(q, t) for q, t in zip(scaled, true, strict=True)]),
        "mass_iou": _overlap(kept, true),
        "f_measure": f_measure,
        "mass_inside": mass_in_mask(enlarged, true.to(maps.dtype)),
    }


class MeanScores:
    """Means of scores over a data set, in the protocol of torchmetrics: `update`, `compute`, `reset`.

        scores = MeanScores(pointing=pointing_game, mass=mass_in_mask)
        for maps, masks in batches:
            scores.update(maps, masks)
        scores.compute()  # {"pointing": ..., "mass": ..., }

    What is kept grows by a few numbers an image. Images where a score is NaN, such as maps without mass, do not count;
    `missing` says how many those are.

    Args:
        **scores: Functions whose result is one number for each image, or several by name.
    """

    def __init__(self, **scores: Score) -> None:
        if not scores:
            raise ValueError("scores must be at least one function by name, such as pointing=pointing_game")
        self.scores = scores
        self.reset()

    def reset(self) -> None:
        """Forgets everything."""
        self.values: dict[str, list[torch.Tensor]] = {}

    def update(self, *args: torch.Tensor) -> None:
        """Takes a batch in: what the functions take."""
        for name, score in self.scores.items():
            found = score(*args)
            parts = {f"{name}_{key}": part for key, part in found.items()} if isinstance(found, dict) else {name: found}
            for key, part in parts.items():
                self.values.setdefault(key, []).append(part.detach().double().cpu())

    def compute(self) -> dict[str, torch.Tensor]:
        """The mean over the images of every score.

        Raises:
            ValueError: If there were no images.
        """
        return {name: values.nanmean(0) for name, values in self._joined().items()}

    @property
    def missing(self) -> dict[str, int]:
        """How many images have no value of a score."""
        return {name: int(values.flatten(1).isnan().any(1).sum()) for name, values in self._joined().items()}

    def bootstrap(self, resamples: int = 10000, *, seed: int = 0) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Mean and standard deviation of the means of images drawn with replacement, the same for all scores.

        Args:
            resamples: How often as many images are drawn as there are.
            seed: Of the draws.
        """
        check_positive(resamples=resamples)
        joined = self._joined()
        count = min(len(values) for values in joined.values())
        generator = torch.Generator().manual_seed(seed)
        draws = [torch.randint(count, (count,), generator=generator) for _ in range(resamples)]
        means = {
            name: torch.stack([values[numbers].nanmean(0) for numbers in draws]) for name, values in joined.items()
        }
        return {name: (values.nanmean(0), values[~values.isnan()].std()) for name, values in means.items()}

    def _joined(self) -> dict[str, torch.Tensor]:
        if not self.values:
            raise ValueError("there is nothing to compute: call update(maps, masks) first")
        return {name: torch.cat([part.reshape(len(part), -1) for part in parts]) for name, parts in self.values.items()}


def _largest(maps: torch.Tensor, mass: float) -> torch.Tensor:
    """The patches that contain a share of the mass, largest first."""
    values, order = maps.flatten(1).sort(1, descending=True)
    before = values.cumsum(1) - values  # what the larger ones hold
    kept = before < mass * values.sum(1, keepdim=True)
    return torch.zeros_like(kept).scatter_(1, order, kept).view_as(maps)


def _overlap(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a & b).sum((1, 2)) / (a | b).sum((1, 2)).clamp_min(1)


def _average_precision(scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Of background and foreground, pooled; pixels of one score count at once."""
    values = torch.cat((1 - scores.flatten(), scores.flatten()))
    hits = torch.cat((~mask.flatten(), mask.flatten())).double()
    values, order = values.sort(descending=True, stable=True)
    found = hits[order].cumsum(0)
    last = torch.cat((values[1:] != values[:-1], values.new_ones(1, dtype=torch.bool)))
    found, counts = found[last], torch.arange(1, len(values) + 1, device=values.device)[last]
    gained = torch.cat((found[:1], found.diff())) / found[-1]
    return (gained * found / counts).sum().to(scores.dtype)


def _check(a: torch.Tensor, b: torch.Tensor) -> None:
    if a.shape != b.shape or a.ndim != 3:
        raise ValueError(f"maps must have one shape (B, H, W), got {tuple(a.shape)} and {tuple(b.shape)}")
    if (a < 0).any() or (b < 0).any():
        raise ValueError("maps must not have negative values: take their positive part or explain.min_max of them")
