"""Every registered reducer on the embedded model's held-out pack, with its cost and a Pareto plot.

    python benchmarks/pruning.py [--reduce todre fastv ...] [--keep 0.5 ...] [--part 0/2]

Runs `mmtok eval scenes` and `scenes-video` for each method and budget; a run that was cut off goes
on, and `--part I/N` makes every N-th run only, so that several processes can share the work before
one without it writes the page.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from card import ROOT, card, markdown, save
from scenes import SCORES, Scores, scores

import mmtok
from mmtok.eval import build, evaluate
from mmtok.eval.card import summary
from mmtok.eval.pack import PACK
from mmtok.io.image import load_image
from mmtok.pruning import registry

LIMITS = {"scenes": 621, "scenes-video": 54}
BASELINES = ("random", "stride", "downsample")
WHOLE = ("damro", "outliers")
"""Methods without a budget: they run once."""
SPLITS = ("random", "popular", "adversarial")
FORCED = 32
"""Tokens that cache methods are made to go on for, far behind the answer's end."""


def run(lvlm: Any, spec: str | None, out: str, limits: dict[str, int]) -> dict[str, Any]:
    """The report of each task."""
    return {
        name: evaluate(lvlm, build(name), spec, out=out, limit=limit, baselines=False)
        for name, limit in limits.items()
    }


def costs(made: dict[str, Any]) -> dict[str, float | str]:
    """Per question of both tasks: tokens, GFLOP, ms and KiB of KV cache after the prefill."""
    total: dict[str, float] = dict.fromkeys(("prefill", "all", "prefill_ms", "ms", "kv"), 0.0)
    runs = [report.runs[0] for report in made.values()]
    questions = sum(len(one.rows) for one in runs)
    tokens = []
    for one in runs:
        found, share = summary(one.rows, one.costs), len(one.rows) / questions
        tokens.append(f"{found['visual_tokens']:.0f}")
        stages = found["stages"]
        total["prefill"] += share * found["prefill_flops"] / 1e9
        total["all"] += share * found["flops"] / 1e9
        total["ms"] += share * found["ms"]
        before = ("reduce.score", "reduce.select", "prefill")
        total["prefill_ms"] += share * sum(
            stages[name]["device_ms"] for name in before if name in stages
        )
        held = [c["stages"]["prefill"]["kv_bytes"] / c["prompts"] for c in one.costs]
        total["kv"] += share * sum(held) / len(held) / 1024
    return total | {"tokens": " / ".join(tokens)}


def beaten(score: Scores, chance: Scores | None, name: str) -> str:
    """A score with its interval in percent; `~` marks one inside or below random's interval."""
    value, low, high = (100 * x for x in score[name])
    mark = "~" if chance is not None and score[name][0] <= chance[name][2] else ""
    return f"{mark}{value:.1f} ({low:.1f}-{high:.1f})"


def page(found: dict[tuple[str, float], dict[str, Any]], keeps: list[float]) -> str:
    """One table for each budget."""
    head = ["method", "tokens image / clip", *SCORES, *(f"F1 {s}" for s in SPLITS)]
    head += ["yes %", "prefill GFLOP", "all GFLOP", "prefill ms", "total ms", "KV KiB"]
    full = found.get(("none", 1.0))
    text = ""
    for keep in keeps:
        rows, chance = [head], found.get(("random", keep), {}).get("scores")
        some = {name: cell for (name, k), cell in found.items() if k == keep}
        order = [*BASELINES, *sorted(set(some) - {*BASELINES, "none"})]
        listed = [("all tokens", full)] if full else []
        listed += [(name, some[name]) for name in order if name in some]
        for name, cell in listed:
            against = None if name in ("random", "all tokens") else chance
            rows.append(row(name, cell, against))
        text += f"## keep = {keep:.0%}\n\n{markdown(rows)}\n{alike(dict(listed))}"
    return text


