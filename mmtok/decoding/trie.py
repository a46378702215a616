"""Merging of drafts: paths with a common beginning share its nodes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from mmtok.decoding.tree import DraftTree


def merged(tree: DraftTree, paths: Iterable[Sequence[int]], nodes: int) -> DraftTree:
    """The tree with paths of chosen tokens below its root; its own nodes keep their places.

    Args:
        tree: of kind "det".
        paths: tokens from below the root on; a path follows the nodes that are there already and
            adds the rest.
        nodes: draft nodes at which adding ends.
    """
    tokens, parents = tree.tokens.tolist(), tree.parent.tolist()
    place = {(p, t): at for at, (p, t) in reversed([*enumerate(zip(parents, tokens, strict=True))])}
    for path in paths:
        at = 0
        for token in path:
            below = place.get((at, token))
            if below is None:
                if len(tokens) > nodes:
                    return _tree(tokens, parents)
                below = place[at, token] = len(tokens)
                tokens.append(token)
                parents.append(at)
            at = below
    return _tree(tokens, parents)


def _tree(tokens: list[int], parents: list[int]) -> DraftTree:
    return DraftTree(torch.tensor(tokens), torch.tensor(parents), "det")
