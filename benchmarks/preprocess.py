"""Preprocessing kept to its promises: nothing lost, killed runs resumed, workers agree, it is fast.

    python benchmarks/preprocess.py [--media cifar10-test.tar] [--items 2000] [--corrupt 20]

Without --media the pictures are those of the embedded model's held-out pack, each turned and scaled
until there are enough of them. Every run is a process of its own, as a user starts it; the naive
loop and ours are timed in turns on the same files.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from importlib.resources import files
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from card import ROOT, card, markdown, save
from PIL import Image
from safetensors.torch import save_file

import mmtok
from mmtok.models.reduction import Reduction
from mmtok.pruning import build
from mmtok.serving.features import decode, encode_batch, model_inputs
from mmtok.serving.preprocess import preprocess
from mmtok.serving.recipe import Recipe
from mmtok.serving.shards import read_manifest
from mmtok.serving.sources import list_sources
from mmtok.serving.work import Job

SCENES = Path(str(files("mmtok.eval.methods") / "data" / "scenes")) / "images"

THROUGHPUT = (
    "{} small files, median of {} runs in turns, model loaded before. Ours hashes every file, "
    "checks the features and flushes shards to the disk; the loop does not. Two processes: "
    "`--shards 2`, one thread each. The vision tower alone is one process with as many threads and "
    "batches of 8 that lie ready in memory: what ours at that batch size cannot beat, though other "
    "batch sizes may, and so may two processes where it has one thread.\n\n"
)
PHOTOGRAPHS = (
    "{} JPEG files of 3000 x 2000 pixels, where reading the file costs more than the model: this "
    "is what decoding ahead of the encoder is for.\n\n"
)


def make_media(folder: Path, media: Path | None, good: int, corrupt: int) -> None:
    """`good` different pictures and `corrupt` files that are none, spread among them."""
    folder.mkdir()
    if media is not None:
        for number, source in enumerate(islice(list_sources(media), good)):
            (folder / f"{number:05}{Path(source.name).suffix}").write_bytes(source.read())
    else:
        scenes = sorted(SCENES.iterdir())
        for number in range(good):
            turn, which = divmod(number, len(scenes))
            with Image.open(scenes[which]) as scene:
                side = max(scene.size) - 2 * (turn % 16)
                turned = scene.convert("RGB").resize((side, side)).rotate(7 * turn)
            turned.save(folder / f"{number:05}.png")
    whole = sorted(folder.iterdir())[0].read_bytes()
    kinds = [whole[: len(whole) // 2], b"", b"no picture", whole[:20]]
    for number in range(corrupt):
        data = kinds[number % 4]
        data += str(number).encode() if data else b""
        (folder / f"{number * good // max(corrupt, 1):05}-bad.png").write_bytes(data)


class Runs:
    """Starts `mmtok preprocess` on one folder of media."""

    def __init__(self, folder: Path, spec: str, more: Sequence[str] = ()) -> None:
        self.common = [str(folder), "--reduce", spec, "--json", *more]

    def start(self, out: Path, *more: str) -> subprocess.Popen[str]:
        # Ray gives each actor one thread, and sums differ in the last digit between thread counts
        own = {"OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [sys.executable, "-m", "mmtok", "preprocess", *self.common, "--out", str(out), *more],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)} | own,
        )

    def end(self, process: subprocess.Popen[str]) -> tuple[dict[str, Any], int, float]:
        """What a run printed, its exit code and its peak memory in MiB."""
        peak, out = 0, process.stdout
        while process.poll() is None:  # what wait4 says would include this process before exec
            with suppress(OSError, IndexError):
                status = Path(f"/proc/{process.pid}/status").read_text()
                peak = int(status.split("VmHWM:")[1].split()[0])
            time.sleep(0.02)
        lines = out.read().splitlines() if out else []
        return json.loads(lines[-1]) if lines else {}, process.returncode, peak / 1024

    def whole(self, out: Path, *more: str) -> tuple[dict[str, Any], int, float, float]:
        """The same for a run from start to end, and its seconds."""
        began = time.monotonic()
        made = self.end(self.start(out, *more))
        return *made, time.monotonic() - began

    def killed(self, out: Path, times: int, seed: int, seconds: float) -> list[int]:
        """Kill as many runs at random moments; how many shards there were after each."""
        rng, found = random.Random(seed), []
        for _ in range(times):
            before = _shards(out)
            process = self.start(out)
            while process.poll() is None and _shards(out) == before:
                time.sleep(0.005)
            time.sleep(rng.uniform(0, seconds / (times + 2)))
            process.send_signal(signal.SIGKILL)
            process.wait()
            if process.stdout:
                process.stdout.close()
            found.append(_shards(out))
        return found


def _shards(out: Path) -> int:
    return len(list((out / "shards").glob("*.jsonl")))


def promises(folder: Path, work: Path, args: argparse.Namespace) -> str:
    """Corrupt items, killed runs, divided runs and Ray."""
    runs = Runs(folder, args.reduce)
    made, code, _, seconds = runs.whole(work / "whole")
    rows = read_manifest(work / "whole")
    reasons = [row for row in rows if row["status"] == "error" and row["error"]]
    text = [
        f"{args.items} pictures and {args.corrupt} corrupt files: {made['done']} encoded, "
        f"{len(reasons)} in the manifest with a reason, exit code {code}, "
        f"{made['shards']} shards in {seconds:.1f} s.\n"
    ]
    table = [["run", "content hash", "same"]]

    def add(name: str, found: dict[str, Any]) -> None:
        same = found["content_hash"] == made["content_hash"]
        table.append([name, f"`{found['content_hash'][:16]}`", "yes" if same else "NO"])

    add("one process, uninterrupted", made)
    left = runs.killed(work / "killed", args.kills, args.seed, seconds)
    add(f"killed by SIGKILL with {left} shards done, resumed", runs.whole(work / "killed")[0])
    both = [runs.start(work / "parts", "--shards", "2", "--shard-index", str(i)) for i in (0, 1)]
    ended = [runs.end(process)[0] for process in both]
    add("two processes at once, `--shards 2`", runs.whole(work / "parts")[0])
    text.append(f"The two processes encoded {[e['done'] for e in ended]} items.\n")
    if find_spec("ray"):
        on_ray = ("--engine", "ray", "--dtype", "float32")
        add("`--engine ray`", runs.whole(work / "ray", *on_ray)[0])
    checked = subprocess.run([sys.executable, "-m", "mmtok", "verify", str(work / "killed")])
    text.append(f"`mmtok verify` of the killed folder: exit code {checked.returncode}.\n")
    return "\n".join([*text, markdown(table)])


def naive(folder: Path, out: Path, lvlm: Any, spec: str, recipe: Recipe) -> None:
    """What one writes first: read, encode, save, next."""
    out.mkdir()
    reduction = Reduction(lvlm.model, build(spec))
    for source in list_sources(folder):
        try:
            picture = decode(source, recipe)
        except mmtok.InputError:
            continue
        inputs = model_inputs(lvlm, [picture], recipe)
        (made,) = encode_batch(lvlm, reduction, [picture], inputs, recipe)
        save_file(made.tensors(), out / f"{source.name}.safetensors")


def photographs(folder: Path, count: int) -> None:
    """JPEG files of a camera's size, where the model's part is small beside decoding."""
    folder.mkdir()
    scenes = sorted(SCENES.iterdir())
    for number in range(count):
        with Image.open(scenes[number % len(scenes)]) as scene:
            scene.convert("RGB").resize((3000, 2000)).save(folder / f"{number:05}.jpg", quality=90)


def throughput(folder: Path, work: Path, args: argparse.Namespace) -> str:
    """Items a second of the naive loop and of ours, in turns, by batch size and threads."""
    lvlm, spec = mmtok.load("tiny", device="cpu"), args.reduce
    recipe = Recipe(
        model="tiny", revision="-", reduce=spec, text="", frames=None, fps=None, dtype="float32"
    )
    sources = list_sources(folder)
    spent = defaultdict[tuple[str, int], list[float]](list)
    for turn in range(args.repeats + 1):  # the first one warms up
        for threads in args.threads:
            torch.set_num_threads(threads)
            began = time.monotonic()
            naive(folder, work / f"{folder.name}-naive-{turn}-{threads}", lvlm, spec, recipe)
            spent["naive", threads].append(time.monotonic() - began)
            for batch in args.batch:
                out = work / f"{folder.name}-{turn}-{batch}-{threads}"
                began = time.monotonic()
                preprocess(sources, out, lvlm, build(spec), recipe, Job(batch_size=batch))
                spent[f"batch {batch}", threads].append(time.monotonic() - began)
            spent["the vision tower alone", threads].append(_tower(lvlm, len(sources)))
        two = _two(folder, work / f"{folder.name}-two-{turn}", args)
        spent["two processes", 1].append(two)
    seconds = {name: statistics.median(times[1:]) for name, times in spent.items()}
    base = min(seconds["naive", threads] for threads in args.threads)
    ours = min(found for (name, _), found in seconds.items() if name[:3] in ("bat", "two"))
    table = [["", "torch threads", "items/s", "against the best naive loop"]]
    for (name, threads), found in seconds.items():
        rate = f"{len(sources) / found:.1f}"
        table.append([name, str(threads), rate, f"{base / found:.2f}x"])
    return f"{markdown(table)}\nBest against best: {base / ours:.2f}x (target: 1.5x).\n"


def _tower(lvlm: Any, count: int) -> float:
    """Seconds of nothing but the vision tower on as many pictures, in batches of 8."""
    side = lvlm.model.config.vision_config.image_size
    pixels = torch.rand(8, 3, side, side)
    began = time.monotonic()
    with torch.inference_mode():
        for start in range(0, count, 8):
            lvlm.model.get_image_features(pixel_values=pixels[: count - start])
    return time.monotonic() - began


def _two(folder: Path, out: Path, args: argparse.Namespace) -> float:
    """Seconds of the slower of two processes, from where their model is loaded."""
    runs = Runs(folder, args.reduce)
    both = [runs.start(out, "--shards", "2", "--shard-index", str(index)) for index in range(2)]
    return max(float(runs.end(process)[0]["seconds"]) for process in both)


def memory(work: Path, args: argparse.Namespace) -> str:
    """Peak memory of two runs of different length."""
    table, peaks = [["items", "peak, MiB"]], []
    for count in args.memory:
        folder = work / f"in-{count}"
        make_media(folder, args.media, count, 0)
        made, _, peak, _ = Runs(folder, args.reduce).whole(work / f"out-{count}")
        peaks.append(peak)
        table.append([f"{made['done']:,}", f"{peak:.0f}"])
    more = 100 * (peaks[-1] / peaks[0] - 1)
    return f"{markdown(table)}\nPeak grows by {more:.1f}% (limit: 10%).\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--media", type=Path, help="What `mmtok preprocess` reads.")
    parser.add_argument("--items", type=int, default=2000)
    parser.add_argument("--corrupt", type=int, default=20)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reduce", default="todre(keep=0.25)")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--timed", type=int, default=512, help="Pictures of the timed runs.")
    parser.add_argument("--photos", type=int, default=64, help="Photographs of the timed runs.")
    parser.add_argument("--memory", type=int, nargs="+", default=[1000, 4000])
    parser.add_argument("--dry", action="store_true", help="Print, write no page.")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        make_media(work / "in", args.media, args.items, args.corrupt)
        make_media(work / "timed", args.media, args.timed, 0)
        photographs(work / "photos", args.photos)
        parts = {
            "Nothing lost, nothing twice": promises(work / "in", work, args),
            "Throughput": THROUGHPUT.format(args.timed, args.repeats)
            + throughput(work / "timed", work, args),
            "Throughput on photographs": PHOTOGRAPHS.format(args.photos)
            + throughput(work / "photos", work, args),
            "Memory": memory(work, args),
        }
    text = "\n".join(f"## {name}\n\n{part}" for name, part in parts.items())
    if args.dry:
        print(text)
    else:
        save("preprocess.md", card("Preprocessing") + text)


if __name__ == "__main__":
    main()