def alike(cells: dict[str, dict[str, Any]]) -> str:
    """A line on the methods whose tokens and scores are the same to the last digit."""
    groups: dict[str, list[str]] = {}
    for name, cell in cells.items():
        seen = (cell["costs"]["tokens"], *(cell[part] for part in ("scores", "f1", "yes")))
        groups.setdefault(repr(seen), []).append(name)
    same = [", ".join(names) for names in groups.values() if len(names) > 1]
    return f"Alike in tokens and in every score: {'; '.join(same)}.\n\n" if same else ""


def row(name: str, cell: dict[str, Any], chance: Scores | None) -> list[str]:
    cost = cell["costs"]
    return [
        *(name, cost["tokens"]),
        *(beaten(cell["scores"], chance, score) for score in SCORES),
        *(f"{100 * cell['f1'][split]:.1f}" for split in SPLITS),
        f"{100 * cell['yes']:.1f}",
        *(f"{cost[n]:.3f}" for n in ("prefill", "all")),
        *(f"{cost[n]:.1f}" for n in ("prefill_ms", "ms", "kv")),
    ]


def plot(found: dict[tuple[str, float], dict[str, Any]], path: Path) -> None:
    """Existence F1 and the mean of the other scores against the FLOPs behind the tower."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(14, 7), dpi=110)
    for panel, title in zip(panels, ("existence F1", "mean of the other scores"), strict=True):
        points = []
        for (name, _keep), cell in found.items():
            values = cell["scores"]
            others = [values[s][0] for s in SCORES[1:]]
            y = values["existence F1"][0] if title == "existence F1" else sum(others) / len(others)
            points.append((cell["costs"]["prefill"], 100 * y, name))
        best, front = -1.0, []
        for x, y, name in sorted(points, key=lambda point: (point[0], -point[1])):
            if y > best:
                best = y
                front.append((x, y, name))
        colours = ("black", "tab:red", "tab:orange", "tab:brown")
        special = dict(zip(("none", *BASELINES), colours, strict=True))
        for x, y, name in points:
            above = 3 if name in special else 2
            panel.scatter(x, y, s=28, color=special.get(name, "tab:blue"), alpha=0.75, zorder=above)
        panel.step([x for x, *_ in front], [y for _, y, _ in front], "k-", lw=1, where="post")
        for x, y, name in front:
            panel.annotate(name, (x, y), fontsize=8, xytext=(3, 4), textcoords="offset points")
        panel.set(xscale="log", xlabel="prefill GFLOP a question", ylabel=f"{title}, %")
        panel.grid(alpha=0.3)
        for name, colour in special.items():
            panel.scatter([], [], color=colour, label={"none": "all tokens"}.get(name, name))
        panel.scatter([], [], color="tab:blue", label="methods")
        panel.legend(loc="lower right")
    figure.suptitle("Held-out scenes, 50, 25, 10 and 5% kept; the step is the Pareto front")
    figure.tight_layout()
    figure.savefig(path)


@torch.inference_mode()
def agreement(lvlm: Any, spec: str, pictures: int = 12) -> float:
    """Share of forced greedy tokens that are those of the full cache, fed the same tokens before.

    The embedded model's answers are short; caches matter for what comes after the first token.
    """
    options = {"max_new_tokens": FORCED, "min_new_tokens": FORCED, "do_sample": False}
    same = []
    for path in sorted((PACK / "images").glob("*.jpg"))[:pictures]:
        inputs = lvlm.inputs([load_image(path)], "How many items are in the image?")
        start = inputs["input_ids"].shape[1]
        want = lvlm.model.generate(**inputs, **options)[0, start:]
        with mmtok.reduced(lvlm.model, spec):
            got = lvlm.model.generate(**inputs, **options)[0, start:]
        apart = (want != got).nonzero()
        same.append(int(apart[0]) / FORCED if len(apart) else 1.0)
    return float(np.mean(same))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--reduce", nargs="+", default=registry.names())
    parser.add_argument("--keep", nargs="+", type=float, default=[0.5, 0.25, 0.1, 0.05])
    parser.add_argument("--questions", type=int, default=LIMITS["scenes"], help="about pictures")
    parser.add_argument("--clips", type=int, default=LIMITS["scenes-video"], help="about clips")
    parser.add_argument("--part", default="0/1", help="make only every N-th run, from I on")
    parser.add_argument("--out", default="eval_out", help="folder of the predictions")
    args = parser.parse_args()
    index, parts = map(int, args.part.split("/"))
    limits = {"scenes": args.questions, "scenes-video": args.clips}
    lvlm = mmtok.load(args.model, device="cpu")
    budgeted = [n for n in args.reduce if n not in WHOLE]
    caches = [n for n in budgeted if registry.get(n)(keep=0.5).in_cache(4)]
    wanted = [("none", 1.0), *((n, 1.0) for n in args.reduce if n in WHOLE)]
    wanted += [(n, k) for k in args.keep for n in budgeted]
    found: dict[tuple[str, float], dict[str, Any]] = {}
    began = time.time()
    for name, keep in wanted[index::parts]:
        spec = None if name == "none" else name if name in WHOLE else f"{name}(keep={keep})"
        made = run(lvlm, spec, args.out, limits)
        table, yes, _ = scores(made)
        lines = {line["split"]: line for line in made["scenes"].rows}
        f1 = {split: lines[split]["f1"] for split in SPLITS}
        adversarial = lines["adversarial"]["yes_ratio"]
        found[name, keep] = {"scores": table, "yes": yes, "f1": f1, "costs": costs(made)}
        found[name, keep]["adversarial yes"] = adversarial
        print(f"{time.time() - began:.0f} s {name} {keep}", flush=True)
    if parts > 1:
        return
    plot(found, ROOT / "docs" / "results" / "pruning.png")
    text = card(f"Reducers on held-out scenes: {args.model}, {args.questions} + {args.clips}")
    save("pruning.md", text + HEAD + page(found, args.keep) + rest(lvlm, found, caches, args.keep))


HEAD = """![Scores against prefill FLOPs](pruning.png)

