"""Ways to decode, run in turn on the same inputs and compared with plain decoding."""

from __future__ import annotations

import ctypes
import gc
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from card import markdown

from mmtok.accounting.timing import StageTimer

PLAIN, NONE = "plain", "none"


@dataclass(frozen=True)
class Output:
    """What a way to decode gives.

    Attributes:
        new: tokens behind the prompt, the end of the sequence included.
        forwards: of the target; None: as many as it was called.
        tv: where asked for, per judged token, the distance of its law from the target's.
    """

    new: list[int]
    forwards: int | None = None
    tv: list[float] = field(default_factory=list)


Runner = Callable[[Any, int, bool], Output]


@dataclass(frozen=True)
class Method:
    """A way to decode.

    Attributes:
        verifier: empty where there is none, as in what transformers does by itself.
        lossless: the output has the target's distribution, by rule.
        make: a fresh runner, from an input, a seed and whether to measure the law to an output.
        calls: of the target for one forward; two where guidance runs its rows one by one.
    """

    drafter: str
    verifier: str
    lossless: bool
    make: Callable[[], Runner]
    calls: int = 1

    @property
    def name(self) -> str:
        return f"{self.drafter} {self.verifier}".strip()

    @property
    def ours(self) -> bool:
        return bool(self.verifier)


@dataclass(frozen=True)
class Run:
    """One output: its tokens, its wall time with the prefill, and calls of the target."""

    new: list[int]
    ms: float
    forwards: float

    @property
    def ms_per_token(self) -> float:
        return self.ms / len(self.new)


Found = dict[str, list[Run]]


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


def measured(model: Any, inputs: Sequence[Any], methods: Sequence[Method], words: str) -> Found:
    """Runs of every method on every input, in an order that is reversed from one to the next."""
    found: Found = {method.name: [] for method in methods}
    order = [(method, method.make()) for method in methods]
    for _, run in order:  # the first calls of all import and allocate
        run(inputs[0], 0, False)
    for at, row in enumerate(inputs):
        order.reverse()
        for method, run in order:
            with counted(model) as calls:
                begin = time.perf_counter()
                out = run(row, at, False)
                ms = (time.perf_counter() - begin) * 1e3
            # an exit drafter runs the target's own modules, whose calls would count as the target's
            forwards = calls[0] / method.calls if out.forwards is None else out.forwards
            found[method.name].append(Run(out.new, ms, forwards))
        print(f"{words}: {at + 1} of {len(inputs)}", file=sys.stderr, flush=True)
    return found


def peak_mib(method: Method, inputs: Any) -> float | None:
    """What one run takes at most above what is held before it, of this method alone."""
    run = method.make()
    gc.collect()
    if sys.platform == "linux":  # give freed memory back first, or a run may reuse it unseen
        ctypes.CDLL(None).malloc_trim(0)
    timer = StageTimer("cpu", cpu_peak=True)  # which resets the process's peak at every stage
    with timer.stage("before"):
        pass
    with timer.stage("run"):
        run(inputs, 0, False)
    times = timer.times()
    before, after = times["before"].peak_mib, times["run"].peak_mib
    return None if before is None or after is None else max(after - before, 0.0)


@dataclass(frozen=True)
class Mean:
    """Mean of n values in clusters, and its standard error between clusters."""

    value: float
    error: float
    n: int
    clusters: int

    def __str__(self) -> str:
        return f"{self.value:.3f} ± {self.error:.3f} (n {self.n})"


def clustered(clusters: Sequence[Sequence[float]]) -> Mean | None:
    """Mean of all values; values of one cluster, such as a text, may depend on each other."""
    some = [values for values in clusters if values]
    n, k = sum(map(len, some)), len(some)
    if k < 2:
        return None
    mean = sum(map(sum, some)) / n
    spread = sum((sum(values) - mean * len(values)) ** 2 for values in some)
    return Mean(mean, (spread * k / (k - 1)) ** 0.5 / n, n, k)


