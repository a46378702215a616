"""Runs: killed and resumed, in batches and one by one, with bad files, through the command line."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import mmtok
from mmtok.cli.app import main
from mmtok.errors import InputError
from mmtok.eval import build, evaluate
from mmtok.eval.batches import plan_batches
from mmtok.eval.evaluation import limited, load_run, report
from mmtok.eval.progress import reporter
from mmtok.eval.records import Records, read_records
from mmtok.eval.runner import cost_file, run

ROOT = Path(__file__).parents[1]
PACK = ROOT / "eval" / "data" / "scenes"
CONTRACT = {
    *("reduce", "split", "n", "accuracy", "precision", "recall", "f1", "yes_ratio"),
    *("unreadable", "visual_tokens", "prefill_flops", "ms"),
}


@pytest.fixture(scope="module")
def lvlm():
    return mmtok.load("tiny", device="cpu")


def small_pack(folder: Path, pictures: int = 3, clips: int = 0) -> Path:
    """A pack of its own with the first few scenes and clips."""
    rows = [json.loads(x) for x in (PACK / "questions.jsonl").read_text().splitlines()]
    wanted = {f"images/{i:04d}.jpg" for i in range(pictures)}
    wanted |= {f"clips/{i:04d}.mp4" for i in range(clips)}
    some = [row for row in rows if (row.get("image") or row.get("video")) in wanted]
    for name in wanted:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PACK / name, folder / name)
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    return folder


KILLED = """
import os, signal, sys
import mmtok
from mmtok.eval import build, evaluate
def told(spec):
    def progress(answered, total, failed):
        if answered >= 12:
            os.kill(os.getpid(), signal.SIGKILL)
    return progress
evaluate(mmtok.load("tiny", device="cpu"), build("scenes", media=sys.argv[1]),
         "todre(keep=0.1)", out=sys.argv[2], batch=4, progress=told, draws=0)
