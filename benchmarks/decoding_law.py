"""Exact decoding is exact: chi-square of whole sequences through the engine, and enumerated rules.

    python benchmarks/decoding_law.py

Writes docs/results/decoding_law.md. Pairs, seeds and thresholds stand in tests/laws.py, which says
what was fixed before the first look and what was changed after it.
"""

from __future__ import annotations

import argparse
import sys
import time

import torch
from card import ROOT, card, markdown, save

sys.path.insert(0, str(ROOT))

from mmtok.decoding import rules
from tests import laws

RUNS, CANARY_RUNS = 30_720, 6_144
RULES: dict[str, tuple[laws.Rule, str]] = {
    "chain": (rules.chain, "chain"),
    "recursive": (rules.recursive, "wor"),
    "kseq": (rules.kseq, "iid"),
    "deterministic": (lambda p, s, q: rules.deterministic(p, s), "det"),
    "deterministic, independent draws": (lambda p, s, q: rules.deterministic(p, s), "iid"),
    "deterministic, draws without replacement": (lambda p, s, q: rules.deterministic(p, s), "wor"),
    "q not renormalised (canary)": (laws.stale_row, "wor"),
    "kseq on draws without replacement (canary)": (rules.kseq, "wor"),
}


def enumerated() -> list[list[str]]:
    table = [["rule", "siblings", "pairs", "largest total variation", "verdict"]]
    for name, (rule, kind) in RULES.items():
        canary = "canary" in name
        for k in (1,) if kind == "chain" else (2,) if canary else (1, 2, 3, 4):
            count = 200 if k < 4 or kind == "det" else 25
            chosen = laws.rule_pairs(count, k if kind == "wor" else 1)
            error = laws.worst(rule, kind, k, chosen)
            good = error > 0.05 if canary else error < 1e-12
            verdict = ("seen" if canary else "exact") if good else "FAILED"
            table.append([name, str(k), str(len(chosen)), f"{error:.1e}", verdict])
            progress(table[-1])
    return table


def sampled(runs: int, canary_runs: int) -> list[list[str]]:
    table = [["drafter, verifier", "runs", "cells", "accepted per step", "z", "p", "verdict"]]
    for at, (name, pair) in enumerate(laws.PAIRS.items()):
        fit = laws.fit(*pair(), runs, at * runs)  # rows of the same seeds would be one measurement
        verdict = "exact" if abs(fit.z) < laws.EXACT else "FAILED"
        table.append(row(name, runs, fit, verdict))
    for name, pair in laws.CANARIES.items():
        fit = laws.fit(*pair(), canary_runs)
        verdict = "caught" if fit.z > laws.CAUGHT else "FAILED"
        table.append(row(f"canary: {name}", canary_runs, fit, verdict))
    return table


def row(name: str, runs: int, fit: laws.Fit, verdict: str) -> list[str]:
    numbers = [f"{fit.accepted:.2f}", f"{fit.z:.2f}", f"{fit.p:.2g}"]
    made = [name, f"{runs:,}", str(fit.cells), *numbers, verdict]
    progress(made)
    return made


def progress(line: list[str]) -> None:
    print(time.strftime("%H:%M:%S"), *line, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--canary-runs", type=int, default=CANARY_RUNS)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    engine = sampled(chosen.runs, chosen.canary_runs)
    rule = enumerated()
    failed = sum(line[-1] == "FAILED" for line in engine + rule)
    save(
        "decoding_law.md",
        card("Exactness of decoding with drafts")
        + f"**{failed} of {len(engine) + len(rule) - 2} checks failed.**\n\n"
        "## Whole sequences through the engine\n\n"
        f"A random Llama of {laws.VOCABULARY} tokens writes {laws.LENGTH}, with guidance "
        f"{laws.SCALE:g}, temperature {laws.TEMPERATURE:g}, top-k {laws.TOP_K} and an end of "
        "sequence, in batches whose rows accept different numbers of drafts. Counts of all "
        "sequences against their probabilities by plain forwards; cells with an expectation below "
        f"5 are joined. z = (chi2 - dof) / sqrt(2 dof). Every row has seeds of its "
        "own: row r counted from 0 those from r runs on; canaries start at 0. The "
        f"thresholds were fixed before the first look and have stayed: |z| < {laws.EXACT:g} is "
        f"exact, z > {laws.CAUGHT:g} is caught. After it the draft model was made to disagree more "
        "and two canaries stronger, which had been too weak to be seen. Canaries are rules or "
        "drafters with a known bias.\n\n" + markdown(engine) + "\n## Rules, enumerated\n\n"
        "Every tuple of siblings and every way to accept or reject it, in float64: vocabularies of "
        "4 to 8, random p and q, a quarter with zeros, a tenth with p = q, a tenth with a q far "
        "too sure of itself. Threshold 1e-12.\n\n" + markdown(rule),
    )
    raise SystemExit(bool(failed))


if __name__ == "__main__":
    main()
