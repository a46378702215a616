"""The run card: under which conditions a score was made, and what it cost."""

from __future__ import annotations

import hashlib
import json
import platform
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mmtok
from mmtok.eval.base import Item, Row, Task
from mmtok.eval.batches import medium_size
from mmtok.io.files import reason

if TYPE_CHECKING:
    from mmtok.models.lvlm import LVLM

PACKAGES = ("torch", "transformers", "tokenizers", "pillow", "av", "decord", "numpy")
STAGE_NUMBERS = ("flops_analytic", "device_ms", "host_ms")


def settings(
    lvlm: LVLM, task: Task, items: Sequence[Item], *, batch: int, seed: int
) -> dict[str, Any]:
    """What answers and scores depend on; what stands in the first line of a file of predictions.

    `reduce` is left empty, to be filled in for each variant.
    """
    sizes = sorted(filter(None, {medium_size(item.file, item.kind) for item in items}))
    pixels = [width * height for width, height in sizes]
    return {
        "task": task.name,
        "scoring": {name: getattr(task, name) for name in task.scoring},
        "questions": len(items),
        "ids_hash": ids_hash([item.key for item in items]),
        "prompt_hash": prompt_hash(task, items),
        "media_hash": media_hash(items),
        "suffix": task.suffix,
        "subtitles": _subtitles(task, items),
        "frames": task.frames if any(item.kind == "video" for item in items) else None,
        "pixels": {"min": min(pixels), "max": max(pixels)} if pixels else None,
        "processor_size": _processor_size(lvlm),
        "max_new_tokens": task.max_new_tokens,
        "decoding": "greedy",
        "model": lvlm.name,
        "revision": getattr(lvlm.config, "_commit_hash", None),
        "weights_hash": weights_hash(lvlm.model),
        "reduce": "",
        "batch": batch,
        "seed": seed,
        "dtype": str(lvlm.dtype).removeprefix("torch."),
        "attention": getattr(lvlm.config, "_attn_implementation", None),
        "device": lvlm.device.type,
        "versions": versions(),
    }


def prompt_hash(task: Task, items: Sequence[Item]) -> str:
    """SHA-256 over questions, options, labels and subtitles, in order; first 16 digits."""
    files = {task.subtitle_file(item) for item in items}
    spoken = {file: _medium(file, "image") if file else None for file in files}
    facts = [[item.facts(), spoken[task.subtitle_file(item)]] for item in items]
    return _digest(facts)


def media_hash(items: Sequence[Item]) -> str:
    """SHA-256 over the pictures' bytes; of videos, which are large, over size and time of change.

    A file that cannot be read counts as such: it becomes a row with its error later.
    """
    files = sorted({(item.medium, item.kind, item.file) for item in items})
    return _digest([[medium, _medium(file, kind)] for medium, kind, file in files])


def ids_hash(keys: Iterable[tuple[str, str]]) -> str:
    """SHA-256 over the (split, question_id) of all questions, in any order; first 16 digits."""
    return _digest(sorted(keys))


def _digest(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, default=str).encode()).hexdigest()[:16]


def _content(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _medium(file: Path, kind: str) -> Any:
    try:
        if kind == "image":
            return _content(file)
        found = file.stat()
        return [found.st_size, found.st_mtime_ns]
    except OSError as error:
        return reason(error)


def _subtitles(task: Task, items: Sequence[Item]) -> str:
    if task.subtitles is None:
        return "none"
    media = {item.medium: task.subtitle_file(item) for item in items}
    there = sum(file is not None for file in media.values())
    return f"at sampled frames; {there} of {len(media)} videos have some"


def weights_hash(model: Any) -> str:
    """A fingerprint of weights: SHA-256 over names, shapes and the first values of each tensor."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        first = tensor.detach().flatten()[:64].cpu().to(torch.float64)
        digest.update(f"{name}{tuple(tensor.shape)}".encode() + first.numpy().tobytes())
    return digest.hexdigest()[:16]


def versions() -> dict[str, str]:
    """mmtok's, Python's and the libraries' versions."""
    found = {"mmtok": mmtok.__version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _processor_size(lvlm: LVLM) -> dict[str, Any] | None:
    size = getattr(getattr(lvlm.processor, "image_processor", None), "size", None)
    return {k: v for k, v in dict(size).items() if v is not None} if size else None


def summary(rows: Sequence[Row], costs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a question cost on average, over the prompts that these rows were answers to.

    Args:
        rows: predictions, each with the number of its batch.
        costs: of the batches.

    Returns:
        `visual_tokens` (mean kept), `tokens_kept` and `tokens_in` ({mean, min, max}), per stage
        FLOPs and ms, `prefill_flops`, `ms` (all stages but reading files), `peak_mib`, `kv_bytes`.
    """
    by_batch = {cost["batch"]: cost for cost in costs if cost["prompts"]}
    kept = [row["visual_tokens"][1] for row in rows if "visual_tokens" in row]
    seen = [row["visual_tokens"][0] for row in rows if "visual_tokens" in row]
    parts = [by_batch[row["batch"]] for row in rows if row["batch"] in by_batch]
    stages: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for part in parts:
        for stage, numbers in part["stages"].items():
            for name in STAGE_NUMBERS:
                if name in numbers:
                    stages[stage][name] += numbers[name] / part["prompts"] / len(parts)
    inside = [numbers for part in parts for numbers in part["stages"].values()]
    times = [numbers.get("device_ms", 0.0) for s, numbers in stages.items() if s != "source"]
    return {
        "visual_tokens": sum(kept) / len(kept) if kept else None,
        "tokens_kept": _spread(kept),
        "tokens_in": _spread(seen),
        "stages": {name: dict(numbers) for name, numbers in stages.items()},
        "prefill_flops": stages["prefill"].get("flops_analytic") if "prefill" in stages else None,
        "flops": sum(n.get("flops_analytic", 0.0) for n in stages.values()) if stages else None,
        "ms": sum(times) if stages else None,
        "peak_mib": max((n["peak_mib"] for n in inside if "peak_mib" in n), default=None),
        "kv_bytes": max((n["kv_bytes"] for n in inside if "kv_bytes" in n), default=None),
    }


def _spread(values: Sequence[int]) -> dict[str, float] | None:
    if not values:
        return None
    return {"mean": sum(values) / len(values), "min": min(values), "max": max(values)}
