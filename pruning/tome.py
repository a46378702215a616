"""ToMe: merge the most similar patches, some in every layer of the tower (arXiv 2210.09461).

Authors' repository: facebookresearch/ToMe. Between attention and MLP of a layer, every other token
looks for its best partner among the rest, by cosine similarity of the keys' mean over heads. The r
most similar ones join their partners as means weighted by size, and from then on a token of s
patches counts s times in attention: log s is added to the scores.

Deviations: `keep` sets r; the tokens to lose are shared out among the layers up to the one the
model reads, evenly, or with `inflect` from (1 - inflect) times the mean in the first to
(1 + inflect) times in the last. A layer that must lose more than half of its tokens takes several
rounds. Tokens stay in raster order, where the released code lines up the two halves, so that the
halves differ from its own after the first merge. Behind the encoder each group keeps its first
patch's place. Newline tokens leave first. Padding of AnyRes crops does not merge.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmtok.errors import InputError
from mmtok.pruning.base import Reducer
from mmtok.pruning.groups import Groups, merge_down
from mmtok.pruning.rank import apportion
from mmtok.pruning.stages import EncoderStage, TowerTokens
from mmtok.tokens import Query, Selection, VisualTokens


@dataclass(frozen=True, kw_only=True)
class ToMe(Reducer):
    """Merge patches inside the vision tower until k tokens are left.

    Attributes:
        inflect: from -1, all merging early, to 1, all of it late.
        proportional: whether attention counts a token once for every patch in it.
        every: every how many-th token is one that others can join.
    """

    keep: int | float = 0.5
    inflect: float = 0.0
    proportional: bool = True
    every: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_number("inflect", -1, 1)
        self.check_number("every", 2)

    def in_encoder(self) -> EncoderStage | None:
        """A merge in each layer; none if all is kept."""
        if self.keeps_all:
            return None
        return EncoderStage(
            rule=self._match,
            keep_count=self.keep_count,
            place="attention",
            proportional=self.proportional,
        )

    def schedule(self, lose: int, layers: int) -> list[int]:
        """How many of `lose` tokens each of `layers` layers merges away."""
        step = 2 * self.inflect / max(layers - 1, 1)
        weights = [1 - self.inflect + step * layer for layer in range(layers)]
        return apportion(weights, [lose] * layers, lose)

    def encoder_schedule(
        self, layers: int, patches: int, *, key_width: int, prefix: int
    ) -> tuple[list[int], int]:
        """Exact: the schedule does not depend on content."""
        left, flops, n = [], 0, patches
        for r in self.schedule(patches - self.keep_count(patches), layers):
            every = self.every
            while r:
                targets = (n + prefix) // every
                flops += 2 * (n - targets) * targets * key_width
                joined = min(r, n - targets) if targets else 0
                every = every if joined else 2
                n, r = n - joined, r - joined
            left.append(n)
        return left, flops

    def _match(self, tokens: TowerTokens) -> tuple[Tensor, int]:
        lose = (tokens.start - tokens.target).tolist()
        r = [self.schedule(n, tokens.layers)[tokens.layer] for n in lose]
        assert tokens.keys is not None, "an attention stage gets them"
        return merge_down(
            tokens.keys,
            tokens.size,
            tokens.free,
            torch.tensor(r, device=tokens.size.device),
            every=self.every,
            offset=tokens.prefix,
        )

    def after_encoder(self, tokens: VisualTokens, query: Query | None) -> Selection:
        """One token for each group of the tower; without a tower, groups of similar features.

        Raises:
            InputError: the budget is below the number of an image's crops.
        """
        if tokens.group is not None:
            return self._leaders(tokens, tokens.group)
        indices, merges = [], []
        for x, row in zip(tokens.features, tokens.mask, strict=True):
            valid = row.nonzero().squeeze(1)
            one = torch.ones(1, len(valid), device=x.device)
            lose = torch.tensor([len(valid) - self.keep_count(len(valid))], device=x.device)
            label, _ = merge_down(x[valid][None], one, one > 0, lose, every=self.every)
            groups = Groups(label, one)
            indices.append(valid[groups.first[0]])
            slot = groups.slot[0]
            merges.append((valid, slot, 1 / groups.size[0][slot]))
        return Selection(indices=indices, merge=merges)

    def _leaders(self, tokens: VisualTokens, group: Tensor) -> Selection:
        indices = []
        for item, row in enumerate(tokens.mask):
            valid = row.nonzero().squeeze(1)
            k = self.keep_count(len(valid))
            own = group[item, valid]
            leads = own == valid
            newline = (own < 0).nonzero().squeeze(1)
            leads[newline[: max(k - int(leads.sum()), 0)]] = True
            if int(leads.sum()) > k:
                raise InputError(
                    f"tome merges within each of the {int(leads.sum())} crops of an image, so it "
                    f"cannot keep fewer tokens than that: raise keep={self.keep}"
                )
            indices.append(valid[leads])
        return Selection(indices=indices)
