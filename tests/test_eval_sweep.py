"""Sweeps: variants, fronts, charts, and a report that no text can break out of."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from mmtok.cli.app import main
from mmtok.errors import InputError
from mmtok.eval import build
from mmtok.eval.chart import Mark, Scale, Series, chart, front
from mmtok.eval.evaluation import report
from mmtok.eval.examples import Answer, Example
from mmtok.eval.page import check_page_path, page
from mmtok.eval.runner import Run
from mmtok.eval.sweep import expand, headline, split_points, sweep_lines

PACK = Path(__file__).parents[1] / "eval" / "data" / "scenes"
HOSTILE = "</pre><script>alert(1)</script><img src=x onerror='alert(2)'>\" ' & \x00 \u202e ]]>"


def test_every_method_at_every_budget_beside_none_and_random():
    specs = ["todre", "fastv(layer=2)", "stride(keep=20)", "todre(keep=0.5) + fastv(keep=0.5)"]
    found = expand(specs, [0.5, 0.1], seed=3)
    assert [(v.series, v.keep) for v in found] == [
        ("none", None),
        *[("random", keep) for keep in (0.5, 0.1, 20, 0.25)],
        *[("todre", 0.5), ("todre", 0.1)],
        *[("fastv(layer=2)", 0.5), ("fastv(layer=2)", 0.1)],
        *[("stride", 20), ("todre + fastv", 0.25)],
    ]
    assert len({v.spec for v in found}) == len(found)
    assert all(v.reducers[0].seed == 3 for v in found if v.series == "random")
    assert [v.series for v in expand(["todre", "todre"], [0.5])] == ["none", "random", "todre"]
    one_or_all = expand(["todre"], [1, 1.0])
    assert [(v.series, repr(v.keep)) for v in one_or_all][1:3] == [
        ("random", "1"),
        ("random", "1.0"),
    ]
    with pytest.raises(InputError, match="every part of a chain"):
        expand(["todre + fastv(keep=0.5)"], [0.5])
    with pytest.raises(InputError, match="did you mean 'todre'"):
        expand(["todr"], [0.5])


def test_the_front_is_what_nothing_beats():
    draw = np.random.default_rng(0)
    for _ in range(50):
        points = [tuple(p) for p in draw.integers(0, 6, size=(8, 2)).tolist()]
        beaten = [any(q[0] <= p[0] and q[1] >= p[1] and q != p for q in points) for p in points]
        assert sorted(front(points)) == [i for i, lost in enumerate(beaten) if not lost]
    assert front([]) == []


def test_scales_hold_their_values_and_have_round_ticks():
    for low, high in ((20, 196), (0.71, 0.93), (3e9, 9e12), (5, 5), (0, 0), (-2, 3)):
        for log in (True, False):
            scale = Scale.over([low, high], 46, 368, log)
            assert 46 < scale.place(low) <= scale.place(high) < 368
            ticks = scale.ticks()
            assert ticks == sorted(set(ticks))
            assert 1 < len(ticks) < 16 or low == high
    assert Scale.over([20, 196], 0, 1, log=True).ticks() == [20, 50, 100, 200]


def test_a_chart_is_valid_xml_and_shows_every_variant():
    marks = [
        Mark(20, 0.7, (0.6, 0.8), HOSTILE.replace("\x00", ""), True),
        Mark(98, 0.9, None, "b", True),
    ]
    drawn = chart(
        [Series("a", "s0", "square", marks), Series("none", "none", "circle", [])],
        cost="tokens & more",
        score="<b>",
        base=0.9,
    )
    root = ElementTree.fromstring(drawn)
    looks = [node.get("class") for node in root.iter() if node.get("class")]
    assert [looks.count(x) for x in ("mark", "ring", "whisker", "front", "base")] == [2, 2, 1, 1, 1]
    inside = [v for n in root.iter() for k, v in n.attrib.items() if k in ("x1", "x2")]
    assert all(0 <= float(v) <= 380 for v in inside)
    assert "No figures" in chart([], cost="ms", score="accuracy")


class Read(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_data(self, data):
        self.text.append(data)


def fake_runs(variants, hostile=""):
    """A run per variant, better the more tokens there are, with one question that failed."""
    everything = build("scenes").items()
    items = [i for name in ("random", "popular", "colour") for i in everything if i.split == name]
    items = [i for i in items if i.medium < "images/0010.jpg"]
    runs = []
    for v in variants:
        share = 1.0 if v.keep is None else v.keep
        rows = []
        for n, item in enumerate(items):
            row = item.facts() | {"batch": 0, "visual_tokens": [196, round(196 * share)]}
            row["answer"] = item.label if n % 10 < 6 + 4 * share else f"perhaps {hostile}"
            rows.append(row)
        rows[3] = items[3].facts() | {"batch": 0, "error": f"OSError: {hostile}"}
        stages = {
            "encode": {"device_ms": 40.0, "flops_analytic": 10**9, "peak_mib": 9.0},
            "prefill": {"device_ms": 40.0 * share, "flops_analytic": 10**9 * share},
        }
        under = {"reduce": v.spec, "questions": len(rows), "model": f"tiny {hostile}"}
        runs.append(Run(Path("x"), under, rows, [{"batch": 0, "prompts": 1, "stages": stages}]))
    return runs


def test_the_headline_holds_costs_differences_and_fronts():
    variants = expand(["todre"], [0.5, 0.1])
    made = report(build("scenes"), fake_runs(variants), draws=50)
    found = headline(made, variants, draws=50)
    assert (found.split, found.score) == ("mean", "accuracy")
    none, half, tenth, todre_half, _ = found.points
    rows = {r["reduce"]: r for r in made.rows if r["split"] == "mean"}
    for point in found.points:
        row = rows[point.reduce]
        assert (point.value, point.interval) == (row["accuracy"], row["accuracy_ci"])
        assert (point.visual_tokens, point.flops) == (row["visual_tokens"], row["flops"])
        assert point.failed == 1
    assert none.minus_none is None
    assert todre_half.minus_random == (0.0, (0.0, 0.0))
    assert half.minus_random is None
    assert tenth.minus_none[0] == pytest.approx(tenth.value - none.value)
    assert tenth.value < half.value < none.value
    assert half.front == tenth.front == ("visual_tokens", "flops", "ms")
    assert none.front == half.front
    (colour,) = {p.value for p in split_points(found, "colour") if p.series == "none"}
    assert colour == next(r["accuracy"] for r in made.rows if r["split"] == "colour")
    lines = sweep_lines([found])
    assert len(lines) == 1 + len(variants)
    assert lines[1][1] == "none"


def test_lower_scores_win_where_the_task_says_so(monkeypatch):
    from mmtok.eval.methods.scenes import Scenes

    monkeypatch.setattr(Scenes, "lower_is_better", True)
    variants = expand([], [0.1])
    found = headline(report(build("scenes"), fake_runs(variants), draws=0), variants, draws=0)
    none, tenth = found.points
    assert none.value > tenth.value
    assert (none.front, tenth.front) == ((), ("visual_tokens", "flops", "ms"))
    assert build("chair", questions="x", media=".").lower_is_better


def test_no_text_breaks_out_of_the_page():
    variants = expand(["todre"], [0.5, 0.1])
    one, plain = (
        headline(report(build("scenes"), fake_runs(variants, text), draws=9), variants, draws=9)
        for text in (HOSTILE, "")
    )
    answers = [Answer("none", HOSTILE, True, []), Answer(HOSTILE, "", None, [(HOSTILE, "data:,")])]
    shown = [Example(HOSTILE, HOSTILE, HOSTILE, True, answers)]
    text = page([one], [shown])
    seen, clean = Read(text), Read(page([plain]))
    assert seen.tags.count("script") == clean.tags.count("script") == 1
    assert not [x for x in seen.attributes if x[1].startswith("on")]
    sources = [v for _, name, v in seen.attributes if name in ("src", "href")]
    assert sources == ["data:,"]
    assert "alert(1)" in "".join(seen.text)
    assert seen.tags.count("svg") > 6
    assert "OSError" in text
    assert not re.search(r"https?://", text)


def test_a_page_has_a_name_of_its_own(tmp_path):
    with pytest.raises(InputError, match="one HTML file"):
        check_page_path(tmp_path / "report.pdf")
    (tmp_path / "x.html").mkdir()
    with pytest.raises(InputError, match="one HTML file"):
        check_page_path(tmp_path / "x.html")


def test_the_command_line_writes_a_report_and_resumes(tmp_path, capsys):
    options = ("--reduce", "todre", "--keep", "0.1", "--keep", "20", "--examples", "1")
    options += ("--task", "scenes", "--task", "scenes-video(frames=2)", "--limit", "4")
    options += ("--out", str(tmp_path), "--draws", "20", "--device", "cpu", "--json")
    assert main(["eval", "sweep", *options]) == 0
    printed, told = capsys.readouterr()
    made = json.loads(printed.splitlines()[-1])
    assert [one["task"] for one in made["tasks"]] == ["scenes", "scenes-video"]
    assert [p["series"] for p in made["tasks"][0]["points"]] == [
        "none",
        *["random"] * 2,
        *["todre"] * 2,
    ]
    assert "best for its" in told
    html = Path(made["report"]).read_text()
    # one question, and of each series its cheapest budget: 3 pictures, and 2 frames for each of 3
    assert html.count("data:image/webp;base64,") == 3 + 3 * 2
    files = {file: file.read_bytes() for file in tmp_path.glob("*.jsonl")}
    assert len(files) == 2 * 2 * 5
    assert main(["eval", "sweep", *options]) == 0
    assert files == {file: file.read_bytes() for file in tmp_path.glob("*.jsonl")}
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert again == made


def test_a_bad_file_is_in_the_report_and_the_exit_code(tmp_path, capsys):
    pack = PACK / "images"
    (tmp_path / "good.jpg").write_bytes((pack / "0000.jpg").read_bytes())
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8 not a picture")
    asked = [("good.jpg", "yes"), ("bad.jpg", "no")]
    rows = [{"image": name, "text": "Is there a top?", "label": label} for name, label in asked]
    (tmp_path / "questions.json").write_text(json.dumps(rows))
    task = f"pope(questions={str(tmp_path / 'questions.json')!r}, media={str(tmp_path)!r})"
    options = ("--reduce", "stride(keep=0.1)", "--task", task, "--out", str(tmp_path / "out"))
    options += ("--report", str(tmp_path / "mine.html"), "--device", "cpu", "--draws", "9")
    assert main(["eval", "sweep", *options]) == 3
    assert str(tmp_path / "mine.html") in capsys.readouterr().err
    text = (tmp_path / "mine.html").read_text()
    assert "3 answers failed" in text
    assert text.count("bad.jpg</td>") == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--task", "scenes", "--reduce", "todre", "--keep", "half"), "--keep 'half'"),
        (("--task", "scenes", "--reduce", "todre", "--keep", "2.0"), "keep must be"),
        (("--task", "nothing", "--reduce", "todre"), "unknown task"),
        (("--task", "scenes", "--reduce", "todre", "--report", "x.pdf"), "one HTML file"),
        (("--task", "scenes", "--reduce", "todre", "--examples", "-1"), "--examples"),
    ],
)
def test_wrong_input_ends_with_one_line(arguments, said, capsys):
    assert main(["eval", "sweep", *arguments]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert "Traceback" not in err
