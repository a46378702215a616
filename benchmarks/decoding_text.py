"""SmolLM2 with drafts, on prompts of several kinds: the text part of `decoding.py`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import smollm2
import torch
from drafting import (
    PLAIN,
    STOCK,
    Found,
    Inputs,
    Method,
    Pairs,
    measured,
    ours,
    stock,
    table,
    variation,
)

PROMPTS = Path(__file__).with_name("prompts.json")
COPYING = ("edit", "repeat", "extract")
AS_STOCK = "lookup(tokens=10, first=10, ngram=2, shortest=1, first_match=True)"
SMALL_TREE = "recycling(children=(3, 2, 1, 0, 1))"
GREEDY = (
    ("lookup", "greedy"),
    (AS_STOCK, "greedy"),
    ("rasd(base='lookup')", "greedy"),
    (SMALL_TREE, "greedy"),
    ("jacobi(window=7, top_k=1)", "greedy"),
    ("lookup", "rollback(tau=2.0)"),
)
SAMPLED = (
    ("lookup", "deterministic"),
    (SMALL_TREE, "deterministic"),
    ("jacobi(window=7, top_k=50)", "chain"),
    ("jacobi(window=7, top_k=50)", "recursive"),
    ("lookup", "typical"),
)
SAMPLING = {"do_sample": True, "temperature": 0.7, "top_p": 0.9}
SAMPLED_PROMPTS = 2  # of each kind
JUDGED_PROMPTS = 1  # of each kind, for the total variation


@dataclass(frozen=True)
class Prompt:
    """A question, and what sort it is."""

    kind: str
    inputs: Inputs


def prompts(tokenizer: Any, limit: int | None) -> list[Prompt]:
    """Up to `limit` prompts of each kind."""
    data = json.loads(PROMPTS.read_text(encoding="utf-8"))
    found = []
    for kind, rows in data["prompts"].items():
        for text, passage in rows[:limit]:
            whole = f"{text}\n\n{data['passages'][passage]}" if passage else text
            found.append(Prompt(kind, smollm2.asked(tokenizer, whole)))
    return found


def first_of_each(asked: list[Prompt], count: int) -> list[Prompt]:
    """At most `count` prompts of each kind."""
    seen: dict[str, list[Prompt]] = {}
    for prompt in asked:
        seen.setdefault(prompt.kind, []).append(prompt)
    return [prompt for same in seen.values() for prompt in same[:count]]


def groups(asked: list[Prompt]) -> dict[str, list[bool]]:
    """Column -> which prompts it is about; what copies comes first, as one."""
    names = dict.fromkeys(p.kind for p in asked if p.kind not in COPYING)
    copying = {"copying": [p.kind in COPYING for p in asked]}
    return copying | {name: [p.kind == name for p in asked] for name in names}


def said(model: Any, found: Found, method: Method, judged: list[Prompt], options: Any) -> str:
    """Whether the output is the target's: by rule, by its tokens, and by measured distance."""
    words = ["exact" if method.lossless else "lossy"]
    if not options["do_sample"]:
        pairs = list(zip(found[method.name], found[PLAIN], strict=True))
        words.append(f"{sum(a.new == b.new for a, b in pairs)} of {len(pairs)} the same")
    if method.verifier:
        inputs = [prompt.inputs for prompt in judged]
        far = variation(model, method.drafter, method.verifier, inputs, **options)
        words.append("TV not measured" if far is None else f"TV {far:.1g}")
    return ", ".join(words)


def part(
    model: Any, asked: list[Prompt], pairs: Pairs, options: dict[str, Any], judged: list[Prompt]
) -> str:
    """The table of one way to choose tokens."""
    methods = [
        stock(model, PLAIN, **options),
        stock(model, STOCK, prompt_lookup_num_tokens=10, **options),
        *(ours(model, drafter, verifier, **options) for drafter, verifier in pairs),
    ]
    words = "sampling" if options["do_sample"] else "greedy"
    found = measured(model, [p.inputs for p in asked], methods, words)
    exact = {m.name: said(model, found, m, judged, options) for m in methods}
    longest = max((p.inputs for p in asked), key=lambda x: x["input_ids"].shape[1])
    return table(methods, found, groups(asked), exact, longest)


def section(limit: int | None, tokens: int) -> str:
    """Markdown: greedy decoding and sampling."""
    model, tokenizer = smollm2.load()
    asked = prompts(tokenizer, limit)
    some, judged = (first_of_each(asked, n) for n in (SAMPLED_PROMPTS, JUDGED_PROMPTS))
    kinds = [p.kind for p in asked]
    counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
    options = {"max_new_tokens": tokens}
    greedy = part(model, asked, GREEDY, options | {"do_sample": False}, judged)
    sampled = part(model, some, SAMPLED, options | SAMPLING, judged)
    return (
        f"## SmolLM2-135M-Instruct, float32\n\n{len(asked)} prompts ({counts}) of "
        f"`benchmarks/prompts.json`, up to {tokens} new tokens, batch 1, "
        f"{torch.get_num_threads()} threads; copying: edit, repeat and extract. Speeds are medians "
        "over prompts of the time per token, prefill included, against plain `model.generate` and "
        "transformers' own prompt lookup on the same prompt in the same run. Accepted per forward: "
        "tokens per call of the model less one, the call that reads the prompt included. TV: mean "
        "total variation between the law of a step's first token and the model's own, in runs of "
        "their own on one prompt of each kind, not where drafts are drawn. Peak: above the "
        "loaded model, on the longest prompt. The defaults of `lookup` were chosen on the greedy "
        f"outputs of these prompts.\n\n### Greedy\n\n{greedy}\n"
        f"### Sampling, temperature 0.7, top_p 0.9\n\n{len(some)} prompts; every method draws its "
        f"own text, so ratios are noisier than above.\n\n{sampled}"
    )
