"""Scores of the embedded model on its held-out pack, by method and budget, with their cost.

    python benchmarks/scenes.py [--reduce todre random stride downsample] [--keep 1 0.5 ...]

Answers are compared word for word; an existence answer that is neither yes nor no counts as wrong
and is shown. Intervals are 95% bootstrap intervals clustered by picture or clip.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from card import card, markdown, save

import mmtok
from mmtok.io.image import load_image
from mmtok.io.video import load_video

PACK = Path(str(files("mmtok.eval.methods") / "data" / "scenes"))
EXISTENCE = ("random", "popular", "adversarial")
SCORES = ("existence F1", "colour", "count", "where", "number", "clip")


def questions(limit: int | None) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (PACK / "questions.jsonl").read_text().splitlines()]
    if limit is None:
        return rows
    media = sorted({row.get("image") or row["video"] for row in rows})
    chosen = set(media[:: max(len(media) // limit, 1)])
    return [row for row in rows if (row.get("image") or row["video"]) in chosen]


def batches(rows: list[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    """Questions of like length together, clips apart from images."""
    for kind, most in (("image", size), ("video", max(size // 8, 1))):
        some = sorted((r for r in rows if kind in r), key=lambda r: (len(r["text"]), r["text"]))
        yield from (some[i : i + most] for i in range(0, len(some), most))


def answer(lvlm: Any, reduce: str | None, rows: list[dict[str, Any]], size: int) -> dict[str, Any]:
    """Predictions by question id, and the run's cost."""
    pipe = mmtok.Pipeline(lvlm, reduce=reduce)
    said, cost = {}, defaultdict(float)
    unique = {prompt(row): row for row in rows}  # the settings of POPE share questions
    for batch in batches(list(unique.values()), size):
        prompts = [
            ([load_image(PACK / r["image"])], None, r["text"])
            if "image" in r
            else (None, [load_video(PACK / r["video"], frames=8).frames], r["text"])
            for r in batch
        ]
        out = pipe.generate_batch(prompts, max_new_tokens=6)
        kind = "image" if "image" in batch[0] else "clip"
        stages = {stage.stage: stage for stage in out.ledger.stages}
        cost[f"{kind} tokens"] += out.ledger.meta["visual_tokens"]["out"]
        cost[f"{kind} n"] += len(batch)
        cost["flops"] += out.ledger.total.flops_analytic or 0
        cost["prefill flops"] += stages["prefill"].flops_analytic or 0
        cost["ms"] += sum(s.device_ms or 0 for s in out.ledger.stages if s.stage != "source")
        said |= {prompt(r): text for r, text in zip(batch, out.texts, strict=True)}
    return {"said": {r["question_id"]: said[prompt(r)] for r in rows}, "cost": cost}


def prompt(row: dict[str, Any]) -> tuple[str, str]:
    return row.get("image") or row["video"], row["text"]


def right(row: dict[str, Any], text: str) -> bool:
    return text.strip().rstrip(".").lower() == str(row["label"]).lower()


def f1(truth: np.ndarray, guess: np.ndarray) -> float:
    hit = float((truth & guess).sum())
    return 2 * hit / max(float(truth.sum() + guess.sum()), 1.0)


