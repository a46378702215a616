"""The two plug points: a Drafter proposes trees, a Verifier decides which path survives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from mmtok.decoding.rules import Level, draw, one_hot
from mmtok.decoding.tree import KINDS, DraftTree, Kind
from mmtok.errors import InputError

if TYPE_CHECKING:
    from mmtok.decoding.target import Target

Rows = Callable[[int], Tensor]
MOST_NODES = 1024  # of a row's draft: what a step costs, and what its mask takes, grows with them


@dataclass(frozen=True)
class Verdict:
    """One row's outcome: accepted nodes below the root, in order, and the token emitted after."""

    path: list[int]
    token: int


class Verifier:
    """Walks a draft tree from the root; a subclass says what happens at one node.

    Attributes:
        accepts: kinds of tree for which the rule is right.
        lossless: the output has the target's distribution.
        argmax: the rule decodes greedily; it still sees p itself, not its argmax alone.
    """

    accepts: ClassVar[frozenset[Kind]] = KINDS
    lossless: ClassVar[bool] = True
    argmax: ClassVar[bool] = False

    def level(self, p: Tensor, siblings: Tensor, q: Tensor | None) -> Level:
        """The rule at one node: p (V,), siblings (k,) with k > 0, q (V,) or None."""
        raise NotImplementedError

    def verify(self, tree: DraftTree, probs: Rows, uniform: Callable[[], float]) -> Verdict:
        """The surviving path of one tree.

        Args:
            tree: n nodes.
            probs: node to (V,) float64, the target's distribution after that node.
            uniform: the source of random numbers in [0, 1).
        """
        node, path = 0, list[int]()
        while children := tree.children(node):
            q = None if tree.q is None else tree.q[node]
            siblings = tree.tokens[torch.tensor(children)]
            accept, rest = self.level(probs(node), siblings, q)
            hit = next((c for c, a in zip(children, accept, strict=True) if uniform() < a), None)
            if hit is None:
                return Verdict(path, draw(rest, uniform()))
            node = hit
            path.append(node)
        return Verdict(path, self.bonus(probs(node), uniform))

    def law(self, p: Tensor, q: Tensor) -> Tensor:
        """Distribution (V,) of the next token, one draft drawn from q (V,): every draft enumerated.

        V calls of the rule here; a rule that is measured often says the same for all at once.
        """
        law = torch.zeros_like(p)
        for token in q.nonzero():
            law += q[token] * self.level(p, token, q).law(token)
        return law

    def wanted(self, p: Tensor) -> Tensor:
        """The law (V,) an exact rule of this kind gives: p, or all on its argmax."""
        return one_hot(p) if self.argmax else p

    def bonus(self, p: Tensor, uniform: Callable[[], float]) -> int:
        """The token behind a path that survived to its leaf."""
        return int(p.argmax()) if self.argmax else draw(p, uniform())


def follow(tree: DraftTree, pick: Callable[[int], int]) -> Verdict:
    """Pick a token at each node and go on from the child that has it, while one does."""
    tokens, node, path = tree.tokens.tolist(), 0, list[int]()
    while True:
        token = pick(node)
        hit = next((child for child in tree.children(node) if tokens[child] == token), None)
        if hit is None:
            return Verdict(path, token)
        node = hit
        path.append(node)


@dataclass(frozen=True)
class StepResult:
    """What one step did to one row.

    Attributes:
        tree: what was proposed.
        verdict: what survived.
        logits: (n, V) guided, unwarped logits of the target after each node.
        emitted: the accepted tokens and the one after them; cut at the end of sequence or at the
            maximum length.
        finished: the row is done.
    """

    tree: DraftTree
    verdict: Verdict
    logits: Tensor
    emitted: list[int]
    finished: bool


class Drafter:
    """Proposes one tree per row. It never touches the target or its cache.

    Attributes:
        kind: how siblings come about; the verifier must accept it.
        room: how deep a draft of each row may get, as the engine sets it before every `propose`;
            it cuts deeper ones, so these are lost work. None: nobody said.
    """

    room: Sequence[int] | None = None

    @property
    def kind(self) -> Kind:
        """How siblings come about."""
        raise NotImplementedError

    def start(self, target: Target, ids: list[list[int]], seeds: Sequence[int]) -> None:
        """A new batch begins: ids[r] are the prompt tokens of row r, padding removed."""

    def propose(self, ids: list[list[int]], active: list[bool]) -> list[DraftTree]:
        """One tree per row; node 0 is the row's last token. Inactive rows may get a bare root."""
        raise NotImplementedError

    def observe(self, results: list[StepResult | None]) -> None:
        """The outcome of a step, None for rows that were finished before it."""

    def rooms(self, active: list[bool]) -> list[int]:
        """How deep the draft of each row may get: 0 for inactive rows."""
        room = [MOST_NODES] * len(active) if self.room is None else self.room
        return [most if on else 0 for most, on in zip(room, active, strict=True)]


def check_nodes(name: str, nodes: int) -> None:
    """Refuse options of a drafter that ask for too large drafts.

    Args:
        name: of the drafter.
        nodes: most draft nodes of a row and step.

    Raises:
        InputError: they are more than `MOST_NODES`.
    """
    if nodes > MOST_NODES:
        raise InputError(
            f"{name}: a draft has up to {MOST_NODES} nodes, these options ask for more"
        )


def check_pair(drafter: Drafter, verifier: Verifier) -> None:
    """Refuse a verifier that would be wrong for this drafter's trees.

    Raises:
        InputError: the verifier does not accept the kind.
    """
    if drafter.kind not in verifier.accepts:
        raise InputError(
            f"{type(verifier).__name__} is wrong for drafts of kind {drafter.kind!r} "
            f"({type(drafter).__name__}): it takes {', '.join(sorted(verifier.accepts))}; "
            "deterministic takes every kind"
        )


def drawn_from(q: Tensor | None) -> Tensor:
    """q, which sampled drafts have.

    Raises:
        InputError: the draft carries none.
    """
    if q is None:
        raise InputError("this rule needs the distribution q that the draft was drawn from")
    return q


def total_variation(verifier: Verifier, p: Tensor, q: Tensor) -> float:
    """Distance of the next token's law from the exact one, over all drafts drawn from q.

    Args:
        verifier: any; `Verifier.law` says what it costs.
        p: (V,) float64.
        q: (V,) float64.
    """
    return float((verifier.law(p, q) - verifier.wanted(p)).abs().sum() / 2)
