"""`mmtok eval sweep`: methods x budgets x tasks, as one table and one HTML report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmtok.cli import options as opt
from mmtok.cli.checks import at_least
from mmtok.cli.output import answer, quiet, say, show
from mmtok.errors import InputError
from mmtok.eval.files import check_folder

if TYPE_CHECKING:
    from mmtok.eval.base import Task
    from mmtok.eval.runner import Progress
    from mmtok.eval.sweep import TaskSweep, Variant
    from mmtok.models.lvlm import LVLM

SOME_FAILED = 3


def sweep(
    reduce: Annotated[
        list[str],
        typer.Option("--reduce", help='A method, such as todre; or "todre(keep=20)". Repeatable.'),
    ],
    task: Annotated[list[str], typer.Option("--task", help="See `mmtok list`. Repeatable.")],
    keep: Annotated[
        list[str],
        typer.Option("--keep", help="A share (0.1) or a number of tokens (64). Repeatable."),
    ] = ["0.5", "0.25", "0.1"],  # noqa: B006  # typer copies it
    model: opt.Model = "tiny",
    dummy: opt.Dummy = False,
    batch: Annotated[int, typer.Option(help="Pictures (or frames) in a forward pass.")] = 32,
    limit: Annotated[
        int | None, typer.Option(help="About so many questions a task: whole media.")
    ] = None,
    parser: Annotated[str, typer.Option(help="robust, strict or official.")] = "robust",
    draws: Annotated[int, typer.Option(help="Of the bootstrap.")] = 1000,
    examples: Annotated[int, typer.Option(help="Questions shown with their tokens, a task.")] = 4,
    out: Annotated[Path, typer.Option(help="Folder of the predictions.")] = Path("eval_out"),
    report: Annotated[
        Path | None, typer.Option(help="The HTML file.  [default: report.html in --out]")
    ] = None,
    device: opt.Device = "auto",
    dtype: opt.Dtype = "auto",
    seed: opt.Seed = 0,
    as_json: opt.Json = False,
) -> None:
    """Compare methods at several budgets; a sweep that was cut off goes on."""
    counts = {"--draws": draws, "--examples": examples, "--seed": seed}
    path = _check(batch, limit, counts, out, report)
    tasks, variants = _prepare(task, reduce, keep, seed, parser)
    say(f"loading {model} ...")
    from mmtok import load

    lvlm = load(model, dummy=dummy, device=device, dtype=dtype, seed=seed)
    settings = {"out": out, "batch": batch, "limit": limit, "parser": parser, "draws": draws}
    found = _run(lvlm, tasks, variants, examples, path, settings | {"seed": seed})
    if as_json:
        answer({"tasks": [one.to_dict() for one in found], "report": str(path)})
    if any(one.report.failed for one in found):
        raise typer.Exit(SOME_FAILED)


def _check(
    batch: int, limit: int | None, counts: dict[str, int], out: Path, report: Path | None
) -> Path:
    """Refuse numbers and places that make no sense; returns where the page goes."""
    from mmtok.eval.page import check_page_path

    at_least("--batch", batch)
    for name, value in counts.items():
        at_least(name, value, 0)
    check_folder(out)
    if limit is not None:
        at_least("--limit", limit)
    return check_page_path(report or out / "report.html")


def _run(
    lvlm: LVLM,
    tasks: list[Task],
    variants: list[Variant],
    count: int,
    path: Path,
    settings: dict[str, Any],
) -> list[TaskSweep]:
    """Answer, write the report, print the table."""
    from mmtok.eval.examples import examples
    from mmtok.eval.page import page, write_page
    from mmtok.eval.progress import reporter
    from mmtok.eval.sweep import sweep, sweep_lines
    from mmtok.eval.table import short
    from mmtok.table import render

    def progress(spec: str) -> Progress:
        return reporter(short(spec), say)

    found = sweep(lvlm, tasks, variants, progress=progress, **settings)
    shown = [examples(lvlm, one, variants, count) for one in found]
    write_page(page(found, shown), path)
    show("\n" + render(sweep_lines(found)))
    say(f"report: {path}")
    return found


def _prepare(
    tasks: list[str], reduce: list[str], keep: list[str], seed: int, parser: str
) -> tuple[list[Task], list[Variant]]:
    """Tasks and variants, once everything the user gave is known to make sense."""
    from mmtok.eval import build
    from mmtok.eval.base import check_items
    from mmtok.eval.parsing import check_parser

    check_parser(parser)
    built = [build(one) for one in tasks]
    for one in built:
        check_items(one.items())
    quiet()
    from mmtok.eval.sweep import expand

    return built, expand(reduce, [_keep(text) for text in keep], seed)


def _keep(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        raise InputError(
            f"--keep {text!r}: expected a share such as 0.1 or a number of tokens such as 64"
        ) from None
