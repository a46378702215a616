"""Drafters and verifiers on tiny-ar, guidance on: forwards, wall time, exactness, picture quality.

    python benchmarks/decoding_images.py [--pictures 20] [--quality 500]

All sides draw the same classes with the same seeds in one process, picture by picture in turns, one
picture at a time. Plain decoding and assisted generation are transformers' own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from card import card, markdown, save
from picture_quality import LOSSY, MODEL_DRAFT, Bare, mean, quality, quality_text

from mmtok.cli.output import quiet
from mmtok.models.visual_ar import VisualAR, load_causal, load_visual_ar

EXACT = [
    ("lookup", "deterministic"),
    ("recycling", "deterministic"),
    ("jacobi(coupled=False)", "chain"),
    ("jacobi", "chain"),
    ("draftmodel(tokens=3)", "chain"),
    (MODEL_DRAFT, "chain"),
    ("draftmodel(tokens=8)", "chain"),
    (MODEL_DRAFT, "deterministic"),
    ("rsdc(branching=(3, 2, 1, 1, 1))", "recursive"),
    ("rsds", "recursive"),
    ("dyspec", "recursive"),
    ("spectr", "kseq"),
]
GREEDY = [
    ("lookup", "greedy"),
    ("recycling", "greedy"),
    ("jacobi", "greedy"),
    ("draftmodel(tokens=5, temperature=0)", "greedy"),
    ("rsdc(branching=(3, 2, 1, 1, 1), temperature=0)", "greedy"),
    ("draftmodel(tokens=5, temperature=0)", "rollback"),
]


@dataclass
class Side:
    """One way to draw a picture: (kind, seed) to (ids, accepted a forward or None)."""

    drafter: str
    verifier: str
    draw: Callable[[str, int], tuple[torch.Tensor, float | None]]
    lossless: bool = True
    ms: list[float] = field(default_factory=list)
    forwards: list[int] = field(default_factory=list)
    accepted: list[float | None] = field(default_factory=list)
    outputs: list[list[int]] = field(default_factory=list)
    peak_mib: float = 0.0


def ours(painter: VisualAR, drafter: str, rule: str, scale: float, temperature: float) -> Side:
    drafts: Any = Bare() if drafter == "none" else painter.drafter(drafter)
    judge = painter.verifier(rule)

    def draw(kind: str, seed: int) -> tuple[torch.Tensor, float | None]:
        made = painter.generate(
            [kind],
            drafts,
            judge,
            guidance=scale,
            temperature=temperature,
            seed=seed,
            measure_tv=False,
        )
        return made.sequences, made.stats.accepted_per_step

    return Side(drafter, rule, draw, judge.lossless)


def stock(painter: VisualAR, name: str, scale: float, temperature: float, **options: Any) -> Side:
    def draw(kind: str, seed: int) -> tuple[torch.Tensor, float | None]:
        prompts, negative = painter.prompts([kind])
        torch.manual_seed(seed)
        made = painter.model.generate(
            **prompts,
            attention_mask=torch.ones_like(prompts["input_ids"]),
            do_sample=temperature > 0,
            guidance_scale=scale,
            negative_prompt_ids=negative["input_ids"],
            max_new_tokens=painter.tokens,
            **options,
        )
        return made, None

    return Side(name, "transformers", draw)


def baselines(painter: VisualAR, draft: Any, scale: float, temperature: float) -> list[Side]:
    rule = "deterministic" if temperature else "greedy"
    return [
        stock(painter, "plain generate", scale, temperature),
        stock(painter, "assisted, same draft model", scale, temperature, assistant_model=draft),
        stock(painter, "assisted, prompt lookup", scale, temperature, prompt_lookup_num_tokens=5),
        ours(painter, "none", rule, scale, temperature),
    ]


def run(painter: VisualAR, sides: list[Side], pictures: int) -> None:
    """Draw the pictures with every side in turn, after some that do not count."""
    calls = [0]

    def count(module: Any, arguments: Any) -> None:
        calls[0] += 1

    hook = painter.model.register_forward_pre_hook(count)
    kinds = painter.vocabulary.classes
    try:
        for side in sides:
            side.peak_mib = peak(side, kinds[0])
        for side in sides[:4]:  # the first calls of all import and allocate
            side.draw(kinds[0], pictures)
        for seed in range(pictures):
            for side in sides:
                calls[0], began = 0, time.perf_counter()
                ids, accepted = side.draw(kinds[seed % len(kinds)], seed)
                side.ms.append(1000 * (time.perf_counter() - began))
                side.forwards.append(calls[0])
                side.accepted.append(accepted)
                side.outputs.append(ids[0].tolist())
    finally:
        hook.remove()


def peak(side: Side, kind: str) -> float:
    """MiB by which one picture raises the resident memory of a process of its own."""
    context = multiprocessing.get_context("fork")
    ours_end, theirs = context.Pipe()

    def child() -> None:
        before = _resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        side.draw(kind, 0)
        theirs.send(_resident("VmHWM") - before)
        os._exit(0)

    process = context.Process(target=child)
    process.start()
    found = ours_end.recv() if ours_end.poll(120) else float("nan")
    process.join()
    return float(found)


def _resident(name: str) -> float:
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith(name)).split()[1]) / 1024


def table(painter: VisualAR, sides: list[Side], greedy: bool) -> str:
    """One row a side; ratios above 1 are better."""
    plain, assisted = sum(sides[0].ms), sum(sides[1].ms)
    head = ["drafter", "verifier", "accepted", "forwards", "fewer", "ms", "x plain", "x assisted"]
    rows = [[*head, "peak MiB", "same as plain" if greedy else "law"]]
    for side in sides:
        pairs = mean(side.forwards) / (2 if side.verifier == "transformers" else 1)
        took = sum(side.ms)
        law = "exact" if side.lossless else "lossy"
        if side.verifier == "transformers" and side is not sides[0]:
            law = "wrong under guidance"
        kept = "" if side.lossless else ", lossy"
        same = sum(a == b for a, b in zip(side.outputs, sides[0].outputs, strict=True))
        rows.append(
            [
                f"`{side.drafter}`" if side.verifier != "transformers" else side.drafter,
                side.verifier,
                "" if side.accepted[0] is None else f"{mean(side.accepted):.2f}",
                f"{pairs:.1f}",
                f"{painter.tokens / pairs:.2f}",
                f"{mean(side.ms):.0f}",
                f"{plain / took:.2f}",
                f"{assisted / took:.2f}",
                f"{side.peak_mib:.1f}",
                f"{same} of {len(side.outputs)}{kept}" if greedy else law,
            ]
        )
    return markdown(rows)


def explained(scale: float, pictures: int) -> str:
    return (
        f"tiny-ar draws 64 codes a picture under guidance of {scale}; {pictures} pictures a side, "
        "classes in turn, one picture at a time. *accepted*: draft tokens accepted a target "
        "forward, without the one token that every forward gives. *forwards*: of the target, a "
        "guided pair of rows counted once; transformers runs the two rows one after the other, so "
        "its calls are halved. "
        "*fewer*: 64 over that. *x plain* and *x assisted*: wall time of transformers' plain "
        "`generate` and of its assisted generation with the same draft model over this side's. "
        "*peak*: by how much one picture raises the memory of a process. Drafter `none` is our "
        "engine without drafts. Rules marked exact are tested as such by enumeration and "
        "chi-square (`tests/test_decoding_rules.py`, `tests/test_decoding_law.py`).\n\n"
    )


def best(painter: VisualAR, sides: list[Side]) -> str:
    mine = [s for s in sides if s.verifier != "transformers" and s.lossless]
    fewest, fastest = min(mine, key=lambda s: mean(s.forwards)), min(mine, key=lambda s: sum(s.ms))
    ratio = painter.tokens / mean(fewest.forwards)
    wall = sum(sides[0].ms) / sum(fastest.ms)
    bare = next(s for s in mine if s.drafter == "none")
    return (
        f"\nFewest forwards among exact sides: `{fewest.drafter}`, {ratio:.2f} times fewer than "
        f"plain decoding. Fastest: `{fastest.drafter}`, {wall:.2f} times the speed of plain "
        f"`generate` and {sum(bare.ms) / sum(fastest.ms):.2f} times that of the engine without "
        "drafts.\n\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=20)
    parser.add_argument("--quality", type=int, default=500)
    parser.add_argument("--guidance", type=float, default=1.5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    quiet()
    painter, draft = load_visual_ar("tiny-ar"), load_causal("tiny-ar-draft")
    parts = []
    for name, pairs, temperature in (("Sampling", EXACT, 1.0), ("Greedy", GREEDY, 0.0)):
        sides = baselines(painter, draft, args.guidance, temperature)
        sides += [ours(painter, d, v, args.guidance, temperature) for d, v in pairs]
        run(painter, sides, args.pictures)
        shown = table(painter, sides, greedy=not temperature)
        print(shown, flush=True)
        parts.append(f"## {name}\n\n{shown}{best(painter, sides)}")
    found = []
    for rule in ("plain", "chain", *LOSSY):
        found.append(quality(painter, rule, args.guidance, args.quality))
        print(found[-1], flush=True)
    text = card("Decoding pictures with drafts") + explained(args.guidance, args.pictures)
    save("decoding_images.md", text + "".join(parts) + quality_text(found, args.quality))


if __name__ == "__main__":
    main()
