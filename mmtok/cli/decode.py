"""`mmtok decode`: .mmt files back to media files."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmtok.cli import options as opt
from mmtok.cli.checks import at_least
from mmtok.cli.items import Job, enough_memory, finish, make_room, plan_jobs, run_all
from mmtok.cli.output import answer, say
from mmtok.errors import InputError

if TYPE_CHECKING:
    from mmtok.tokenizers import Tokenizer


def decode(
    files: opt.CodeFiles,
    tokenizer: Annotated[
        str | None,
        typer.Option("--tokenizer", help="What made the codes, with its weights, if it has any."),
    ] = None,
    out: opt.CodesOut = None,
    tokens: Annotated[
        int | None, typer.Option("--tokens", help="Decode the first so many tokens alone.")
    ] = None,
    device: opt.Device = "auto",
    overwrite: opt.Overwrite = False,
    as_json: opt.Json = False,
) -> None:
    """Turn codes back into media: name.png.mmt becomes name.png."""
    if tokens is not None:
        at_least("--tokens", tokens)
    from mmtok.io.media import SUFFIXES
    from mmtok.models.weights import pick_device
    from mmtok.tokenizers import build

    endings = [ending for kind in SUFFIXES.values() for ending in kind]
    jobs = plan_jobs(files, [".mmt"], out, endings, lambda name: name.removesuffix(".mmt"))
    where = pick_device(device)
    taken: dict[Path, Path] = {}

    @lru_cache(maxsize=2)  # a folder names as many tokenizers as it likes
    def made(spec: str) -> Tokenizer:
        return build(spec).to(where)

    def work(job: Job) -> dict[str, Any]:
        spec = tokenizer if tokenizer is not None else _stored_spec(job.source)
        return _decode_file(made(spec), job, tokens, overwrite, taken)

    if tokenizer is not None:
        with enough_memory(f"{tokenizer}: memory does not suffice for this tokenizer"):
            made(tokenizer)  # a wrong one is refused once, not for every file
    done, failed = run_all(jobs, lambda job: job.source, work)
    say(f"{len(done)} decoded, {len(failed)} failed")
    if as_json:
        answer({"items": done, "failed": failed})
    finish(done, failed)


def _stored_spec(path: Path) -> str:
    """The spec a file names, if it holds numbers and weights that ship: files do not choose files.

    Raises:
        InputError: it names anything else.
    """
    from mmtok.io.mmt import read_header
    from mmtok.models.zoo import embedded_tokenizers
    from mmtok.registry import parse_spec

    spec = read_header(path).tokenizer
    name, arguments = parse_spec(spec)
    for key, value in arguments.items():
        plain = isinstance(value, int | float)
        plain |= isinstance(value, str) and value.replace("-", "").isalnum()
        if key == "weights":  # others than those of this very tokenizer would be looked for
            shipped = embedded_tokenizers().get(value) if isinstance(value, str) else None
            plain = shipped is not None and parse_spec(shipped)[0] == name
        if not plain:
            raise InputError(f"{path}: made by {name} with {key}={value!r:.40}: pass --tokenizer")
    return spec


def _decode_file(
    tokenizer: Tokenizer, job: Job, tokens: int | None, overwrite: bool, taken: dict[Path, Path]
) -> dict[str, Any]:
    from mmtok.codes import check_shape
    from mmtok.io.media import SUFFIXES, save_media
    from mmtok.io.mmt import read_codes, read_header

    if tokens is not None and len(read_header(job.source).counts) > 1:
        codes = read_codes(job.source).trim(tokens)
    else:
        codes = read_codes(job.source, tokens=tokens)
    written = []
    for item in range(len(codes.ids)):
        target = job.target
        kind = check_shape(codes.shapes[item])
        if target.suffix.lower() not in SUFFIXES[kind]:
            target = target.with_name(target.name + SUFFIXES[kind][0])
        if len(codes.ids) > 1:
            target = target.with_name(f"{target.stem}-{item:04d}{target.suffix}")
        if (other := taken.get(target.absolute(), job.source)) != job.source:
            raise InputError(f"{other} has become {target} already: decode into another folder")
        make_room(target, job.source, overwrite)
        save_media(tokenizer.decode(codes.item(item))[0], target, codes.meta)
        taken[target.absolute()] = job.source
        say(f"{target}: from {codes.counts[item]} tokens")
        written.append(str(target))
    return {
        "path": str(job.source),
        "tokens": sum(codes.counts),
        "bytes": job.source.stat().st_size,
        "out": written[0] if len(written) == 1 else written,
    }
