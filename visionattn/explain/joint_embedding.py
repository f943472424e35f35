"""Queries and keys of a head in one picture, near each other where attention is strong.

AttentionViz: A Global View of Transformer Attention (IEEE VIS 2023, arXiv 2305.03210).

Official code: https://github.com/catherinesyeh/attention-viz (its public part draws, and does not scale).

Differs from the paper in: the scale c is that of equal mean lengths unless `scale="rank"` seeks the one whose distances
follow the products best.
"""

import csv
import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from visionattn.utils.arguments import check_choice
from visionattn.utils.files import replacing

__all__ = ["METHODS", "JointEmbedding", "joint_embedding", "projection"]

METHODS = ("pca", "tsne", "umap")
# Factors on the scale of equal lengths that `scale="rank"` tries.
_FACTORS = tuple(2.0 ** (step / 2) for step in range(-6, 7))
_COLOURS = {"query": "#0072b2", "key": "#d55e00"}  # told apart by colour-blind eyes


@dataclass(frozen=True)
class JointEmbedding:
    """Where queries and keys lie in a plane.

    Args:
        queries: `(N, 2)`.
        keys: `(M, 2)`.
        scale: c: queries were multiplied by it and keys divided.
        rank_correlation: Of minus the distance and the product, before the projection to the plane.
        labels: Names of the queries and of the keys.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    scale: float
    rank_correlation: float
    labels: tuple[Sequence[str], Sequence[str]]

    def rows(self) -> list[tuple[str, str, float, float]]:
        """Kind, label, x and y of all."""
        parts = zip(("query", "key"), self.labels, (self.queries, self.keys), strict=True)
        return [
            (kind, label, *place)
            for kind, labels, places in parts
            for label, place in zip(labels, places.tolist(), strict=True)
        ]

    def to_csv(self, path: str | Path) -> None:
        """Writes `kind,label,x,y`."""
        with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerows([("kind", "label", "x", "y"), *self.rows()])

    def to_html(self, path: str | Path, title: str = "Queries and keys") -> None:
        """Writes one page without scripts; the mouse over a point shows its label."""
        rows = self.rows()
        places = np.array([row[2:] for row in rows])
        low, span = places.min(0), np.ptp(places, 0).max() or 1.0
        points = []
        for (kind, label, *_), (x, y) in zip(rows, (places - low) / span, strict=True):
            at = f'cx="{10 + 780 * x:.1f}" cy="{790 - 780 * y:.1f}" r="4"'
            name = html.escape(f"{kind} {label}")
            points.append(f'<circle {at} fill="{_COLOURS[kind]}" fill-opacity="0.6"><title>{name}</title></circle>')
        legend = " ".join(f'<span style="color:{colour}">{kind}</span>' for kind, colour in _COLOURS.items())
        page = (
            f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
            f"<h1>{html.escape(title)}</h1><p>{legend}; scale {self.scale:.3g}, rank correlation of distance and "
            f'product {self.rank_correlation:.2f}</p><svg viewBox="0 0 800 800" style="max-width:800px" role="img" '
            f'aria-label="{html.escape(title)}">{"".join(points)}</svg></html>\n'
        )
        with replacing(path) as temporary:
            temporary.write_text(page, encoding="utf-8")


def joint_embedding(
    q: torch.Tensor,
    k: torch.Tensor,
    *,
    method: str = "tsne",
    scale: float | str = "norm",
    labels: tuple[Sequence[str], Sequence[str]] | None = None,
    seed: int = 0,
    **options: Any,
) -> JointEmbedding:
    """Puts queries and keys of one head in one plane.

    Queries are multiplied by c and keys divided, which changes no score; then keys are moved so that both have one
    centre, which changes all scores of a query alike and so no attention.

        joint_embedding(record[3].q[0, 0, 1], record[3].k[0, 0, 1])  # of an image, head 1

    Args:
        q: Queries `(N, d)`.
        k: Keys `(M, d)`.
        method: `tsne`, `pca` (scikit-learn) or `umap` (the package umap-learn).
        scale: c: `norm` makes the mean lengths equal, `rank` tries thirteen factors around that and takes the one whose
            distances follow the products best; or a number.
        labels: Names of the queries and of the keys; their numbers without it.
        seed: Of the projection.
        **options: Of the projection's class.

    Raises:
        ValueError: If shapes do not fit or an argument is out of range.
        ModuleNotFoundError: If umap-learn or scikit-learn is not installed.
    """
    check_choice("method", method, METHODS)
    if q.ndim != 2 or k.ndim != 2 or q.shape[1] != k.shape[1] or len(q) < 2 or len(k) < 2:
        raise ValueError(f"q must be (N, d) and k (M, d) with N, M of at least 2, got {q.shape} and {k.shape}")
    labels = labels or ([str(i) for i in range(len(q))], [str(j) for j in range(len(k))])
    if (len(labels[0]), len(labels[1])) != (len(q), len(k)):
        raise ValueError(f"labels must be {len(q)} and {len(k)} names, got {len(labels[0])} and {len(labels[1])}")
    q, k = q.detach().double().cpu(), k.detach().double().cpu()
    tiny = torch.finfo(torch.float64).tiny
    equal = (k.norm(dim=1).mean() / q.norm(dim=1).mean().clamp_min(tiny)).clamp_min(tiny).sqrt().item()
    if isinstance(scale, str):
        check_choice("scale", scale, ("norm", "rank"))
        tried = [equal * factor for factor in _FACTORS] if scale == "rank" else [equal]
    elif scale > 0:
        tried = [float(scale)]
    else:
        raise ValueError(f"scale must be above 0, 'norm' or 'rank', got {scale}")
    agreement, c = max((_agreement(q, k, c), c) for c in tried)
    points = torch.cat(_placed(q, k, c)).numpy()
    flat = torch.from_numpy(np.asarray(projection(method, len(points), seed, options).fit_transform(points))).float()
    return JointEmbedding(flat[: len(q)], flat[len(q) :], c, agreement, labels)


def _placed(q: torch.Tensor, k: torch.Tensor, c: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Both in one space."""
    q, k = q * c, k / c
    return q, k - k.mean(0) + q.mean(0)


def _agreement(q: torch.Tensor, k: torch.Tensor, c: float) -> float:
    """Spearman's correlation of products and minus distances."""
    q, k = _placed(q, k, c)
    ranks = [part.flatten().argsort().argsort().double() for part in (q @ k.T, -torch.cdist(q, k))]
    return float(torch.corrcoef(torch.stack(ranks))[0, 1])


def projection(method: str, count: int, seed: int, options: dict[str, Any]) -> Any:
    """What brings so many points into a plane by its `fit_transform`."""
    if method == "umap":
        try:
            from umap import UMAP
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("method='umap' needs the package umap-learn: pip install umap-learn") from error
        return UMAP(random_state=seed, **options)
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    if method == "pca":
        return PCA(2, random_state=seed, **options)
    return TSNE(random_state=seed, **{"perplexity": min(30.0, (count - 1) / 3), **options})
