"""Ways to decode, run in turn on the same inputs and compared with plain decoding."""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from card import markdown
from torch import Tensor

from mmtok.accounting.timing import StageTimer
from mmtok.decoding import drafter_registry, generate, verifier_registry

PLAIN, STOCK = "plain", "transformers' prompt lookup"
Inputs = dict[str, Tensor]
Pairs = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Method:
    """A way to decode.

    Attributes:
        lossless: the output has the target's distribution.
        run: from inputs of one row and a seed to sequences.
    """

    drafter: str
    verifier: str
    lossless: bool
    run: Callable[[Inputs, int], Tensor]

    @property
    def name(self) -> str:
        return f"{self.drafter} {self.verifier}".strip()


@dataclass(frozen=True)
class Run:
    """One output.

    Attributes:
        new: tokens behind the prompt, the end of the sequence included.
        ms: wall time, prefill included.
        forwards: calls of the model.
    """

    new: list[int]
    ms: float
    forwards: int

    @property
    def ms_per_token(self) -> float:
        return self.ms / len(self.new)


Found = dict[str, list[Run]]


def stock(model: Any, name: str, **options: Any) -> Method:
    """What transformers does by itself."""

    def run(inputs: Inputs, seed: int) -> Tensor:
        torch.manual_seed(seed)
        return model.generate(**inputs, **options)

    return Method(name, "", True, run)


def ours(model: Any, drafter: str, verifier: str, **options: Any) -> Method:
    """A drafter, which keeps from run to run what it learns, and a verifier."""
    made, rule = drafter_registry.build(drafter), verifier_registry.build(verifier)

    def run(inputs: Inputs, seed: int) -> Tensor:
        return generate(model, inputs, drafter=made, verifier=rule, seed=seed, **options).sequences

    return Method(drafter, verifier, rule.lossless, run)


@contextmanager
def counted(model: Any) -> Iterator[list[int]]:
    """The number of calls of the model inside, in a list of one."""
    calls = [0]

    def count(*_: Any) -> None:
        calls[0] += 1

    handle = model.register_forward_pre_hook(count)
    try:
        yield calls
    finally:
        handle.remove()


def once(model: Any, method: Method, inputs: Inputs, seed: int) -> Run:
    with counted(model) as calls:
        begin = time.perf_counter()
        out = method.run(inputs, seed)
        ms = (time.perf_counter() - begin) * 1e3
    return Run(out[0, inputs["input_ids"].shape[1] :].tolist(), ms, calls[0])


def measured(model: Any, inputs: Sequence[Inputs], methods: Sequence[Method], words: str) -> Found:
    """Runs of every method on every input, in an order that is reversed from one to the next."""
    found: Found = {method.name: [] for method in methods}
    order = list(methods)
    for method in order:
        once(model, method, inputs[0], 0)
    for at, row in enumerate(inputs):
        order.reverse()
        for method in order:
            found[method.name].append(once(model, method, row, at))
        print(f"{words}: {at + 1} of {len(inputs)}", file=sys.stderr, flush=True)
    return found


def peak_mib(method: Method, inputs: Inputs) -> float | None:
    """What a run takes above what is held before it."""
    if sys.platform == "linux":  # give freed memory back first, or a run may reuse it unseen
        ctypes.CDLL(None).malloc_trim(0)
    timer = StageTimer("cpu", cpu_peak=True)
    with timer.stage("before"):
        pass
    with timer.stage("run"):
        method.run(inputs, 0)
    times = timer.times()
    before, after = times["before"].peak_mib, times["run"].peak_mib
    return None if before is None or after is None else max(after - before, 0.0)


def variation(
    model: Any, drafter: str, verifier: str, inputs: Sequence[Inputs], **options: Any
) -> float | None:
    """Mean total variation between the law of a step's first token and the target's.

    None where drafts are drawn: that takes one evaluation of the rule per entry of the vocabulary.
    """
    made = drafter_registry.build(drafter)
    if made.kind != "det":
        return None
    values: list[float] = []
    for at, row in enumerate(inputs):
        options |= {"measure_tv": True, "seed": at}
        values += generate(model, row, drafter=made, verifier=verifier, **options).stats.tv
    return sum(values) / len(values) if values else None


def ratios(runs: Sequence[Run], base: Sequence[Run], chosen: Sequence[bool]) -> list[float]:
    """The base's time per token over ours, of the chosen inputs."""
    pairs = zip(runs, base, chosen, strict=True)
    return [b.ms_per_token / r.ms_per_token for r, b, use in pairs if use]


def table(
    methods: Sequence[Method],
    found: Found,
    groups: dict[str, list[bool]],
    exact: dict[str, str],
    longest: Inputs,
) -> str:
    """One row per method.

    Args:
        methods: those that ran.
        found: their runs, plain decoding and transformers' drafts among them.
        groups: column -> which inputs it is about.
        exact: method -> what to say about its output.
        longest: the input to measure memory on.
    """
    head = ["drafter", "verifier", "output", "accepted per forward", "forwards per token"]
    head += ["ms per token", *(f"x plain: {name}" for name in groups), "x plain: worst input"]
    rows = [[*head, f"x {STOCK}", "peak MiB"]]
    whole = [True] * len(found[PLAIN])
    for method in methods:
        runs = found[method.name]
        tokens, forwards = sum(len(r.new) for r in runs), sum(r.forwards for r in runs)
        against = {name: ratios(runs, found[PLAIN], chosen) for name, chosen in groups.items()}
        rows.append(
            [
                *(f"`{method.drafter}`" if method.verifier else method.drafter, method.verifier),
                exact[method.name],
                *(f"{tokens / forwards - 1:.2f}", f"{forwards / tokens:.2f}"),
                f"{sum(r.ms for r in runs) / tokens:.1f}",
                *(f"{median(values):.2f}" if values else "-" for values in against.values()),
                f"{min(ratios(runs, found[PLAIN], whole)):.2f}",
                f"{median(ratios(runs, found[STOCK], whole)):.2f}" if STOCK in found else "-",
                "-" if (peak := peak_mib(method, longest)) is None else f"{peak:.0f}",
            ]
        )
    return markdown(rows)
