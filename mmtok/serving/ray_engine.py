"""The same stages on Ray Data: hash and decode in tasks, encode in actors that hold a model each.

Whole shards travel, so they are cut into the same batches and hold the same bytes as without Ray.
What is ready is told by the folder, which all nodes must see under the same path, as they must the
media. Scheduling, back-pressure and retries are Ray's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mmtok.errors import InputError
from mmtok.models.zoo import embedded_names
from mmtok.pruning import build
from mmtok.serving.preprocess import finish, shard_items
from mmtok.serving.recipe import Recipe, reload
from mmtok.serving.resume import open_items
from mmtok.serving.rows import Row
from mmtok.serving.shards import open_folder, write_shard
from mmtok.serving.sources import Source
from mmtok.serving.stages import Decoded, Encoder, Outcome, decode_item, pieces
from mmtok.serving.work import THREADS, Digest, Item, Job, Summary, digests

HASHED_AT_ONCE = 64
"""Sources of a task that hashes."""


def preprocess_on_ray(
    sources: Sequence[Source],
    out: Path,
    specs: Sequence[str],
    recipe: Recipe,
    job: Job,
    *,
    workers: int = 1,
    device: str = "auto",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Summary:
    """Run a job, or what is left of it, on the Ray cluster this process is connected to.

    Args:
        sources: from `list_sources`; every node must see them under the same absolute paths.
        out: the folder to write, on a disk that every node sees.
        specs: of the reducers that the recipe names.
        recipe: what to make of each item; every actor loads its model.
        job: how to divide the work.
        workers: actors that encode. On a GPU each has one of its own.
        device: of the actors.
        progress: told how many items are done, of how many.

    Raises:
        InputError: Ray is not installed; the model is named by a relative path; the folder holds
            another recipe's results; an item failed and the job says that this ends it.
    """
    folder = Path(recipe.model)
    if recipe.model not in embedded_names() and folder.is_dir() and not folder.is_absolute():
        raise InputError(f"{recipe.model}: workers need the model's absolute path")
    ray = connect()
    sources = [replace(source, path=source.path.absolute()) for source in sources]
    open_folder(out, recipe)
    with _quiet(ray):
        items, pending, skipped = open_items(sources, _digests(ray, sources), out, recipe, job)
        total, summary = sum(map(len, pending)), Summary(skipped=skipped)
        for row in _shards(ray, pending, out, specs, recipe, job, workers, device):
            if row["refused"]:
                raise InputError(row["refused"])
            summary.shards += 1
            summary.done += int(row["done"])
            summary.errors += list(row["errors"])
            progress(summary.done + len(summary.errors), total)
    return finish(out, items, summary)


@dataclass(frozen=True)
class _Parcel:
    """A shard on its way; one object, so that Ray makes no columns of what is in it."""

    items: list[Item]
    decoded: list[Decoded] = field(default_factory=list)


class EncodeShard:
    """Encodes and writes shards, with a model of its own.

    Args:
        out: the job's folder.
        specs: of the reducers.
        recipe: names the model.
        job: how the work is cut.
        device: of the model.
    """

    def __init__(
        self, out: Path, specs: Sequence[str], recipe: Recipe, job: Job, device: str
    ) -> None:
        self.out, self.job = out, job
        self.encoder = Encoder(reload(recipe, device), build(list(specs)), recipe)

    def __call__(self, row: Row) -> Row:
        """Encode and write one shard; returns what is to be counted of it."""
        parcel, outcome = row["shard"], Outcome()
        with ThreadPoolExecutor(1) as redo:
            for piece in pieces(parcel.decoded, self.job):
                outcome.add(self.encoder.piece(self.encoder.prepare(piece), redo))
        try:
            rows = shard_items(parcel.items, outcome, self.job)
        except InputError as error:
            return {"done": 0, "errors": [], "refused": str(error)}
        write_shard(self.out, outcome.made, rows, self.job.format)
        counted = Summary()
        counted.add(rows)
        return {"done": counted.done, "errors": counted.errors, "refused": ""}


def _shards(
    ray: Any,
    pending: Sequence[list[Item]],
    out: Path,
    specs: Sequence[str],
    recipe: Recipe,
    job: Job,
    workers: int,
    device: str,
) -> Iterator[Row]:
    """Decode tasks into encoding actors, a row for each shard as it is done."""
    if not pending:
        return iter(())
    on_gpu = device.startswith("cuda") or (
        device == "auto" and ray.cluster_resources().get("GPU", 0) > 0
    )
    parcels = ray.data.from_items(
        [{"shard": _Parcel(chunk)} for chunk in pending], override_num_blocks=len(pending)
    )
    # Stages that ask for the same are fused: decoding would wait in the encoders' own processes.
    decoded = parcels.map(_decode, fn_kwargs={"recipe": recipe}, num_cpus=0.5)
    encoded = decoded.map(
        EncodeShard,
        fn_constructor_args=(out.resolve(), list(specs), recipe, job, device),
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=1,
        num_gpus=1 if on_gpu else 0,
    )
    rows: Iterator[Row] = encoded.iter_rows()
    return rows


def _decode(row: Row, recipe: Recipe) -> Row:
    parcel = row["shard"]
    with ThreadPoolExecutor(THREADS) as pool:
        decoded = list(pool.map(lambda item: decode_item(item, recipe), parcel.items))
    return {"shard": replace(parcel, decoded=decoded)}


def _digests(ray: Any, sources: Sequence[Source]) -> list[Digest]:
    """Hashes of all sources, in their order."""
    cuts = range(0, len(sources), HASHED_AT_ONCE)
    parts = [list(sources[i : i + HASHED_AT_ONCE]) for i in cuts]
    hashed = ray.remote(digests)
    return [one for part in ray.get([hashed.remote(part) for part in parts]) for one in part]


@contextmanager
def _quiet(ray: Any) -> Iterator[None]:
    """Without Ray Data's progress bars, which would mix with ours."""
    context = ray.data.DataContext.get_current()
    before = context.enable_progress_bars
    context.enable_progress_bars = False
    try:
        yield
    finally:
        context.enable_progress_bars = before


def connect() -> Any:
    """Ray, connected to the cluster of RAY_ADDRESS, or to one on this machine alone.

    Raises:
        InputError: Ray is not installed.
    """
    try:
        import ray
        import ray.data
    except ImportError:
        raise InputError("--engine ray needs Ray: pip install 'mmtok[ray]'") from None
    if not ray.is_initialized():
        ray.init(log_to_driver=False, logging_level="ERROR")
    return ray