def variation(method: Method, inputs: Sequence[Any]) -> Mean | None:
    """Total variation between the law of a judged token and the target's.

    None where it cannot be had: for siblings that were drawn together, or of a single input.
    """
    run = method.make()
    return clustered([run(row, 1000 + at, True).tv for at, row in enumerate(inputs)])


def same(found: Found, method: Method) -> str:
    """How many outputs are those of plain decoding."""
    pairs = list(zip(found[method.name], found[PLAIN], strict=True))
    return f"{sum(a.new == b.new for a, b in pairs)} of {len(pairs)} the same"


def ratios(runs: Sequence[Run], base: Sequence[Run], chosen: Sequence[bool]) -> list[float]:
    """The base's time per token over ours, of the chosen inputs."""
    pairs = zip(runs, base, chosen, strict=True)
    return [b.ms_per_token / r.ms_per_token for r, b, use in pairs if use]


def per_forward(runs: Sequence[Run]) -> float:
    """Tokens per forward of the target."""
    return sum(len(r.new) for r in runs) / sum(r.forwards for r in runs)


def table(
    methods: Sequence[Method],
    found: Found,
    groups: dict[str, list[bool]],
    outputs: dict[str, str],
    largest: Any,
) -> str:
    """One row per method, plain decoding first and transformers' own drafts behind it.

    The first of these drafts has a column of its own.

    Args:
        methods: those that ran.
        found: their runs.
        groups: column -> which inputs it is about.
        outputs: method -> what to say about its output.
        largest: the input to measure memory on.
    """
    stock = [m.name for m in methods if not m.ours and m.name != PLAIN][:1]
    head = ["drafter", "verifier", "output", "accepted per forward", "forwards per token"]
    head += ["ms per token", *(f"x plain{': ' * bool(name)}{name}" for name in groups)]
    rows = [[*head, "x plain: worst", *(f"x {name}" for name in stock), "peak MiB"]]
    whole = [True] * len(found[PLAIN])
    for method in methods:
        runs = found[method.name]
        against = [ratios(runs, found[PLAIN], chosen) for chosen in groups.values()]
        rows.append(
            [
                *(f"`{method.drafter}`" if method.ours else method.drafter, method.verifier),
                outputs[method.name],
                *(f"{per_forward(runs) - 1:.2f}", f"{1 / per_forward(runs):.2f}"),
                f"{sum(r.ms for r in runs) / sum(len(r.new) for r in runs):.1f}",
                *(f"{median(values):.2f}" if values else "-" for values in against),
                f"{min(ratios(runs, found[PLAIN], whole)):.2f}",
                *(f"{median(ratios(runs, found[name], whole)):.2f}" for name in stock),
                "-" if (peak := peak_mib(method, largest)) is None else f"{peak:.1f}",
            ]
        )
    return markdown(rows)


def best(methods: Sequence[Method], found: Found, chosen: list[bool], where: str) -> str:
    """Which exact method of ours needs the fewest forwards, which is the fastest.

    Our loop without drafts, where it ran, is the fairer base: guidance in one call, not in two.
    """
    bare = [method for method in methods if method.drafter == NONE and method.lossless]
    mine = [m for m in methods if m.ours and m.lossless and m not in bare]

    def speed(method: Method, base: str = PLAIN) -> float:
        return median(ratios(found[method.name], found[base], chosen))

    def fewer(method: Method) -> float:
        runs = zip(found[method.name], chosen, strict=True)
        return per_forward([run for run, use in runs if use])

    fewest, fastest = max(mine, key=fewer), max(mine, key=speed)
    own = "".join(f", {speed(fastest, m.name):.2f} times that of our loop without" for m in bare)
    return (
        f"Exact drafts, {where}: fewest forwards `{fewest.drafter}`, {fewer(fewest):.2f} times "
        f"fewer than plain decoding; fastest `{fastest.drafter}`, {speed(fastest):.2f} times its "
        f"speed{own}. The best of {len(mine)} medians over the same inputs is a little too good.\n"
    )
