"""Rendered scenes and clips with their tower features, for the language model to be asked about."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from mmtok.training.clips import Clip, render_clip, sample_clip
from mmtok.training.garments import Garments
from mmtok.training.scenes import CANVAS, PATCH, Scene, jpeg, render, sample_scene
from mmtok.training.tower import run_tower, to_pixels


class Pool:
    """Scenes (or clips) with their features, the oldest replaced as new ones come.

    Args:
        garments: training photographs.
        clips: clips instead of scenes.
        size: how many to keep.
        seed: of the scenes.
        side: of the scenes in pixels.
    """

    def __init__(
        self, garments: Garments, clips: bool, size: int, seed: int, side: int = CANVAS
    ) -> None:
        self.garments, self.clips, self.side = garments, clips, side
        self.rng = np.random.default_rng((seed, int(clips)))
        self.size, self.turn = size, 0
        self.things: list[Scene | Clip] = []
        self.features: list[Tensor] = []

    def renew(self, model: LlavaForConditionalGeneration, number: int) -> None:
        """Render and encode `number` new entries."""
        if not number:
            return
        drawn = [self._render() for _ in range(number)]
        with torch.autocast(model.device.type, torch.bfloat16):
            features = encode(model, np.concatenate([images for _, images in drawn]))
        features = features.view(number, -1, *features.shape[1:])
        for (thing, _), feature in zip(drawn, features, strict=True):
            if len(self.things) < self.size:
                self.things.append(thing)
                self.features.append(feature)
            else:
                self.things[self.turn], self.features[self.turn] = thing, feature
                self.turn = (self.turn + 1) % self.size

    def _render(self) -> tuple[Scene | Clip, NDArray[np.uint8]]:
        """A new scene or clip and its images, degraded by JPEG more often than not."""
        thing: Scene | Clip
        if self.clips:
            thing = sample_clip(self.rng, self.garments)
            images = render_clip(thing, self.garments)
        else:
            count = None if self.side == CANVAS else int(self.rng.integers(0, 6))
            thing = sample_scene(self.rng, self.garments, self.side, count, number=0.45)
            images = render(thing, self.garments)[None]
        if self.rng.random() < 0.6:
            images = np.stack([jpeg(self.rng, image) for image in images])
        return thing, images

    def draw(
        self, rng: Generator, number: int, frames: list[int]
    ) -> tuple[list[Scene | Clip], Tensor]:
        """`number` entries, cut to `frames`, and features (number, frames * 196, D) float32."""
        picked = rng.choice(len(self.things), number, replace=False).tolist()
        features = torch.stack([self.features[i][frames] for i in picked]).float()
        things = [self.things[i] for i in picked]
        cut = [_cut(thing, frames) if isinstance(thing, Clip) else thing for thing in things]
        return cut, features.flatten(1, 2)


def _cut(clip: Clip, frames: list[int]) -> Clip:
    """The clip with some of its frames."""
    return replace(clip, frames=tuple(clip.frames[i] for i in frames))


@torch.no_grad()
def encode(model: LlavaForConditionalGeneration, images: NDArray[np.uint8]) -> Tensor:
    """Tower features of (M, 112, 112, 3) uint8 images (or windows), (M, 196, D) float16."""
    tower = model.model.vision_tower
    device = tower.pre_layrnorm.weight.device
    corner = ((CANVAS - images.shape[1]) // PATCH // 2,) * 2
    parts = [run_tower(tower, to_pixels(p).to(device), corner)[:, 1:] for p in _split(images)]
    return torch.cat(parts).half()


def _split(images: NDArray[np.uint8], size: int = 32) -> Iterator[NDArray[np.uint8]]:
    """Pieces of at most `size` images."""
    for start in range(0, len(images), size):
        yield images[start : start + size]
