"""What a measured run hands to `generate`: the caller's options, completed and checked.

The defaults of a measured run stand above the model's own configuration alone, never above what
the caller says.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from mmtok.errors import InputError
from mmtok.models.asked import asked, room
from mmtok.options import fits, shown

NEW_TOKENS = 32
"""Generated at most where the caller gives no length."""

_COUNTS = ("max_new_tokens", "num_beams", "num_return_sequences")
_MIXED = {
    "prefill_chunk_size": "reads the prompt in several forwards",
    "guidance_scale": "runs a second prompt",
    "assistant_model": "runs a second model",
} | dict.fromkeys(
    ("prompt_lookup_num_tokens", "assistant_early_exit", "use_mtp"),
    "verifies several drafted tokens in one forward",
)
"""Options whose work falls into rows of the ledger that do not say so."""


def with_mask(model: Any, inputs: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs with an attention mask (B, S); without one, as `generate` infers it.

    Raises:
        InputError: no `input_ids`, or an option that belongs to the inputs.
    """
    if twice := sorted(options.keys() & {*inputs, "attention_mask"}):
        raise InputError(f"{', '.join(twice)}: part of the inputs, leave it out of the options")
    ids = inputs.get("input_ids")
    if not isinstance(ids, Tensor):
        raise InputError(f"inputs: expected input_ids (B, S) of a processor, got {shown(ids)}")
    if inputs.get("attention_mask") is not None:
        return dict(inputs)
    pad, ends = (asked(model, options, f"{name}_token_id") for name in ("pad", "eos"))
    padded = pad is not None and pad not in (ends if isinstance(ends, list) else [ends])
    mask = (ids != pad).to(ids.dtype) if padded else torch.ones_like(ids)
    return dict(inputs) | {"attention_mask": mask}


def completed(model: Any, options: Mapping[str, Any], prompt: int) -> dict[str, Any]:
    """The options with the defaults of a measured run: 32 new tokens, greedy.

    A `max_length` becomes the `max_new_tokens` that it leaves, which the model's own
    `max_new_tokens` cannot override.

    Args:
        model: what will generate.
        options: of the caller, a `generation_config` among them or not.
        prompt: tokens of the prompt, padding included.

    Raises:
        InputError: an option is out of range, or a ledger could not tell apart what it does.
    """
    from transformers import GenerationConfig

    options = dict(options)
    given = options.pop("generation_config", None)
    if given is not None and not isinstance(given, GenerationConfig):
        raise InputError(f"generation_config must be a GenerationConfig, got {shown(given)}")
    config = deepcopy(given)
    more: dict[str, Any] = {}
    if not _says("max_new_tokens", options, config):
        limit = options.pop("max_length", None)
        limit = getattr(config, "max_length", None) if limit is None else limit
        more = {"max_new_tokens": NEW_TOKENS if limit is None else room(limit, prompt)}
    if not _says("do_sample", options, config):
        more["do_sample"] = False
    if config is None:
        options |= more
    else:  # into it: options beside a configuration are deprecated in transformers
        options["generation_config"] = config
        if "max_new_tokens" in more:
            config.max_length = None
        for name, value in more.items():
            setattr(config, name, value)
    _check(model, options)
    return options


def _says(name: str, options: Mapping[str, Any], config: Any) -> bool:
    return name in options or getattr(config, name, None) is not None


def _check(model: Any, options: Mapping[str, Any]) -> None:
    for name in _COUNTS:
        value = asked(model, options, name)
        unset = value is None and name not in options
        if not unset and not (fits(value, int) and value >= 1):
            raise InputError(f"{name} must be an int of at least 1, got {shown(value)}")
    if asked(model, options, "use_cache") is False:
        raise InputError("a pipeline measures the KV cache: use_cache=False does not fit")
    if (kind := asked(model, options, "cache_implementation")) not in (None, "dynamic"):
        raise InputError(
            "a pipeline accounts for a KV cache on the device that holds what was read, no more: "
            f"cache_implementation must be 'dynamic' or left out, got {shown(kind)}"
        )
    for name, why in _MIXED.items():
        value = asked(model, options, name)
        off = value is None or value is False or (name == "guidance_scale" and value == 1)
        if not off:
            raise InputError(
                f"{name} {why}, which a ledger cannot tell apart: leave it out, "
                "or call model.generate inside mmtok.reduced"
            )
