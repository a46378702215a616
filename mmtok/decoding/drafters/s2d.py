"""S2D, sorted speculative decoding (arXiv 2407.01955): a draft model with sub-models nested in it.

A draft token comes from the shallowest exit that is sure of it. The draft model must have been
trained so that its exits can speak (sorted fine-tuning); it serves any target of its vocabulary. No
code of the authors was read, and their thresholds are not known to us: 0.7 is ours. The first
token of a draft comes from the whole model, which has to read the emitted tokens anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmtok.decoding.base import check_nodes
from mmtok.decoding.exits import Nested
from mmtok.decoding.layers import depth_of
from mmtok.decoding.modeldraft import ModelDrafter
from mmtok.decoding.target import Target
from mmtok.decoding.tree import DraftTree, Kind
from mmtok.errors import InputError


@dataclass(kw_only=True)
class S2D(ModelDrafter):
    """Draft `tokens` tokens, each with as few layers as are sure of it.

    Attributes:
        model: a causal language model with the target's vocabulary, trained to exit early.
        temperature: 0, the most likely tokens are taken.
        exits: layers after which it may stop, besides the last one.
        threshold: probability from which on an exit's most likely token is taken.
        tokens: length of a draft.
    """

    temperature: float = 0.0
    exits: tuple[int, ...] = ()
    threshold: float = 0.7
    tokens: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        depth, found = depth_of(self.model), sorted(set(self.exits))
        if depth < 2:
            raise InputError("s2d: the draft model has one layer, so none to stop at before it")
        if not found or not 0 < found[0] <= found[-1] < depth or list(self.exits) != found:
            raise InputError(
                f"s2d: exits are the layers the model was trained to stop at, ascending from 1 to "
                f"{depth - 1} for this one, got {self.exits}"
            )
        if self.tokens < 1 or not 0 <= self.threshold <= 1 or self.temperature:
            raise InputError(
                "s2d: tokens >= 1, threshold in [0, 1] and temperature 0, "
                f"got {self.tokens}, {self.threshold!r} and {self.temperature!r}"
            )
        check_nodes("s2d", self.tokens)

    @property
    def kind(self) -> Kind:
        """Chosen, not drawn."""
        return "det"

    @property
    def forwards(self) -> int:
        """Calls of the draft model and of parts of it in this batch."""
        return self._target.forwards + self._nested.forwards

    def start(self, target: Target, ids: list[list[int]], seeds: Sequence[int]) -> None:
        """Read the prompts."""
        super().start(target, ids, seeds)
        self._nested = Nested(self._target, [*self.exits, depth_of(self.model)])

    def propose(self, ids: list[list[int]], active: list[bool]) -> list[DraftTree]:
        """A chain per active row."""
        rooms = self.rooms(active)
        if not any(rooms):
            return [DraftTree.root(row[-1]) for row in ids]
        on = torch.tensor(rooms) > 0
        drafts = [torch.stack(self.first(ids, active)).argmax(-1)]
        self._nested.begin()
        while len(drafts) < min(self.tokens, max(rooms)):
            drafts.append(self._next(drafts[-1], on))
        chains = torch.stack(drafts, 1).tolist()
        return [
            DraftTree.line([row[-1], *(chain if go else [])])
            for row, chain, go in zip(ids, chains, active, strict=True)
        ]

    def _next(self, tokens: Tensor, on: Tensor) -> Tensor:
        """The tokens (B,) behind these, each from the first exit that is sure of it."""
        self._nested.push(tokens)
        unsure, chosen = on.clone(), torch.zeros_like(tokens)
        for at in range(len(self.exits) + 1):
            sure, best = self._nested.logits(at).cpu().double().softmax(-1).max(-1)
            chosen = torch.where(unsure, best, chosen)
            unsure &= sure < self.threshold
            if not unsure.any():
                break
        return chosen
