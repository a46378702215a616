"""Drafts by a smaller model with a cache of its own, batched, one forward per level of the tree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmtok.decoding.base import Drafter
from mmtok.decoding.growth import Growth, Noise
from mmtok.decoding.target import Target
from mmtok.decoding.tree import DraftTree, Kind
from mmtok.errors import InputError

_OWN_STREAM = 0x5DEECE66D  # drafts must not share random numbers with their verification


class GrowingDrafter(Drafter):
    """Grows trees level by level; a subclass says how, and what scores the levels.

    Attributes:
        temperature: of the drafts; any value leaves the output's law as it is.
    """

    temperature: float
    _target: Target
    _generators: list[torch.Generator]

    @property
    def forwards(self) -> int:
        """Calls of the draft model in this batch."""
        return self._target.forwards

    def grow(self, root: int, noise: Noise, generator: torch.Generator) -> Growth:
        """An empty tree below `root`."""
        raise NotImplementedError

    def first(self, ids: list[list[int]], active: list[bool]) -> list[Tensor]:
        """Catch up with the rows; the rows (V,) behind each row's last token, now committed."""
        raise NotImplementedError

    def seed(self, seeds: Sequence[int]) -> None:
        """A source of random numbers per row."""
        self._generators = [torch.Generator().manual_seed(s ^ _OWN_STREAM) for s in seeds]

    def propose(self, ids: list[list[int]], active: list[bool]) -> list[DraftTree]:
        """Catch up with the rows, then grow their trees level by level."""
        rooms = self.rooms(active)
        if not any(rooms):
            return [DraftTree.root(row[-1]) for row in ids]
        first = self.first(ids, active)
        growths = []
        for r, row in enumerate(ids):
            growth = self.grow(row[-1], self._noise(r), self._generators[r])
            growth.levels = min(growth.levels, rooms[r])
            if rooms[r]:
                growth.feed([first[r]])
            else:
                growth.wanted = []
            growths.append(growth)
        slots: list[dict[int, int]] = [{} for _ in ids]
        while any(g.wanted for g in growths):
            self._level(growths, slots)
        return [
            growth.tree(self.kind) if len(growth.tokens) > 1 else DraftTree.root(row[-1])
            for growth, row in zip(growths, ids, strict=True)
        ]

    def _level(self, growths: list[Growth], slots: list[dict[int, int]]) -> None:
        old, n = self._target.cache.tail, max(len(g.wanted) for g in growths)
        tokens = torch.zeros(len(growths), n, dtype=torch.long)
        depth = torch.zeros_like(tokens)
        sees = torch.zeros(len(growths), n, old + n, dtype=torch.bool)
        sees[:, :, old:] = torch.eye(n, dtype=torch.bool)
        for r, growth in enumerate(growths):
            for j, node in enumerate(growth.wanted):
                tokens[r, j], depth[r, j] = growth.tokens[node], growth.depth[node] - 1
                above = growth.ancestors(node)[:-1]  # the root is committed
                sees[r, j, [slots[r][a] for a in above]] = True
                slots[r][node] = old + j
        logits = self._target.extend(tokens, depth, sees)
        for growth, z in zip(growths, logits, strict=True):
            if growth.wanted:
                growth.feed([self.row(z[j]) for j in range(len(growth.wanted))])

    def row(self, logits: Tensor) -> Tensor:
        """(V,) float64 from logits (V,), at the temperature of the drafts."""
        return (logits.double().cpu() / (self.temperature or 1.0)).softmax(-1)

    def _noise(self, row: int) -> Noise:
        def gumbel(level: int, rank: int, size: int) -> Tensor:
            u = torch.rand(size, generator=self._generators[row], dtype=torch.float64)
            return -(-u.clamp(min=1e-300).log()).log()

        return gumbel


@dataclass(kw_only=True)
class ModelDrafter(GrowingDrafter):
    """A smaller model drafts; a subclass says how the tree grows.

    Attributes:
        model: a causal language model with the target's vocabulary.
        temperature: of the drafts; any value leaves the output's law as it is.
        drop: token ids the model does not get to see, such as image placeholders.
    """

    model: Any = None
    temperature: float = 1.0
    drop: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.model is None:
            raise InputError(f"{type(self).__name__} needs model=, a causal language model")
        if not self.temperature >= 0:
            raise InputError(f"temperature must not be negative, got {self.temperature!r}")
        self._target = Target(self.model)

    @property
    def kind(self) -> Kind:
        """Draws without replacement."""
        return "wor"

    def start(self, target: Target, ids: list[list[int]], seeds: Sequence[int]) -> None:
        """Read the prompts.

        Raises:
            InputError: the vocabularies differ.
        """
        sizes = [m.config.get_text_config().vocab_size for m in (target.model, self.model)]
        if sizes[0] != sizes[1]:
            raise InputError(f"the draft model has {sizes[1]} tokens, the target {sizes[0]}")
        seen = [self._seen(row) for row in ids]
        if not all(seen):
            raise InputError("drop leaves the draft model no token of a prompt")
        width = max(map(len, seen))
        tokens = torch.tensor([[0] * (width - len(s)) + s for s in seen])
        mask = torch.arange(width) >= width - torch.tensor([[len(s)] for s in seen])
        self._target = Target(self.model)
        device = self.model.device
        self._target.prefill(
            {"input_ids": tokens.to(device), "attention_mask": mask.long().to(device)}
        )
        self._known = [len(s) for s in seen]
        self.seed(seeds)

    def first(self, ids: list[list[int]], active: list[bool]) -> list[Tensor]:
        """Drop the last drafts and read what was emitted since."""
        new = []
        for r, row in enumerate(ids):
            seen = self._seen(row) if active[r] else []
            new.append(seen[self._known[r] :])
            self._known[r] = max(self._known[r], len(seen))
        if self._target.cache.tail:
            self._target.commit([[] for _ in ids])
        logits = self._target.score([DraftTree.line(n or [0]) for n in new])
        self._target.commit([list(range(len(n))) for n in new])
        return [self.row(z[max(len(n) - 1, 0)]) for z, n in zip(logits, new, strict=True)]

    def _seen(self, ids: list[int]) -> list[int]:
        return [t for t in ids if t not in self.drop] if self.drop else ids