In percent, with 95% bootstrap intervals clustered by picture or clip; existence F1 is the mean over
POPE's three settings, the other scores are accuracies. **~ marks a score inside or below random's
interval at that budget.** Cost is per question; prefill ms counts scoring and selection in. Methods
that drop inside the decoder or evict from the cache read all tokens at first: the column shows the
tokens in front of it. Times are of one run each, in batches, on a shared machine: trust the FLOPs.

`tiny` reads a clip as separate pictures. A method that works between frames sees one frame at a
time and acts as on a still, so this page says nothing of what it does for clips. Which methods come
out exactly alike, for this or for another reason, stands under each table.

"""


def rest(lvlm: Any, found: Any, caches: list[str], keeps: list[float]) -> str:
    """Methods without a budget, DAMRO, and the cache methods on longer output."""
    whole = page({(n, 1.0): c for (n, k), c in found.items() if n in ("none", *WHOLE)}, [1.0])
    text = whole.replace("keep = 100%", "Without a budget")
    if ("damro", 1.0) in found:
        rows = [["adversarial split", "F1", "yes %"]]
        for name in ("none", "damro"):
            cell = found[name, 1.0]
            numbers = (cell["f1"]["adversarial"], cell["adversarial yes"])
            rows.append([{"none": "without"}.get(name, name), *(f"{100 * x:.1f}" for x in numbers)])
        text += f"## DAMRO\n\n{markdown(rows)}\n"
    if caches:
        head = ["method", *(f"{keep:.0%}" for keep in keeps)]
        rows = [[n, *(f"{agreement(lvlm, f'{n}(keep={k})'):.0%}" for k in keeps)] for n in caches]
        text += (
            f"## KV-cache methods on {FORCED} forced tokens\n\nHow far, of {FORCED} tokens, greedy "
            "output goes on as with the full cache (12 pictures; answers themselves are one to "
            f"three tokens).\n\n{markdown([head, *rows])}\n"
        )
    return text


if __name__ == "__main__":
    main()
