"""Sampling through the whole engine follows the target's law: chi-square over all sequences.

2,048 runs per pair and 4,096 per canary; `benchmarks/decoding_law.py` makes more than 30,000 of
the same.
"""

from __future__ import annotations

import pytest

from tests.laws import CANARIES, CAUGHT, EXACT, PAIRS, fit

RUNS, CANARY_RUNS = 2048, 4096


@pytest.mark.parametrize("pair", PAIRS)
def test_guided_and_warped_sampling_is_exact(pair: str) -> None:
    assert abs(fit(*PAIRS[pair](), RUNS).z) < EXACT


@pytest.mark.parametrize("canary", CANARIES)
def test_a_bias_is_caught(canary: str) -> None:
    assert fit(*CANARIES[canary](), CANARY_RUNS).z > CAUGHT
