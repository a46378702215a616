"""`generate`: the entry point, in the manner of the method of the same name in transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmtok.decoding import drafter_registry, verifier_registry
from mmtok.decoding.base import Drafter, Verifier
from mmtok.decoding.engine import Engine, Row
from mmtok.decoding.options import for_prompts, guidance, ids, processors, settings, stopping
from mmtok.decoding.prompts import Inputs, check_inputs, check_places, with_mask
from mmtok.decoding.stats import Stats
from mmtok.decoding.target import Target
from mmtok.errors import InputError
from mmtok.options import check_value, shown

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
    negative: Inputs | Callable[[Inputs], Inputs | None] | None = None,
    generation_config: Any = None,
    logits_processor: Sequence[Any] | Callable[[int], Sequence[Any]] | None = None,
    stopping_criteria: Sequence[Any] | None = None,
    tokenizer: Any = None,
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
            Or what makes them of `inputs`, asked where there is guidance.
        generation_config: as in transformers; `options` override its fields.
        logits_processor: applied to the guided logits, before the warpers; functions of their
            arguments, without a memory. Or what makes them for a prompt of so many tokens.
        stopping_criteria: asked after every token of every row, which comes without padding.
        tokenizer: of the model, for `stop_strings`.
        streamer: gets the prompt and the tokens of a batch of one.
        seed: for row r seed + r, or one seed per row: a row draws the same in every batch.
        measure_tv: measure how far the law of every judged token is from the target's.

    Raises:
        InputError: a combination that would be wrong or is not supported.
    """
    check_value("drafter", drafter, Drafter | str)
    check_value("verifier", verifier, Verifier | str | None)
    drafts = drafter_registry.build(drafter) if isinstance(drafter, str) else drafter
    full = with_mask(inputs)
    config = settings(model, generation_config, options, full["input_ids"].shape[1])
    scale = guidance(guidance_scale, config)
    other = _negative(model, full, negative, scale, config.max_new_tokens)
    seeds = _seeds(seed, len(full["input_ids"]))
    rows = _rows(model, full, config, for_prompts(logits_processor), seeds)
    engine = Engine(
        Target(model, guidance_scale=scale),
        drafts,
        _verifier(verifier, drafts, bool(config.do_sample)),
        sample=bool(config.do_sample),
        max_new_tokens=config.max_new_tokens,
        eos=frozenset(ids(config.eos_token_id)),
        stop=stopping(config, stopping_criteria, tokenizer),
        on_tokens=_streaming(streamer, full["input_ids"]),
        measure_tv=measure_tv,
    )
    engine.run(full, other, rows, seeds)
    if streamer is not None:
        streamer.end()
    return Generated(_padded(full["input_ids"], rows, config), engine.stats)


def _negative(model: Any, full: Inputs, given: Any, scale: float, new: int) -> Inputs | None:
    """The negative prompts, once they and the prompts are known to fit the model."""
    made: Inputs | None = given
    if callable(given):
        made = given(full) if scale != 1 else None
    if made is not None and scale == 1:
        raise InputError(
            "negative prompts are for guidance: pass guidance_scale= or leave them out"
        )
    for asked in (full,) if made is None else (full, made):
        check_inputs(model, asked)
        check_places(model, asked, new)
    return made


def _seeds(given: int | Sequence[int], size: int) -> list[int]:
    given = list(given) if isinstance(given, range) else given
    check_value("seed", given, int | Sequence[int])
    seeds = [given + r for r in range(size)] if isinstance(given, int) else list(given)
    if len(seeds) != size:
        raise InputError(f"{size} rows need as many seeds, got {len(seeds)}")
    if not -(2**63) <= min(seeds) <= max(seeds) < 2**64:
        raise InputError(f"seeds are numbers of 64 bits, got {shown(given)}")
    return seeds


def _streaming(streamer: Any, prompts: Tensor) -> Callable[[list[int]], None] | None:
    if streamer is None:
        return None
    if len(prompts) != 1:
        raise InputError(f"a streamer takes a batch of one, got {len(prompts)}")
    streamer.put(prompts.cpu())
    return lambda tokens: streamer.put(torch.tensor(tokens))


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
    model: Any,
    inputs: Inputs,
    config: Any,
    extra: Callable[[int], Sequence[Any]],
    seeds: list[int],
) -> list[Row]:
    rows = []
    for row, mask, seed in zip(inputs["input_ids"], inputs["attention_mask"], seeds, strict=True):
        prompt: list[int] = row[mask.bool()].tolist()
        warpers = processors(model, config, prompt, extra(len(prompt)))
        rows.append(Row(prompt, len(prompt), warpers, torch.Generator().manual_seed(seed)))
    return rows


def _padded(prompts: Tensor, rows: list[Row], config: Any) -> Tensor:
    new = [row.ids[row.prompt :] for row in rows]
    pad = [*ids(config.pad_token_id), *ids(config.eos_token_id), 0][0]  # stock takes the first
    width = max(map(len, new))
    tail = torch.tensor([n + [pad] * (width - len(n)) for n in new], device=prompts.device)
    return torch.cat([prompts, tail], 1)
