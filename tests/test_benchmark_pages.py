"""What the benchmarks' pages say in words is worked out from their figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

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


def test_every_twin_of_tiny_flex_is_told_apart(tmp_path: Path) -> None:
    from benchmarks.flex import compared

    said = {"step": 3000, "batch": 64, "pictures": 20_000, "seed": 0, "seconds": 1200.0}
    folders = [tmp_path / "twin-resumed", tmp_path / "twin"]
    for folder in folders:
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"trained": said}))
    ours = {1: torch.tensor([16.0, 18.0]), 4: torch.tensor([20.0])}
    twins = {
        str(folder): {1: torch.tensor([14.0, 15.0]), 4: torch.tensor([21.0])} for folder in folders
    }
    resumed, plain = compared(ours, twins).splitlines()[2:]
    trained = "3,000 steps of 64 out of 20,000 pictures, seed 0, 20 minutes of one core"
    assert resumed == f"| twin-resumed | {trained}, resumed | 21.00 | +2.50 |"
    assert plain == f"| twin | {trained} | 21.00 | +2.50 |"


def test_some_rows_of_codecs_do_not_become_the_page(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks import codecs

    def refused(name: str, text: str) -> None:
        raise AssertionError(name)

    monkeypatch.setattr(codecs, "save", refused)
    monkeypatch.setattr(codecs, "measured", lambda *_: ["measured"])
    monkeypatch.setattr("sys.argv", ["codecs.py", "--only", "patchify"])
    codecs.main()
    assert "| measured |" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["codecs.py", "--only", "patchfy"])
    with pytest.raises(SystemExit):
        codecs.main()
