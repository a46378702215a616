"""Calls inside `reduced` that are refused, rather than answered wrongly or deep in a layer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from mmtok.errors import InputError
from mmtok.models.asked import asked, width
from mmtok.models.cache_name import is_filled
from mmtok.models.families import Inputs
from mmtok.models.reduction import Reduction


def _keeps_all(reduction: Reduction) -> bool:
    return all(r.keeps_all for r in reduction.reducers)


def refuse_filled(kwargs: Inputs) -> None:
    """InputError where `generate` is to continue a prompt: it would count kept tokens only."""
    if is_filled(kwargs):
        raise InputError(
            "generate() inside reduced() starts from a whole prompt: pass no filled KV cache, "
            "but the whole conversation with its pixels"
        )


def refuse_encoded(kwargs: Inputs) -> None:
    """InputError where the user brings features: reducers act on what the tower makes of pixels."""
    if kwargs.get("mm_encoder_outputs"):
        raise InputError(
            "mm_encoder_outputs do not work inside reduced(): nothing is left to encode, and what "
            "an export holds is reduced; pass pixels, or call the model outside reduced()"
        )


def refuse_behind(reduction: Reduction) -> None:
    """InputError where pixels follow a filled cache, whose length counts kept tokens only."""
    if not _keeps_all(reduction):
        raise InputError(
            "pixels behind a filled KV cache do not work inside reduced(): pass no cache, "
            "but the whole conversation with its pixels"
        )


def refuse_between(reduction: Reduction, *, pixels: bool) -> None:
    """InputError where a call in the middle of `generate` would disturb the prompt that runs."""
    if reduction.inside:
        raise InputError(
            "the model was called for another prompt while generate() runs inside reduced(), where "
            "reducers inside the decoder or its KV cache follow one prompt: use another model "
            "object, or call it afterwards"
        )
    if pixels and not _keeps_all(reduction):
        raise InputError(
            "the model was called with pixels while generate() runs inside reduced(), which "
            "reduces one prompt at a time: use another model object, or call it afterwards"
        )


def refuse_labels(reduction: Reduction, kwargs: Inputs) -> None:
    """InputError where a loss is asked for, but not all labels reach the end of the decoder."""
    decoder = reduction.seams.decoder
    if kwargs.get("labels") is not None and decoder and decoder.stages:
        raise InputError(
            "labels do not work with dropping inside the decoder, which leaves fewer logits: "
            "compute the loss from the logits"
        )


def refuse(reduction: Reduction, kwargs: Inputs) -> None:
    """InputError where `generate` of a prompt with pixels cannot be what was asked for."""
    if kwargs.get("inputs_embeds") is not None or kwargs.get("input_ids") is None:
        raise InputError("reduced() needs input_ids with the model's visual placeholders")
    option = partial(asked, reduction.model, kwargs)
    several = width(reduction.model, kwargs) > 1
    helpers = ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit", "use_mtp")
    helped = any(map(option, helpers))
    inside = reduction.seams.inside
    whole = _keeps_all(reduction)
    if reduction.seams.logits and (several or helped):
        raise InputError(
            "beams, several return sequences and assistants do not work with contrasted logits: "
            "the second branch reads one new token of each prompt at a time"
        )
    if inside and helped:
        raise InputError(
            "assistant_model, prompt_lookup_num_tokens and assistant_early_exit do not work with "
            "dropping inside the decoder or its KV cache: leave them out"
        )
    if inside and (option("guidance_scale") or 1) != 1:
        raise InputError(
            "guidance_scale runs a second prompt inside generate(), which does not work with "
            "dropping inside the decoder or its KV cache: leave it out"
        )
    if several and (inside or (reduction.family.flat and not whole)):
        way = f"{reduction.model.config.model_type}'s way of passing features, if reduced"
        cause = "dropping inside the decoder or its KV cache" if inside else way
        raise InputError(f"beams and several return sequences do not work with {cause}")
    if option("use_cache") is False and not whole:
        raise InputError(
            "generate() of a reduced prompt needs use_cache=True: without a cache the gaps in the "
            "kept tokens' positions would be taken for the seams of packed sequences"
        )
    if inside:
        _refuse_caches(option)


def _refuse_caches(option: Callable[[str], Any]) -> None:
    kind = option("cache_implementation")
    if option("prefill_chunk_size") or kind not in (None, "dynamic"):
        raise InputError(
            "dropping inside the decoder or its KV cache needs a dynamic cache filled in one "
            "prefill: pass cache_implementation='dynamic' and no prefill_chunk_size"
        )
