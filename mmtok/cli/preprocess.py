"""`mmtok preprocess`: media to shards of pruned features."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from mmtok.cli import options as opt
from mmtok.cli.checks import at_least
from mmtok.cli.output import answer, quiet, say
from mmtok.errors import InputError
from mmtok.io.files import check_name

if TYPE_CHECKING:
    from mmtok.pruning import Reducer
    from mmtok.serving.recipe import Recipe
    from mmtok.serving.sources import Source
    from mmtok.serving.work import Job, Summary

_MediaIn = Annotated[
    Path, typer.Argument(metavar="IN", help="Folder, file, .txt, .jsonl, .tar or .parquet.")
]
_Out = Annotated[Path, typer.Option("--out", help="Folder for shards and manifest.")]
_Text = Annotated[str, typer.Option("--text", help="What query-aware reducers read.")]
_Dtype = Annotated[
    str, typer.Option("--dtype", help="Of the stored features; auto: the model's own.")
]
_Column = Annotated[str, typer.Option("--column", help="Of a Parquet file.")]
_ShardSize = Annotated[int, typer.Option("--shard-size", help="Items of a shard.")]
_Batch = Annotated[int, typer.Option("--batch", help="Pictures encoded at once.")]
_Shards = Annotated[int, typer.Option("--shards", help="Divide the work by so many.")]
_ShardIndex = Annotated[int, typer.Option("--shard-index", help="This run's part.")]
_OnError = Annotated[str, typer.Option("--on-error", help="skip or fail.")]
_Retry = Annotated[
    bool, typer.Option("--retry-failed", help="Make items again that failed in an earlier run.")
]
_Format = Annotated[
    str, typer.Option("--format", help="Of shards: safetensors, tar, parquet or arrow.")
]
_Engine = Annotated[str, typer.Option("--engine", help="threads, or ray: on a cluster.")]
_Workers = Annotated[int, typer.Option("--workers", help="Encoders that Ray runs.")]
_DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Say what it would write and cost; write nothing.")
]
_Measure = Annotated[
    bool, typer.Option("--measure", help="In a dry run, encode a few items to estimate the time.")
]


def preprocess(
    media: _MediaIn,
    out: _Out,
    model: opt.Model = "tiny",
    dummy: opt.Dummy = False,
    reduce: opt.Reduce = [],  # noqa: B006  # typer copies it
    text: _Text = "",
    frames: opt.Frames = None,
    fps: opt.Fps = None,
    device: opt.Device = "auto",
    dtype: _Dtype = "auto",
    seed: opt.Seed = 0,
    column: _Column = "image",
    shard_size: _ShardSize = 64,
    batch: _Batch = 16,
    shards: _Shards = 1,
    shard_index: _ShardIndex = 0,
    on_error: _OnError = "skip",
    retry_failed: _Retry = False,
    form: _Format = "safetensors",
    engine: _Engine = "threads",
    workers: _Workers = 1,
    dry_run: _DryRun = False,
    measure: _Measure = False,
    as_json: opt.Json = False,
) -> None:
    """Encode and prune a collection of images and videos, resumably."""
    job = _job(shard_size, batch, shards, shard_index, on_error, form, retry_failed)
    at_least("--workers", workers)
    _check(engine, dtype, frames, fps, measure and not dry_run)
    quiet()
    from mmtok.serving.sources import list_sources

    sources = list_sources(check_name(media), column)
    task = _Task(sources, out, model, dummy, seed, list(reduce), text, frames, fps, device, dtype)
    if dry_run:
        made = task.estimate(job) | (task.measure(job) if measure else {})
    else:
        made = task.run(job) if engine == "threads" else task.run_on_ray(job, workers)
    for line in made["errors"]:
        say(f"failed: {line}")
    if as_json:
        answer(made)
    if made["failed"]:
        raise typer.Exit(3)


def _job(
    size: int, batch: int, shards: int, index: int, on_error: str, form: str, retry_failed: bool
) -> Job:
    """The job of some options.

    Raises:
        InputError: one of them is out of range.
    """
    from mmtok.serving.formats import FORMATS, need_pyarrow
    from mmtok.serving.work import Job

    for name, value in (("--shard-size", size), ("--batch", batch), ("--shards", shards)):
        at_least(name, value)
    if not 0 <= index < shards:
        raise InputError(f"--shard-index must be below --shards {shards}, got {index}")
    if on_error not in ("skip", "fail"):
        raise InputError(f"--on-error must be skip or fail, got {on_error!r}")
    if form not in FORMATS:
        raise InputError(f"--format must be one of {', '.join(FORMATS)}; got {form!r}")
    if form in ("parquet", "arrow"):
        need_pyarrow()
    return Job(
        shard_size=size,
        batch_size=batch,
        shards=shards,
        index=index,
        on_error=cast(Literal["skip", "fail"], on_error),
        format=form,
        retry_failed=retry_failed,
    )


def _check(engine: str, dtype: str, frames: int | None, fps: float | None, measured: bool) -> None:
    """Refuse other options that make no sense, before anything slow.

    Raises:
        InputError: one of them does not.
    """
    if measured:
        raise InputError("--measure goes with --dry-run")
    if engine not in ("threads", "ray"):
        raise InputError(f"--engine must be threads or ray, got {engine!r}")
    if dtype not in ("auto", "float32", "float16", "bfloat16"):
        raise InputError(f"--dtype must be auto, float32, float16 or bfloat16, got {dtype!r}")
    if engine == "ray" and dtype == "auto":
        raise InputError("--engine ray needs --dtype: the model is loaded by its workers alone")
    from mmtok.io.video import check_sampling

    check_sampling(frames, fps)


@dataclass(frozen=True)
class _Task:
    """What is to be made of the media; the options as they were given."""

    sources: Sequence[Source]
    out: Path
    model: str
    dummy: bool
    seed: int
    reduce: list[str]
    text: str
    frames: int | None
    fps: float | None
    device: str
    dtype: str

    def estimate(self, job: Job) -> dict[str, Any]:
        """A dry run."""
        from mmtok.accounting.ledger import si
        from mmtok.models.load import load_config, published_config
        from mmtok.models.weights import pick_device
        from mmtok.serving.estimate import estimate

        config = load_config(self.model) if self.dummy else published_config(self.model)
        on_cpu = pick_device(self.device).type == "cpu"  # where `load` takes float32
        own = "float32" if on_cpu else str(config.dtype or "float32").removeprefix("torch.")
        dtype = own if self.dtype == "auto" else self.dtype
        made = estimate(
            self.sources,
            config,
            self._reducers(),
            job,
            dtype=dtype,
            frames=self.frames,
            fps=self.fps,
        )
        say(
            f"{made.items} items in {made.shards} shards, {made.failed} unreadable; visual tokens "
            f"{made.tokens_in:,} -> {made.tokens_out:,}; {si(made.bytes)}B as {dtype}; "
            f"{si(made.flops)}FLOP to encode and select"
        )
        return made.to_dict() | {"dry_run": True, "dtype": dtype}

    def measure(self, job: Job) -> dict[str, Any]:
        """How long it would take, from a few of the items."""
        from mmtok import load
        from mmtok.serving.estimate import measure
        from mmtok.serving.stages import Encoder

        say(f"loading {self.model} ...")
        reducers = self._reducers()
        lvlm = load(self.model, dummy=self.dummy, device=self.device, seed=self.seed)
        recipe = self._recipe(lvlm.config, str(lvlm.dtype).removeprefix("torch."))
        count, seconds = measure(self.sources, Encoder(lvlm, reducers, recipe), job)
        whole = seconds / count * len(self.sources)
        say(
            f"estimated {whole:.1f} s for {len(self.sources)} items in one process, from "
            f"{count} of them in {seconds:.2f} s; loading and writing not in it"
        )
        return {"estimated_seconds": round(whole, 3), "measured_items": count}

    def run(self, job: Job) -> dict[str, Any]:
        """In this process."""
        from mmtok import load
        from mmtok.serving.preprocess import preprocess

        reducers = self._reducers()
        say(f"{len(self.sources)} items; loading {self.model} ...")
        lvlm = load(self.model, dummy=self.dummy, device=self.device, seed=self.seed)
        recipe = self._recipe(lvlm.config, str(lvlm.dtype).removeprefix("torch."))
        return self._timed(
            lambda: preprocess(self.sources, self.out, lvlm, reducers, recipe, job, _progress())
        )

    def run_on_ray(self, job: Job, workers: int) -> dict[str, Any]:
        """On a cluster; the model is loaded by its workers alone."""
        from mmtok.models.load import load_config, published_config
        from mmtok.serving.ray_engine import connect, preprocess_on_ray

        connect()
        config = load_config(self.model) if self.dummy else published_config(self.model)
        recipe, specs = self._recipe(config, self.dtype), [r.spec for r in self._reducers()]
        return self._timed(
            lambda: preprocess_on_ray(
                self.sources,
                self.out,
                specs,
                recipe,
                job,
                workers=workers,
                device=self.device,
                progress=_progress(),
            )
        )

    def _reducers(self) -> list[Reducer]:
        from mmtok.pruning import build
        from mmtok.serving.recipe import check_reducers

        reducers = build(self.reduce)
        check_reducers(reducers)
        return reducers

    def _recipe(self, config: Any, dtype: str) -> Recipe:
        from mmtok.serving.recipe import Recipe, fingerprint

        return Recipe(
            model=self.model,
            revision=fingerprint(self.model, config, dummy=self.dummy, seed=self.seed),
            reduce=" + ".join(r.spec for r in self._reducers()) or "none",
            text=self.text,
            frames=self.frames,
            fps=self.fps,
            dtype=dtype if self.dtype == "auto" else self.dtype,
        )

    def _timed(self, work: Callable[[], Summary]) -> dict[str, Any]:
        """Run, and say what came of it and how long it took, loading apart."""
        began = time.monotonic()
        made = work()
        seconds = time.monotonic() - began
        say(
            f"{made.done} done, {made.skipped} skipped, {made.failed} failed in {seconds:.1f} s; "
            f"{self.out}/manifest.jsonl"
        )
        return made.to_dict() | {"seconds": round(seconds, 3)}


def _progress() -> Callable[[int, int], None]:
    """Rate and time to go, on stderr, at most once a second."""
    began, last = time.monotonic(), [0.0]

    def show(done: int, total: int) -> None:
        now = time.monotonic()
        if now - last[0] < 1 and done < total:
            return
        last[0] = now
        rate = done / max(now - began, 1e-9)
        say(
            f"{done} of {total}, {rate:.1f} a second, {(total - done) / max(rate, 1e-9):.0f} s left"
        )

    return show
