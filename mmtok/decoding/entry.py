"""`generate`: the entry point, in the manner of the method of the same name in transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmtok.decoding import drafter_registry, verifier_registry, warp
from mmtok.decoding.base import Drafter, Verifier
from mmtok.decoding.engine import Engine, Row
from mmtok.decoding.stats import Stats
from mmtok.decoding.target import Inputs, Target, with_mask
from mmtok.errors import InputError

_EXACT = {
    "det": "deterministic",
    "chain": "chain",
    "jacobi": "chain",
    "wor": "recursive",
    "iid": "kseq",
}


@dataclass(frozen=True)
class Generated:
    """A batch of outputs.

    Attributes:
        sequences: (B, P + T) int64, the prompts as given and the new tokens, padded on the right.
        stats: what it took.
    """

    sequences: Tensor
    stats: Stats


def generate(
    model: Any,
    inputs: Inputs,
    *,
    drafter: str | Drafter,
    verifier: str | Verifier | None = None,
    guidance_scale: float | None = None,
    negative: Inputs | None = None,
    generation_config: Any = None,
    logits_processor: Sequence[Any] | None = None,
    stopping_criteria: Sequence[Any] | None = None,
    streamer: Any = None,
    seed: int | Sequence[int] = 0,
    measure_tv: bool = False,
    **options: Any,
) -> Generated:
    """Decode with drafts; an exact verifier gives what `model.generate` would give, in law.

    Args:
        model: a causal language model of transformers, with images in front or without.
        inputs: what the model's processor returned: input_ids (B, P), padded on the left, ...
        drafter: a spec such as "lookup(tokens=8)", or an object.
        verifier: a spec or an object; None: `greedy`, or the exact rule for the drafter's trees.
        guidance_scale: s in z = u + s (c - u) over logits; None or 1: no guidance.
        negative: inputs of the unconditional rows; None: the last token of each prompt.
        generation_config: as in transformers; `options` override its fields.
        logits_processor: applied to the guided logits, before the warpers; functions of their
            arguments, without a memory.
        stopping_criteria: asked after every token of every row.
        streamer: gets the prompt and the tokens of a batch of one.
        seed: for row r seed + r, or one seed per row: a row draws the same in every batch.
        measure_tv: measure how far the first token's law at each step is from the target's.

    Raises:
        InputError: a combination that would be wrong or is not supported.
    """
    drafts = drafter_registry.build(drafter) if isinstance(drafter, str) else drafter
    config = settings(model, generation_config, options)
    scale = config.guidance_scale if guidance_scale is None else guidance_scale
    config.guidance_scale = None
    full = with_mask(inputs)
    seeds = _seeds(seed, len(full["input_ids"]))
    rows = _rows(model, full, config, logits_processor, seeds)
    engine = Engine(
        Target(model, guidance_scale=1.0 if scale is None else float(scale)),
        drafts,
        _verifier(verifier, drafts, bool(config.do_sample)),
        sample=bool(config.do_sample),
        max_new_tokens=_max_new(config, full["input_ids"].shape[1]),
        eos=_ids(config.eos_token_id),
        stop=_stop(stopping_criteria),
        on_tokens=_streaming(streamer, full["input_ids"]),
        measure_tv=measure_tv,
    )
    engine.run(full, negative, rows, seeds)
    if streamer is not None:
        streamer.end()
    return Generated(_padded(full["input_ids"], rows, config), engine.stats)


def _seeds(given: int | Sequence[int], size: int) -> list[int]:
    seeds = [given + r for r in range(size)] if isinstance(given, int) else list(given)
    if len(seeds) != size:
        raise InputError(f"{size} rows need as many seeds, got {len(seeds)}")
    return seeds


def _streaming(streamer: Any, prompts: Tensor) -> Callable[[list[int]], None] | None:
    if streamer is None:
        return None
    if len(prompts) != 1:
        raise InputError(f"a streamer takes a batch of one, got {len(prompts)}")
    streamer.put(prompts.cpu())
    return lambda tokens: streamer.put(torch.tensor(tokens))


def settings(model: Any, given: Any, options: dict[str, Any]) -> Any:
    """The generation configuration, with what a tree cannot do refused.

    Raises:
        InputError: unknown or unfit options, beams, or several outputs per prompt.
    """
    try:
        config, unknown = model._prepare_generation_config(given, **options)
    except ValueError as error:
        raise InputError(" ".join(str(error).split())) from error
    if unknown:
        raise InputError(f"unknown option for generate: {', '.join(sorted(unknown))}")
    for name in ("num_beams", "num_return_sequences"):
        if (getattr(config, name) or 1) > 1:
            raise InputError(f"{name}={getattr(config, name)} is not supported with drafts: use 1")
    return config


def _verifier(given: str | Verifier | None, drafter: Drafter, sample: bool) -> Verifier:
    if given is None:
        given = _EXACT[drafter.kind] if sample else "greedy"
    rule: Verifier = verifier_registry.build(given) if isinstance(given, str) else given
    if sample and rule.argmax:
        raise InputError(f"{type(rule).__name__} decodes greedily: use do_sample=False with it")
    if not (sample or rule.argmax or rule.lossless):
        raise InputError(f"{type(rule).__name__} relaxes sampling: use do_sample=True with it")
    return rule


def _rows(
    model: Any, inputs: Inputs, config: Any, extra: Sequence[Any] | None, seeds: list[int]
) -> list[Row]:
    rows = []
    for ids, mask, seed in zip(inputs["input_ids"], inputs["attention_mask"], seeds, strict=True):
        prompt: list[int] = ids[mask.bool()].tolist()
        processors = warp.build(model, config, len(prompt), extra)
        rows.append(Row(prompt, len(prompt), processors, torch.Generator().manual_seed(seed)))
    return rows


def _max_new(config: Any, prompt: int) -> int:
    given = config.max_new_tokens
    new = int(config.max_length - prompt if given is None else given)
    if new < 1:
        raise InputError(f"max_new_tokens must be at least 1, got {new}")
    return new


def _ids(given: int | Sequence[int] | None) -> frozenset[int]:
    return frozenset([given] if isinstance(given, int) else given or [])


def _stop(criteria: Sequence[Any] | None) -> Any:
    if not criteria:
        return None
    return lambda ids: any(bool(torch.as_tensor(c(ids, None)).all()) for c in criteria)


def _padded(prompts: Tensor, rows: list[Row], config: Any) -> Tensor:
    new = [row.ids[row.prompt :] for row in rows]
    pad = config.pad_token_id
    if pad is None:
        pad = min(_ids(config.eos_token_id), default=0)
    width = max(map(len, new))
    tail = torch.tensor([n + [int(pad)] * (width - len(n)) for n in new], device=prompts.device)
    return torch.cat([prompts, tail], 1)
