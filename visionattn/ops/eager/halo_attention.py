"""Halo attention, a few blocks at a time: neither windows nor weights are kept, they are made again for the gradients.

No window reaches beyond the map, so nothing is padded or masked.
"""

from collections.abc import Iterator
from itertools import groupby, product
from typing import Any, NamedTuple

import torch

from ._chunks import NUMBERS
from ._function import EagerFunction, Tensors

__all__ = ["HaloAttention"]


class _Run(NamedTuple):
    """Blocks side by side along one axis, with as many queries and keys each."""

    first: int  # query
    blocks: int
    queries: int  # of a block
    near: int  # the first key of the first block
    keys: int  # of a block
    cut: int  # keys that the window lacks before these, beyond the map
    step: int  # from block to block

    def part(self, start: int, count: int) -> "_Run":
        """Some of the blocks."""
        by = start * self.step
        return self._replace(first=self.first + by, near=self.near + by, blocks=min(count, self.blocks - start))


class _Part(NamedTuple):
    """One block down and some across, of some images."""

    images: slice
    down: _Run
    across: _Run
    places: torch.Tensor  # as `_key_places` says

    @property
    def runs(self) -> tuple[_Run, _Run]:
        return self.down, self.across

    def queries(self, x: torch.Tensor) -> torch.Tensor:
        """Those of a map `(B, H, W, heads, d)`, as a view `(images, blocks, heads, rows, columns, d)`."""
        (top, _, rows, *_), (left, count, columns, *_) = self.down, self.across
        x = x[self.images, top : top + rows, left : left + count * columns]
        return x.unflatten(2, (count, columns)).permute(0, 2, 4, 1, 3, 5)

    def keys(self, x: torch.Tensor) -> torch.Tensor:
        """The same of keys or values; windows overlap."""
        end = self.across.near + (self.across.blocks - 1) * self.across.step + self.across.keys
        x = x[self.images, self.down.near : self.down.near + self.down.keys, self.across.near : end]
        return x.unfold(2, self.across.keys, self.across.step).permute(0, 2, 3, 1, 5, 4)

    def add_keys(self, total: torch.Tensor, grad: torch.Tensor) -> None:
        """Adds to a map what its windows have got, `(images * blocks * heads, rows * columns, d)`."""
        windows, apart = self.keys(total), -(-self.across.keys // self.across.step)
        grad = grad.view(windows.shape)
        for first in range(min(apart, self.across.blocks)):  # windows that do not overlap at once
            windows[:, first::apart] += grad[:, first::apart]

    def terms(self, distances: torch.Tensor) -> list[torch.Tensor]:
        """Of the terms of all distances, down and across, those of each query's rows and columns of keys.

        `(images * blocks * heads * queries, all distances)` to views `(..., rows, columns, keys)`, one for each axis.
        """
        found = distances.view(-1, self.down.queries, self.across.queries, distances.size(1))
        half = distances.size(1) // 2
        views = []
        for axis, run in enumerate(self.runs):
            strides = list(found.stride())
            strides[1 + axis] -= 1  # a query one row further down is one row nearer to each key
            first = axis * half + half // 2 + run.cut
            views.append(found.as_strided((*found.shape[:-1], run.keys), strides, first))
        return views


class HaloAttention(EagerFunction):
    """`apply(formula, q, k, v, height_rel, width_rel, block, halo)`, as `visionattn.ops.halo_attention`."""

    @staticmethod
    def compute(
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        height_rel: torch.Tensor,
        width_rel: torch.Tensor,
        block: int,
        halo: int,
    ) -> torch.Tensor:
        out, tables = q.new_empty(q.shape), torch.cat([height_rel, width_rel])
        for part in _parts(q, block, halo):
            weights = _weights(part, _rows(part.queries(q)), _rows(part.keys(k)), tables)
            place = part.queries(out)
            place.copy_((weights @ _rows(part.keys(v))).view(place.shape))
        return out.flatten(3)

    @staticmethod
    def gradients(ctx: Any, grad: torch.Tensor) -> Tensors:
        q, k, v, height_rel, width_rel = ctx.saved_tensors[:5]
        tables, grad, scale = torch.cat([height_rel, width_rel]), grad.reshape(q.shape), q.size(-1) ** -0.5
        d_q, d_k, d_v = q.new_empty(q.shape), k.new_zeros(k.shape), v.new_zeros(v.shape)
        d_tables = torch.zeros_like(tables)
        for part in _parts(q, *ctx.settings):
            queries, keys, d_out = _rows(part.queries(q)), _rows(part.keys(k)), _rows(part.queries(grad))
            weights = _weights(part, queries, keys, tables)
            part.add_keys(d_v, weights.mT @ d_out)
            d_weights = d_out @ _rows(part.keys(v)).mT
            d_scores = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype)
            part.add_keys(d_k, (d_scores.mT @ queries).mul_(scale))
            d_terms = (d_scores.flatten(0, 1) @ part.places.T).split([run.keys for run in part.runs], 1)
            d_distances = d_terms[0].new_zeros(len(d_terms[0]), len(tables))
            for to, found in zip(part.terms(d_distances), d_terms, strict=True):
                to.copy_(found.view(to.shape))
            d_queries, place = (d_scores @ keys).mul_(scale), part.queries(d_q)
            d_queries.flatten(0, 1).addmm_(d_distances, tables)
            place.copy_(d_queries.view(place.shape))
            d_tables.addmm_(d_distances.T, queries.flatten(0, 1))
        return d_q, d_k, d_v, *d_tables.split([len(height_rel), len(width_rel)])


