"""Density-peak clustering with nearest neighbours: the mathematics that merging methods share.

No noise, and no N x N matrix above 8192 tokens. Density times distance is compared in logarithms,
so that features of any scale rank.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from mmtok.pruning import greedy
from mmtok.pruning.rank import top
from mmtok.pruning.work import Work

BLOCK = 1024


def density_peaks(
    x: Tensor, clusters: int, nearest: int, work: Work | None = None
) -> tuple[Tensor, Tensor]:
    """Cluster N tokens around those that are dense and far from denser ones.

    Distance is Euclidean over sqrt(D). Density is exp(-mean squared distance to the `nearest`
    tokens, itself among them). Peaks maximise density times the distance to the nearest denser
    token; for the densest that is the largest distance of all. Equal densities are ordered by
    index, so nothing is random. 2N²D FLOPs; above N = 8192 three passes in blocks, 6N²D.

    Args:
        x: (N, D) features.
        clusters: how many, 1 <= clusters <= N.
        nearest: neighbours that make the density, itself counted; at most N are.
        work: told of the products.

    Returns:
        (C,) int64 peaks by falling score, and (N,) int64 the cluster of each token: that of the
        nearest peak, ties to the first.
    """
    n, work = len(x), work or Work()
    x = x if x.dtype == torch.float64 else x.float()
    x = (x - x.mean(0)) / x.shape[1] ** 0.5  # distances stay, but lose fewer digits
    whole = list(_squared(x, n, work)) if n <= greedy.GRAM_LIMIT else None

    def blocks() -> Iterator[tuple[int, Tensor]]:
        return iter(whole) if whole is not None else _squared(x, BLOCK, work)

    near = min(nearest, n)
    density = torch.cat([-d.topk(near, largest=False).values.mean(1) for _, d in blocks()])
    rank = torch.empty_like(density, dtype=torch.int64)
    rank[top(density, n)] = torch.arange(n, device=x.device)
    gaps, widest = [], x.new_zeros(())
    for start, d in blocks():
        not_denser = rank[None] >= rank[start : start + len(d), None]
        gaps.append(d.masked_fill(not_denser, torch.inf).amin(1))
        widest = torch.maximum(widest, d.max())
    peaks = top(density + torch.cat(gaps).minimum(widest).log() / 2, clusters)
    label = torch.cat([d[:, peaks].argmin(1) for _, d in blocks()])
    label[peaks] = torch.arange(clusters, device=x.device)
    return peaks, label


def density_flops(n: int, width: int) -> int:
    """Floating point operations of `density_peaks`."""
    return 2 * n * n * width * (1 if n <= greedy.GRAM_LIMIT else 3)


def _squared(x: Tensor, size: int, work: Work) -> Iterator[tuple[int, Tensor]]:
    """Squared distances of blocks of rows to all rows; 0 exactly from a row to itself."""
    squares = x.square().sum(1)
    for start in range(0, len(x), size):
        rows = x[start : start + size]
        product = work.product(rows, x.T)
        if len(rows) == len(x):  # exactly symmetric, so that mutual neighbours tie
            product = (product + product.T) / 2
        d = (squares[start : start + size, None] + squares - 2 * product).clamp_min_(0)
        own = torch.arange(len(rows), device=x.device)
        d[own, own + start] = 0
        yield start, d
