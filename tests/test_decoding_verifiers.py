"""Verifiers with a walk of their own: the law of their rule, at one node and along a path."""

from __future__ import annotations

import pytest
import torch

from mmtok.decoding import DraftTree
from mmtok.decoding.verifiers.deterministic import Deterministic
from mmtok.decoding.verifiers.greedy import Greedy

P = torch.tensor([0.1, 0.0, 0.45, 0.25, 0.2], dtype=torch.float64)
TREE = DraftTree(torch.tensor([9, 3, 1, 3, 2, 4]), torch.tensor([-1, 0, 0, 0, 0, 4]), "det")
DRAWS = 400


@pytest.mark.parametrize("verifier", [Deterministic(), Greedy()])
def test_the_first_token_has_the_law_of_the_rule(verifier: Deterministic | Greedy) -> None:
    seen = torch.zeros_like(P)
    for at in range(DRAWS):
        found = verifier.verify(TREE, lambda node: P, lambda at=at: (at + 0.5) / DRAWS)
        first = int(TREE.tokens[found.path[0]]) if found.path else found.token
        seen[first] += 1 / DRAWS
    siblings = TREE.tokens[torch.tensor(TREE.children(0))]
    torch.testing.assert_close(seen, verifier.level(P, siblings, None).law(siblings))


def test_the_walk_goes_on_below_the_child_that_was_hit() -> None:
    rows = {0: torch.eye(5)[2], 4: torch.eye(5)[4], 5: torch.eye(5)[0]}
    for verifier in (Deterministic(), Greedy()):
        found = verifier.verify(TREE, lambda node: rows[node].double(), lambda: 0.5)
        assert (found.path, found.token) == ([4, 5], 0)
