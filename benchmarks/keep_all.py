"""What `keep=1.0` costs in wall time over the stock `generate`, as a ratio in one run.

    python benchmarks/keep_all.py [--repeats 100] [--threads 1]

The cost is fixed, a fraction of a millisecond per prompt, so the embedded model is the hard case; a
real size runs a tenth as often.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from card import card, markdown, save
from PIL import Image

import mmtok

MODELS = {"tiny": False, "llava-onevision-0.5b": True}
TARGET = 1.03
OPTIONS = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}


def alternate(stock: Callable[[], Any], kept: Callable[[], Any], rounds: int) -> np.ndarray:
    """(rounds, 2) milliseconds of both, the one that goes first changing from round to round."""
    times = np.zeros((rounds, 2))
    for number in range(-2, rounds):  # two rounds to warm up
        sides = [(0, stock), (1, kept)]
        for place, run in sides if number % 2 else reversed(sides):
            began = time.perf_counter_ns()
            run()
            times[number, place] = (time.perf_counter_ns() - began) / 1e6
    return times


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--threads", type=int, help="CPU threads, by default all")
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS))
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    rows = [["model", "stock ms", "keep=1.0 ms", "median ratio", "p10", "p90", "target 1.03"]]
    for name, dummy in ((name, MODELS[name]) for name in args.model):
        lvlm = mmtok.load(name, dummy=dummy, device="cpu")
        inputs = lvlm.inputs([Image.effect_noise((448, 448), 60).convert("RGB")], "What is this?")
        model, options = lvlm.model, inputs | OPTIONS

        def kept(model: Any = model, options: Any = options) -> None:
            with mmtok.reduced(model, "todre(keep=1.0)"):
                model.generate(**options)

        rounds = max(args.repeats // 20, 3) if dummy else args.repeats
        times = alternate(partial(model.generate, **options), kept, rounds)
        ratio = np.percentile(times[:, 1] / times[:, 0], [50, 10, 90])
        both = np.median(times, axis=0)
        verdict = "met" if ratio[0] <= TARGET else "missed"
        rows.append([name, *(f"{t:.1f}" for t in both), *(f"{r:.3f}" for r in ratio), verdict])
    text = card("Cost of keep=1.0 over the stock generate")
    text += "One image, 8 new tokens, greedy; ratios are taken round by round, in turn.\n\n"
    if set(args.model) == set(MODELS):
        save("keep_all.md", text + markdown(rows))
    else:
        print(text + markdown(rows))


if __name__ == "__main__":
    main()
