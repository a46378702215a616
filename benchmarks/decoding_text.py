"""SmolLM2 with drafts, on prompts of several kinds: the text part of `decoding.py`."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import smollm2
import torch
from drafting import (
    PLAIN,
    Method,
    Output,
    Runner,
    best,
    measured,
    same,
    table,
    variation,
)

from mmtok.decoding import drafter_registry, generate, verifier_registry

Pairs = Sequence[tuple[str, str]]
PROMPTS = Path(__file__).with_name("prompts.json")
STOCK = "transformers' prompt lookup"
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
    ("lookup", "typical"),
)
SAMPLING = {"do_sample": True, "temperature": 0.7, "top_p": 0.9}
JUDGED_PROMPTS = 3  # of each kind, for the total variation


@dataclass(frozen=True)
class Prompt:
    """A question, and what sort it is."""

    kind: str
    inputs: dict[str, Any]


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


def stock(model: Any, name: str, **options: Any) -> Method:
    """What transformers does by itself."""

    def run(inputs: dict[str, Any], seed: int, law: bool) -> Output:
        torch.manual_seed(seed)
        made = model.generate(**inputs, **options)
        return Output(made[0, inputs["input_ids"].shape[1] :].tolist())

    return Method(name, "", True, lambda: run)


def ours(model: Any, drafter: str, verifier: str, **options: Any) -> Method:
    """A drafter, which keeps from run to run what it learns, and a verifier."""
    rule = verifier_registry.build(verifier)

    def make() -> Runner:
        made = drafter_registry.build(drafter)

        def run(inputs: dict[str, Any], seed: int, law: bool) -> Output:
            given = {"seed": seed, "measure_tv": law, **options}
            out = generate(model, inputs, drafter=made, verifier=rule, **given)
            new = out.sequences[0, inputs["input_ids"].shape[1] :].tolist()
            return Output(new, out.stats.target_forwards, out.stats.tv)

        return run

    return Method(drafter, verifier, rule.lossless, make)


def part(model: Any, asked: list[Prompt], pairs: Pairs, options: dict[str, Any]) -> str:
    """The table of one way to choose tokens."""
    methods = [
        stock(model, PLAIN, **options),
        stock(model, STOCK, prompt_lookup_num_tokens=10, **options),
        *(ours(model, drafter, verifier, **options) for drafter, verifier in pairs),
    ]
    greedy = not options["do_sample"]
    found = measured(model, [p.inputs for p in asked], methods, "greedy" if greedy else "sampling")
    judged = [prompt.inputs for prompt in first_of_each(asked, JUDGED_PROMPTS)]
    outputs = {}
    for method in methods:
        words = ["exact" if method.lossless else "lossy"]
        words += [same(found, method)] if greedy else []
        words += [] if method.lossless else [f"TV {variation(method, judged) or 'not measured'}"]
        outputs[method.name] = ", ".join(words)
    longest = max((p.inputs for p in asked), key=lambda x: x["input_ids"].shape[1])
    columns = groups(asked)
    shown = table(methods, found, columns, outputs, longest)
    return f"{shown}\n{best(methods, found, columns['copying'], 'where output copies input')}"


def absent() -> str:
    """The drafters that are in no table, in words."""
    ran = {drafter.split("(")[0] for drafter, _ in (*GREEDY, *SAMPLED)}
    models, others = [], []
    for name in drafter_registry.names():
        if name not in ran:
            wants = "model" in {field.name for field in fields(drafter_registry.get(name))}
            (models if wants else others).append(f"`{name}`")
    return (
        f"Not here: {', '.join(models)}, which need a smaller model of the same vocabulary; "
        f"{', '.join(others)}, left out for time, which stand among the pictures below."
    )


def section(args: Namespace) -> str:
    """Markdown: greedy decoding and sampling."""
    model, tokenizer = smollm2.load()
    asked = prompts(tokenizer, args.limit)
    kinds = [p.kind for p in asked]
    counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
    greedy = part(model, asked, GREEDY, {"max_new_tokens": args.tokens, "do_sample": False})
    options = {"max_new_tokens": args.sampled_tokens, **SAMPLING}
    sampled = part(model, asked, SAMPLED, options)
    return (
        f"## Text: SmolLM2-135M-Instruct\n\n{len(asked)} prompts ({counts}) of "
        f"`benchmarks/prompts.json`; copying: edit, repeat and extract. TV on up to "
        f"{JUDGED_PROMPTS} prompts of each kind. The defaults of `lookup` were chosen on the "
        f"greedy outputs of these prompts. {absent()}\n\n"
        f"### Text, greedy, up to {args.tokens} new tokens\n\n{greedy}\n"
        f"### Text, sampling at temperature {SAMPLING['temperature']}, top_p {SAMPLING['top_p']}, "
        f"up to {args.sampled_tokens} new tokens\n\n"
        "Fewer tokens and drafters than above, for time. Every method draws its own text, so "
        f"ratios are noisier.\n\n{sampled}"
    )