"""


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(lvlm, tmp_path):
    pack = small_pack(tmp_path / "pack", pictures=2)
    command = [sys.executable, "-c", KILLED, str(pack), str(tmp_path / "killed")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    (torn,) = (p for p in (tmp_path / "killed").glob("*.jsonl") if ".cost" not in p.name)
    before = torn.read_bytes()
    torn.write_bytes(before[:-25])  # as if the last write had not reached the disk whole
    cost_file(torn).write_bytes(cost_file(torn).read_bytes() + b'{"batch": 9, "pro')
    task = build("scenes", media=pack)
    resumed, whole = (
        evaluate(
            lvlm, task, "todre(keep=0.1)", out=tmp_path / name, batch=4, draws=0, baselines=False
        )
        for name in ("killed", "whole")
    )
    assert resumed.runs[0].file == torn
    assert len(before) > 500
    for one, two in zip(resumed.runs, whole.runs, strict=True):
        assert one.file.name == two.file.name
        assert one.file.read_bytes() == two.file.read_bytes()
        assert [cost["batch"] for cost in one.costs] == [cost["batch"] for cost in two.costs]
    without = [{k: v for k, v in row.items() if k != "ms"} for row in whole.rows]
    assert without == [{k: v for k, v in row.items() if k != "ms"} for row in resumed.rows]


@pytest.mark.parametrize("spec", [None, "todre(keep=0.1)", "random(keep=0.2)"])
def test_batches_answer_as_one_by_one(lvlm, spec, tmp_path):
    task = build("scenes")
    items = limited(task.items(), 24)
    pipe = mmtok.Pipeline(lvlm, spec)
    said = []
    for size, share in ((12, True), (1, False)):
        plan = plan_batches(items, size, lvlm.config, task.frames, share=share)
        made = run(pipe, task, plan, tmp_path / f"{size}.jsonl", {"batch": size})
        said.append({(r["split"], r["question_id"]): r["answer"] for r in made.rows})
    assert said[0] == said[1]
    assert len(said[0]) == len(items)


def test_batches_hold_like_with_like():
    config = mmtok.models.load.load_config("qwen2.5-vl-3b")
    items = build("scenes").items()[:60] + build("scenes-video").items()[:20]
    plan = plan_batches(items, 16, config, 8)
    assert sorted(item.key for batch in plan for item in batch.items) == sorted(
        item.key for item in items
    )
    assert all(len({item.kind for item in batch.items}) == 1 for batch in plan)
    assert {len(batch.prompts) for batch in plan if batch.items[0].kind == "video"} == {2}
    assert plan == plan_batches(items, 16, config, 8)


def test_a_bad_file_costs_its_own_rows(lvlm, tmp_path, capsys):
    pack = small_pack(tmp_path / "pack")
    (pack / "images" / "0001.jpg").write_bytes(b"\xff\xd8 not a picture")
    options = ("--questions", str(pack / "questions.jsonl"), "--images", str(pack))
    out = ("--out", str(tmp_path / "out"), "--batch", "8", "--draws", "20", "--json")
    code = main(["eval", "scenes", *options, *out])
    printed, told = capsys.readouterr()
    made = json.loads(printed.splitlines()[-1])
    assert code == 3
    (file,) = (Path(one["file"]) for one in made["runs"])
    _, rows = read_records(file)
    bad = [row for row in rows if "error" in row]
    assert {row["medium"] for row in bad} == {"images/0001.jpg"}
    assert all("answer" not in row and "0001.jpg" in row["error"] for row in bad)
    assert made["failed"] == len(bad) > 0
    assert f"{len(bad)} failed" in told
    assert sum(row["failed"] for row in made["rows"] if row["split"] not in ("mean", "pooled")) == (
        len(bad)
    )
    assert main(["eval", "score", str(file), "--draws", "0"]) == 3


def test_the_command_line(tmp_path, capsys):
    pack = small_pack(tmp_path / "pack", clips=2)
    common = ("--images", str(pack), "--out", str(tmp_path / "out"), "--draws", "50", "--json")
    common += ("--questions", str(pack / "questions.jsonl"))
    assert main(["eval", "scenes", *common, "--reduce", "todre(keep=0.1)"]) == 0
    printed, told = capsys.readouterr()
    made = json.loads(printed.splitlines()[-1])
    assert made["task"] == "scenes"
    assert all(set(row) >= CONTRACT for row in made["rows"])
    assert [one["reduce"].split("(")[0] for one in made["runs"]] == ["todre", "none", "random"]
    kept = {one["reduce"].split("(")[0]: one["tokens_kept"]["mean"] for one in made["runs"]}
    assert kept == {"todre": 20, "none": 196, "random": 20}
    card = made["runs"][0]
    wanted = {"model", "revision", "weights_hash", "prompt_hash", "frames", "pixels", "subtitles"}
    wanted |= {"stages", "peak_mib", "seed", "dtype", "versions", "tokens_kept", "attention"}
    assert wanted <= set(card)
    assert card["stages"]["prefill"]["flops_analytic"] > 0
    against = {(d["reduce"].split("(")[0], d["against"].split("(")[0]) for d in made["paired"]}
    assert against == {("todre", "none"), ("random", "none"), ("todre", "random")}
    assert "unreadable" in told
    files = [one["file"] for one in made["runs"]]
    assert main(["eval", "score", *files, "--draws", "50", "--json"]) == 0
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert again["rows"] == made["rows"]
    assert main(["eval", "scenes-video", *common, "--no-baselines", "--limit", "3"]) == 0
    clips = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert clips["runs"][0]["frames"] == 8
    assert clips["runs"][0]["tokens_in"]["mean"] == 8 * 196


def test_a_file_cut_short_is_marked_and_compared_on_what_it_has(lvlm, tmp_path):
    task = build("scenes", media=small_pack(tmp_path / "pack"))
    made = evaluate(lvlm, task, "stride(keep=0.5)", out=tmp_path, batch=8, draws=0)
    file = made.runs[0].file
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:9]))
    runs = [load_run(one.file) for one in made.runs]
    cut = report(task, runs, draws=0)
    assert {row["partial"] for row in cut.rows if row["reduce"].startswith("stride")} == {True}
    assert {row["partial"] for row in cut.rows if row["reduce"] == "none"} == {False}
    assert all(line["partial"] for line in cut.differences if line["reduce"].startswith("stride"))


def test_records_refuse_other_settings_and_mend_torn_lines(tmp_path):
    file = tmp_path / "a" / "rows.jsonl"
    records = Records(file, {"settings": {"batch": 1}})
    records.append([{"answer": "naïve 否"}])
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"answer": "to')
    assert Records(file, {"settings": {"batch": 1}}).rows == [{"answer": "naïve 否"}]
    assert file.read_bytes() == whole
    with pytest.raises(InputError, match="made with other settings"):
        Records(file, {"settings": {"batch": 2}})
    file.write_text('{"hello": 1}\n')
    with pytest.raises(InputError, match="holds no settings"):
        read_records(file)


def test_progress_shows_rate_and_time_to_go():
    said: list[str] = []
    told = reporter("scenes", said.append)
    told(10, 40, 0)
    told(40, 40, 2)
    assert len(said) == 1
    assert said[0].startswith("scenes: 40/40")
    assert "/s" in said[0]
    assert "2 failed" in said[0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nothing",), "unknown task 'nothing'"),
        (("pope",), "pope needs questions"),
        (("pope", "--questions", "nowhere.json"), "no such file"),
        (("scenes", "--parser", "lenient"), "unknown parser 'lenient'"),
        (("scenes", "--batch", "0"), "--batch must be at least 1"),
        (("scenes", "--limit", "0"), "--limit must be at least 1"),
        (("scenes", "--reduce", "todr"), "did you mean 'todre'"),
        (("score", "nowhere.jsonl"), "no such file"),
    ],
)
def test_wrong_input_ends_with_one_line(arguments, said, capsys):
    assert main(["eval", *arguments]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert "Traceback" not in err
