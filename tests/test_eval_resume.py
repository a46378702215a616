"""What a run must not take over from an earlier one, and what it must try again."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest

import mmtok
from mmtok.errors import InputError
from mmtok.eval import build, evaluate
from mmtok.eval.card import media_hash, prompt_hash, settings
from mmtok.eval.records import locked
from mmtok.eval.runner import cost_file
from mmtok.io.image import load_image
from tests.test_eval_runner import small_pack
from tests.test_eval_tasks import VIDEOS, write


@pytest.fixture(scope="module")
def lvlm():
    return mmtok.load("tiny", device="cpu")


def few(folder, pictures=1, questions=3):
    """A pack with so many questions about each picture, yes/no ones of the first split."""
    pack = small_pack(folder, pictures=pictures)
    rows = [json.loads(x) for x in (pack / "questions.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "image" in row and row["split"] == "random"]
    some = [[r for r in rows if r["image"] == f"images/{i:04d}.jpg"] for i in range(pictures)]
    lines = [json.dumps(row) + "\n" for each in some for row in each[:questions]]
    (pack / "questions.jsonl").write_text("".join(lines))
    return pack


def quick(lvlm, pack, out):
    task = build("scenes", media=pack)
    return evaluate(lvlm, task, out=out, batch=8, draws=0, baselines=False)


def test_other_labels_or_pictures_are_other_runs(lvlm, tmp_path):
    pack, out = few(tmp_path / "pack"), tmp_path / "out"
    first = quick(lvlm, pack, out)
    assert quick(lvlm, pack, out).runs[0].file == first.runs[0].file
    rows = [json.loads(x) for x in (pack / "questions.jsonl").read_text().splitlines()]
    flip = {"yes": "no", "no": "yes"}
    rows = [row | {"label": flip.get(row["label"], row["label"])} for row in rows]
    (pack / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    second = quick(lvlm, pack, out)
    assert second.runs[0].file != first.runs[0].file
    one, two = ({r["split"]: r["accuracy"] for r in x.rows} for x in (first, second))
    assert two["random"] == pytest.approx(1 - one["random"])
    picture = pack / "images" / "0000.jpg"
    picture.write_bytes(picture.read_bytes() + b"\0")
    assert quick(lvlm, pack, out).runs[0].file != second.runs[0].file


def test_options_videos_and_subtitles_count_too(lvlm, tmp_path):
    for name in ("001", "002"):
        write(tmp_path / f"{name}.mp4", "not a video")
    write(tmp_path / "001.srt", "1\n00:00:01,000 --> 00:00:02,000\nHello\n")
    questions = write(tmp_path / "v.json", VIDEOS)
    task = build("videomme", questions=questions, subtitles=tmp_path)
    items = task.items()
    before, seen = prompt_hash(task, items), media_hash(items)
    other = [dataclasses.replace(items[0], options=("1", "2", "3", "5")), items[1]]
    assert prompt_hash(task, other) != before
    write(tmp_path / "001.srt", "1\n00:00:01,000 --> 00:00:02,000\nBye\n")
    assert prompt_hash(task, items) != before
    os.utime(items[0].file, ns=(1, 1))
    assert media_hash(items) != seen
    card = settings(lvlm, task, items, batch=8, seed=0)
    assert card["subtitles"] == "at sampled frames; 1 of 2 videos have some"


def test_subtitles_that_are_not_there_or_not_read_are_refused(tmp_path):
    questions = write(tmp_path / "v.json", VIDEOS)
    with pytest.raises(InputError, match="is no folder"):
        build("videomme", questions=questions, subtitles=tmp_path / "nowhere")
    with pytest.raises(InputError, match="is no folder"):
        build("videomme", questions=questions, subtitles=Path("x" * 5000))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no video of .* has its <video>\.srt"):
        build("videomme", questions=questions, subtitles=tmp_path / "empty").items()
    with pytest.raises(InputError, match="pope reads no subtitles"):
        build("pope", questions=questions, subtitles=tmp_path)


def test_what_failed_is_tried_again(lvlm, tmp_path, monkeypatch):
    task = build("scenes", media=few(tmp_path / "pack", pictures=2))
    whole = quick(lvlm, task.media, tmp_path / "whole").runs[0]
    broken = load_image

    def sometimes(file):
        if file.name == "0001.jpg":
            raise OSError("the disk was away")
        return broken(file)

    monkeypatch.setattr("mmtok.eval.runner.load_image", sometimes)
    bad = quick(lvlm, task.media, tmp_path / "out").runs[0]
    assert 0 < bad.failed < len(bad.rows)
    again = quick(lvlm, task.media, tmp_path / "out").runs[0]
    assert again.file.read_bytes() == bad.file.read_bytes()
    monkeypatch.undo()
    mended = quick(lvlm, task.media, tmp_path / "out").runs[0]
    assert mended.failed == 0
    assert mended.file.read_bytes() == whole.file.read_bytes()
    assert {p.suffix for p in mended.file.parent.iterdir()} == {".jsonl"}


def test_two_processes_do_not_write_one_file(lvlm, tmp_path):
    pack = few(tmp_path / "pack")
    first = quick(lvlm, pack, tmp_path / "out").runs[0]
    with (
        locked(cost_file(first.file)),
        pytest.raises(InputError, match="another process is writing"),
    ):
        quick(lvlm, pack, tmp_path / "out")
    assert quick(lvlm, pack, tmp_path / "out").runs[0].rows == first.rows


def test_a_file_that_answers_other_questions_is_noticed(lvlm, tmp_path):
    pack = few(tmp_path / "pack")
    file = quick(lvlm, pack, tmp_path / "out").runs[0].file
    head, first, *_ = file.read_text().splitlines()
    file.write_text(head + "\n" + json.dumps(json.loads(first) | {"question_id": "x"}) + "\n")
    with pytest.raises(InputError, match=r"'x' of .* which is not asked"):
        quick(lvlm, pack, tmp_path / "out")
    file.write_text(head + '\n{"split": "random"}\n')
    with pytest.raises(InputError, match=r"line 2: 'question_id' is 'None'"):
        quick(lvlm, pack, tmp_path / "out")
