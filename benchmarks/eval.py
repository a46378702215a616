"""Batched evaluation against one question at a time: the ratio of questions a second.

    python benchmarks/eval.py [--questions 200] [--reduce none "todre(keep=0.1)"]

All sides answer the same questions about pictures in one process, in turns, and must agree.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from card import card, markdown, save

import mmtok
from mmtok.eval import build
from mmtok.eval.batches import plan_batches
from mmtok.eval.evaluation import limited
from mmtok.eval.runner import run

SIDES = ("one by one", "batches", "batches, shared questions once")

RATIOS = ("ratio of batches", "ratio of mmtok eval")


def answers(pipe: Any, task: Any, plan: Any, file: Path) -> tuple[dict[Any, str], float]:
    """Answers by question, and how long they took in seconds."""
    began = time.perf_counter()
    made = run(pipe, task, plan, file, {"file": file.name})
    took = time.perf_counter() - began
    return {(r["split"], r["question_id"]): r["answer"] for r in made.rows}, took


def compare(pipe: Any, task: Any, plans: dict[str, Any], rounds: int) -> tuple[list[float], int]:
    """Median seconds of each side, and how many answers are not the same on all of them."""
    took: dict[str, list[float]] = {side: [] for side in plans}
    said: dict[str, dict[Any, str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(rounds):
            for number, (side, plan) in enumerate(plans.items()):
                file = Path(folder) / f"{number}_{turn}.jsonl"
                said[side], seconds = answers(pipe, task, plan, file)
                took[side].append(seconds)
    first = said[SIDES[0]]
    apart = sum(any(other[key] != text for other in said.values()) for key, text in first.items())
    return [median(took[side]) for side in plans], apart


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--reduce", nargs="+", default=["none", "todre(keep=0.1)"])
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    lvlm = mmtok.load(args.model, device=args.device)
    task = build("scenes")
    items = limited(task.items(), args.questions)
    sizes = {SIDES[0]: (1, False), SIDES[1]: (args.batch, False), SIDES[2]: (args.batch, True)}
    plans = {
        side: plan_batches(items, size, lvlm.config, task.frames, share=share)
        for side, (size, share) in sizes.items()
    }
    table = [["method", *(f"{side}, /s" for side in SIDES), *RATIOS, "differ"]]
    for spec in args.reduce:
        pipe = mmtok.Pipeline(lvlm, None if spec == "none" else spec)
        seconds, apart = compare(pipe, task, plans, args.rounds)
        rates = [f"{len(items) / s:.1f}" for s in seconds]
        ratios = [f"{seconds[0] / s:.2f}" for s in seconds[1:]]
        table.append([spec, *rates, *ratios, str(apart)])
        print(table[-1], flush=True)
    suffix = "" if args.device == "cpu" else f"_{args.device}"
    text = card(f"Evaluation in batches: {args.model}, {len(items)} questions about scenes")
    text += (
        f"Questions answered a second, files read and rows written through to the disk included: "
        f"medians of {args.rounds} rounds in turns, batches of {args.batch}. `mmtok eval` runs the "
        "third side: what several splits ask about one picture is asked once. The ratios are to "
        "one by one; the last column counts answers that differ between the sides.\n\n"
    )
    save(f"eval{suffix}.md", text + markdown(table))


if __name__ == "__main__":
    main()
