"""What a model would cost with and without a reducer: from its config alone, no weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmtok.accounting.analytic import Logits, decode_flops, decoder_flops, kv_bytes, slides
from mmtok.accounting.cost import Cost, Plan
from mmtok.accounting.encoders import encoder_flops
from mmtok.accounting.ledger import Ledger, Stage
from mmtok.accounting.merged import planned_merging
from mmtok.accounting.planned import PlannedMedia, planned, resized
from mmtok.errors import InputError
from mmtok.options import check_value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mmtok.pruning import Reducer


def plan(
    model: Any,
    *,
    reduce: str | Reducer | Sequence[str | Reducer] | None = None,
    text_tokens: int = 64,
    image_size: tuple[int, int] | None = None,
    frames: int | None = None,
    images: int | None = None,
    dtype: str = "float16",
    new_tokens: int = 1,
    logits: Logits = "last",
) -> Plan:
    """FLOPs and KV bytes of one prompt, without weights and without a download.

    What a method spends on reading attention, and on choosing inside the decoder or its cache, is
    left out: it depends on the rule and often on content. A run counts it as `reduce.score`.

    Args:
        model: name of a shipped config such as "llava-1.5-7b", a config.json or its folder, or a
            transformers config.
        reduce: spec, reducer, or a list of them.
        text_tokens: all tokens that are not visual, markers and template included.
        image_size: (height, width) of the pictures or frames in pixels. Default: the vision
            tower's own size, or 448 x 448 where it takes any.
        frames: plan one clip of that many frames in place of pictures.
        images: number of pictures, 1 if there is no clip either.
        dtype: of the KV cache.
        new_tokens: tokens generated; the first comes from the prefill, so 1 means no decode step.
        logits: positions the prefill computes logits for: "last" as in `generate`, or "all".

    Raises:
        InputError: unknown model or reducer, no closed form for it, reducers that do not fit the
            model or one another, or numbers out of range.
    """
    for name, value, hint in (
        ("text_tokens", text_tokens, int),
        ("new_tokens", new_tokens, int),
        ("logits", logits, Logits),
    ):
        check_value(name, value, hint)
    if text_tokens < 0 or new_tokens < 1:
        raise InputError(
            f"expected text_tokens >= 0 and new_tokens >= 1, got {text_tokens} and {new_tokens}"
        )
    from mmtok.models.families import FAMILIES
    from mmtok.models.fit import check_fit
    from mmtok.models.outside import usable
    from mmtok.pruning import build

    config = _config(model)
    reducers = build(reduce)
    given = isinstance(model, str | Path)
    with usable(str(model) if given else f"the {config.model_type} configuration given"):
        media = planned(config, size=image_size, images=images, frames=frames)
        ask = _Ask(config, media, text_tokens, new_tokens, dtype, logits)
        check_fit(config, FAMILIES[config.model_type], reducers)
        baseline, reduced = _cost(ask, []), _cost(ask, reducers)
        largest = {"largest_item": max(_before_encoder(ask, reducers).items)}
    name = model if isinstance(model, str) else config.model_type
    meta = {"model": name, "reduce": [r.spec for r in reducers]} | ask.assumed() | largest
    return Plan(baseline=baseline, reduced=reduced, meta=meta)


@dataclass(frozen=True)
class _Ask:
    """What is the same on both sides of a plan."""

    config: Any
    media: PlannedMedia
    text_tokens: int
    new_tokens: int
    dtype: str
    logits: Logits

    def assumed(self) -> dict[str, Any]:
        names = ("text_tokens", "new_tokens", "dtype", "logits")
        return {name: getattr(self, name) for name in names}


def _config(model: Any) -> Any:
    if not isinstance(model, str | Path):
        if hasattr(model, "model_type"):
            return model
        hint = ": pass its .config" if hasattr(model, "config") else ""
        raise InputError(
            "expected a shipped configuration's name, a config.json or a transformers config, "
            f"got {type(model).__name__}{hint}"
        )
    from mmtok.models.load import load_config, shipped_names

    name = str(model)
    return load_config(name.lower() if name.lower() in shipped_names() else name)


def _cost(ask: _Ask, reducers: Sequence[Reducer]) -> Cost:
    text = ask.config.text_config
    media = _before_encoder(ask, reducers)
    items, select = _after_encoder(ask, reducers, media.items)
    visual = _in_decoder(reducers, sum(items), text.num_hidden_layers)
    lengths = [n + ask.text_tokens for n in visual]
    encoded, entering = sum(media.items), sum(items)
    saved, merging = planned_merging(ask.config, reducers, media)
    encode, select = encoder_flops(ask.config, media.shapes) - saved, select + merging
    prefill = decoder_flops(text, lengths, logits=ask.logits)
    held = _in_cache(reducers, lengths, visual, text)
    cache = kv_bytes(text, held, ask.dtype)
    stages = [Stage("encode", tokens_out=encoded, flops_analytic=encode)]
    if reducers:
        stages.append(Stage("reduce.select", encoded, entering, flops_analytic=select))
    stages.append(
        Stage("prefill", entering + ask.text_tokens, 1, flops_analytic=prefill, kv_bytes=cache)
    )
    steps = ask.new_tokens - 1
    if steps:
        neurons = _neurons(reducers, text.intermediate_size)
        decode = decode_flops(text, held, steps, neurons)
        grown = kv_bytes(text, [n + steps for n in held], ask.dtype)
        stages.append(Stage("decode", steps, steps, flops_analytic=decode, kv_bytes=grown))
    return Cost(Ledger([*stages, *_on_logits(ask, reducers, media)]), entering, prefill, cache)


def _on_logits(ask: _Ask, reducers: Sequence[Reducer], media: PlannedMedia) -> list[Stage]:
    """The row of a second branch, if logits are contrasted with one."""
    text, rows = ask.config.text_config, []
    for contrast in (stage for r in reducers if (stage := r.on_logits()) is not None):
        entered = sum(contrast.count(n) for n in media.items) + ask.text_tokens
        steps = ask.new_tokens - 1
        flops = decoder_flops(text, entered) + decode_flops(text, entered, steps)
        cache = kv_bytes(text, entered + steps, ask.dtype)
        read, made = entered + steps, ask.new_tokens
        rows.append(Stage("decode.contrast", read, made, flops_analytic=flops, kv_bytes=cache))
    return rows


def _before_encoder(ask: _Ask, reducers: Sequence[Reducer]) -> PlannedMedia:
    """What the encoder reads once reducers have made the pictures smaller."""
    from mmtok.pruning.base import overrides

    media = ask.media
    for reducer in reducers:
        if overrides(reducer, "before_encoder"):
            fit = getattr(reducer, "encoder_grid", None)
            if fit is None:
                raise InputError(
                    f"{reducer.name} cannot be planned: it changes the pictures and has no "
                    "encoder_grid(t, h, w) that says to how many cells"
                )
            media = resized(ask.config, media, fit)
    return media


def _after_encoder(
    ask: _Ask, reducers: Sequence[Reducer], items: list[int]
) -> tuple[list[int], int]:
    """Tokens left of each item, and FLOPs of choosing them."""
    width, flops = ask.config.text_config.hidden_size, 0
    more = {"key_width": ask.config.vision_config.hidden_size, "text": ask.text_tokens}
    for reducer in reducers:
        flops += sum(reducer.select_flops(n, width, **more) for n in items)
        items = [reducer.encoder_count(n) for n in items]
    return items, flops


def _in_decoder(reducers: Sequence[Reducer], entering: int, layers: int) -> list[int]:
    """Visual tokens each decoder layer reads; upper bounds where a method decides by content.

    A reducer counts from what reaches the first layer in which it drops.
    """

    def first(reducer: Reducer) -> int:
        schedule = reducer.decoder_schedule(layers, entering)
        return next((i for i, n in enumerate(schedule) if n < entering), layers)

    left = [entering] * layers
    for start, reducer in sorted(((first(r), r) for r in reducers), key=lambda pair: pair[0]):
        if start < layers:
            schedule = reducer.decoder_schedule(layers, left[start])
            left[start:] = map(min, left[start:], schedule[start:])
    return left


def _neurons(reducers: Sequence[Reducer], width: int) -> int | None:
    """Neurons of each feed-forward network that decode steps compute; None: all."""
    stages = [stage for r in reducers if (stage := r.in_feedforward()) is not None]
    return min((stage.width(width) for stage in stages), default=None)


def _in_cache(
    reducers: Sequence[Reducer], lengths: list[int], visual: list[int], text: Any
) -> list[int]:
    """Entries each layer's KV cache holds after the prefill; layers that slide keep their own."""
    depth = len(lengths)
    early = [layer for r in reducers if (layer := r.leave_early(depth)) is not None]
    held = []
    for layer, (n, v) in enumerate(zip(lengths, visual, strict=True)):
        counts = [reducer.cache_count(layer, n, v) for reducer in reducers]
        counts += [lengths[-1] for first in early if layer >= first]
        held.append(n if slides(text, layer) else min([n, *counts]))
    return held
