"""Decode, prepare, encode: the three stages a shard's items go through.

Files are read and decoded by a few threads and made into model inputs by one (tokenizers are not
safe in two), batches ahead of the encoder, across the bounds of shards.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from mmtok.errors import InputError
from mmtok.io.video import Clip
from mmtok.models.reduction import Reduction
from mmtok.pruning import Reducer
from mmtok.serving.features import Features, decode, encode_batch, model_inputs
from mmtok.serving.recipe import Recipe
from mmtok.serving.work import THREADS, Item, Job

if TYPE_CHECKING:
    from PIL.Image import Image

    from mmtok.models.lvlm import LVLM

_T = TypeVar("_T")
AHEAD = 2
"""Batches that are decoded and prepared while the encoder works."""

Decoded = tuple[str, "Image | Clip | str"]
"""An item's key, and its picture or clip, or why there is none."""


@dataclass(frozen=True)
class Batch:
    """Pictures that go through the encoder at once, or one clip."""

    keys: list[str]
    media: list[Image | Clip]
    inputs: dict[str, Any]


@dataclass
class Outcome:
    """What became of some items: features by key, or the reason by key."""

    made: dict[str, Features] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)

    def add(self, other: Outcome) -> None:
        """Take in another one."""
        self.made |= other.made
        self.errors |= other.errors


def pieces(chunk: Sequence[_T], job: Job) -> list[Sequence[_T]]:
    """A shard's items, a batch each."""
    return [chunk[i : i + job.batch_size] for i in range(0, len(chunk), job.batch_size)]


def decode_item(item: Item, recipe: Recipe) -> Decoded:
    """First stage: the file's picture or frames."""
    if item.error is not None:
        return item.key, item.error
    why = ""
    for source in item.sources:  # any one with these bytes will do
        try:
            made = decode(source, recipe)
            if source.digest() == item.digest:  # all were hashed first, perhaps hours ago
                return item.key, made
            why = "changed since it was hashed: run again"
        except InputError as error:
            why = str(error)
    return item.key, why


class Encoder:
    """The second and the third stage, with a model of their own."""

    def __init__(self, lvlm: LVLM, reducers: Sequence[Reducer], recipe: Recipe) -> None:
        self.lvlm, self.recipe = lvlm, recipe
        self.reduction = Reduction(lvlm.model, reducers)

    def prepare(self, decoded: Sequence[Decoded]) -> tuple[list[Batch], Outcome]:
        """Model inputs of a piece: its pictures in one batch, its clips one by one."""
        outcome, clips, stills = Outcome(), [], []
        for key, found in decoded:
            if isinstance(found, str):
                outcome.errors[key] = found
            elif isinstance(found, Clip):
                clips.append([(key, found)])
            else:
                stills.append((key, found))
        groups: list[list[tuple[str, Any]]] = [*clips, *([stills] if stills else [])]
        return [b for group in groups for b in self._batches(group, outcome)], outcome

    def _batches(self, group: Sequence[tuple[str, Any]], outcome: Outcome) -> list[Batch]:
        """One batch; where the processor refuses it, one for each item that it takes alone."""
        keys, media = [key for key, _ in group], [found for _, found in group]
        try:
            return [Batch(keys, media, model_inputs(self.lvlm, media, self.recipe))]
        except InputError as error:
            if len(group) == 1:
                outcome.errors[keys[0]] = str(error)
                return []
        return [batch for one in group for batch in self._batches([one], outcome)]

    def encode(self, batch: Batch) -> Outcome:
        """Vision tower and reducers. A batch that is refused gives no features and no errors."""
        try:
            made = encode_batch(self.lvlm, self.reduction, batch.media, batch.inputs, self.recipe)
        except InputError as error:
            return Outcome(errors={batch.keys[0]: str(error)} if len(batch.keys) == 1 else {})
        return Outcome(made=dict(zip(batch.keys, made, strict=True)))

    def piece(self, ready: tuple[list[Batch], Outcome], redo: ThreadPoolExecutor) -> Outcome:
        """Encode a prepared piece, the items of a refused batch one by one.

        Args:
            ready: from `prepare`.
            redo: the one thread on which `prepare` may run.
        """
        batches, outcome = ready
        for batch in batches:
            found = self.encode(batch)
            outcome.add(found)
            if found.made or found.errors:
                continue
            for one in zip(batch.keys, batch.media, strict=True):
                singles, refused = redo.submit(self.prepare, [one]).result()
                outcome.add(refused)
                for single in singles:
                    outcome.add(self.encode(single))
        return outcome


def encode_chunks(
    chunks: Iterable[list[Item]], encoder: Encoder, job: Job
) -> Iterator[tuple[list[Item], Outcome]]:
    """All three stages over shards, one after the other, with `AHEAD` batches on their way."""
    recipe = encoder.recipe
    with ThreadPoolExecutor(THREADS) as decoders, ThreadPoolExecutor(1) as preparer:

        def start(piece: Sequence[Item]) -> Future[tuple[list[Batch], Outcome]]:
            waiting = [decoders.submit(decode_item, item, recipe) for item in piece]
            return preparer.submit(lambda: encoder.prepare([f.result() for f in waiting]))

        started: deque[tuple[list[Item] | None, Future[tuple[list[Batch], Outcome]]]] = deque()
        outcome = Outcome()
        for whole, piece in _ends(chunks, job):
            if piece:
                started.append((whole, start(piece)))
            while started and (len(started) > AHEAD or not piece):
                ended, future = started.popleft()
                outcome.add(encoder.piece(future.result(), preparer))
                if ended is not None:
                    yield ended, outcome
                    outcome = Outcome()


def _ends(
    chunks: Iterable[list[Item]], job: Job
) -> Iterator[tuple[list[Item] | None, Sequence[Item]]]:
    """Pieces, the last one of a shard with the whole shard; an empty one behind them all."""
    for chunk in chunks:
        *most, last = pieces(chunk, job)
        yield from ((None, piece) for piece in most)
        yield chunk, last
    yield None, ()
