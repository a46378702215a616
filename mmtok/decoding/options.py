"""A `GenerationConfig` read for a loop of drafts: what it means for a row, and what is refused.

Nothing that transformers' own `generate` would act on is passed over in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isfinite
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from mmtok.errors import InputError
from mmtok.options import check_value

_SINGLE = {
    "num_beams": "use 1",
    "num_beam_groups": "use 1",
    "num_return_sequences": "use 1 and repeat the prompts, each row draws from its own seed",
}
_REFUSED = (
    *("return_dict_in_generate", "output_scores", "output_logits"),
    *("output_attentions", "output_hidden_states", "token_healing", "prefill_chunk_size"),
    *("penalty_alpha", "dola_layers", "constraints", "force_words_ids", "diversity_penalty"),
    *("prompt_lookup_num_tokens", "assistant_early_exit", "use_mtp", "low_memory"),
)
_STATEFUL = (
    "UnbatchedClassifierFreeGuidanceLogitsProcessor",
    "ClassifierFreeGuidanceLogitsProcessor",
    "SynthIDTextWatermarkLogitsProcessor",
)


def settings(model: Any, given: Any, options: dict[str, Any], width: int) -> Any:
    """The generation configuration for prompts of `width` tokens, padding included.

    Lengths come out as `max_new_tokens` and `min_new_tokens`.

    Raises:
        InputError: unknown options, or such as a loop of drafts cannot follow.
    """
    try:
        config, unknown = model._prepare_generation_config(given, **options)
    except (TypeError, ValueError) as error:
        raise InputError(_line(error)) from error
    if unknown:
        raise InputError(f"unknown option for generate: {', '.join(sorted(unknown))}")
    _refuse(config)
    limits = (given, model.generation_config)
    unset = all(getattr(c, "max_length", None) is None for c in limits)
    if config.max_new_tokens is None:
        by_default = unset and options.get("max_length") is None
        config.max_new_tokens = config.max_length - (0 if by_default else width)
    check_value("max_new_tokens", config.max_new_tokens, int)
    if config.max_new_tokens < 1:
        raise InputError(
            f"max_new_tokens must be at least 1, got {config.max_new_tokens} "
            f"behind prompts of {width} tokens"
        )
    if config.min_new_tokens is None:
        config.min_new_tokens = max((config.min_length or 0) - width, 0)
    check_value("min_new_tokens", config.min_new_tokens, int)
    config.min_length = None
    try:
        model._prepare_special_tokens(config, True, device=model.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"ids of special tokens cannot be used: {_line(error)}") from error
    return config


def _refuse(config: Any) -> None:
    for name, instead in _SINGLE.items():
        if (given := getattr(config, name, None)) not in (None, 1):
            raise InputError(f"{name}={given!r} is not supported with drafts: {instead}")
    for name in _REFUSED:
        if getattr(config, name, None):
            raise InputError(
                f"{name}={getattr(config, name)} is not supported with drafts: switch it off"
            )
    if config.cache_implementation not in (None, "dynamic") or config.use_cache is False:
        raise InputError(
            f"drafts run on a dynamic cache, not with use_cache={config.use_cache}, "
            f"cache_implementation={config.cache_implementation!r}: pass 'dynamic' or nothing"
        )


def guidance(given: float | None, config: Any) -> float:
    """The scale of guidance, 1 for none.

    Raises:
        InputError: it is no finite number.
    """
    scale = config.guidance_scale if given is None else given
    if scale is None:
        return 1.0
    if not isinstance(scale, Real) or not isfinite(scale):
        raise InputError(f"guidance_scale must be a finite number or None, got {scale!r}")
    return float(scale)


def for_prompts(given: Any) -> Callable[[int], Sequence[Any]]:
    """Extra processors for a prompt of so many tokens, from a list of them or what makes one.

    Raises:
        InputError: neither.
    """
    from transformers import LogitsProcessor

    if given is None or isinstance(given, list | tuple):  # stock's list can be called, too
        return lambda _: given or ()
    if callable(given) and not isinstance(given, LogitsProcessor):
        made: Callable[[int], Sequence[Any]] = given
        return made
    raise InputError(
        f"logits_processor must be a list of processors, got {type(given).__name__}: "
        "put it into a list"
    )


def processors(
    model: Any, config: Any, prompt: Sequence[int], extra: Sequence[Any] | None
) -> Callable[[Tensor, Tensor], Tensor]:
    """The processors and warpers that stock `generate` would use for this prompt alone.

    Raises:
        InputError: one of them remembers its calls, or an option is out of its range.
    """
    from copy import copy

    from transformers import LogitsProcessorList

    own = copy(config)
    own.max_length = len(prompt) + config.max_new_tokens
    own.guidance_scale = None
    try:
        made: Any = model._get_logits_processor(
            generation_config=own,
            input_ids_seq_length=len(prompt),
            encoder_input_ids=torch.tensor([list(prompt)], device=model.device),
            logits_processor=LogitsProcessorList(extra or []),
            device=model.device,
        )
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"options of generate cannot be used: {_line(error)}") from error
    for processor in made:
        if type(processor).__name__ in _STATEFUL:
            raise InputError(
                f"{type(processor).__name__} remembers its calls, which a tree of drafts makes in "
                "another order; for guidance use guidance_scale= and negative="
            )

    def run(ids: Tensor, scores: Tensor) -> Tensor:
        for processor in made:  # the list itself inspects every one of them in every call
            scores = processor(ids, scores)
        return scores

    return run


def stopping(config: Any, criteria: Sequence[Any] | None, tokenizer: Any) -> Any:
    """What ends a row besides its length and its last token; None for nothing.

    Raises:
        InputError: stop strings without a tokenizer.
    """
    from transformers.generation import MaxTimeCriteria, StopStringCriteria

    found = list(criteria or [])
    if config.max_time is not None:
        found.append(MaxTimeCriteria(max_time=config.max_time))
    if config.stop_strings is not None:
        if tokenizer is None:
            raise InputError("stop_strings need the model's tokenizer: pass tokenizer=")
        found.append(StopStringCriteria(stop_strings=config.stop_strings, tokenizer=tokenizer))
    if not found:
        return None
    return lambda ids: any(bool(torch.as_tensor(c(ids, None)).all()) for c in found)


def ids(given: Any) -> list[int]:
    """Token ids of an option that holds one, several or none."""
    return [] if given is None else torch.as_tensor(given).reshape(-1).tolist()


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
