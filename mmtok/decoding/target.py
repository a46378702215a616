"""A model behind a cache: scores whole trees in one forward, guidance included, and rolls back.

Guidance lives here and nowhere else. A guided batch is doubled, rows with the prompt and rows with
the negative prompt, which get the same draft tokens under their own masks and positions; drafters
and verifiers see one row of combined logits and need not know.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmtok.decoding.cache import RaggedCache
from mmtok.decoding.layers import watching
from mmtok.decoding.prompts import (
    Inputs,
    attention_of,
    check_model,
    doubled,
    last_token,
    places_of,
    positioned,
)
from mmtok.decoding.tree import DraftTree
from mmtok.decoding.warp import at_least_float


class Target:
    """A causal model of transformers, or one with images in front, with rows at their own lengths.

    Args:
        model: anything whose forward takes input_ids, a 4-D attention mask, position_ids and
            a KV cache, and returns logits.
        guidance_scale: s in z = u + s (c - u); 1 runs without guidance.

    Attributes:
        forwards: calls of the model so far.
        length: (B,) committed tokens of each row.
        ahead: by how much positions run ahead of them, as behind images; (B,) or (planes, B).
        watched: layers, counted from 1, whose outputs are kept.
        seen: those outputs (B, n, D) of the last tree; twice the rows with guidance.

    Raises:
        InputError: the model cannot take a mask, positions or a cache of ours.
    """

    def __init__(self, model: Any, *, guidance_scale: float = 1.0) -> None:
        self._held = check_model(model)
        self._places = places_of(model)
        self.model, self.scale, self.forwards = model, guidance_scale, 0
        self._additive = attention_of(model) == "eager"
        self.watched: tuple[int, ...] = ()
        self.seen: dict[int, Tensor] = {}

    @property
    def guided(self) -> bool:
        """Whether every row runs twice."""
        return self.scale != 1

    @torch.no_grad()
    def prefill(self, inputs: Inputs, negative: Inputs | None = None) -> Tensor:
        """Read the prompts; return guided logits (B, V) after each.

        Args:
            inputs: input_ids (B, P), attention_mask (B, P) with padding on the left, pixels, and
                position_ids where they are not those of stock `generate`, as in reduced prompts.
            negative: the same for the unconditional rows; None: the last token of each prompt.

        Raises:
            InputError: padding on the right, or a model whose cache cannot be rolled back.
        """
        full = positioned(self.model, inputs)
        if self.guided:
            other = positioned(self.model, last_token(full) if negative is None else negative)
            full = doubled(full, other)
        mask = full["attention_mask"]
        self.cache = RaggedCache(self.model.config, mask)
        self.cache.check()
        if self.model._supports_logits_to_keep():
            full = {**full, "logits_to_keep": 1}
        places = full["position_ids"]
        full = {**full, "position_ids": self._within(places)}
        out = self.model(**full, **{self._held: self.cache.stock}, use_cache=True)
        self.forwards += 1
        self.cache.check(filled=True)
        self.length = mask.long().sum(1)
        # (..., B): M-RoPE has planes, each of which goes on from where it is
        self.ahead = places[..., -1] + 1 - self.length
        return self.guide(out.logits[:, -1:])[:, 0]

    def score(self, trees: list[DraftTree], finished: Sequence[bool] = ()) -> Tensor:
        """Guided logits (B, n, V) after every node; rows with fewer nodes are padded.

        Finished rows stay at the place of their last token: there may be no further one.
        """
        n = max(len(t.tokens) for t in trees)
        tokens = torch.zeros(len(trees), n, dtype=torch.long)
        depth = torch.zeros_like(tokens)
        sees = torch.eye(n, dtype=torch.bool).repeat(len(trees), 1, 1)
        for r, tree in enumerate(trees):
            k = len(tree.tokens)
            tokens[r, :k], depth[r, :k], sees[r, :k, :k] = tree.tokens, tree.depth, tree.sees
        if finished:
            depth -= torch.tensor(finished).long()[:, None]
        return self.extend(tokens, depth, sees)

    @torch.no_grad()
    def extend(self, tokens: Tensor, depth: Tensor, sees: Tensor) -> Tensor:
        """Append nodes to the tail of the cache; guided logits (B, n, V) after each.

        Args:
            tokens: (B, n).
            depth: (B, n), 0 for the token right behind the committed ones.
            sees: (B, n, t + n) bool, what a node sees of the t + n nodes of the new tail.
        """
        device = self.length.device
        pair = 2 if self.guided else 1
        tokens, depth, sees = (
            x.to(device).repeat(pair, *[1] * (x.ndim - 1)) for x in (tokens, depth, sees)
        )
        prefix = self.cache.valid[:, None, :].expand(-1, tokens.shape[1], -1)
        mask: Tensor = torch.cat([prefix, sees], 2)[:, None]
        if self._additive:
            dtype = self.model.dtype
            floor = torch.finfo(dtype).min
            mask = torch.zeros(mask.shape, dtype=dtype, device=device).masked_fill(~mask, floor)
        positions = (self.length + self.ahead)[..., None] + depth
        with watching(self.model, self.watched) as self.seen:
            out = self.model(
                input_ids=tokens,
                attention_mask=mask,
                position_ids=self._within(positions),
                use_cache=True,
                **{self._held: self.cache.stock},
            )
        self.forwards += 1
        self.cache.tail += tokens.shape[1]
        return self.guide(out.logits)

    def _within(self, positions: Tensor) -> Tensor:
        """A draft model may run past its table of places; the target's rows do not."""
        return positions if self._places is None else positions.clamp(max=self._places - 1)

    def commit(self, kept: list[list[int]]) -> None:
        """Keep these tail nodes of each row, roll the other ones back."""
        both = kept * 2 if self.guided else kept
        self.cache.commit(both)
        self.length = self.length + torch.tensor([len(k) for k in both], device=self.length.device)

    def guide(self, logits: Tensor) -> Tensor:
        """Combine pairs of logits: (2B, n, V) to (B, n, V); unchanged without guidance."""
        if not self.guided:
            return logits
        # as stock guidance, over log-probabilities: processors that look at signs see the same
        cond, uncond = at_least_float(logits).log_softmax(-1).chunk(2)
        return uncond + self.scale * (cond - uncond)
