"""Which questions run together: like with like, so that padding is small and memory is known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from mmtok.errors import InputError
from mmtok.eval.base import Item


@dataclass(frozen=True)
class Batch:
    """Prompts of one forward pass.

    Attributes:
        number: place in the plan, which depends on the questions and settings alone.
        prompts: per prompt the items that ask it; several where splits share a question.
    """

    number: int
    prompts: list[list[Item]]

    @property
    def items(self) -> list[Item]:
        """Every item, prompt by prompt."""
        return [item for prompt in self.prompts for item in prompt]


def plan_batches(
    items: Sequence[Item], size: int, config: Any, frames: int, *, share: bool = True
) -> list[Batch]:
    """Batches of prompts with like numbers of visual tokens, then of like text length.

    Args:
        items: the questions.
        size: pictures in a batch; a video counts as its frames.
        config: of the model, which says how many visual tokens a picture becomes.
        frames: sampled from each video.
        share: ask only once what several items ask about the same medium.
    """
    prompts: dict[Any, list[Item]] = {}
    for item in items:
        key = (item.medium, item.text) if share else item.key
        prompts.setdefault(key, []).append(item)

    @cache
    def length(file: Path, kind: str) -> int:
        return visual_length(config, file, kind, frames)

    def order(prompt: list[Item]) -> tuple[Any, ...]:
        item = prompt[0]
        return item.kind, length(item.file, item.kind), len(item.text), item.medium, item.text

    ranked = sorted(prompts.values(), key=order)
    return [Batch(n, some) for n, some in enumerate(_cut(ranked, size, frames))]


def _cut(prompts: list[list[Item]], size: int, frames: int) -> Iterator[list[list[Item]]]:
    for kind, most in (("image", size), ("video", max(size // frames, 1))):
        some = [prompt for prompt in prompts if prompt[0].kind == kind]
        yield from (some[i : i + most] for i in range(0, len(some), most))


def visual_length(config: Any, file: Path, kind: str, frames: int) -> int:
    """Visual tokens that a medium becomes, or its pixels where there is no rule for the family."""
    from mmtok.accounting.planned import planned

    size = medium_size(file, kind)
    if size is None:
        return 0
    width, height = size
    try:
        media = planned(config, size=(height, width), frames=frames if kind == "video" else None)
        return sum(media.items)
    except InputError:
        return width * height


@cache
def medium_size(file: Path, kind: str) -> tuple[int, int] | None:
    """(width, height) by a file's header; None where it cannot be read, which running it tells."""
    try:
        if kind == "video":
            from mmtok.io.container import open_video

            with open_video(file) as (_, stream):
                return stream.width, stream.height
        from PIL import Image

        with Image.open(file) as picture:
            return picture.size
    except Exception:  # whatever is wrong with the file becomes this item's row later
        return None
