"""Spherical k-means: seeded k-means++ start, Lloyd's rounds by cosine, no empty clusters.

A centroid is the mean of its normalised members and is itself normalised only where it is compared.
The centroids returned are those that the labels were made with, one update behind their members.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmtok.errors import InputError
from mmtok.pruning.greedy import unit
from mmtok.pruning.work import Work

FLOOR = 1e-6  # added to the squared distances of the start, so that doubles can be drawn too


@dataclass(frozen=True, kw_only=True)
class Clusters:
    """What k-means found.

    Attributes:
        labels: (N,) int64 cluster of each row.
        centroids: (K, D) that the labels were made with.
        sizes: (K,) int64 rows of each cluster.
    """

    labels: Tensor
    centroids: Tensor
    sizes: Tensor


def spread_start(x: Tensor, k: int, generator: torch.Generator, work: Work) -> Tensor:
    """(K, D) normalised rows to start from: k-means++, k different rows.

    The first is drawn evenly, each further one in proportion to its squared distance to the nearest
    of those before it. 2(K - 1)ND FLOPs.

    Args:
        x: (N, D) rows.
        k: how many, at most N.
        generator: on the CPU, so that all devices draw the same numbers.
        work: told of the products.
    """
    x = unit(x)
    squares = x.square().sum(1)
    place = torch.randint(len(x), (1,), generator=generator).to(x.device)
    draws = torch.rand(k, generator=generator, dtype=torch.float64).to(x.device)
    chosen, gap = [place], torch.full_like(squares, torch.inf)
    free = torch.ones_like(squares, dtype=torch.float64)
    for draw in draws[1:]:
        free[place] = 0
        near = squares + squares[place] - 2 * work.product(x, x[place].T).squeeze(1)
        gap = torch.minimum(gap, near.clamp_min(0))
        total = ((gap.double() + FLOOR) * free).cumsum(0)
        place = torch.searchsorted(total, draw[None] * total[-1], right=True)
        chosen.append(place.clamp_max(len(x) - 1))
        place = chosen[-1]
    return x[torch.cat(chosen)]


def kmeans(
    x: Tensor,
    centroids: Tensor,
    *,
    iterations: int = 100,
    tolerance: float = 1e-4,
    refill: bool = True,
    work: Work | None = None,
) -> Clusters:
    """Assign each row to the centroid of largest cosine and move the centroids, until they rest.

    2NKD FLOPs a round. Ties go to the lower cluster.

    Args:
        x: (N, D) rows; only their direction counts.
        centroids: (K, D) to start from, K at most N.
        iterations: rounds at most, at least one.
        tolerance: how far, in Frobenius norm, resting centroids may move.
        refill: give each empty cluster the row farthest from its own centroid; else it keeps its
            centroid.
        work: told of the products.

    Raises:
        InputError: more centroids than rows, or no round.
    """
    if iterations < 1:
        raise InputError(f"k-means needs at least one iteration, got {iterations}")
    if refill and len(centroids) > len(x):
        raise InputError(f"k-means cannot fill {len(centroids)} clusters with {len(x)} rows")
    x, work = unit(x), work or Work()
    centroids, exact = centroids.to(x.dtype), x.double()  # GPUs sum in any order: fp64 hides it
    for _ in range(iterations):
        used = centroids
        similar = work.product(x, unit(used).T)
        labels = similar.argmax(1)
        if refill:
            labels = _refilled(labels, similar)
        sizes = torch.bincount(labels, minlength=len(used))
        sums = exact.new_zeros(used.shape).index_add_(0, labels, exact)
        means = (sums / sizes.clamp_min(1)[:, None]).to(x.dtype)
        centroids = torch.where(sizes[:, None] > 0, means, used)
        if float((centroids - used).norm()) < tolerance:
            break
    return Clusters(labels=labels, centroids=used, sizes=sizes)


def _refilled(labels: Tensor, similar: Tensor) -> Tensor:
    """(N,) labels in which no cluster is empty, given the (N, K) similarities."""
    sizes = torch.bincount(labels, minlength=similar.shape[1])
    empty = (sizes == 0).nonzero().flatten().tolist()
    if not empty:
        return labels
    labels = labels.clone()
    own = similar.gather(1, labels[:, None]).squeeze(1)
    for cluster in empty:
        farthest = own.masked_fill(sizes[labels] < 2, torch.inf).argmin()
        sizes[labels[farthest]] -= 1
        labels[farthest], sizes[cluster] = cluster, 1
    return labels
