"""DEL, the dynamic exit layer (arXiv 2504.05598): where to exit and how far to draft, step by step.

Every verification shows, for each exit, whether it would have proposed the tokens that were then
emitted ("shadow" drafts). From that share `a` follows how many tokens per layer a draft of d tokens
at exit l of L layers should bring, (1 - a^(d+1)) / ((1 - a)(d l + L)); the best pair drafts next,
or nothing does if d = 0 is best. The authors' code, hoenza/DEL, was not read. Ours are: the counts
fade by `decay` per step and start at two trials, `prior` of them hits; the choice is one for the
whole batch; and `stop` is a constant, since the rule by which DEL moves its confidence threshold is
not known to us. The formula counts layers alone: in a small model with a large vocabulary the head,
which every draft and every watched exit calls, is the greater part; `layers` then keeps the exits
few.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmtok.decoding.base import StepResult, check_nodes
from mmtok.decoding.exits import ExitDrafter
from mmtok.decoding.growth import Branching, Growth, Noise
from mmtok.decoding.layers import decoder_of, head_of
from mmtok.decoding.target import Target
from mmtok.decoding.tree import DraftTree
from mmtok.errors import InputError

_MOST = 8  # exits looked at by default: each takes a row of the head per emitted token
_AT_ONCE = 16  # nodes per call of the head, all exits: it is read once, its output stays small


def tokens_per_layer(share: float, layer: int, tokens: int, depth: int) -> float:
    """Expected tokens of a step per layer it runs, `tokens` drafts at exit `layer` of `depth`."""
    emitted = sum(share**i for i in range(tokens + 1))
    return emitted / (tokens * layer + depth)


def best(shares: Mapping[int, float], longest: int, depth: int) -> tuple[int, int]:
    """The exit and the number of drafts with the most tokens per layer; the first of equals."""
    pairs = [(layer, tokens) for layer in shares for tokens in range(longest + 1)]
    return max(pairs, key=lambda at: tokens_per_layer(shares[at[0]], at[0], at[1], depth))


@dataclass(kw_only=True)
class DynamicExit(ExitDrafter):
    """Draft with the target's first layers, at the exit and length that pay most.

    Attributes:
        layers: exits to choose from; none: up to eight, spread over the model.
        tokens: longest draft.
        stop: end a draft where the most likely token is below this probability.
        decay: what a step leaves of the counts of the steps before.
        prior: share of drafts taken to survive before any was seen.
    """

    layers: tuple[int, ...] = ()
    tokens: int = 8
    stop: float = 0.0
    decay: float = 0.95
    prior: float = 0.5

    def __post_init__(self) -> None:
        shares = (self.stop, self.decay, self.prior)
        if self.tokens < 1 or not 0 <= min(shares) <= max(shares) <= 1 or not self.decay:
            raise InputError(
                "dynamicexit: tokens >= 1, stop and prior in [0, 1] and decay in (0, 1], "
                f"got {self.tokens}, {self.stop!r}, {self.prior!r} and {self.decay!r}"
            )
        check_nodes("dynamicexit", self.tokens)

    def exits(self, depth: int) -> tuple[int, ...]:
        """The exits to choose from.

        Raises:
            InputError: the model has no such layers to leave early.
        """
        step = -(-(depth - 1) // _MOST) or 1
        chosen = tuple(sorted(set(self.layers))) or tuple(range(1, depth, step))
        if not chosen or not 0 < chosen[0] <= chosen[-1] < depth:
            raise InputError(
                f"dynamicexit: layers must be from 1 to {depth - 1} in a model of {depth} layers, "
                f"got {self.layers}"
            )
        return chosen

    def start(self, target: Target, ids: list[list[int]], seeds: Sequence[int]) -> None:
        """Watch the target's layers."""
        super().start(target, ids, seeds)
        self._decoder, self._head = decoder_of(target.model), head_of(target.model)
        target.watched = tuple(self._views)
        self._hits, self._trials = dict.fromkeys(self._views, 2 * self.prior), 2.0
        self._choose()

    def _choose(self) -> None:
        shares = {layer: hits / self._trials for layer, hits in self._hits.items()}
        self._layer, self._length = best(shares, self.tokens, len(self._decoder.layers))

    def layer(self) -> int:
        """The exit of the next draft."""
        return self._layer

    def propose(self, ids: list[list[int]], active: list[bool]) -> list[DraftTree]:
        """Chains of the length that pays, none if none does."""
        if not self._length:
            return [DraftTree.root(row[-1]) for row in ids]
        return super().propose(ids, active)

    def grow(self, root: int, noise: Noise, generator: torch.Generator) -> Growth:
        """A chain."""
        return Branching(root, [1] * self._length, None, stop=self.stop)

    def observe(self, results: list[StepResult | None]) -> None:
        """Count for every exit which of the emitted tokens it would have drafted."""
        places, emitted = [], []
        for r, result in enumerate(results):
            if result is not None:
                for node, token in zip([0, *result.verdict.path], result.emitted, strict=False):
                    places.append((r, node))
                    emitted.append(token)
        self._trials = self._trials * self.decay + len(emitted)
        hits = (self._shadows(places, len(results)) == torch.tensor(emitted)).sum(1).tolist()
        for layer, count in zip(self._hits, hits, strict=True):
            self._hits[layer] = self._hits[layer] * self.decay + count
        self._choose()

    @torch.no_grad()
    def _shadows(self, places: list[tuple[int, int]], size: int) -> Tensor:
        """(E, K) what each of E exits would have drafted after each of K nodes of `size` rows."""
        rows, nodes = torch.tensor(places).T
        target = self._lender
        if target.guided:
            rows, nodes = torch.cat([rows, rows + size]), nodes.repeat(2)
        hidden = torch.stack([target.seen[layer][rows, nodes] for layer in self._hits], 1)
        pairs = hidden.reshape(-1, len(places), *hidden.shape[1:])
        best = []
        for start in range(0, len(places), _AT_ONCE):
            few = self._decoder.norm(pairs[:, start : start + _AT_ONCE].flatten(0, 1))
            best.append(target.guide(self._head(few)).argmax(-1))
        return torch.cat(best).T.cpu()
