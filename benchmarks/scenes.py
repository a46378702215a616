"""Scores of the embedded model on its held-out pack, by method and budget, with their cost.

    python benchmarks/scenes.py [--reduce todre random stride downsample] [--keep 1 0.5 ...]

Runs and scores `mmtok eval scenes` and `scenes-video`; a run that was cut off goes on.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

from card import card, markdown, save

import mmtok
from mmtok.eval import build, evaluate
from mmtok.eval.card import summary

ALL_MEDIA = 440  # pictures and clips of the pack
SCORES = ("existence F1", "colour", "count", "where", "number", "clip")
Scores = dict[str, tuple[float, float, float]]


def reports(lvlm: Any, reduce: str | None, args: argparse.Namespace) -> dict[str, Any]:
    """The report of each task, un-compared: this page has its own baselines."""
    made = {}
    for name in ("scenes", "scenes-video"):
        task = build(name)
        limit = args.limit and max(len(task.items()) * args.limit // ALL_MEDIA, 1)
        made[name] = evaluate(
            lvlm, task, reduce, out=args.out, batch=args.batch, limit=limit, baselines=False
        )
    return made


def scores(made: dict[str, Any]) -> tuple[Scores, float, int]:
    """Each score with its interval, the share of yes, and unreadable existence answers."""
    lines = {line["split"]: line for report in made.values() for line in report.rows}
    table = {
        "existence F1": _cell(lines["mean"], "f1"),
        "clip": _cell(lines["overall"], "accuracy"),
    }
    table |= {name: _cell(lines[name], "accuracy") for name in SCORES if name in lines}
    return table, lines["pooled"]["yes_ratio"], lines["pooled"]["unreadable"]


def _cell(line: dict[str, Any], name: str) -> tuple[float, float, float]:
    return (line[name], *line[f"{name}_ci"])


def costs(made: dict[str, Any]) -> dict[str, Any]:
    """Tokens of a picture and of a clip; FLOPs and ms of a question, over both tasks."""
    runs = [report.runs[0] for report in made.values()]
    each = [summary(run.rows, run.costs) for run in runs]
    shares = [len(run.rows) / sum(len(r.rows) for r in runs) for run in runs]
    mean = {
        name: sum(share * cost[name] for share, cost in zip(shares, each, strict=True))
        for name in ("prefill_flops", "flops", "ms")
    }
    return mean | {"tokens": " / ".join(f"{cost['visual_tokens']:.0f}" for cost in each)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--reduce", nargs="+", default=["todre", "random", "stride", "downsample"])
    parser.add_argument("--keep", nargs="+", type=float, default=[0.5, 0.25, 0.1, 0.05])
    parser.add_argument("--limit", type=int, help="only about so many pictures and clips")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", default="eval_out", help="folder of the predictions")
    args = parser.parse_args()
    lvlm = mmtok.load(args.model, device=args.device)
    header = ["method", "keep", "tokens image / clip", *SCORES, "yes ratio", "unreadable"]
    table = [[*header, "prefill GFLOP", "all GFLOP", "ms"]]
    found: dict[tuple[str, float], Scores] = {}
    questions = 0
    began = time.time()
    for name, keep in [("none", 1.0), *((m, k) for k in args.keep for m in args.reduce)]:
        made = reports(lvlm, None if name == "none" else f"{name}(keep={keep})", args)
        questions = sum(len(report.runs[0].rows) for report in made.values())
        found[name, keep], yes_ratio, unreadable = scores(made)
        table.append(line(name, keep, found[name, keep], yes_ratio, unreadable, costs(made)))
        print(f"{time.time() - began:.0f} s {name} {keep}", flush=True)
    suffix = "" if args.device == "cpu" else f"_{args.device}"
    text = card(f"Held-out scenes: {args.model}, {questions} questions")
    text += (
        "Existence F1 is the mean over POPE's three settings, the others are accuracies, in "
        "percent with 95% bootstrap intervals clustered by picture or clip. Cost is per question: "
        "GFLOP in closed form, ms of encode, reduce, prefill and decode. Times are of one run "
        "each, in batches, on a shared machine: trust the FLOPs.\n\n"
    )
    save(f"scenes{suffix}.md", text + markdown(table) + "\n" + verdict(found, args.keep))


def line(
    name: str, keep: float, score: Scores, yes_ratio: float, unreadable: int, cost: dict[str, Any]
) -> list[str]:
    cells = [
        f"{100 * v:.1f} ({100 * a:.1f}-{100 * b:.1f})" for v, a, b in (score[s] for s in SCORES)
    ]
    spent = [f"{cost['prefill_flops'] / 1e9:.3f}", f"{cost['flops'] / 1e9:.3f}"]
    return [
        *(name, f"{keep:.0%}", cost["tokens"], *cells, f"{100 * yes_ratio:.1f}", str(unreadable)),
        *(*spent, f"{cost['ms']:.1f}"),
    ]


def verdict(found: dict[tuple[str, float], Scores], keeps: list[float]) -> str:
    """Where a method does not beat random: its score is inside or below random's interval."""
    lines = []
    for name in dict.fromkeys(m for m, _ in found if m not in ("none", "random")):
        missed = [
            f"{score} at {keep:.0%}"
            for keep in keeps
            if ("random", keep) in found
            for score in SCORES
            if found[name, keep][score][0] <= found["random", keep][score][2]
        ]
        what = ", ".join(missed) if missed else "nowhere"
        lines.append(f"- **{name}** does not beat random's interval: {what}.\n")
    return "".join(lines)


if __name__ == "__main__":
    main()