def _weights(part: _Part, queries: torch.Tensor, keys: torch.Tensor, tables: torch.Tensor) -> torch.Tensor:
    """The attention weights, `(images * blocks * heads, queries, keys)`."""
    terms = queries.new_empty(queries.size(0) * queries.size(1), len(part.places))
    by_axis = terms.split([run.keys for run in part.runs], 1)
    distances = queries.flatten(0, 1) @ tables.T
    for to, found in zip(by_axis, part.terms(distances), strict=True):
        to.view(found.shape).copy_(found)
    scores = (terms @ part.places).view(*queries.shape[:2], -1)
    return scores.baddbmm_(queries, keys.mT, alpha=queries.size(-1) ** -0.5).softmax(-1)


def _rows(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(3, 4).flatten(0, 2)


def _key_places(rows: int, columns: int, ones: torch.Tensor) -> torch.Tensor:
    """Ones where a key stands in a row, and in a column, of its window. `(rows + columns, rows * columns)`."""
    by_row = ones[:rows, :rows, None].expand(-1, -1, columns)
    by_column = ones[:columns, None, :columns].expand(-1, rows, -1)
    return torch.cat([by_row, by_column]).flatten(1)


def _parts(q: torch.Tensor, block: int, halo: int) -> Iterator[_Part]:
    images, height, width, heads, _ = q.shape
    ones = torch.eye(block + 2 * halo, dtype=q.dtype, device=q.device)
    for down, across in product(_runs(height, block, halo), _runs(width, block, halo)):
        places = _key_places(down.keys, across.keys, ones)
        scores = heads * down.queries * down.keys * across.queries * across.keys
        some = max(1, min(across.blocks, NUMBERS // scores))
        several = max(1, NUMBERS // (scores * some))
        for row, column in product(range(down.blocks), range(0, across.blocks, some)):
            runs = down.part(row, 1), across.part(column, some)
            for image in range(0, images, several):
                yield _Part(slice(image, image + several), *runs, places)


def _runs(size: int, block: int, halo: int) -> list[_Run]:
    """The blocks along an axis: at the borders of the map they have fewer keys, and the last may have fewer queries."""

    def shape(first: int) -> tuple[int, int, int]:
        near = max(first - halo, 0)
        return min(block, size - first), min(first + block + halo, size) - near, near - first + halo

    runs = []
    for (queries, keys, cut), firsts in groupby(range(0, size, block), shape):
        first, *rest = firsts
        runs.append(_Run(first, 1 + len(rest), queries, first - halo + cut, keys, cut, block))
    return runs
