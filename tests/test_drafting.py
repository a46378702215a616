"""What the benchmark of decoding measures with: memory of one run, errors between inputs, ZipAR."""

from __future__ import annotations

import statistics
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from mmtok.decoding.drafters.lookup import Lookup
from mmtok.models.visual_ar import load_visual_ar


@pytest.fixture
def drafting(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    return import_module("drafting")


def test_the_peak_is_that_of_one_run_whatever_ran_before(drafting: Any) -> None:
    def peak(mib: int) -> float:
        def run(inputs: Any, seed: int, law: bool) -> Any:
            torch.ones(mib * 2**18)
            return drafting.Output([1])

        found = drafting.peak_mib(drafting.Method("d", "v", True, lambda: run), None)
        if found is None:
            pytest.skip("this system tells no peak memory")
        return float(found)

    assert 190 < peak(200) < 230
    assert 5 < peak(10) < 40


def test_the_error_of_a_mean_is_that_between_clusters(drafting: Any) -> None:
    values = [0.1, 0.4, 0.2, 0.7]
    alone = drafting.clustered([[x] for x in values])
    assert alone.value == pytest.approx(0.35)
    assert alone.error == pytest.approx(statistics.stdev(values) / 2)
    copied = drafting.clustered([[x] * 5 for x in values])  # no more is known than before
    assert copied.error == pytest.approx(alone.error)
    assert (copied.n, alone.n) == (20, 4)
    assert drafting.clustered([values, []]) is None


def test_zipar_of_a_whole_row_is_plain_greedy_decoding(drafting: Any) -> None:
    zipped = import_module("picture_quality").zipped
    painter = load_visual_ar("tiny-ar")
    kinds = ["bag", "sneaker"]
    codes, forwards = zipped(painter, kinds, 8, 1.5, 0, 0.0)
    plain = painter.generate(kinds, Lookup(), guidance=1.5, temperature=0.0).sequences
    assert torch.equal(codes, plain[:, 1:])
    assert forwards == painter.tokens
