"""What the benchmarks' pages say in words is worked out from their figures."""

from __future__ import annotations

from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def beside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def cell(tokens: str = "20 / 157", clip: float = 0.5, ms: float = 1.0) -> dict[str, object]:
    scores = {"clip": (clip, 0.4, 0.6)}
    return {
        "costs": {"tokens": tokens, "ms": ms},
        "scores": scores,
        "f1": {"random": 0.9},
        "yes": 0.5,
    }


def test_methods_that_come_out_alike_are_named() -> None:
    from benchmarks.pruning import HEAD, alike

    cells = {
        "stride": cell(),
        "todre": cell(clip=0.51),
        "fps": cell(ms=3.0),
        "pool": cell("19 / 157"),
    }
    assert alike(cells) == "Alike in tokens and in every score: stride, fps.\n\n"
    assert alike({"stride": cell(), "todre": cell(clip=0.51)}) == ""
    assert "reads a clip as separate pictures" in HEAD


@pytest.mark.parametrize(("ratio", "said"), [(1.4, "is not there"), (21.0, "As expected")])
def test_the_published_search_stands_beside_what_was_expected_of_it(
    ratio: float, said: str
) -> None:
    from benchmarks.selection import naive

    assert said in (line := naive(ratio))
    assert f"takes {ratio} times as long" in line
