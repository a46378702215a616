"""Checks of the user's input that come before any work, and the reading of media files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmtok.errors import InputError
from mmtok.io.files import check_file

if TYPE_CHECKING:
    from PIL.Image import Image

    from mmtok.io.video import Clip
    from mmtok.models.reduction import Reduction
    from mmtok.pruning import Reducer


def at_least(option: str, value: int, least: int = 1) -> None:
    """Refuse a number below `least`.

    Raises:
        InputError: it is.
    """
    if value < least:
        raise InputError(f"{option} must be at least {least}, got {value}")


def check_files(paths: Sequence[Path]) -> None:
    """Refuse files that are not there or hold nothing, before anything slow is imported.

    Raises:
        InputError: missing, empty, a directory, or not readable.
    """
    for path in paths:
        check_file(path, "an image or video file")


def read_media(
    paths: Sequence[Path], frames: int | None = None, fps: float | None = None
) -> tuple[list[Image], list[Clip]]:
    """Decode image and video files, each kind in the order given.

    Raises:
        InputError: a file cannot be read, or `frames` and `fps` make no sense.
    """
    from mmtok.io.image import load_image
    from mmtok.io.video import check_sampling, is_video, load_video

    check_sampling(frames, fps)
    kinds = [is_video(path) for path in paths]
    images = [load_image(path) for path, video in zip(paths, kinds, strict=True) if not video]
    clips = [
        load_video(path, frames=frames, fps=fps)
        for path, video in zip(paths, kinds, strict=True)
        if video
    ]
    return images, clips


def check_budget(reduction: Reduction) -> None:
    """Refuse a number of tokens that no image or clip of the prompt has.

    Raises:
        InputError: an int `keep` is larger than the tokens of every item.
    """
    most = max((before for _, before, _ in reduction.tokens), default=0)
    check_keep(reduction.reducers, most)


def check_keep(reducers: Sequence[Reducer], most: int) -> None:
    """Refuse a number of tokens above the `most` that the largest image or clip has.

    Raises:
        InputError: an int `keep` is larger.
    """
    from mmtok.pruning.base import overrides

    for reducer in reducers:
        keep = reducer.keep
        if isinstance(keep, int) and keep > most and overrides(reducer, "after_encoder"):
            raise InputError(
                f"{reducer.name}: keep={keep} exceeds the {most} tokens of the largest image or "
                f"clip; expected at most {most}, or a share such as keep=0.5"
            )
