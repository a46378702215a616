"""From the target's logits to the distribution a verifier sees: processors and warpers, once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mmtok.decoding.rules import one_hot
from mmtok.decoding.tree import DraftTree
from mmtok.errors import InputError

Processors = Callable[[Tensor, Tensor], Tensor]


def rows(
    logits: Tensor, tree: DraftTree, ids: list[int], processors: Processors, sample: bool
) -> Callable[[int], Tensor]:
    """Node to the target's distribution (V,) float64 after it, computed when asked for.

    A node's processors see its own path, so they may depend on the text so far. They must be
    functions of what they are given: one that remembers its calls has no place in a tree.

    Args:
        logits: (n, V), guided.
        tree: the n nodes.
        ids: the row so far; its last token is the root.
        processors: from (1, L) ids and (1, V) scores to scores.
        sample: False puts all the probability on the argmax, ties to the lowest id.
    """

    def row(node: int) -> Tensor:
        path = tree.tokens[tree.path_to(node)].tolist()
        seen = torch.tensor([ids + path], device=logits.device)
        scores = processors(seen, at_least_float(logits[node][None]))[0]
        found = (scores.double().softmax(-1) if sample else scores.double()).cpu()
        if not found.max().isfinite():
            raise InputError(
                "the target's scores are not finite: the model gave NaN or infinity, "
                "or the logits processors left no token"
            )
        return found if sample else one_hot(found)

    return row


def at_least_float(logits: Tensor) -> Tensor:
    """Half precision widened; float32 and float64 as they are."""
    return logits if logits.dtype == torch.float64 else logits.float()
