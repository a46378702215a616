"""One reducer's choice among the visual tokens of a prompt, and what it took."""

from __future__ import annotations

from typing import Any

import torch

from mmtok.accounting.scopes import Meter
from mmtok.models.families import Inputs
from mmtok.models.pixels import PIXELS
from mmtok.models.visual import Media
from mmtok.pruning.base import Reducer
from mmtok.tokens import Query, VisualTokens


def choose(
    reducer: Reducer, part: Media, model: Any, inputs: Inputs, meter: Meter
) -> tuple[Media, int]:
    """What a reducer leaves of the tokens, and the floating point operations of choosing.

    Args:
        reducer: one that acts behind the vision tower.
        part: the tokens.
        model: a Hugging Face model with a language head.
        inputs: of the model.
        meter: told which stage runs.

    Raises:
        InputError: the reducer needs what the tokens do not carry.
    """
    query = None
    if "query" in reducer.needs | reducer.wants:
        with meter.stage("reduce.score"):
            query = _query(part, model, inputs)
    with meter.stage("reduce.select"):
        chosen = reducer.select(part.tokens, query)
        reduced = part.reduce(chosen)
    spent = chosen.flops
    return reduced, _flops(reducer, part.tokens, query) if spent is None else spent


def _query(part: Media, model: Any, inputs: Inputs) -> Query:
    """The embeddings of the text around each item: its prompt without placeholders."""
    ids = inputs["input_ids"]
    text = torch.ones_like(ids, dtype=torch.bool)
    if inputs.get("attention_mask") is not None:
        text &= inputs["attention_mask"].bool()
    for kind in PIXELS:
        text &= ids != getattr(model.config, f"{kind}_token_id", -1)
    rows = torch.stack([place[0] // ids.shape[1] for place in part.places])
    embeddings = model.get_input_embeddings()(ids.masked_fill(~text, 0))
    return Query(embeddings=embeddings[rows], mask=text[rows])


def _flops(reducer: Reducer, tokens: VisualTokens, query: Query | None) -> int:
    """Closed form of one selection, over all items."""
    width = tokens.features.shape[-1]
    keys = 0 if tokens.keys is None else tokens.keys.shape[-1]
    counts = tokens.counts.tolist()
    texts = [0] * len(counts) if query is None else query.mask.sum(1).tolist()
    return sum(
        reducer.select_flops(n, width, key_width=keys, text=text)
        for n, text in zip(counts, texts, strict=True)
    )
