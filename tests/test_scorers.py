"""Scores of frames by a model, and what is read from its answers."""

from __future__ import annotations

import pytest
import torch

import mmtok
from mmtok import Pipeline
from mmtok.accounting.flops import count_flops
from mmtok.accounting.timing import StageTimer
from mmtok.pruning import QuoTA
from mmtok.pruning.scorers import clip_scores, decouple, read_objects, yes_scores
from tests.conftest import picture


@pytest.mark.parametrize(
    ("answer", "want"),
    [
        ('["red bag", "boot"]', ["red bag", "boot"]),
        ('Sure: ["bag", "bag", " a  boot "] - done', ["bag", "a boot"]),
        ("[]", []),
        ("none", []),
        ("['bag']", []),
        ("[__import__('os').system('x')]", []),
        ('["bag", 3]', []),
        ('{"a": ["bag"]', ["bag"]),
        ('["' + "x" * 61 + '", "bag"]', ["bag"]),
        ('["a\\u0000b", "bag"]', ["bag"]),
        ("[" * 50000 + "]" * 50000, []),
        ("] [", []),
    ],
)
def test_objects_are_read_strictly(answer: str, want: list[str]) -> None:
    assert read_objects(answer) == want
    assert len(read_objects(str([f"x{i}" for i in range(50)]).replace("'", '"'))) == 16


def test_a_model_scores_frames_and_the_ledger_shows_it() -> None:
    lvlm = mmtok.load("tiny")
    frames = [picture(i, 112, 112) for i in range(3)]
    timer = StageTimer(lvlm.device)
    scores = yes_scores(lvlm, frames, "Is there a bag in the image?", batch=2, meter=timer)
    inputs = lvlm.inputs(frames[:1], "Is there a bag in the image?")
    assert all(0 <= score <= 1 for score in scores)
    for frame, score in zip(frames, scores, strict=True):
        alone = yes_scores(lvlm, [frame], "Is there a bag in the image?")
        assert alone[0] == pytest.approx(score, abs=1e-4)
    assert decouple(lvlm, "Is there a bag?", max_new_tokens=4) == []
    quota = QuoTA(keep=0.5, scorer=(scores[0],))
    stages = {s.stage: s for s in Pipeline(lvlm, quota).run(inputs, timer=timer).ledger.stages}
    assert (stages["reduce.score"].host_ms or 0) > 0
    with count_flops() as counted:
        yes_scores(lvlm, frames[:1], "Is there a bag in the image?", meter=counted)
    assert counted.by_stage["reduce.score"] == counted.total > 0


def ids(texts: list[str]) -> torch.Tensor:
    return torch.tensor([len(text) for text in texts])


def test_clip_scores_rank_by_cosine() -> None:
    class Fake:
        def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
            return pixels

        def encode_text(self, ids: torch.Tensor) -> torch.Tensor:
            return torch.tensor([[1.0, 0.0]])

    vectors = [torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0]), torch.tensor([3.0, 3.0])]
    frames = list(range(3))
    got = clip_scores(Fake(), vectors.__getitem__, ids, frames, "what?")  # type: ignore[arg-type]
    assert got == pytest.approx([1.0, 0.0, 0.5**0.5])
    same = clip_scores(Fake(), vectors.__getitem__, ids, [0, 0], "what?")  # type: ignore[list-item]
    assert same == [1.0, 1.0]
