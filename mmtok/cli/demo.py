"""`mmtok demo`: a sample scene and a sample clip, all tokens beside a tenth of them."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmtok.cli import options as opt
from mmtok.cli.checks import read_media
from mmtok.cli.output import answer, quiet, say, show, spoken
from mmtok.errors import InputError
from mmtok.table import render

if TYPE_CHECKING:
    from PIL.Image import Image

    from mmtok.pipeline import Pipeline, Result

PACK = Path(__file__).parents[1] / "eval" / "methods" / "data" / "scenes"
SPECS = {"all tokens": None, "todre": "todre(keep=0.1)", "random": "random(keep=0.1)"}


@dataclass(frozen=True)
class Sample:
    """One file of the held-out pack: (question, true answer) pairs about it."""

    file: Path
    questions: list[tuple[str, str]]


@dataclass(frozen=True)
class Shown:
    """What each variant made of a sample: answers per question, and the last of its results."""

    sample: Sample
    images: list[Image]
    clips: list[list[Image]]
    answers: list[dict[str, str]]
    results: dict[str, Result]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        rows = zip(self.sample.questions, self.answers, strict=True)
        return {
            "file": str(self.sample.file),
            "questions": [
                {"text": text, "truth": truth, "answers": given} for (text, truth), given in rows
            ],
            "ledgers": {name: result.ledger.to_dict() for name, result in self.results.items()},
        }


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("demo_out"),
    model: opt.Model = "tiny",
    dummy: opt.Dummy = False,
    device: opt.Device = "auto",
    as_json: opt.Json = False,
) -> None:
    """Show a scene and a clip, all tokens beside a tenth."""
    quiet()
    from mmtok import Pipeline, load
    from mmtok.models.outside import usable
    from mmtok.models.weights import pick_device

    pick_device(device)
    lvlm = load(model, dummy=dummy, device=device)
    pipes = {name: Pipeline(lvlm, spec) for name, spec in SPECS.items()}
    _make_folder(out)  # once there is a model, and before the minutes it may take to answer
    with usable(model if dummy else None):
        found = {name: _ask(pipes, sample) for name, sample in samples().items()}
    for name, shown in found.items():
        show(f"\n{name}: {shown.sample.file.name}\n")
        show(_answers(shown))
        show(_costs(shown))
    for name in ("all tokens", "todre"):
        show(f"ledger of the scene's last question, {name}\n")
        show(found["scene"].results[name].ledger.table())
    show("one run each is no measurement of time: see `mmtok profile`\n")
    pictures = _pictures(pipes, found, out)
    say("wrote " + " and ".join(str(picture) for picture in pictures))
    if as_json:
        made = {name: shown.to_dict() for name, shown in found.items()}
        answer({"model": model, **made, "pictures": [str(picture) for picture in pictures]})


def samples() -> dict[str, Sample]:
    """The scene with most sorts of questions, and the first clip of the pack."""
    rows = [json.loads(line) for line in (PACK / "questions.jsonl").read_text().splitlines()]
    asked: dict[str, dict[str, tuple[str, str]]] = defaultdict(dict)
    for row in rows:
        file = row.get("image") or row["video"]
        sort = f"{row['split']} {row['label']}" if row["label"] in ("yes", "no") else row["split"]
        if row["split"] not in ("popular", "adversarial"):
            asked[file].setdefault(sort, (row["text"], row["label"]))
    scene = max((f for f in asked if f.startswith("images/")), key=lambda f: len(asked[f]))
    clip = next(f for f in asked if f.startswith("clips/"))
    return {
        name: Sample(PACK / file, list(asked[file].values()))
        for name, file in (("scene", scene), ("clip", clip))
    }


def _make_folder(out: Path) -> None:
    """Raises InputError unless pictures can be written into `out`."""
    from mmtok.io.overlay import check_picture_path

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {out}: no folder can be made there ({error.strerror})") from error
    check_picture_path(out / "scene.png")


def _ask(pipes: dict[str, Pipeline], sample: Sample) -> Shown:
    images, clips = read_media([sample.file])
    frames = [clip.frames for clip in clips]
    answers, results = [], {}
    for number, (text, _) in enumerate(sample.questions):
        given = {}
        for name, pipe in pipes.items():
            last = number == len(sample.questions) - 1
            result = pipe.generate(images, text, clips, max_new_tokens=8, count=last)
            given[name] = result.text
            results[name] = result
        answers.append(given)
    return Shown(sample, images, frames, answers, results)


def _answers(shown: Shown) -> str:
    lines = [["question", "truth", *SPECS]]
    for (text, truth), given in zip(shown.sample.questions, shown.answers, strict=True):
        lines.append([text, truth, *(spoken(given[name]) for name in SPECS)])
    return render(lines, numbers=False)


def _costs(shown: Shown) -> str:
    from mmtok.accounting.ledger import si

    lines = [["", "visual tokens", "FLOPs", "KV bytes"]]
    for name, result in shown.results.items():
        total, tokens = result.ledger.total, result.ledger.meta["visual_tokens"]["out"]
        cells = (si(total.flops or 0), f"{total.kv_bytes:,}")
        lines.append([name, str(tokens), *cells])
    return render(lines, numbers=False)


def _pictures(pipes: dict[str, Pipeline], found: dict[str, Shown], out: Path) -> list[Path]:
    """Write one picture per sample: the variants side by side, or one row of frames for each."""
    from mmtok.io.overlay import save_picture
    from mmtok.views import View, draw, views

    written = []
    for sample, shown in found.items():
        panels = []
        for name, result in shown.results.items():
            seen = views(pipes[name].lvlm, result, shown.images, shown.clips)
            panels += [View(f"{name}, {view.title}", view.picture, view.kept) for view in seen]
        wide = len(panels) // len(pipes) if sample == "clip" else len(panels)
        written.append(save_picture(draw(panels, columns=wide), out / f"{sample}.png"))
    return written
