"""From the target's logits to the distribution a verifier sees: processors and warpers, once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mmtok.decoding.tree import DraftTree

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
        scores = processors(seen, logits[node][None].float())[0]
        if sample:
            return scores.double().softmax(-1).cpu()
        best = torch.zeros(len(scores), dtype=torch.float64)
        best[int(scores.argmax())] = 1
        return best

    return row


def build(model: Any, config: Any, length: int, extra: Any) -> Processors:
    """The processors stock `generate` would use for one row with a prompt of `length` tokens."""
    from transformers import LogitsProcessorList

    processors: Processors = model._get_logits_processor(
        generation_config=config,
        input_ids_seq_length=length,
        logits_processor=LogitsProcessorList(extra or []),
        device=model.device,
    )
    return processors
