"""`mmtok eval`: a benchmark run, resumed or scored again, with what it cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from mmtok.cli import options as opt
from mmtok.cli.checks import at_least
from mmtok.cli.output import answer, quiet, say, show
from mmtok.cli.sweep import sweep
from mmtok.eval.files import check_folder

if TYPE_CHECKING:
    from mmtok.eval.evaluation import Report
    from mmtok.eval.runner import Progress

SOME_FAILED = 3


class _TaskByDefault(TyperGroup):
    """`mmtok eval pope ...` is short for `mmtok eval task pope ...`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Take a first word that is no sub-command for the name of a task."""
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            args = ["task", *args]
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=_TaskByDefault,
    no_args_is_help=True,
    help="Score a reducer on a benchmark: mmtok eval TASK, or mmtok eval score FILE.",
)

app.command("sweep")(sweep)

Questions = Annotated[Path | None, typer.Option(help="File or folder of questions.")]
MediaFolder = Annotated[
    Path | None, typer.Option("--images", "--videos", help="Folder of the pictures or videos.")
]
Suffix = Annotated[str | None, typer.Option(help="Appended to each question.")]
Subtitles = Annotated[Path | None, typer.Option(help="Folder of .srt files.")]
LongestAnswer = Annotated[int | None, typer.Option("--max-new-tokens", help="Longest answer.")]
Batch = Annotated[int, typer.Option(help="Pictures (or frames) in a forward pass.")]
Limit = Annotated[int | None, typer.Option(help="About so many questions: whole media.")]
NoBaselines = Annotated[
    bool, typer.Option("--no-baselines", help="Without the un-pruned model and random.")
]
Out = Annotated[Path, typer.Option(help="Folder of the predictions.")]
Parser = Annotated[str, typer.Option("--parser", help="robust, strict or official.")]
Seed = Annotated[
    int, typer.Option("--seed", help="Of random selection, the bootstrap and --dummy's weights.")
]
Draws = Annotated[int, typer.Option("--draws", help="Of the bootstrap.")]


@app.command("task")
def task(
    name: Annotated[str, typer.Argument(metavar="TASK", help="See `mmtok list`.")],
    model: opt.Model = "tiny",
    dummy: opt.Dummy = False,
    reduce: opt.Reduce = [],  # noqa: B006  # typer copies it
    questions: Questions = None,
    media: MediaFolder = None,
    suffix: Suffix = None,
    subtitles: Subtitles = None,
    frames: opt.Frames = None,
    max_new_tokens: LongestAnswer = None,
    batch: Batch = 32,
    limit: Limit = None,
    no_baselines: NoBaselines = False,
    parser: Parser = "robust",
    draws: Draws = 1000,
    out: Out = Path("eval_out"),
    device: opt.Device = "auto",
    dtype: opt.Dtype = "auto",
    seed: Seed = 0,
    as_json: opt.Json = False,
) -> None:
    """Run a task (`mmtok eval TASK`); a run that was cut off goes on."""
    at_least("--batch", batch)
    at_least("--draws", draws, 0)
    at_least("--seed", seed, 0)
    check_folder(out)
    at_least("--limit", 1 if limit is None else limit)
    given = {"questions": questions, "media": media, "suffix": suffix, "frames": frames}
    chosen = _task(name, given | {"max_new_tokens": max_new_tokens, "subtitles": subtitles}, parser)
    lvlm = _model(reduce, model, dummy=dummy, device=device, dtype=dtype, seed=seed)
    from mmtok.eval import evaluate

    options: dict[str, Any] = {"out": out, "batch": batch, "limit": limit, "parser": parser}
    options |= {"baselines": not no_baselines, "seed": seed, "draws": draws}
    _show(evaluate(lvlm, chosen, reduce, **options, progress=_progress), as_json)


def _progress(spec: str) -> Progress:
    from mmtok.eval.progress import reporter
    from mmtok.eval.table import short

    return reporter(short(spec), say)


def _task(name: str, given: dict[str, Any], parser: str) -> Any:
    """The task, once its files are known to be there."""
    from mmtok.eval import build
    from mmtok.eval.base import check_items
    from mmtok.eval.parsing import check_parser

    check_parser(parser)
    chosen = build(name, **given)
    check_items(chosen.items())
    return chosen


def _model(reduce: list[str], model: str, **options: Any) -> Any:
    """The model, once the reducers are known to exist."""
    quiet()
    from mmtok import load
    from mmtok.pruning import build

    build(reduce)
    say(f"loading {model} ...")
    return load(model, **options)


@app.command("score")
def score(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Predictions of a run.")],
    task: Annotated[
        str | None, typer.Option(help='Score as another task, such as "chair(cut_sentence=True)".')
    ] = None,
    parser: Parser = "robust",
    draws: Draws = 1000,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    as_json: opt.Json = False,
) -> None:
    """Score files of predictions again, without the model."""
    at_least("--draws", draws, 0)
    at_least("--seed", seed, 0)
    from mmtok.errors import InputError
    from mmtok.eval import build
    from mmtok.eval.damage import check_fit
    from mmtok.eval.evaluation import load_run, report
    from mmtok.eval.runner import COSTS

    runs = [load_run(file) for file in files if not file.name.endswith(COSTS)]
    if not runs:
        raise InputError(f"{files[0]}: holds costs, not predictions")
    tasks = {run.settings["task"] for run in runs}
    if len(tasks) > 1:
        raise InputError(f"files of several tasks ({', '.join(sorted(tasks))}): score them apart")
    same = build(tasks.pop(), **runs[0].settings["scoring"]) if task is None else build(task)
    for run in runs:
        check_fit(same, run)
    _show(report(same, runs, parser=parser, draws=draws, seed=seed), as_json)


def _show(made: Report, as_json: bool) -> None:
    from mmtok.eval.table import card_lines, difference_lines, score_lines, shared_facts
    from mmtok.table import render

    show("\n" + "\n".join(shared_facts(made)) + "\n")
    if len(lines := card_lines(made)) > 1:
        show(render(lines))
    show(render(score_lines(made)))
    if made.differences:
        show(render(difference_lines(made)))
    facts = made.to_dict()
    for note in facts["notes"]:
        say(note)
    for run in made.runs:
        say(f"predictions: {run.file}" + (f", {run.failed} failed" if run.failed else ""))
    if as_json:
        answer(facts)
    if made.failed:
        raise typer.Exit(SOME_FAILED)
