"""Time and peak memory of every method that chooses after the encoder, and how both grow with N.

    python benchmarks/selection.py [--sizes 576 2880 11520] [--methods todre ...] [--device cpu]

All figures come from one run, in which the methods take turns; the unit of the ratios is one
product of the features with themselves, (N, D) x (D, N). (A script called select.py would hide the
standard library's module of that name from every script beside it.)
"""

from __future__ import annotations

import argparse
import ctypes
import math
import sys
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from card import card, markdown, save
from torch import Tensor

from mmtok.accounting.timing import StageTimer, measure
from mmtok.models.families import cells
from mmtok.pruning import Query, VisualTokens, build, registry
from mmtok.pruning.base import overrides
from mmtok.pruning.greedy import greedy_diverse, isolated, unit

SIDE, TEXT = 24, 64  # rows and columns of a frame; words of the question
PRODUCT = "one product"
EXPECTED = 20
"""Times that the published form of max-min was thought to take, before it was measured."""


def tokens(n: int, width: int, device: str) -> VisualTokens:
    """Clustered features of n tokens, in frames of 24 x 24 where n divides."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(40, width, generator=generator)
    x = centres[torch.arange(n) * 40 // n] + torch.randn(n, width, generator=generator)
    frames = n // SIDE**2 if n % SIDE**2 == 0 else 1
    shape = (frames, SIDE, SIDE) if n % SIDE**2 == 0 else (1, 1, n)
    return VisualTokens(
        features=x[None].to(device),
        position=cells(*shape)[None].to(device),
        grid=torch.tensor([shape], device=device),
        cls_attention=torch.randn(1, n, generator=generator).softmax(1).to(device),
        keys=torch.randn(1, n, width, generator=generator).to(device),
    )


def question(width: int, device: str) -> Query:
    x = torch.randn(1, TEXT, width, generator=torch.Generator().manual_seed(1)).to(device)
    return Query(embeddings=x, mask=torch.ones(1, TEXT, dtype=torch.bool, device=device))


def naive_max_min(x: Tensor, k: int) -> Tensor:
    """Max-min with the minimum over all chosen taken anew in every step, O(k² N)."""
    x = unit(x)
    far = 1 - x @ x.T
    chosen = [isolated(x, 1 - far)]
    for _ in range(1, k):
        nearest = far[torch.tensor(chosen, device=x.device)].amin(0)
        nearest[chosen] = -torch.inf
        chosen.append(int(nearest.argmax()))
    return torch.tensor(chosen)


def timed(run: Callable[[], object], timer: StageTimer) -> None:
    with torch.inference_mode(), timer.stage("select"):
        run()


def peak_mib(run: Callable[[], object], device: str) -> float | None:
    """What a run takes above what is held before it."""
    if sys.platform == "linux":  # give freed memory back first, or a run may reuse it unseen
        ctypes.CDLL(None).malloc_trim(0)
    timer = StageTimer(device, cpu_peak=True)
    with timer.stage("before"):
        pass
    timed(run, timer)
    times = timer.times()
    before, after = times["before"].peak_mib, times["select"].peak_mib
    return None if before is None or after is None else max(after - before, 0.0)


def runs(x: VisualTokens, asked: Query, names: list[str], keep: float) -> dict[str, Any]:
    """Name -> what to time: the methods on these tokens, and one product."""
    features = x.features[0]
    out: dict[str, Any] = {PRODUCT: lambda: features @ features.T}
    for name in names:
        reducer = build(f"{name}(keep={keep})")[0]
        out[name] = lambda reducer=reducer: reducer.select(x, asked).apply(x.features)
    return out


def greedy(x: VisualTokens, keep: float) -> dict[str, Any]:
    """The greedy searches that have a target, and the published form of one."""
    features = x.features[0]
    k = math.floor(keep * len(features) + 0.5)
    return {
        PRODUCT: lambda: features @ features.T,
        "k-center": partial(greedy_diverse, features, k, 0),
        "max-min": partial(greedy_diverse, features, k, None),
        "max-min, naive": partial(naive_max_min, features, k),
    }


def medians(variants: dict[str, Any], device: str, repeats: int) -> dict[str, float]:
    found = measure(
        {name: partial(timed, run) for name, run in variants.items()},
        device=device,
        warmup=1,
        repeats=repeats,
    )
    return {name: stages["select"].device_ms.median for name, stages in found.items()}


def exponent(small: float, large: float, ratio: float) -> str:
    return f"{math.log(large / small) / math.log(ratio):.1f}" if min(small, large) > 0 else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", type=int, default=[576, 2880, 11520])
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--keep", type=float, default=0.1)
    parser.add_argument("--methods", nargs="+")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    names = args.methods or [
        name
        for name in registry.names()  # outliers, a guard, has no budget to measure
        if name != "outliers" and overrides(build(name)[0], "after_encoder")
    ]
    asked = question(args.width, args.device)
    ms: dict[int, dict[str, float]] = {}
    mib: dict[int, dict[str, float | None]] = {}
    for n in args.sizes:
        variants = runs(tokens(n, args.width, args.device), asked, names, args.keep)
        ms[n] = medians(variants, args.device, args.repeats)
        mib[n] = {name: peak_mib(run, args.device) for name, run in variants.items()}
        print(f"{n} tokens done", flush=True)
    middle = args.sizes[min(1, len(args.sizes) - 1)]
    search = medians(
        greedy(tokens(middle, args.width, args.device), args.keep), args.device, args.repeats
    )
    save(f"select_{args.device}.md", page(args, ms, mib, middle, search))


def page(
    args: argparse.Namespace,
    ms: dict[int, dict[str, float]],
    mib: dict[int, dict[str, float | None]],
    middle: int,
    search: dict[str, float],
) -> str:
    sizes, threads = args.sizes, torch.get_num_threads()
    steps = list(pairwise(sizes))
    header = ["method", *(f"ms, N={n}" for n in sizes), *(f"MiB, N={n}" for n in sizes)]
    header += [*(f"exponent {a} to {b}" for a, b in steps), f"products, N={middle}"]
    table = [header]
    for name in ms[sizes[0]]:
        peaks = [mib[n][name] for n in sizes]
        table.append(
            [
                name,
                *(f"{ms[n][name]:.1f}" for n in sizes),
                *("-" if peak is None else f"{peak:.0f}" for peak in peaks),
                *(exponent(ms[a][name], ms[b][name], b / a) for a, b in steps),
                f"{ms[middle][name] / ms[middle][PRODUCT]:.2f}",
            ]
        )
    k = math.floor(args.keep * middle + 0.5)
    ratios = [["search", "ms", "products"]]
    ratios += [[n, f"{t:.1f}", f"{t / search[PRODUCT]:.2f}"] for n, t in search.items()]
    text = card(f"Selection: D = {args.width}, {args.keep:.0%} kept, {threads} threads")
    text += (
        f"Median of {args.repeats} runs in turns, choosing and gathering or merging: one picture "
        f"or clip in frames of {SIDE} x {SIDE}, {TEXT} words of text, fp32. MiB is the peak above "
        "what is held before. An exponent of 1 is growth in proportion to N, 2 to its square. "
        "`products` is the time over that of one (N, D) x (D, N) product.\n\n"
    )
    text += markdown(table)
    text += (
        f"\nGreedy searches at {middle} to {k} tokens; target for k-center and max-min: at most "
        f"1.5 products. {naive(search['max-min, naive'] / search['max-min'])}\n\n"
    )
    return text + markdown(ratios)


def naive(ratio: float) -> str:
    """What the published form of max-min takes, beside what was expected of it."""
    found = "The gap that was expected is not there" if ratio < EXPECTED / 2 else "As expected"
    return (
        "The published form takes all minima anew in every step, O(k² N), and was expected to take "
        f"about {EXPECTED} times as long. {found}: vectorised, it takes {ratio:.1f} times as long."
    )


if __name__ == "__main__":
    main()
