"""Question files in the benchmarks' own forms, and what is said about wrong ones."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from mmtok.errors import InputError
from mmtok.eval import build, registry, score
from mmtok.eval.base import check_items
from mmtok.eval.evaluation import common_keep, limited, variants
from mmtok.eval.objects import coco_synonyms
from mmtok.eval.subtitles import on_screen, read_srt

DATA = Path(os.environ.get("MMTOK_DATA", "not-given"))
QUESTIONS = [
    {"question_id": 1, "image": "a.jpg", "text": "Is there a dog in the image?", "label": "yes"},
    {"question_id": 2, "image": "a.jpg", "text": "Is there a cat in the image?", "label": "no"},
]
VIDEOS = """[
  {"video_id": "001", "duration": "short", "domain": "Knowledge", "sub_category": "Physics",
   "questions": [
     {"question_id": "001-1", "task_type": "Counting, of ]things",
      "question": "How many balls roll?", "options": ["A. 1", "B. 2", "C. 3", "D. 4",],
      "answer": "B", "response": "",},
   ],},
  {"video_id": "002", "duration": "long", "domain": "Sports", "sub_category": "Ball games",
   "questions": [
     {"question_id": "002-1", "task_type": "Order", "question": "What comes last?",
      "options": ["a", "b", "c", "d", "e", "f", "g", "h"], "answer": "H"}
   ]}
]"""


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def lines(rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_every_task_is_registered_under_its_file():
    names = {"chair", "mme", "pope", "scenes", "scenes-video", "videomme"}
    assert names <= set(registry.names())
    assert build("scenes_video").name == build("scenes-video").name == "scenes-video"
    with pytest.raises(InputError, match="did you mean 'pope'"):
        build("popes")
    with pytest.raises(InputError, match="unknown argument of chair"):
        build("chair(cut=True)")
    with pytest.raises(InputError, match="frames must be an int"):
        build("videomme(frames=0)")


def test_the_pack():
    still, clips = build("scenes").items(), build("scenes-video").items()
    assert (len(still), len(clips)) == (2733, 240)
    assert {i.answer for i in still} == {"yesno", "word"}
    assert {i.split for i in clips} == {"choice", "open"}
    check_items([*still, *clips])


def test_pope_reads_the_official_form_and_custom_sets(tmp_path):
    for split in ("random", "popular"):
        write(tmp_path / f"coco_pope_{split}.json", lines(QUESTIONS))
    items = build("pope", questions=tmp_path, suffix="\nOne word.").items()
    assert [item.key for item in items] == [
        *(("random", "1"), ("random", "2"), ("popular", "1"), ("popular", "2"))
    ]
    assert items[0].text == "Is there a dog in the image?\nOne word."
    assert items[0].file == tmp_path / "a.jpg"
    mine = [row | {"question_id": None} for row in QUESTIONS[:1]]
    mine += [{k: v for k, v in row.items() if k != "question_id"} for row in QUESTIONS[1:]]
    own = build("pope", questions=write(tmp_path / "my.json", json.dumps(mine)), media=tmp_path)
    assert [item.key for item in own.items()] == [("my", "1"), ("my", "2")]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (lines([QUESTIONS[0] | {"label": "maybe"}]), "label 'maybe', expected yes or no"),
        (lines([{"image": "a.jpg", "label": "yes"}]), "no 'text'"),
        ("not json\n", "line 1: expected one JSON object"),
        (r'{"image": "a.jpg", "text": "a dog \ud800?", "label": "yes"}' + "\n", "no UTF-8"),
        ("[1, 2]", "entry 1: expected an object"),
        ("", "is empty"),
    ],
)
def test_wrong_questions_are_named(text, said, tmp_path):
    task = build("pope", questions=write(tmp_path / "q.json", text))
    with pytest.raises(InputError, match=said):
        check_items(task.items())


def test_doubled_questions_and_missing_pictures_are_named_at_once(tmp_path):
    file = write(tmp_path / "q.json", lines([*QUESTIONS, QUESTIONS[0]]))
    with pytest.raises(InputError, match="question 1 of split 'q' is there twice"):
        check_items(build("pope", questions=file).items())
    file = write(tmp_path / "q.json", lines(QUESTIONS))
    with pytest.raises(InputError, match=r"1 of 1 media files are missing \(.*a\.jpg\)"):
        check_items(build("pope", questions=file).items())
    with pytest.raises(InputError, match="pope needs questions"):
        build("pope").items()


def test_video_mme_reads_the_official_structure(tmp_path):
    task = build("videomme", questions=write(tmp_path / "v.json", VIDEOS))
    one, two = task.items()
    assert (one.key, one.label, one.options) == (("short", "001-1"), "B", ("1", "2", "3", "4"))
    assert one.meta["task_type"] == "Counting, of ]things"
    assert one.text == (
        "Select the best answer to the following multiple-choice question based on the video. "
        "Respond with only the letter (A, B, C, or D) of the correct option.\n"
        "How many balls roll?\nA. 1\nB. 2\nC. 3\nD. 4\nThe best answer is:"
    )
    assert (two.label, len(two.options)) == ("H", 8)
    assert two.file == tmp_path / "002.mp4"
    row = {"video_id": "7", "videoID": "xyz", "duration": "medium", "question_id": "7-1"}
    row |= {"question": "q?", "options": ["A. x", "C. y"], "answer": "A"}
    task = build("videomme", questions=write(tmp_path / "t.jsonl", lines([row])))
    with pytest.raises(InputError, match="not lettered A to B"):
        task.items()
    row["options"] = ["A. x", "B. y"]
    (item,) = build("videomme", questions=write(tmp_path / "t.jsonl", lines([row]))).items()
    assert item.file == tmp_path / "xyz.mp4"


def test_subtitles_are_those_at_the_sampled_frames(tmp_path):
    text = (
        '\ufeff1\r\n00:00:01,000 --> 00:00:02,000\r\n<font color="#fff">Hello</font>\r\nthere'
        "\r\n\r\n2\r\n00:00:02,000 --> 00:00:04,500\r\nlater\r\n\r\n3\r\n"
        "01:00:00.5 --> 01:00:01.0\r\nlast\r\n"
    )
    cues = read_srt(write(tmp_path / "001.srt", text))
    assert [cue.text for cue in cues] == ["Hello there", "later", "last"]
    assert on_screen(cues, [0.5, 1.0, 1.5]) == ["Hello there"]
    assert on_screen(cues, [2.0, 3600.6]) == ["later", "last"]
    with pytest.raises(InputError, match="no subtitle found"):
        read_srt(write(tmp_path / "x.srt", "hello"))

    class Seen:
        timestamps_s = (1.2, 4.6)

    questions = write(tmp_path / "v.json", VIDEOS)
    task = build("videomme", questions=questions, subtitles=tmp_path)
    one, two = task.items()
    shown = task.prompt(one, Seen())
    assert shown == f"This video's subtitles are listed below:\nHello there\n{one.text}"
    assert task.prompt(two, Seen()) == two.text
    assert build("videomme", questions=questions).prompt(one, Seen()) == one.text


def test_mme_reads_tables(tmp_path):
    table = "1.jpg\tIs it red? Please answer yes or no.\tYes\n1.jpg\tIs it blue?\tNo\tno\n\n"
    write(tmp_path / "color.txt", table)
    write(tmp_path / "color" / "images" / "1.jpg", "x")
    first, second = build("mme", questions=tmp_path).items()
    assert (first.key, first.label) == (("color", "1.jpg#1"), "yes")
    assert second.file == tmp_path / "color" / "images" / "1.jpg"
    with pytest.raises(InputError, match="line 1: expected picture, question and yes or no"):
        build("mme", questions=write(tmp_path / "bad.txt", "1.jpg\tIs it?\n")).items()


def test_chair_reads_rows_and_coco(tmp_path):
    rows = [{"image": "a.jpg", "objects": ["dog"], "captions": ["A puppy on a sofa"]}]
    (item,) = build("chair", questions=write(tmp_path / "r.jsonl", lines(rows))).items()
    assert item.label == ["couch", "dog"]
    coco = {
        "images": [{"id": 5, "file_name": "b.jpg"}],
        "categories": [{"id": 1, "name": "person"}],
        "annotations": [{"image_id": 5, "category_id": 1}],
    }
    texts = {"annotations": [{"image_id": 5, "caption": "A man rides a motor bike."}]}
    boxes = write(tmp_path / "instances.json", json.dumps(coco))
    said = write(tmp_path / "captions.json", json.dumps(texts))
    (item,) = build("chair", questions=boxes, captions=str(said)).items()
    assert (item.question_id, item.label) == ("b.jpg", ["motorcycle", "person"])
    odd = write(tmp_path / "r.jsonl", lines([rows[0] | {"objects": ["unicorn"]}]))
    with pytest.raises(InputError, match="'unicorn' is none of COCO's 80 classes"):
        build("chair", questions=odd).items()


def test_objects_are_found_by_their_longest_name():
    table = coco_synonyms()
    assert len(table.classes) == 80
    for text, found in {
        "A hot dog and two dogs": ["hot dog", "dog"],
        "The toilet seat, a bus stop, train tracks": ["toilet"],
        "An orange cat, an orange, and an orange and white bird": ["cat", "orange", "bird"],
        "A baby elephant with its mother": ["elephant"],
        "Teddy bears and polar bears": ["teddy bear", "bear"],
        "Two men with wine glasses, knives and mobile phones": [
            *("person", "wine glass", "knife", "cell phone")
        ],
        "a couple of kites": ["kite"],
        "A man's hat, the dogs' hats, it's a cat": ["person", "dog", "cat"],
        "The men\u2019s oxen and calves": ["person", "cow", "cow"],
        "": [],
    }.items():
        assert table.mentions(text) == found, text


def test_limits_spread_over_media_and_budgets_are_shared():
    items = build("scenes").items()
    some = limited(items, 100)
    assert len(some) <= 100
    assert len({item.medium for item in some}) > 8
    assert limited(items, None) == items
    each = Counter(item.medium for item in items)
    for count in (1, 10, 100, 1000):
        seen = Counter(item.medium for item in limited(items, count))
        assert all(seen[medium] == each[medium] for medium in seen)
        assert sum(seen.values()) <= max(count, max(each.values()))
    with pytest.raises(InputError, match="limit"):
        limited(items, 0)
    assert common_keep([0.5, 0.2]) == pytest.approx(0.1)
    assert common_keep([0.5, 64]) == 64
    assert common_keep([64, 0.5]) == common_keep([0.5, 64, 0.5]) == 32
    assert common_keep([64, 20, 1.0]) == 20
    specs = [[r.spec for r in variant] for variant in variants("todre(keep=0.1)", True, seed=3)]
    assert specs[1:] == [[], ["random(keep=0.1, seed=3)"]]
    assert [len(v) for v in variants(None, True)] == [0]
    assert len(variants("todre(keep=0.1)", False)) == 1


@pytest.mark.skipif(not (DATA / "pope").is_dir(), reason="MMTOK_DATA names no folder with pope/")
def test_the_official_nine_thousand_load_and_score():
    task = build("pope", questions=DATA / "pope")
    items = task.items()
    assert len(items) == 9000
    assert len({item.key for item in items}) == 9000
    rows = [item.facts() | {"answer": "yes"} for item in items]
    table = {line["split"]: line for line in score(task, rows, draws=100)}
    for split in ("random", "popular", "adversarial", "mean", "pooled"):
        assert table[split]["n"] == (
            3000 if split in ("random", "popular", "adversarial") else 9000
        )
        assert table[split]["accuracy"] == 0.5
        assert table[split]["f1"] == pytest.approx(2 / 3)
        assert table[split]["yes_ratio"] == 1.0
