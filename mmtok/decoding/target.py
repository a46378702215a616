"""A model behind a cache: scores whole trees in one forward, guidance included, and rolls back.

Guidance lives here and nowhere else. A guided batch is doubled, rows with the prompt and rows with
the negative prompt, which get the same draft tokens under their own masks and positions; drafters
and verifiers see one row of combined logits and need not know.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmtok.decoding.cache import RaggedCache
from mmtok.decoding.tree import DraftTree
from mmtok.errors import InputError

Inputs = dict[str, Any]
_ATTENTION = ("sdpa", "eager")


class Target:
    """A causal model of transformers, or one with images in front, with rows at their own lengths.

    Args:
        model: anything whose forward takes input_ids, a 4-D attention mask, position_ids and
            past_key_values, and returns logits.
        guidance_scale: s in z = u + s (c - u); 1 runs without guidance.

    Attributes:
        forwards: calls of the model so far.

    Raises:
        InputError: the model's attention cannot take a mask of its own.
    """

    def __init__(self, model: Any, *, guidance_scale: float = 1.0) -> None:
        used = model.config._attn_implementation
        if used not in _ATTENTION:
            raise InputError(
                f"trees need attention that takes a mask, {' or '.join(_ATTENTION)}, "
                f"this model runs {used!r}; load it with attn_implementation='sdpa'"
            )
        self.model, self.scale, self.forwards = model, guidance_scale, 0
        self._additive = used == "eager"

    @property
    def guided(self) -> bool:
        """Whether every row runs twice."""
        return self.scale != 1

    @torch.no_grad()
    def prefill(self, inputs: Inputs, negative: Inputs | None = None) -> Tensor:
        """Read the prompts; return guided logits (B, V) after each.

        Args:
            inputs: input_ids (B, P), attention_mask (B, P) with padding on the left, pixels.
            negative: the same for the unconditional rows; None: the last token of each prompt.

        Raises:
            InputError: padding on the right, or a model whose cache cannot be rolled back.
        """
        full = with_mask(inputs)
        if self.guided:
            full = doubled(full, with_mask(negative) if negative else last_token(full))
        mask = full["attention_mask"]
        if not bool(mask[:, -1].all()):
            raise InputError("prompts of a batch must be padded on the left")
        self.cache = RaggedCache(self.model.config, mask)
        self.cache.check()
        positions = (mask.long().cumsum(1) - 1).clamp(min=0)
        self.base = getattr(self.model, "base_model", self.model)
        self.planes = hasattr(self.base, "rope_deltas")
        if not self.planes:
            full = {**full, "position_ids": positions}
        out = self.model(**full, past_key_values=self.cache.stock, use_cache=True, logits_to_keep=1)
        self.forwards += 1
        self.length = mask.long().sum(1)
        self.offset = torch.zeros_like(self.length)
        if self.planes and self.base.rope_deltas is not None:
            self.offset = self.base.rope_deltas.reshape(-1).to(self.length)
        return self.guide(out.logits[:, -1:])[:, 0]

    def score(self, trees: list[DraftTree]) -> Tensor:
        """Guided logits (B, n, V) after every node; rows with fewer nodes are padded."""
        n = max(len(t.tokens) for t in trees)
        tokens = torch.zeros(len(trees), n, dtype=torch.long)
        depth = torch.zeros_like(tokens)
        sees = torch.eye(n, dtype=torch.bool).repeat(len(trees), 1, 1)
        for r, tree in enumerate(trees):
            k = len(tree.tokens)
            tokens[r, :k], depth[r, :k], sees[r, :k, :k] = tree.tokens, tree.depth, tree.sees
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
        positions = (self.length + self.offset)[:, None] + depth
        if self.planes:
            positions = positions.expand(3, -1, -1)
        out = self.model(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self.cache.stock,
            use_cache=True,
        )
        self.forwards += 1
        self.cache.tail += tokens.shape[1]
        return self.guide(out.logits)

    def commit(self, kept: list[list[int]]) -> None:
        """Keep these tail nodes of each row, roll the other ones back."""
        both = kept * 2 if self.guided else kept
        self.cache.commit(both)
        self.length = self.length + torch.tensor([len(k) for k in both], device=self.length.device)

    def guide(self, logits: Tensor) -> Tensor:
        """Combine pairs of logits: (2B, n, V) to (B, n, V); unchanged without guidance."""
        if not self.guided:
            return logits
        cond, uncond = logits.float().chunk(2)
        return uncond + self.scale * (cond - uncond)


def with_mask(inputs: Inputs) -> Inputs:
    """The inputs with an attention mask; without one, every token counts."""
    ids = inputs["input_ids"]
    mask = inputs.get("attention_mask")
    return {**inputs, "attention_mask": torch.ones_like(ids) if mask is None else mask}


def last_token(inputs: Inputs) -> Inputs:
    """An unconditional prompt of one token, the last one of each row."""
    return {key: inputs[key][:, -1:] for key in ("input_ids", "attention_mask")}


def doubled(inputs: Inputs, negative: Inputs) -> Inputs:
    """Both prompts in one batch, padded on the left; other per-token inputs are 0 in the second.

    Raises:
        InputError: the batches differ in size.
    """
    ids, other = inputs["input_ids"], negative["input_ids"]
    if len(ids) != len(other):
        raise InputError(f"{len(ids)} prompts need as many negative prompts, got {len(other)}")
    width = max(ids.shape[1], other.shape[1])
    out = dict(inputs)
    for key, value in inputs.items():
        if isinstance(value, Tensor) and value.shape == ids.shape:
            second = negative.get(key, torch.zeros_like(other))
            parts = [torch.nn.functional.pad(x, (width - x.shape[1], 0)) for x in (value, second)]
            out[key] = torch.cat(parts)
    for key in negative.keys() - inputs.keys():
        out[key] = negative[key]
    return out
