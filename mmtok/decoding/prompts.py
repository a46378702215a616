"""Prompts on their way into a target: masks, positions, pairs for guidance, and what is refused."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Embedding
from torch.nn.functional import pad

from mmtok.errors import InputError
from mmtok.models.cache_name import CACHE_NAMES, cache_name
from mmtok.options import shown

Inputs = dict[str, Any]
_ATTENTION = ("sdpa", "eager")
_LENGTHENED = ("dynamic", "longrope")  # what is cached was turned otherwise than what follows
_POSITIONS = re.compile(r"(wpe|position\w*|positions_embed)$")  # the last part of a name
_TEXT = {"input_ids", "attention_mask", "position_ids"}  # placeholders of images lie outside
_OURS = (*CACHE_NAMES, "inputs_embeds", "use_cache", "logits_to_keep")


def attention_of(model: Any) -> str:
    """The attention implementation of the part that decodes."""
    return str(model.config.get_text_config(decoder=True)._attn_implementation)


def check_model(model: Any) -> str:
    """Refuse models that cannot score a tree; the name under which others take a KV cache.

    Raises:
        InputError: the model cannot take a mask, positions or a cache of ours.
    """
    name, text = type(model).__name__, model.config.get_text_config(decoder=True)
    if model.config.is_encoder_decoder:
        raise InputError(f"drafts need a decoder-only model, {name} has an encoder for the text")
    bare = _unwrapped(model)
    placed = "position_ids" in inspect.signature(bare.forward).parameters
    if not placed or getattr(text, "alibi", False):
        raise InputError(
            f"trees need a model that takes position_ids, without ALiBi; {name} does not"
        )
    if getattr(text, "attention_types", None) or name.startswith("ImageGPT"):
        raise InputError(
            f"trees need attention that goes by our mask alone, {name} holds a causal mask over "
            "the slots of its cache; use a model without one"
        )
    if (used := attention_of(model)) not in _ATTENTION:
        raise InputError(
            f"trees need attention that takes a mask, {' or '.join(_ATTENTION)}, "
            f"this model runs {used!r}; load it with attn_implementation='sdpa'"
        )
    return cache_name(bare)


def _unwrapped(model: Any) -> Any:
    """The model inside torch.compile or an adapter of PEFT, whose forwards take anything."""
    model = getattr(model, "_orig_mod", model)
    adapted = getattr(model, "get_base_model", None)
    return adapted() if adapted is not None else model


def with_mask(inputs: Inputs) -> Inputs:
    """The inputs as a dictionary with an attention mask; without one, every token counts.

    Raises:
        InputError: no tokens, or inputs that a loop of drafts makes itself.
    """
    if not isinstance(inputs, Mapping):
        raise InputError(f"inputs are what the model's processor returned, got {shown(inputs)}")
    given = {key: v for key, v in inputs.items() if v is not None and key != "labels"}
    if odd := [key for key in _OURS if key in given]:
        raise InputError(f"inputs hold {', '.join(odd)}: decoding with drafts makes them itself")
    tokens = given.get("input_ids")
    if not isinstance(tokens, Tensor) or tokens.ndim != 2 or not tokens.numel():
        raise InputError("inputs need input_ids (B, P), a tensor, at least one token per prompt")
    if tokens.dtype not in (torch.int64, torch.int32):
        raise InputError(f"input_ids must be whole numbers of 32 or 64 bits, got {tokens.dtype}")
    mask = given.setdefault("attention_mask", torch.ones_like(tokens))
    if mask.shape != tokens.shape or not bool(mask[:, -1].all()):
        raise InputError(
            "prompts of a batch must be padded on the left, with an attention mask "
            f"{tuple(tokens.shape)}, got {tuple(mask.shape)}"
        )
    return given


def check_inputs(model: Any, inputs: Inputs) -> None:
    """Refuse inputs the model would pass over, and tokens it does not have.

    Raises:
        InputError: there are such.
    """
    given = with_mask(inputs)
    try:
        model._validate_model_kwargs({k: v for k, v in given.items() if k != "input_ids"})
    except ValueError as error:
        raise InputError(" ".join(str(error).split())) from error
    ids, size = given["input_ids"], model.get_input_embeddings().num_embeddings
    if given.keys() <= _TEXT and not 0 <= int(ids.min()) <= int(ids.max()) < size:
        raise InputError(f"input_ids must be from 0 to {size - 1}, got {ids.min()} to {ids.max()}")


def positioned(model: Any, inputs: Inputs) -> Inputs:
    """The inputs with the position ids that stock `generate` would use, unless they bring some."""
    full = with_mask(inputs)
    if "position_ids" not in full:
        prepare = model._prepare_position_ids_for_generation
        full["position_ids"] = prepare(full["input_ids"], dict(full))
    full["position_ids"] = full["position_ids"].expand(
        *full["position_ids"].shape[:-2], *full["input_ids"].shape
    )
    return full


def places_of(model: Any) -> int | None:
    """How many places a learnt table of positions has; None where positions are computed.

    A table may have up to two more rows than places, for padding.
    """
    text = model.config.get_text_config(decoder=True)
    places: int | None = getattr(text, "max_position_embeddings", None)
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    tables = (
        module.num_embeddings
        for name, module in getattr(decoder, "named_modules", dict)()
        if isinstance(module, Embedding) and _POSITIONS.search(name)
    )
    known = places is not None and any(places <= rows <= places + 2 for rows in tables)
    return places if known else None


def constant_until(model: Any) -> int | None:
    """The length from which on rotary embeddings depend on it; None where they never do."""
    text = model.config.get_text_config(decoder=True)
    rope = getattr(text, "rope_parameters", None) or {}
    lengths = [
        one.get("original_max_position_embeddings") or text.max_position_embeddings
        for one in (rope, *rope.values())  # one set, or one per type of layer
        if isinstance(one, dict) and one.get("rope_type") in _LENGTHENED
    ]
    return min(lengths, default=None)


def check_places(model: Any, inputs: Inputs, new: int) -> None:
    """Refuse more tokens than a model reads in the same way in one forward and in several.

    Args:
        model: maybe with a table of positions, or rotary embeddings that depend on the length.
        inputs: of the prompts.
        new: tokens behind each prompt, the last of which is never read.

    Raises:
        InputError: a row would run past the table, or past where embeddings start to change.
    """
    places, constant = places_of(model), constant_until(model)
    known = [at for at in (places, constant) if at is not None]
    if not known:
        return
    most = min(known)
    read = int(positioned(model, inputs)["position_ids"].max()) + 1
    if read + new - 1 > most:
        has = "a table of" if most == places else "rotary embeddings that stay the same for"
        raise InputError(
            f"the model has {has} {most} positions, prompts of {read} tokens and {new} new "
            f"ones need {read + new - 1}: pass a smaller max_new_tokens or a shorter prompt"
        )


def last_token(inputs: Inputs) -> Inputs:
    """An unconditional prompt of one token, the last one of each row."""
    return {key: inputs[key][:, -1:] for key in ("input_ids", "attention_mask")}


def doubled(inputs: Inputs, negative: Inputs) -> Inputs:
    """Both prompts in one batch, padded on the left; pixels of both, the first ones first.

    Args:
        inputs: from `positioned`.
        negative: the same for the unconditional rows. What it lacks per token counts as 0.

    Raises:
        InputError: the batches differ in size, or their pixels do not fit together.
    """
    ids, other = inputs["input_ids"], negative["input_ids"]
    if len(ids) != len(other):
        raise InputError(f"{len(ids)} prompts need as many negative prompts, got {len(other)}")
    width = max(ids.shape[1], other.shape[1])
    out = dict(inputs)
    for key in inputs.keys() | negative.keys():
        first, second = inputs.get(key), negative.get(key)
        if any(_per_token(x, y) for x, y in ((first, ids), (second, other))):
            first = torch.zeros_like(ids) if first is None else first
            second = torch.zeros_like(other) if second is None else second
            both = [pad(x, (width - x.shape[-1], 0)) for x in _planes(first, second)]
            out[key] = torch.cat(both, -2)
        elif first is None or second is None:
            out[key] = second if first is None else first
        else:
            out[key] = _joined(key, first, second)
    return out


def _per_token(value: Any, ids: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape[-2:] == ids.shape


def _planes(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Position ids of one prompt may have planes where those of the other have not."""
    lead = max(first.shape[:-2], second.shape[:-2], key=len)
    return first.expand(*lead, *first.shape[-2:]), second.expand(*lead, *second.shape[-2:])


def _joined(key: str, first: Any, second: Any) -> Any:
    try:
        return torch.cat([first, second])
    except (TypeError, RuntimeError) as error:
        raise InputError(
            f"{key} of prompts and negative prompts do not fit together: "
            "process both in one call of the processor and split the rows"
        ) from error
