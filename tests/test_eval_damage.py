"""Files that are not what they should be: one line that says so, never a wrong figure."""

from __future__ import annotations

import json

import pytest

from mmtok.cli.app import main
from mmtok.errors import InputError
from mmtok.eval import build, score
from mmtok.eval.base import check_items
from mmtok.eval.card import ids_hash

CATEGORY, BOX = {"id": 1, "name": "dog"}, {"image_id": 5, "category_id": 1}
ROW = {"split": "random", "question_id": "1", "medium": "m", "text": "Is there a dog?"}
ROW |= {"answer_kind": "yesno", "label": "yes", "answer": "yes", "batch": 0}
SETTINGS = {"task": "pope", "scoring": {}, "questions": 1, "model": "tiny", "reduce": "none"}
COST = {"batch": 0, "prompts": 1, "stages": {"prefill": {"flops_analytic": 1.0}}}


def predictions(path, rows=(ROW,), **settings):
    lines = [{"settings": SETTINGS | settings}, *rows]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def refused(capsys, *arguments):
    assert main(["eval", *arguments]) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


@pytest.mark.parametrize(
    ("name", "made", "said"),
    [
        (
            "chair",
            {"images": [], "categories": [CATEGORY], "annotations": [BOX | {"category_id": 9}]},
            "category_id 9 is none",
        ),
        ("chair", {"images": [{"file_name": "a.jpg"}], "categories": [CATEGORY]}, "no 'id'"),
        ("chair", {"images": [5], "categories": [CATEGORY]}, "images 1: expected an object"),
        ("chair", [{"image": "a.jpg", "objects": ["dog"], "captions": 5}], "'captions' is '5'"),
        ("chair", [{"image": "a.jpg", "objects": "dog"}], "'objects' is 'dog'"),
        ("videomme", [{"video_id": "1", "questions": [5]}], "question 1: expected an object"),
        ("videomme", [{"video_id": "1", "questions": 5}], "expected a list of questions"),
    ],
)
def test_wrong_question_files_are_named(name, made, said, tmp_path):
    (tmp_path / "q.json").write_text(json.dumps(made))
    with pytest.raises(InputError, match=said):
        build(name, questions=tmp_path / "q.json").items()


def test_a_scene_without_its_label_is_named(tmp_path):
    row = {"image": "a.jpg", "split": "random", "question_id": 1, "text": "Is there a dog?"}
    (tmp_path / "q.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(InputError, match="question 1: no 'label'"):
        build("scenes", questions=tmp_path / "q.jsonl").items()


def test_names_that_are_too_long_are_missing_files(tmp_path, capsys):
    row = {"image": "a" * 5000, "text": "Is there a dog?", "label": "yes"}
    (tmp_path / "q.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(InputError, match="1 of 1 media files are missing"):
        check_items(build("pope", questions=tmp_path / "q.jsonl").items())


@pytest.mark.parametrize(
    "command", [("scenes",), ("sweep", "--task", "scenes", "--reduce", "todre")]
)
def test_seed_and_out_are_checked_first(command, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    assert "--seed must be at least 0" in refused(capsys, *command, "--seed", "-1")
    for out, said in (("file", "is a file"), ("file/deeper", "is a file"), ("x" * 300, "too long")):
        assert said in refused(capsys, *command, "--out", str(tmp_path / out))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"split": None}, "line 2: 'split' is 'None', expected text"),
        ({"answer": None}, "'answer' is 'None'"),
        ({"label": 5}, "'label' is '5'"),
        ({"meta": 3}, "'meta' is '3'"),
        ({"answer_kind": "essay"}, "answer_kind 'essay'"),
        ({"visual_tokens": [1]}, "visual_tokens"),
        ({"options": [1, 2]}, "must be strings"),
        ({"question_id": "2", "settings": 1}, ""),
    ],
)
def test_damaged_rows_are_named(change, said, tmp_path, capsys):
    file = predictions(tmp_path / "a.jsonl", [ROW | change])
    if said:
        assert said in refused(capsys, "score", file)
    else:
        assert main(["eval", "score", file, "--draws", "0"]) == 0


def test_damaged_heads_and_costs_are_named(tmp_path, capsys):
    file = tmp_path / "a.jsonl"
    file.write_text('{"settings": 3}\n' + json.dumps(ROW) + "\n")
    assert "line 1, settings: expected an object" in refused(capsys, "score", str(file))
    assert "'task' is '5'" in refused(capsys, "score", predictions(file, task=5))
    predictions(file)
    predictions(tmp_path / "a.cost.jsonl", [COST | {"stages": {"prefill": 5}}])
    assert "stage 'prefill'" in refused(capsys, "score", str(file))


def test_costs_among_the_files_are_skipped(tmp_path, capsys):
    file = predictions(tmp_path / "a.jsonl")
    costs = predictions(tmp_path / "a.cost.jsonl", [COST])
    assert main(["eval", "score", costs, file, "--draws", "0"]) == 0
    assert "holds costs" in refused(capsys, "score", costs)


def test_answers_of_other_kinds_or_questions_are_refused(tmp_path, capsys):
    file = predictions(tmp_path / "a.jsonl")
    said = refused(capsys, "score", file, "--task", "videomme")
    assert "videomme cannot score answers of kind yesno" in said
    file = predictions(tmp_path / "a.jsonl", ids_hash=ids_hash([("random", "2")]))
    assert "answers other questions" in refused(capsys, "score", file)
    file = predictions(tmp_path / "a.jsonl", ids_hash=ids_hash([("random", "1")]))
    assert main(["eval", "score", file, "--draws", "0"]) == 0


def test_runs_that_a_table_cannot_tell_apart_are_refused(tmp_path, capsys):
    one = predictions(tmp_path / "a.jsonl")
    other = predictions(tmp_path / "b.jsonl", model="large", reduce="todre(keep=1)")
    assert "several models (large, tiny)" in refused(capsys, "score", one, other)
    other = predictions(tmp_path / "b.jsonl")
    assert "both of reduce 'none'" in refused(capsys, "score", one, other)


def test_a_split_called_like_a_summary_is_no_summary():
    rows = [ROW | {"split": split} for split in ("mean", "random", "popular")]
    table = {line["split"]: line for line in score(build("pope"), rows, draws=0)}
    assert {name: line["n"] for name, line in table.items()} == {
        "random": 1,
        "popular": 1,
        "mean (split)": 1,
        "mean": 2,
        "pooled": 2,
    }
    (alone,) = score(build("videomme"), [ROW | {"split": "overall"}], draws=0)
    assert (alone["split"], alone["n"]) == ("overall (split)", 1)


def test_summaries_over_less_than_their_splits_are_noted():
    rows = [ROW | {"split": split} for split in ("random", "popular", "adversarial")]
    for name in ("pope", "scenes"):
        assert build(name).notes(rows) == build(name).notes(rows[:1]) == []
        (note,) = build(name).notes(rows[:2])
        assert note == "mean and pooled are over 2 of 3 splits: random, popular"


def test_failed_captions_are_noted():
    row = ROW | {"answer_kind": "caption", "label": ["dog"], "answer": "A dog."}
    failed = {k: v for k, v in row.items() if k != "answer"} | {"error": "x", "question_id": "2"}
    assert "1 failed captions are left out" in build("chair").notes([row, failed])[1]
    assert len(build("chair").notes([row])) == 1
