"""Still cells of a segment become one token each; what moves stays frame by frame.

A group is an (n, W) tensor of places: n cells of W frames, whose W tokens have been merged (still
ones), or n tokens of one frame (W = 1).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmtok.pruning.dpc import density_peaks
from mmtok.pruning.frames import Clip
from mmtok.pruning.slots import Slots, blend
from mmtok.pruning.work import Work


def still_and_moving(
    clip: Clip, segments: Sequence[range], alike: Sequence[Tensor], threshold: float, k: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Groups of still cells of each segment, and of the moving tokens of each frame.

    A cell is still if it is there in all of its segment's two frames or more and its similarity is
    above the threshold. If fewer than k tokens were left, only the most similar still cells count
    as such, as many as leave k.

    Args:
        clip: the tokens.
        segments: ranges of frames.
        alike: (C,) similarity of each cell over each segment.
        threshold: of still cells.
        k: how many tokens have to be left.
    """
    candidates = []
    for s, segment in enumerate(segments):
        whole = (clip.table[segment.start : segment.stop] >= 0).all(0)
        cells = (whole & (alike[s] > threshold)).nonzero().squeeze(1)
        if len(segment) > 1:
            values = zip(alike[s][cells].tolist(), cells.tolist(), strict=True)
            candidates += [(-value, s, cell) for value, cell in values]
    spare = len(clip.frame) - k
    chosen: list[list[int]] = [[] for _ in segments]
    for _, s, cell in sorted(candidates):
        if len(segments[s]) - 1 <= spare:
            spare -= len(segments[s]) - 1
            chosen[s].append(cell)
    still, moves = [], torch.ones_like(clip.frame, dtype=torch.bool)
    for segment, picked in zip(segments, chosen, strict=True):
        rows = clip.table[segment.start : segment.stop, sorted(picked)].T
        moves[rows.flatten()] = False
        still.append(rows)
    return still, [frame[moves[frame]][:, None] for frame in clip.frames]


def merge_group(
    slots: Slots, x: Tensor, rows: Tensor, k: int, *, share: float, neighbours: int, work: Work
) -> None:
    """Merge a group into k tokens: density peaks, and each other one joins the nearest.

    Args:
        slots: gets the tokens; each stands where the first token of its centre stood.
        x: (N, D) features of the clip.
        rows: (n, W) places of the group.
        k: how many, at most n.
        share: see `blend`.
        neighbours: see `density_peaks`.
        work: told of the products.
    """
    if k == 0:
        return
    cells = x[rows].mean(1) if rows.shape[1] > 1 else x[rows[:, 0]]
    every = torch.arange(k, device=x.device)
    centre, label = (every, every) if k == len(rows) else density_peaks(cells, k, neighbours, work)
    weight = blend(label, centre, share) / rows.shape[1]
    width = rows.shape[1]
    slots.add(
        rows[centre, 0],
        rows.flatten(),
        label.repeat_interleave(width),
        weight.repeat_interleave(width),
    )
