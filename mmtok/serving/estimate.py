"""What a job would write and cost, from headers and a configuration, without any weights.

Its time is no matter of FLOPs alone: that is measured, on a few items and with the weights.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from mmtok.accounting.plan import plan
from mmtok.errors import InputError
from mmtok.io.container import index_video
from mmtok.io.image import image_size
from mmtok.io.video import DEFAULT_FRAMES, MAX_PIXELS, is_video, sample_by_count, sample_by_fps
from mmtok.pruning import Reducer
from mmtok.serving.sources import Source
from mmtok.serving.stages import Encoder, encode_chunks
from mmtok.serving.work import THREADS, Job, digests, gather

_INDEX_BYTES = 8 + 3 * 8
"""Of a token's `kept` and `position`."""
MEASURED_BATCHES = 4
"""What `measure` encodes; the first of them has nothing to overlap with."""

Shape = tuple[tuple[int, int], int | None]
"""(width, height), and the frames of a clip."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A job ahead of its run.

    Attributes:
        items: media that can be read so far as their headers tell. Files with the same bytes,
            and what an earlier run has done, are not taken out.
        failed: media that cannot.
        shards: files of features.
        tokens_in: visual tokens that the encoder makes.
        tokens_out: of them kept; an upper bound where a method decides by content.
        bytes: of features, indices and positions.
        flops: of vision tower, projector and selection.
        errors: why media cannot be read.
    """

    items: int
    failed: int
    shards: int
    tokens_in: int
    tokens_out: int
    bytes: int
    flops: int
    errors: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def estimate(
    sources: Sequence[Source],
    config: Any,
    reducers: Sequence[Reducer],
    job: Job,
    *,
    dtype: str,
    frames: int | None = None,
    fps: float | None = None,
) -> Estimate:
    """Plan a job.

    Args:
        sources: from `list_sources`.
        config: of the whole model.
        reducers: what prunes.
        job: how the work is cut.
        dtype: of the stored features.
        frames: sampled from each video ...
        fps: ... or frames a second.

    Raises:
        InputError: the planner has no rule for the model or a reducer.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(lambda source: _shape(source, frames, fps), sources))
    errors = [shape for shape in found if isinstance(shape, str)]
    counted = Counter(shape for shape in found if not isinstance(shape, str))
    tokens_in = tokens_out = flops = 0
    for ((width, height), clip), count in counted.items():
        made = plan(config, reduce=list(reducers), image_size=(height, width), frames=clip)
        stages = {stage.stage: stage for stage in made.reduced.ledger.stages}
        tokens_in += count * (stages["encode"].tokens_out or 0)
        tokens_out += count * made.reduced.visual_tokens
        ahead = [stages[name] for name in ("encode", "reduce.select") if name in stages]
        flops += count * sum(stage.flops_analytic or 0 for stage in ahead)
    return Estimate(
        items=counted.total(),
        failed=len(errors),
        shards=-(-len(sources) // job.shard_size),
        tokens_in=tokens_in,
        tokens_out=tokens_out,
        bytes=tokens_out * _token_bytes(config, dtype),
        flops=flops,
        errors=errors,
    )


def measure(sources: Sequence[Source], encoder: Encoder, job: Job) -> tuple[int, float]:
    """Hash, decode and encode a few of the sources, after a few others that warm up.

    Args:
        sources: from `list_sources`; some spread evenly over them are taken, bad ones included.
        encoder: with the job's model.
        job: names the batch size.

    Returns:
        How many sources were timed, and the seconds they took; nothing was written.
    """
    parts = MEASURED_BATCHES + 1
    chosen = sources[:: -(-len(sources) // (parts * job.batch_size))]
    timed = [source for i, source in enumerate(chosen) if i % parts] or chosen
    seconds = 0.0
    for some in (chosen[::parts], timed):
        began = time.perf_counter()
        items = gather(some, digests(some), encoder.recipe)
        for _ in encode_chunks([items], encoder, job):
            seconds = time.perf_counter() - began
    return len(timed), seconds


def _token_bytes(config: Any, dtype: str) -> int:
    layers = 1 + len(getattr(config.vision_config, "deepstack_visual_indexes", None) or ())
    element: int = getattr(torch, dtype).itemsize
    return int(config.get_text_config().hidden_size) * element * layers + _INDEX_BYTES


def _shape(source: Source, frames: int | None, fps: float | None) -> Shape | str:
    try:
        with source.file() as file:
            if not is_video(file):
                return image_size(file), None
            index = index_video(file, max_pixels=MAX_PIXELS)
    except InputError as error:
        return f"{source.name}: {str(error).partition(': ')[2]}"
    if fps is None:
        chosen = sample_by_count(len(index.pts), frames or DEFAULT_FRAMES)
    else:
        chosen = sample_by_fps(index.timestamps_s, index.duration_s, fps)
    return index.size, len(chosen)
