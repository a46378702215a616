"""`mmtok generate`: pictures of a class by a visual autoregressive model, decoded with drafts."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmtok.cli import options as opt
from mmtok.cli.checks import at_least
from mmtok.cli.output import answer, quiet, say
from mmtok.errors import InputError
from mmtok.io.files import check_name

if TYPE_CHECKING:
    from torch import Tensor

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


Kind = Annotated[str, typer.Option("--class", help="What to show, such as sneaker.")]
Out = Annotated[Path, typer.Option("--out", help="The pictures, in a grid (.png).")]
Generator = Annotated[str, typer.Option("--model", help="tiny-ar, or a folder.")]
DrafterSpec = Annotated[
    str, typer.Option("--drafter", help='Such as "rsdc(branching=(3, 2))"; see `mmtok list`.')
]
DraftModel = Annotated[
    str | None, typer.Option("--draft-model", help="Folder.  [default: the model's own]")
]
VerifierSpec = Annotated[
    str | None, typer.Option("--verifier", help="[default: exact, or greedy at temperature 0]")
]
Guidance = Annotated[float, typer.Option("--guidance", help="Scale; 1 for none.")]
Temperature = Annotated[float, typer.Option("--temperature", help="0 decodes greedily.")]
Count = Annotated[int, typer.Option("--count", help="Pictures.")]
Scale = Annotated[int, typer.Option("--scale", help="Pixels of the file per pixel.")]
Seed = Annotated[int, typer.Option("--seed", help="Picture i draws from seed + i.")]


def generate(
    kind: Kind,
    out: Out,
    model: Generator = "tiny-ar",
    drafter: DrafterSpec = "draftmodel",
    draft_model: DraftModel = None,
    verifier: VerifierSpec = None,
    guidance: Guidance = 1.5,
    temperature: Temperature = 1.0,
    count: Count = 16,
    scale: Scale = 3,
    seed: Seed = 0,
    device: opt.Device = "auto",
    overwrite: opt.Overwrite = False,
    as_json: opt.Json = False,
) -> None:
    """Draw pictures of a class, and say what the drafts saved."""
    _check(out, overwrite, guidance, temperature, seed)
    at_least("--count", count)
    at_least("--scale", scale)
    quiet()
    from mmtok.models.causal import load_causal
    from mmtok.models.visual_ar import load_visual_ar
    from mmtok.models.weights import pick_device

    painter = load_visual_ar(model, pick_device(device))
    draft = None if draft_model is None else load_causal(draft_model, painter.model.device)
    drafts = painter.drafter(drafter, draft)
    rule = None if verifier is None else painter.verifier(verifier)
    began = time.perf_counter()
    made = painter.generate(
        [kind] * count, drafts, rule, guidance=guidance, temperature=temperature, seed=seed
    )
    took_ms = 1000 * (time.perf_counter() - began) - made.stats.ms.get("measure", 0.0)
    _write(painter.pictures(made.sequences), out, scale)
    row = {"drafter": drafter, "verifier": verifier or "exact", **_row(made.stats, took_ms)}
    _table(row, made.stats, painter.tokens)
    if as_json:
        answer({"images": [str(out)], "class": kind, "count": count, "rows": [row]})


def _check(out: Path, overwrite: bool, guidance: float, temperature: float, seed: int) -> None:
    check_name(out)
    if out.suffix.lower() not in _SUFFIXES:
        raise InputError(f"--out must end in {', '.join(_SUFFIXES)}, got {out}")
    if not out.parent.is_dir():
        raise InputError(f"--out: there is no folder {out.parent}")
    if out.exists() and not overwrite:
        raise InputError(f"{out} exists: pass --overwrite to replace it")
    if not 0 <= guidance <= 100:
        raise InputError(f"--guidance must be between 0 and 100, got {guidance}")
    if not 0 <= temperature <= 100:
        raise InputError(f"--temperature must be between 0 and 100, got {temperature}")
    if not 0 <= seed < 2**32:
        raise InputError(f"--seed must be between 0 and 2**32 - 1, got {seed}")


def _row(stats: Any, took_ms: float) -> dict[str, Any]:
    """The row of the acceptance table; `tv` where it was measured."""
    return {
        "lossless": stats.lossless,
        "accepted_per_forward": stats.accepted_per_step,
        "target_forwards": stats.target_forwards,
        "drafter_forwards": stats.drafter_forwards,
        "ms": took_ms,
        "tv": stats.mean_tv,
        "hits": stats.hits,
        "tried": stats.tried,
    }


def _table(row: dict[str, Any], stats: Any, tokens: int) -> None:
    """Print the acceptance table to stderr."""
    law = "exact" if row["lossless"] else "not measured"
    if row["tv"] is not None:
        law = f"lossy, total variation {row['tv']:.3f} a judged token"
    say(f"{row['drafter']} judged by {row['verifier']}: {law}")
    forwards = f"{row['target_forwards']} of the target (one token each: {tokens})"
    say(f"forwards: {forwards}, {row['drafter_forwards']} of the drafter; {row['ms']:.0f} ms")
    say(f"accepted a forward: {row['accepted_per_forward']:.2f}, and one token behind them")
    for depth, (hits, tried) in enumerate(zip(stats.hits, stats.tried, strict=True), start=1):
        say(f"  depth {depth:2}: {hits:5} of {tried:5}  {hits / tried:.2f}")


def _write(pictures: Tensor, out: Path, scale: int) -> None:
    """Write pictures (B, 3, H, W) in a grid as square as it gets."""
    from PIL import Image

    from mmtok.io.files import replacing

    count, _, height, width = pictures.shape
    columns = int(count**0.5 + 0.999)
    sheet = Image.new("RGB", (columns * width, -(-count // columns) * height))
    pixels = (pictures * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    for place, picture in enumerate(pixels):
        row, column = divmod(place, columns)
        sheet.paste(Image.fromarray(picture), (column * width, row * height))
    sheet = sheet.resize((sheet.width * scale, sheet.height * scale), Image.Resampling.NEAREST)
    with replacing(out) as beside:
        sheet.save(beside, format=Image.registered_extensions()[out.suffix.lower()])
