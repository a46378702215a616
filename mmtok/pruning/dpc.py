"""Density-peak clustering with nearest neighbours: the mathematics that recycling methods share."""

from __future__ import annotations

import torch
from torch import Tensor

from mmtok.pruning.rank import top


def density_peaks(x: Tensor, clusters: int, nearest: int) -> tuple[Tensor, Tensor]:
    """Cluster N tokens around those that are dense and far from denser ones.

    Distance is Euclidean over sqrt(D). Density is exp(-mean squared distance to the `nearest`
    tokens, itself among them). Peaks maximise density times the distance to the nearest denser
    token; for the densest that is the largest distance of all. Equal densities are ordered by
    index, so nothing is random. 2N²D FLOPs.

    Args:
        x: (N, D) features.
        clusters: how many, 1 <= clusters <= N.
        nearest: neighbours that make the density, itself counted, 1 <= nearest <= N.

    Returns:
        (C,) int64 peaks by falling score, and (N,) int64 the cluster of each token: that of the
        nearest peak, ties to the first.
    """
    x = x if x.dtype == torch.float64 else x.float()
    x = x - x.mean(0)  # distances do not change, but lose fewer digits
    square = x.square().sum(1)
    distance = (square[:, None] + square - 2 * x @ x.T).clamp_min(0).div(x.shape[1]).sqrt()
    distance.fill_diagonal_(0)
    density = (-distance.topk(nearest, largest=False).values.square().mean(1)).exp()
    order = top(density, len(x))
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(x), device=x.device)
    denser = rank[None, :] < rank[:, None]
    far = distance.masked_fill(~denser, torch.inf).amin(1)
    far[order[0]] = distance.max()
    peaks = top(far * density, clusters)
    label = distance[:, peaks].argmin(1)
    label[peaks] = torch.arange(clusters, device=x.device)
    return peaks, label
