"""tiny-ar with drafts, guidance on: the part of `decoding.py` about pictures."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from drafting import (
    NONE,
    PLAIN,
    Found,
    Method,
    Output,
    Runner,
    best,
    measured,
    same,
    table,
    variation,
)
from picture_quality import MODEL_DRAFT, Bare, quality_section, zipped

from mmtok.decoding import drafter_registry
from mmtok.decoding.layers import depth_of
from mmtok.models.visual_ar import VisualAR, load_visual_ar
from mmtok.registry import parse_spec

GUIDANCE = 1.5
ASSISTED, LOOKUP = "assisted, same draft model", "assisted, prompt lookup"
ZIPAR = "ZipAR"
SMALL_TREE = "recycling(children=(3, 2, 1, 0, 1))"
LEARNT = 100  # pictures of the target's that `aded` and `rasd` have read
WINDOWS = (2, 4)  # of ZipAR
Pairs = Sequence[tuple[str, str]]
SAMPLED: Pairs = (
    (NONE, "deterministic"),
    ("lookup", "deterministic"),
    ("recycling", "deterministic"),
    (SMALL_TREE, "deterministic"),
    ("aded", "deterministic"),
    ("rasd(base='lookup')", "deterministic"),
    ("earlyexit(exit=3, temperature=1)", "chain"),
    ("dynamicexit", "deterministic"),
    ("jacobi(coupled=False)", "chain"),
    ("jacobi", "chain"),
    ("draftmodel(tokens=3)", "chain"),
    (MODEL_DRAFT, "chain"),
    ("draftmodel(tokens=8)", "chain"),
    (MODEL_DRAFT, "deterministic"),
    ("bild", "deterministic"),
    ("rsdc(branching=(3, 2, 1, 1, 1))", "recursive"),
    ("rsds", "recursive"),
    ("dyspec", "recursive"),
    ("spectr", "kseq"),
)
ARGMAX = "draftmodel(tokens=5, temperature=0)"
GREEDY: Pairs = (
    (NONE, "greedy"),
    ("lookup", "greedy"),
    ("recycling", "greedy"),
    (SMALL_TREE, "greedy"),
    ("aded", "greedy"),
    ("rasd(base='lookup')", "greedy"),
    ("earlyexit(exit=3)", "greedy"),
    ("dynamicexit", "greedy"),
    ("jacobi", "greedy"),
    (ARGMAX, "greedy"),
    ("bild", "greedy"),
    ("rsdc(branching=(3, 2, 1, 1, 1), temperature=0)", "greedy"),
    (ARGMAX, "rollback"),
    ("bild", "rollback"),
    (ARGMAX, "lanterngreedy"),
)


def drafter(painter: VisualAR, spec: str, corpus: list[list[int]]) -> Any:
    """The drafter of a spec, a corpus in it where it takes one."""
    name, arguments = parse_spec(spec)
    if name == NONE:
        return Bare()
    if name in ("aded", "rasd"):
        return drafter_registry.make(name, {**arguments, "corpus": corpus})
    return painter.drafter(spec)


def ours(
    painter: VisualAR, spec: str, rule: str, corpus: list[list[int]], temperature: float
) -> Method:
    """A drafter, which keeps from picture to picture what it learns, and a verifier."""
    judge = painter.verifier(rule)
    options: dict[str, Any] = {"guidance": GUIDANCE, "temperature": temperature}

    def make() -> Runner:
        drafts = drafter(painter, spec, corpus)

        def run(kind: str, seed: int, law: bool) -> Output:
            made = painter.generate([kind], drafts, judge, seed=seed, measure_tv=law, **options)
            return Output(made.sequences[0, 1:].tolist(), made.stats.target_forwards, made.stats.tv)

        return run

    return Method(spec, rule, judge.lossless, make)


def stock(painter: VisualAR, name: str, temperature: float, **options: Any) -> Method:
    """What transformers does by itself: the conditional row and the other one, one by one."""

    def run(kind: str, seed: int, law: bool) -> Output:
        prompts, negative = painter.prompts([kind])
        torch.manual_seed(seed)
        made = painter.model.generate(
            **prompts,
            attention_mask=torch.ones_like(prompts["input_ids"]),
            do_sample=temperature > 0,
            guidance_scale=GUIDANCE,
            negative_prompt_ids=negative["input_ids"],
            max_new_tokens=painter.tokens,
            **options,
        )
        return Output(made[0, 1:].tolist())

    return Method(name, "", name == PLAIN, lambda: run, calls=2)


def wavefront(painter: VisualAR, window: int, temperature: float) -> Method:
    """ZipAR, which has neither drafter nor verifier."""

    _, width = painter.tokenizer.grid(painter.vocabulary.shape)

    def run(kind: str, seed: int, law: bool) -> Output:
        codes, forwards = zipped(painter, [kind], window, GUIDANCE, seed, temperature)
        return Output(codes[0].tolist(), forwards)

    return Method(ZIPAR, f"window {window} of {width}", False, lambda: run)


def ways(painter: VisualAR, temperature: float, corpus: list[list[int]]) -> list[Method]:
    """Every way to decode, transformers' own first."""
    draft = painter.drafter(MODEL_DRAFT).model  # type: ignore[attr-defined]
    of_stock = partial(stock, painter, temperature=temperature)
    pairs = SAMPLED if temperature else GREEDY
    return [
        of_stock(PLAIN),
        of_stock(ASSISTED, assistant_model=draft),
        of_stock(LOOKUP, prompt_lookup_num_tokens=5),
        *(ours(painter, spec, rule, corpus, temperature) for spec, rule in pairs),
        *(wavefront(painter, window, temperature) for window in WINDOWS),
    ]