def scores(rows: list[dict[str, Any]], said: dict[int, str]) -> dict[str, Any]:
    """Each score, F1 as the mean over the three splits, with its clustered interval."""
    rng = np.random.default_rng(0)
    table: dict[str, Any] = {}
    groups = {name: [r for r in rows if r["split"] == name] for name in SCORES[1:]}
    for name, some in groups.items():
        values = np.array([right(r, said[r["question_id"]]) for r in some], dtype=float)
        media = np.unique([r.get("image") or r["video"] for r in some], return_inverse=True)[1]
        table[name] = (values.mean(), *interval(media, lambda i, v=values: v[i].mean(), rng))
    some = [r for r in rows if r["split"] in EXISTENCE]
    truth = np.array([r["label"] == "yes" for r in some])
    words = [said[r["question_id"]].strip().rstrip(".").lower() for r in some]
    guess = np.array([w == "yes" for w in words])
    split = np.array([EXISTENCE.index(r["split"]) for r in some])

    def mean_f1(i: np.ndarray) -> float:
        return float(
            np.mean([f1(truth[i][split[i] == s], guess[i][split[i] == s]) for s in range(3)])
        )

    media = np.unique([r["image"] for r in some], return_inverse=True)[1]
    table["existence F1"] = (mean_f1(np.arange(len(some))), *interval(media, mean_f1, rng))
    table["yes ratio"] = guess.mean()
    table["unreadable"] = sum(w not in ("yes", "no") for w in words)
    return table


def interval(
    cluster: np.ndarray, statistic: Any, rng: Any, draws: int = 400
) -> tuple[float, float]:
    """95% bootstrap interval of statistic(indices), whole clusters drawn."""
    members = [np.flatnonzero(cluster == c) for c in range(cluster.max() + 1)]
    values = [
        statistic(
            np.concatenate([members[c] for c in rng.integers(len(members), size=len(members))])
        )
        for _ in range(draws)
    ]
    return float(np.percentile(values, 2.5)), float(np.percentile(values, 97.5))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--reduce", nargs="+", default=["todre", "random", "stride", "downsample"])
    parser.add_argument("--keep", nargs="+", type=float, default=[0.5, 0.25, 0.1, 0.05])
    parser.add_argument("--limit", type=int, help="only about so many pictures and clips")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    lvlm = mmtok.load(args.model, device=args.device)
    rows = questions(args.limit)
    header = ["method", "keep", "tokens image / clip", *SCORES, "yes ratio", "unreadable"]
    table = [[*header, "prefill GFLOP", "all GFLOP", "ms"]]
    found: dict[tuple[str, float], dict[str, Any]] = {}
    began = time.time()
    for name, keep in [("none", 1.0), *((m, k) for k in args.keep for m in args.reduce)]:
        run = answer(lvlm, None if name == "none" else f"{name}(keep={keep})", rows, args.batch)
        found[name, keep] = scores(rows, run["said"])
        table.append(line(name, keep, found[name, keep], run["cost"]))
        print(f"{time.time() - began:.0f} s {name} {keep}", flush=True)
    suffix = "" if args.device == "cpu" else f"_{args.device}"
    text = card(f"Held-out scenes: {args.model}, {len(rows)} questions")
    text += (
        "Existence F1 is the mean over POPE's three settings, the others are accuracies, in "
        "percent with 95% bootstrap intervals clustered by picture or clip. Cost is per question: "
        "GFLOP in closed form, ms of encode, reduce, prefill and decode in batches.\n\n"
    )
    save(f"scenes{suffix}.md", text + markdown(table) + "\n" + verdict(found, args.keep))


def line(name: str, keep: float, score: dict[str, Any], cost: Any) -> list[str]:
    n = cost["image n"] + cost["clip n"]
    cells = [
        f"{100 * v:.1f} ({100 * a:.1f}-{100 * b:.1f})" for v, a, b in (score[s] for s in SCORES)
    ]
    tokens = " / ".join(
        f"{cost[f'{k} tokens'] / cost[f'{k} n']:.0f}" for k in ("image", "clip") if cost[f"{k} n"]
    )
    costs = [f"{cost['prefill flops'] / n / 1e9:.3f}", f"{cost['flops'] / n / 1e9:.3f}"]
    ratio = f"{100 * score['yes ratio']:.1f}"
    return [
        *(name, f"{keep:.0%}", tokens, *cells, ratio, str(score["unreadable"])),
        *(*costs, f"{cost['ms'] / n:.1f}"),
    ]


def verdict(found: dict[tuple[str, float], dict[str, Any]], keeps: list[float]) -> str:
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
