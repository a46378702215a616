"""Cutting frames into blocks of cells, as many as a budget asks for: pooling and its centres."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mmtok.pruning.frames import split_frames
from mmtok.pruning.merging import Merge, slots_of_their_own
from mmtok.pruning.rank import evenly
from mmtok.tokens import VisualTokens


@dataclass(frozen=True)
class View:
    """The picture tokens of one frame, tile or view, in raster order.

    Attributes:
        places: (h * w,) int64 places among an item's tokens.
        h: rows.
        w: columns.
    """

    places: Tensor
    h: int
    w: int


def split_views(tokens: VisualTokens, item: int, valid: Tensor) -> tuple[list[View], Tensor]:
    """The views of one item, and the places of its newline tokens.

    A newline token stands right of the last column. A view that has lost cells to an earlier
    reducer counts as one row, and so do newline tokens alone.

    Args:
        tokens: with `position`, `grid` and `overview`.
        item: which.
        valid: (N,) int64, its valid tokens.
    """
    position = tokens.position[item, valid]
    newline = position[:, 2] >= tokens.grid[item, 2]
    if tokens.overview is not None:  # it may be wider than the picture
        newline &= ~tokens.overview[item, valid]
    if bool(newline.all()):  # all that an earlier reducer left
        newline = torch.zeros_like(newline)
    picture = (~newline).nonzero().squeeze(1)
    views = []
    for frame in split_frames(position[picture]):
        places = picture[frame]
        (h, row), (w, column) = (_ranks(position[places, axis]) for axis in (1, 2))
        cell = row * w + column
        whole = h * w == len(places) and bool((cell[1:] > cell[:-1]).all())
        views.append(View(places, h, w) if whole else View(places, 1, len(places)))
    return views, newline.nonzero().squeeze(1)


def _ranks(values: Tensor) -> tuple[int, Tensor]:
    """How many different values there are, and the rank of each of them."""
    found, rank = values.unique(return_inverse=True)  # type: ignore[no-untyped-call]
    return len(found), rank


def columns_per_band(h: int, w: int, k: int) -> list[int]:
    """How k blocks tile an h x w grid: the number of columns of each band of rows.

    Bands are as many as keep the blocks closest to square cells of the grid; where k does not
    divide, some bands have one column more, evenly spread.

    Args:
        h: rows of the grid.
        w: columns of the grid.
        k: blocks, 1 <= k <= h * w.
    """
    bands = min(max(math.floor(math.sqrt(k * h / w) + 0.5), -(-k // w)), h, k)
    base, more = divmod(k, bands)
    return [base + (i + 1) * more // bands - i * more // bands for i in range(bands)]


def pooled(h: int, w: int, columns: list[int]) -> Merge:
    """Adaptive average pooling of an h x w grid into bands of rows, each with its own columns.

    With equal columns these are the blocks of `adaptive_avg_pool2d`. A block stands at its centre.

    Args:
        h: rows of the grid.
        w: columns of the grid.
        columns: blocks in each band, at most w, all 0 for none; at most h bands.
    """
    centres: list[int] = []
    source: list[int] = []
    slot: list[int] = []
    for (top, bottom, middle), count in zip(_parts(h, len(columns)), columns, strict=True):
        for left, right, centre in _parts(w, count):
            cells = [
                row * w + column for row in range(top, bottom) for column in range(left, right)
            ]
            source += cells
            slot += [len(centres)] * len(cells)
            centres.append(middle * w + centre)
    place, cell, slots = (torch.tensor(x, dtype=torch.int64) for x in (centres, source, slot))
    weight = (1 / torch.bincount(slots).float())[slots]
    return place, (cell, slots, weight)


def _parts(n: int, parts: int) -> list[tuple[int, int, int]]:
    """Start, end and middle of `parts` stretches of n, which overlap where n does not divide."""
    return [
        (i * n // parts, -(-(i + 1) * n // parts), (2 * i + 1) * n // (2 * parts))
        for i in range(parts)
    ]


def resized(h: int, w: int, rows: int, columns: int) -> Merge:
    """Bilinear resizing of an h x w grid to one no larger, corners not aligned.

    Args:
        h: rows of the grid.
        w: columns of the grid.
        rows: of the result, at most h.
        columns: of the result, at most w.
    """
    (top, bottom, down), (left, right, along) = _between(h, rows), _between(w, columns)
    corners = [
        (y[:, None] * w + x, v[:, None] * u)
        for y, v in ((top, 1 - down), (bottom, down))
        for x, u in ((left, 1 - along), (right, along))
    ]
    centre = evenly(h, rows)[:, None] * w + evenly(w, columns)
    slot = torch.arange(rows * columns).repeat(len(corners))
    source = torch.cat([place.flatten() for place, _ in corners])
    return centre.flatten(), (source, slot, torch.cat([share.flatten() for _, share in corners]))


def _between(n: int, parts: int) -> tuple[Tensor, Tensor, Tensor]:
    """Cells before and behind the middle of each of `parts` stretches, and the second's share."""
    middle = ((torch.arange(parts) + 0.5) * n / parts - 0.5).clamp_min(0)
    first = middle.floor().long()
    return first, (first + 1).clamp_max(n - 1), middle - first


def merge_views(views: list[View], parts: list[Merge]) -> Merge:
    """The merges within views as one of the item they are of.

    Args:
        views: of one item.
        parts: a merge among the cells of each, which may leave none.
    """
    kept, sources, slots, weights, first = [], [], [], [], 0
    for view, (centre, (source, slot, weight)) in zip(views, parts, strict=True):
        device = view.places.device
        kept.append(view.places[centre.to(device)])
        sources.append(view.places[source.to(device)])
        slots.append(slot.to(device) + first)
        weights.append(weight.to(device))
        first += len(centre)
    place, order = torch.cat(kept).sort()
    slot = order.argsort()[torch.cat(slots)]
    return place, (torch.cat(sources), slot, torch.cat(weights))


def pool_views(views: list[View], quotas: list[int]) -> Merge:
    """Pool each view into as many blocks as its quota; a view without any is dropped.

    Args:
        views: of one item.
        quotas: blocks of each, at most its cells.
    """
    parts = [
        pooled(view.h, view.w, columns_per_band(view.h, view.w, quota))
        if quota
        else slots_of_their_own(torch.arange(0))
        for view, quota in zip(views, quotas, strict=True)
    ]
    return merge_views(views, parts)


def newlines_too(merge: Merge, newline: Tensor, k: int) -> Merge:
    """The merge and the first k newline tokens, each in a slot of its own."""
    kept, (source, slot, weight) = merge
    newline = newline[:k]
    place, order = torch.cat([kept, newline]).sort()
    own = torch.arange(len(kept), len(place), device=place.device)
    slot = order.argsort()[torch.cat([slot, own])]
    return place, (
        torch.cat([source, newline]),
        slot,
        torch.cat([weight, weight.new_ones(len(own))]),
    )