def said(method: Method, found: Found, kinds: list[str], greedy: bool, wrong: set[str]) -> str:
    """Whether the output is the target's."""
    words = ["exact" if method.lossless else "lossy"]
    if not method.ours and method.name in wrong:
        words = ["wrong" if greedy else "wrong, see greedy"]
    if greedy:
        words.append(same(found, method))
    if method.ours and not method.lossless:
        far = None if method.drafter == ZIPAR else variation(method, kinds)
        words.append(f"TV {far}" if far else "TV not measured")
    return ", ".join(words)


def changed(found: Found) -> set[str]:
    """The names of transformers' own ways with drafts that do not give its plain output."""
    plain = [run.new for run in found[PLAIN]]
    return {name for name in (ASSISTED, LOOKUP) if [run.new for run in found[name]] != plain}


def part(
    painter: VisualAR,
    kinds: list[str],
    corpus: list[list[int]],
    temperature: float,
    wrong: set[str],
) -> str:
    """The table of one way to choose codes; `wrong` is filled in when greedy."""
    methods, greedy = ways(painter, temperature, corpus), not temperature
    words = "pictures, greedy" if greedy else "pictures, sampling"
    found = measured(painter.model, kinds, methods, words)
    if greedy:
        wrong |= changed(found)
    outputs = {m.name: said(m, found, kinds, greedy, wrong) for m in methods}
    shown = table(methods, found, {"": [True] * len(kinds)}, outputs, kinds[0])
    return f"{shown}\n{best(methods, found, [True] * len(kinds), 'all pictures')}"


def explained(painter: VisualAR) -> str:
    """What stands where, and what does not."""
    draft = painter.drafter(MODEL_DRAFT).model  # type: ignore[attr-defined]
    depth, deep = depth_of(draft), depth_of(painter.model)
    ran = {spec.split("(")[0] for spec, _ in (*SAMPLED, *GREEDY)}
    absent = [name for name in drafter_registry.names() if name not in ran]
    text = (
        f"tiny-ar, {deep} layers, draws {painter.tokens} codes a picture under guidance of "
        f"{GUIDANCE}; its draft model has {depth}. A guided pair of rows is one forward; "
        "transformers runs the two one after the other, so its calls are halved. Drafter "
        f"`{NONE}` is our engine without drafts. `aded` and `rasd` have read {LEARNT} pictures "
        "that tiny-ar drew before. tiny-ar was not trained to exit early. ZipAR has no drafts, and "
        "no rule whose law could be measured; *accepted* is codes per forward less one. Not "
        "here:\n\n"
    )
    why = {"s2d": f"it stops at layers inside the draft model, which has {depth}"}
    return text + "".join(f"- `{name}`: {why.get(name, 'not run')}.\n" for name in absent)


def section(args: Namespace) -> str:
    """Markdown: greedy decoding, sampling, and what lossy rules do to pictures."""
    painter = load_visual_ar("tiny-ar")
    known = painter.vocabulary.classes
    learnt = [known[i % len(known)] for i in range(LEARNT)]
    corpus = painter.generate(learnt, Bare(), guidance=GUIDANCE, seed=50_000).sequences.tolist()
    kinds = [known[i % len(known)] for i in range(args.pictures)]
    wrong: set[str] = set()
    once = list(dict.fromkeys(kinds))
    greedy = part(painter, once, corpus, 0.0, wrong)
    sampled = part(painter, kinds, corpus, 1.0, wrong)
    return (
        f"## Pictures: tiny-ar\n\n{explained(painter)}\n"
        f"### Pictures, greedy\n\n{len(once)} pictures, one a class: greedy decoding draws no "
        f"second.\n\n{greedy}\n"
        f"### Pictures, sampling at temperature 1\n\n{len(kinds)} pictures, classes in turn.\n\n"
        f"{sampled}\n{quality_section(painter, GUIDANCE, args.quality, kinds, WINDOWS)}"
    )
