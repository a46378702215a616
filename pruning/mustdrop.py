"""MustDrop: merge like windows in the tower, drop by two thresholds later (arXiv 2411.10803).

Authors' repository: liuting20/MustDrop. Behind the tower's first layer, windows of 3 x 3 patches
whose mean pairwise cosine similarity reaches theta become one token each. Of what leaves the tower,
the 8% that CLS attends to most are kept in any case. Behind decoder layers 2, 6, 10 and 14 of 32, a
token leaves if the text behind the image gives it less than a share g of all the attention it
spends on visual tokens (s < g sum s) and no text token gives it h (m < h).

Two thresholds are no budget. Here `keep` is exact: a token's worth is max(s / (g sum s), m / h),
below 1 just where the rule drops it, and each stage keeps the key tokens and then the best of the
rest, on a geometric path down to k at the last stage. `budget_mode="threshold"` runs the rule.

Deviations: every image merges its own windows, where the released code lets all of a batch merge as
many as the one with the fewest (`compat="repo"`); a merged token stays in its window's first place;
no window merges below the budget. Layers scale with the decoder's depth, positions stay the
original ones, rows are those of one layer on SDPA, and batches work. The key set is counted among
the merged tokens of each image. A budget counts for each prompt, over all its images. Caches keep
what their layers read; `trim_early` cuts those behind the first stage's layer down to the last
survivors once the prefill is done, as the released code does for layers 2 to 14.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from mmtok.pruning.base import Reducer
from mmtok.pruning.decoder import DecoderPrompt, DecoderStage, Reads, keeping
from mmtok.pruning.greedy import unit
from mmtok.pruning.rank import top
from mmtok.pruning.stages import EncoderStage, TowerTokens
from mmtok.tokens import Query, Selection, VisualTokens

WINDOW = 3
BEHIND = (2, 6, 10, 14)
DEPTH = 32


@dataclass(frozen=True, kw_only=True)
class MustDrop(Reducer):
    """Merge like windows in the tower, then drop what the text does not look at.

    Attributes:
        theta: windows at least this similar become one token; above 1 none does.
        key_share: share of an image's tokens that CLS saves from leaving, rounded up.
        global_share: g, of the attention that text spends on visual tokens.
        single: h, attention of one text token.
        budget_mode: "exact", or "threshold" for the authors' rule, which has no budget.
        trim_early: let earlier caches drop, after the prefill, what later layers do not read.
        compat: "repo" for the released code's number of windows.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"cls_attention"})

    keep: int | float = 64
    theta: float = 0.8
    key_share: float = 0.08
    global_share: float = 0.001
    single: float = 0.001
    budget_mode: Literal["exact", "threshold"] = "exact"
    trim_early: bool = False
    compat: Literal["paper", "repo"] = "paper"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_number("theta", -1, 2)
        self.check_number("key_share", 0, 1)
        self.check_number("global_share", above=True)
        self.check_number("single", above=True)
        if self.budget_mode == "threshold":
            self.let_content_decide()

    def in_encoder(self) -> EncoderStage | None:
        """One merge behind the first layer; none if all is kept."""
        if self.keeps_all:
            return None
        exact = self.budget_mode == "exact"
        return EncoderStage(
            rule=self.windows,
            keep_count=self._least if exact else lambda n: 1,
            place="layer",
            proportional=False,
        )

    def _least(self, n: int) -> int:
        """One more than an image's share, since a prompt's budget rounds the sum of shares."""
        return min(self.keep_count(n) + 1, n)

    def windows(self, tokens: TowerTokens) -> tuple[Tensor, int]:
        """Labels that join the cells of like windows; borders that fill no window stay."""
        label = torch.arange(tokens.size.shape[1], device=tokens.size.device)
        label = label.expand(tokens.size.shape).clone()
        cell = self._cells(tokens.grid).to(label.device) + tokens.prefix
        if tokens.layer or not len(cell):
            return label, 0
        x = unit(tokens.features)[:, cell]  # (C, windows, 9, D)
        square = x.square().sum(-1)
        pairs = x.sum(2).square().sum(-1) - square.sum(2)
        similar = pairs / (cell.shape[1] * (cell.shape[1] - 1))
        able = tokens.free[:, cell].all(-1) & (similar >= self.theta)
        room = (tokens.start - tokens.target) // (cell.shape[1] - 1)
        most = torch.minimum(able.sum(1), room.clamp_min(0))
        if self.compat == "repo":
            most = most.amin().expand_as(most)
        for crop, count in enumerate(most.tolist()):
            best = top(similar[crop].masked_fill(~able[crop], -torch.inf), count)
            label[crop, cell[best]] = cell[best][:, :1].expand(-1, cell.shape[1])
        return label, 0

    @staticmethod
    def _cells(grid: tuple[int, int]) -> Tensor:
        """(windows, 9) raster places of the cells of each whole window."""
        rows, columns = grid[0] // WINDOW, grid[1] // WINDOW
        place = torch.arange(grid[0] * grid[1]).view(grid)[: rows * WINDOW, : columns * WINDOW]
        tiles = place.reshape(rows, WINDOW, columns, WINDOW).transpose(1, 2)
        return tiles.reshape(rows * columns, WINDOW * WINDOW)

    def after_encoder(self, tokens: VisualTokens, query: Query | None) -> Selection:
        """One token for each merged window, and all others."""
        return Selection(indices=[row.nonzero().squeeze(1) for row in tokens.leads])

    def encoder_count(self, n: int) -> int:
        """All, as if no window merged: the budget is met inside the decoder."""
        return n

    def behind(self, layers: int) -> list[int]:
        """The decoder layers whose attention decides, of `layers` layers."""
        return sorted({b * layers // DEPTH for b in BEHIND if b * layers // DEPTH < layers - 1})

    def leave_early(self, layers: int) -> int | None:
        """From the layer behind which tokens first leave, if `trim_early` says so."""
        behind = self.behind(layers)
        return behind[0] if self.trim_early and not self.keeps_all and behind else None

    def in_decoder(self, layers: int) -> list[DecoderStage]:
        """A stage behind each of them; none if all is kept."""
        if self.keeps_all:
            return []
        places, reads = self.behind(layers), frozenset[Reads]({"attention"})
        return [
            DecoderStage(layer=layer + 1, rule=self._stage(i, len(places)), reads=reads)
            for i, layer in enumerate(places, 1)
        ]

    def _stage(self, number: int, stages: int) -> Callable[[DecoderPrompt], Selection]:
        def rule(prompt: DecoderPrompt) -> Selection:
            rows = prompt.asking if len(prompt.asking) else prompt.last
            attention = prompt.rows(rows)[:, prompt.visual]
            total, peak = attention.sum(0), attention.amax(0)
            key = self._key_set(prompt)
            if self.budget_mode == "threshold":
                stays = dual(total, peak, self.global_share, self.single) | key
                return keeping(stays.nonzero().squeeze(1))
            entered, k = self._budget(prompt)
            count = path(entered, k, number / stages)
            worth = torch.maximum(total / (self.global_share * total.sum()), peak / self.single)
            ranked = top(worth, len(worth))
            ranked = torch.cat([ranked[key[ranked]], ranked[~key[ranked]]])
            return keeping(ranked[:count])

        return rule

    def _key_set(self, prompt: DecoderPrompt) -> Tensor:
        """(N,) bool, tokens that stay in any case; the first stage sets each image's bar."""
        attention, image = prompt.cls_attention, prompt.cell[:, 0]
        assert attention is not None, "the tower has CLS attention"
        bars: dict[int, float] = prompt.memory.setdefault("mustdrop.bar", {})
        key = torch.zeros_like(image, dtype=torch.bool)
        for item in sorted(set(image.tolist())):
            own = (image == item).nonzero().squeeze(1)
            if item not in bars:
                count = math.ceil(self.key_share * len(own))
                best = top(attention[own], count)
                bars[item] = float(attention[own[best[-1]]]) if count else math.inf
            key[own] = attention[own] >= bars[item]
        return key

    def _budget(self, prompt: DecoderPrompt) -> tuple[int, int]:
        """Visual tokens in front of the first stage, and how many the last one leaves."""
        whole = round(float(prompt.size.sum()))  # patches, before windows merged
        first = (len(prompt.visual), self.keep_count(whole))
        entered, k = prompt.memory.setdefault("mustdrop.budget", first)
        return int(entered), int(k)

    def decoder_schedule(self, layers: int, visual: int) -> list[int]:
        """The path down to the budget, as if no window merged; nothing leaves by threshold."""
        places, counts = self.behind(layers), [visual] * layers
        if self.budget_mode == "exact" and not self.keeps_all:
            for i, layer in enumerate(places, 1):
                left = path(visual, self.keep_count(visual), i / len(places))
                counts[layer + 1 :] = [left] * (layers - layer - 1)
        return counts


def path(n: int, k: int, share: float) -> int:
    """How many of n tokens are left after a share of a geometric way down to k."""
    k = min(n, k)
    return k if share == 1 else math.floor(n * (k / n) ** share + 0.5)


def dual(total: Tensor, peak: Tensor, g: float, h: float) -> Tensor:
    """(N,) bool, the tokens that stay by the authors' two thresholds.

    Args:
        total: (N,) attention that each visual token gets from all of the text.
        peak: (N,) the most it gets from one text token.
        g: share of the attention to visual tokens.
        h: attention.
    """
    return (total >= g * total.sum()) | (peak >= h)
