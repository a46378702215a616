"""What the tokens that name something should know about it: extra targets, in training only.

An answer is one or two tokens of many, and says nothing of the steps that lead to it. So after the
second layer every word that names a kind must know how many of it there are, in which colour and
where (at first and at last, in a clip), "items" and the line break after each image what that
image shows, "number" the digits, "first" and "last" a kind; after the third layer, the end of every
option whether it is the right one. The read-outs are thrown away; the model stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from mmtok.training.clips import Clip
from mmtok.training.garments import KINDS, PLURALS
from mmtok.training.scenes import CANVAS, COLOURS, PATCH, Scene
from mmtok.training.sequences import Sequences
from mmtok.training.tokens import build_tokenizer

FACT_LAYER, OPTION_LAYER = 2, 3
_K = len(KINDS)
_CLASSES = (8, len(COLOURS), 11, 11, 11, _K)  # count, colour, three digits, kind
_BINARY, _PLACES = 1 + _K, 4
_COLUMNS = len(_CLASSES) + _BINARY + _PLACES
_ITEMS, _NUMBER, _FIRST, _LAST, _FRAMES = _K, _K + 1, _K + 2, _K + 3, _K + 4


def fact_table(thing: Scene | Clip) -> NDArray[np.float32]:
    """Facts about each subject: the kinds, items, number, first, last, then every frame.

    Returns:
        (11 + frames, 18): classes of count, colour, three digits and kind; then whether the kind
        is there and which kinds are; then x and y (-1 to 1) at first and at last. NaN: no fact.
    """
    frames = thing.frames if isinstance(thing, Clip) else (thing,)
    table = np.full((_FRAMES + len(frames), _COLUMNS), np.nan, np.float32)
    for kind in range(_K):
        _kind_facts(table[kind], frames, kind)
    for row, frame in [(_ITEMS, frames[-1]), *enumerate(frames, start=_FRAMES)]:
        table[row, 0] = len(frame.items)
        table[row, len(_CLASSES) + 1 : -_PLACES] = [frame.count(k) > 0 for k in range(_K)]
    number = frames[-1].number
    if number is not None:
        table[_NUMBER, 2:5] = [*map(int, number.digits), 10][:3]
    for row, frame in ((_FIRST, frames[0]), (_LAST, frames[-1])):
        shown = {item.kind for item in frame.items}
        if len(shown) == 1:
            table[row, 5] = shown.pop()
    return table


def _kind_facts(row: NDArray[np.float32], frames: Sequence[Scene], kind: int) -> None:
    """Fill in what is to be known of one kind."""
    shown = [[item for item in frame.items if item.kind == kind] for frame in frames]
    seen = [items for items in shown if items]
    row[0] = len(shown[-1])
    row[len(_CLASSES)] = bool(seen)
    if not seen:
        return
    tints = {item.colour for items in seen for item in items}
    if len(tints) == 1:
        row[1] = tints.pop()
    corner = (CANVAS - frames[0].size) // PATCH // 2 * PATCH  # of a window, as in `encode`
    for column, items in ((-4, seen[0]), (-2, seen[-1])):
        if len(items) == 1:
            row[column] = (items[0].x + corner) / CANVAS * 2 - 1
            row[column + 1] = (items[0].y + corner) / CANVAS * 2 - 1


def _subjects() -> Tensor:
    """For every id of the vocabulary the row of `fact_table` that it names, or -1."""
    tokenizer = build_tokenizer()
    found = torch.full((len(tokenizer),), -1)
    names = [*KINDS, "items", "number", "first", "last"]
    for row, name in enumerate(names):
        found[tokenizer.convert_tokens_to_ids(f" {name}")] = row
    for row, name in enumerate(PLURALS):
        found[tokenizer.convert_tokens_to_ids(f" {name}")] = row
    return found


class FactHeads(nn.Module):
    """Linear read-outs of the language model's hidden states."""

    subjects: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.late = nn.RMSNorm(width), nn.RMSNorm(width)
        self.read = nn.Linear(width, sum(_CLASSES) + _BINARY + _PLACES)
        self.option = nn.Linear(width, 1)
        self.register_buffer("subjects", _subjects(), persistent=False)
        self.line = build_tokenizer().convert_tokens_to_ids("\n")

    def forward(
        self, hidden: Sequence[Tensor], sequences: Sequences, things: Sequence[Scene | Clip]
    ) -> tuple[Tensor, dict[str, float]]:
        """Loss of all read-outs, and what share of counts is right and how far places are off.

        Args:
            hidden: (B, L, D) before the first layer and after each.
            sequences: what the model read, about `things`.
            things: B scenes or clips.
        """
        ids, blocks = sequences.ids, sequences.blocks
        row = self.subjects[ids].masked_fill(blocks <= 0, -1)
        ends = (ids == self.line) & (blocks == 0)
        row = torch.where(ends, _FRAMES - 1 + ends.cumsum(dim=1), row)
        entry, spot = (row >= 0).nonzero(as_tuple=True)
        tables = torch.from_numpy(np.stack([fact_table(thing) for thing in things])).to(ids.device)
        facts = tables[entry, row[entry, spot]]
        said = self.read(self.norm(hidden[FACT_LAYER][entry, spot].float()))
        loss, figures = _fact_loss(said, facts)
        asked = sequences.hints >= 0
        if asked.any():
            right = self.option(self.late(hidden[OPTION_LAYER][asked].float())).squeeze(-1)
            truth = sequences.hints[asked].float()
            chosen = F.binary_cross_entropy_with_logits(right, truth)
            loss = loss + chosen
            figures["option"] = float(chosen.detach())
        return loss, figures


def _fact_loss(said: Tensor, facts: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Cross-entropies and squared errors over the facts there are."""
    loss = said.new_zeros(())
    figures: dict[str, float] = {}
    scores = torch.split(said, [*_CLASSES, _BINARY, _PLACES], dim=1)
    for column, group in enumerate(scores[:-2]):
        known = ~facts[:, column].isnan()
        if known.any():
            truth = facts[known, column].long()
            loss = loss + F.cross_entropy(group[known], truth)
            if column == 0:
                figures["counted"] = float((group[known].argmax(-1) == truth).float().mean())
    known = ~facts[:, len(_CLASSES) : -_PLACES].isnan()
    truth = facts[:, len(_CLASSES) : -_PLACES][known]
    loss = loss + 2 * F.binary_cross_entropy_with_logits(scores[-2][known], truth)
    known = ~facts[:, -_PLACES:].isnan()
    if known.any():
        off = (scores[-1][known] - facts[:, -_PLACES:][known]).square().mean()
        figures["off"] = float(off.detach())
        loss = loss + 4 * off
    path = facts[:, -2:] - facts[:, -_PLACES:-2]
    moved = (path.abs() > 0.1).any(dim=1)  # few do: the mean over all places would hide them
    if moved.any():
        off = (scores[-1][:, -2:] - scores[-1][:, :2] - path)[moved].square().mean()
        figures["strayed"] = float(off.detach())
        loss = loss + 4 * off
    return loss, figures
