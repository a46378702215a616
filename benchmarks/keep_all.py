"""What `keep=1.0` costs in wall time over the stock `generate`, as a ratio in one run.

    python benchmarks/keep_all.py [--repeats 300]

The cost is fixed, a fraction of a millisecond per prompt, so the embedded model is the hard case; a
real size runs a hundredth as often.
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

ALL = torch.get_num_threads()
CASES = {"tiny": sorted({1, ALL}), "llava-onevision-0.5b": [ALL]}
"""CPU threads that each model is run with."""
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


def measured(name: str, repeats: int) -> np.ndarray:
    """Milliseconds of both, (rounds, 2); a real size gets a hundredth of the rounds."""
    dummy = name != "tiny"
    lvlm = mmtok.load(name, dummy=dummy, device="cpu")
    inputs = lvlm.inputs([Image.effect_noise((448, 448), 60).convert("RGB")], "What is this?")
    options = inputs | OPTIONS

    def kept() -> None:
        with mmtok.reduced(lvlm.model, "todre(keep=1.0)"):
            lvlm.model.generate(**options)

    rounds = max(repeats // 100, 3) if dummy else repeats
    return alternate(partial(lvlm.model.generate, **options), kept, rounds)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=300)
    parser.add_argument("--model", nargs="+", choices=CASES, default=list(CASES))
    args = parser.parse_args()
    head = ["model", "threads", "stock ms", "keep=1.0 ms", "median ratio", "p10", "p90"]
    rows = [[*head, "target 1.03"]]
    for name, threads in [(one, number) for one in args.model for number in CASES[one]]:
        torch.set_num_threads(threads)
        times = measured(name, args.repeats)
        ratio = np.percentile(times[:, 1] / times[:, 0], [50, 10, 90])
        both = np.median(times, axis=0)
        figures = [*(f"{t:.1f}" for t in both), *(f"{r:.3f}" for r in ratio)]
        rows.append([name, str(threads), *figures, "met" if ratio[0] <= TARGET else "missed"])
    text = card("Cost of keep=1.0 over the stock generate")
    text += "One image, 8 new tokens, greedy; ratios are taken round by round, in turn.\n\n"
    if set(args.model) == set(CASES):
        save("keep_all.md", text + markdown(rows))
    else:
        print(text + markdown(rows))


if __name__ == "__main__":
    main()
