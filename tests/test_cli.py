"""The commands: what they print where, and the contract of their JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from mmtok.cli import demo as demo_command
from mmtok.cli.app import main
from mmtok.pruning import registry

DUMMY = ("--model", "llava", "--dummy")
STAGES = ("source", "encode", "reduce.score", "reduce.select", "prefill", "decode")
COLUMNS = {
    *("stage", "tokens_in", "tokens_out", "flops", "flops_analytic"),
    *("device_ms", "host_ms", "peak_mib", "kv_bytes"),
}


def photo(path: Path, size: tuple[int, int] = (120, 90), seed: int = 0) -> str:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return str(path)


def movie(path: Path, frames: int = 12) -> str:
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=4)
        stream.width, stream.height, stream.pix_fmt = 96, 80, "yuv420p"
        for number in range(frames):
            pixels = np.full((80, 96, 3), 20 * number, dtype=np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        file.mux(stream.encode())
    return str(path)


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[Any, str]:
    """The object on the last line of stdout, and stderr, of a command that must succeed."""
    code = main([*arguments, "--json"])
    out, err = capsys.readouterr()
    assert code == 0, err
    return json.loads(out.splitlines()[-1]), err


def test_run(tmp_path, capsys):
    overlay = tmp_path / "kept.png"
    files = [photo(tmp_path / "a.png"), photo(tmp_path / "b.jpg", (64, 200), 1)]
    clip = movie(tmp_path / "c.mp4")
    made, err = call(
        capsys,
        *("run", *files, clip, "--text", "what?", *DUMMY, "--reduce", "todre(keep=0.25)"),
        *("--frames", "3", "--max-new-tokens", "4", "--overlay", str(overlay)),
    )
    assert made["model"] == "llava"
    assert made["reduce"].startswith("todre(keep=0.25")
    assert isinstance(made["text"], str)
    rows = made["ledger"]["stages"]
    assert tuple(row["stage"] for row in rows) == STAGES
    assert all(set(row) >= COLUMNS for row in [*rows, made["ledger"]["total"]])
    by_stage = {row["stage"]: row for row in rows}
    assert by_stage["encode"]["tokens_out"] == (2 + 3) * 36
    assert by_stage["reduce.select"]["tokens_out"] == (2 + 3) * 9
    assert all(row["flops"] == row["flops_analytic"] for row in rows if row["stage"] != "source")
    assert made["ledger"]["meta"]["new_tokens"] == 4
    sheet = Image.open(overlay)
    assert sheet.width > 4 * 224  # five views in rows of four
    assert sheet.height > 2 * 224
    assert "prefill" in err


def test_run_without_json_prints_the_answer_alone(tmp_path, capsys):
    file = photo(tmp_path / "a.png")
    arguments = ["run", file, "--text", "what?", *DUMMY, "--max-new-tokens", "3"]
    made, _ = call(capsys, *arguments)
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert out.removesuffix("\n") == made["text"]
    assert "total" in err


def test_run_without_counting(tmp_path, capsys):
    file = photo(tmp_path / "a.png")
    made, _ = call(capsys, "run", file, "--text", "what?", *DUMMY, "--no-count")
    assert all(row["flops"] is None for row in made["ledger"]["stages"])
    assert made["ledger"]["total"]["flops_analytic"] > 0


def test_run_combines_reducers_and_samples_by_fps(tmp_path, capsys):
    clip = movie(tmp_path / "c.mp4")
    made, _ = call(
        capsys,
        *("run", clip, "--text", "what?", "--model", "llava_next_video", "--dummy", "--fps", "2"),
        *("--reduce", "stride(keep=0.5)", "--reduce", "random(keep=2)", "--no-count"),
    )
    frames = 3 * 2  # 3 s at 2 frames a second, each of 2 x 2 tokens; the budget is the clip's
    assert made["ledger"]["meta"]["visual_tokens"] == {"in": frames * 4, "out": 2}


def test_seed_draws_the_weights(tmp_path, capsys):
    file = photo(tmp_path / "a.png")
    same = ("run", file, "--text", "what?", *DUMMY, "--no-count")
    texts = [call(capsys, *same, "--seed", seed)[0]["text"] for seed in ("0", "0", "1")]
    assert texts[0] == texts[1] != texts[2]


def test_plan(capsys):
    made, err = call(capsys, "plan", "llava-1.5-7b", "--reduce", "random(keep=0.1)")
    assert {"stages", "prefill_flops", "kv_bytes", "visual_tokens"} <= set(made["baseline"])
    assert set(made["reduced"]) == set(made["baseline"])
    assert made["baseline"]["visual_tokens"] == 576
    assert made["reduced"]["visual_tokens"] == 58
    assert made["baseline"]["kv_bytes"] == (576 + 64) * 2 * 32 * 4096 * 2
    assert "prefill" in err


def test_plan_reads_height_before_width(capsys):
    tall, _ = call(capsys, "plan", "qwen2.5-vl-3b", "--image-size", "560x56")
    assert tall["baseline"]["visual_tokens"] == 20 * 2
    assert tall["baseline"] != call(capsys, "plan", "qwen2.5-vl-3b")[0]["baseline"]


def test_plan_of_a_clip(capsys):
    made, _ = call(
        capsys, "plan", "qwen2.5-vl-3b", "--frames", "8", "--image-size", "112x112", "--dtype",
        "float32", "--text-tokens", "0", "--new-tokens", "3",
    )  # fmt: skip
    assert made["meta"]["dtype"] == "float32"
    assert [row["stage"] for row in made["baseline"]["stages"]] == ["encode", "prefill", "decode"]


def test_list(capsys):
    made, _ = call(capsys, "list")
    kinds = ("reducers", "tokenizers", "drafters", "verifiers", "strategies", "tasks", "models")
    assert set(kinds) <= set(made)
    assert made["reducers"] == registry.names()
    assert "llava-1.5-7b" in made["models"]
    assert main(["list"]) == 0
    assert "todre" in capsys.readouterr().out


def test_profile(tmp_path, capsys):
    file = photo(tmp_path / "a.png")
    made, err = call(
        capsys,
        *("profile", file, "--text", "what?", *DUMMY, "--reduce", "random(keep=0.25)"),
        *("--repeats", "2", "--warmup", "0", "--new-tokens", "2"),
    )
    assert set(made["ratio"]) == {"prefill_ms", "total_ms", "flops", "predicted"}
    assert made["ratio"]["predicted"] > made["ratio"]["flops"] > 1
    assert [row["stage"] for row in made["baseline"]["stages"]] == ["encode", "prefill", "decode"]
    assert made["machine"]["torch"] == torch.__version__
    assert "FLOPs alone predict" in err


@pytest.fixture
def small_pack(tmp_path, monkeypatch):
    pack = tmp_path / "pack"
    for folder in ("images", "clips"):
        (pack / folder).mkdir(parents=True)
    photo(pack / "images" / "0.jpg")
    photo(pack / "images" / "1.jpg", seed=1)
    movie(pack / "clips" / "0.mp4", 4)
    rows = [
        {"split": "random", "image": "images/0.jpg", "text": "a?", "label": "yes"},
        {"split": "random", "image": "images/1.jpg", "text": "b?", "label": "yes"},
        {"split": "random", "image": "images/1.jpg", "text": "c?", "label": "no"},
        {"split": "popular", "image": "images/0.jpg", "text": "d?", "label": "no"},
        {"split": "clip", "video": "clips/0.mp4", "text": "e?", "label": "bag"},
    ]
    (pack / "questions.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    monkeypatch.setattr(demo_command, "PACK", pack)


@pytest.mark.usefixtures("small_pack")
def test_demo(tmp_path, capsys):
    made, err = call(capsys, "demo", *DUMMY, "--out", str(tmp_path / "new" / "out"))
    assert made["scene"]["file"].endswith("1.jpg")  # it has both a yes and a no
    assert [q["truth"] for q in made["scene"]["questions"]] == ["yes", "no"]
    for shown in (made["scene"], made["clip"]):
        assert list(shown["ledgers"]) == ["all tokens", "todre", "random"]
        assert all(ledger["total"]["flops"] > 0 for ledger in shown["ledgers"].values())
        for question in shown["questions"]:
            assert list(question["answers"]) == ["all tokens", "todre", "random"]
    scene, clip = (Image.open(path) for path in made["pictures"])
    assert scene.width > 3 * 224 > scene.height
    assert clip.width > 4 * 224
    assert clip.height > 3 * 224
    assert "b?" in err
    assert "truth" in err


@pytest.mark.parametrize(
    ("arguments", "code"), [(["--help"], 0), (["list", "--json"], 0), (["run"], 2), (["no"], 2)]
)
def test_start_up_imports_nothing_heavy(arguments, code):
    probe = (
        "import sys; from mmtok.cli.app import main; code = main(sys.argv[1:]);"
        "heavy = {'torch', 'transformers', 'numpy', 'PIL', 'av'} & set(sys.modules);"
        "sys.exit(f'imports {heavy}' if heavy else code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stderr


def test_python_m(tmp_path):
    command = [sys.executable, "-m", "mmtok", "run", str(tmp_path / "no.jpg"), "--text", "what?"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
