"""Stage 2: teach the projector and the language model to answer, with the tower frozen.

Features of rendered scenes and clips wait in a pool; each is asked new questions a few times before
a new one takes its place, so that the tower costs little.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from mmtok.training.clips import FRAMES, Clip, render_clip, sample_clip, training_questions
from mmtok.training.garments import Garments
from mmtok.training.optim import Optimisers, schedule
from mmtok.training.questions import Question, scene_questions
from mmtok.training.scenes import CANVAS, PATCH, Scene, jpeg, render, sample_scene
from mmtok.training.sequences import answer_scores, pack_questions
from mmtok.training.tokens import build_tokenizer
from mmtok.training.tower import run_tower, to_pixels

_TAILS = ("\nAnswer the question using a single word or phrase.", " Please answer yes or no.")


@dataclass(frozen=True)
class LanguageSettings:
    """How long and on what the language model trains.

    Attributes:
        seconds: wall time, the clock of the learning rate.
        windows: share of the time in which most scenes are of 40 or 64 pixels: in few patches
            the model finds out sooner where to look.
        hints: share of the time in which the answer is also asked for where a kind is named.
        clips: share of the steps about clips, once `clips_from` has passed.
        clips_from: share of the time before the first clip.
        lr: peak learning rate of the layers' matrices.
        others_lr: that of embeddings, norms and projector.
        decay: share of the time at the end in which the learning rate falls.
        scene_batch: scenes in a step about scenes.
        clip_batch: clips of eight frames in a step about clips, or as many frames in shorter ones.
        whole: share of the time after which every clip keeps its eight frames; before that most are
            cut to two to four, first and last among them.
        reuse: how often a scene or clip is asked about before it is replaced.
        pool: scenes kept; a sixteenth as many clips.
        seed: of scenes and questions.
    """

    seconds: float
    windows: float = 0.2
    hints: float = 0.6
    clips: float = 0.4
    clips_from: float = 0.4
    lr: float = 8e-3
    others_lr: float = 1e-3
    decay: float = 0.35
    scene_batch: int = 6
    clip_batch: int = 1
    whole: float = 0.6
    reuse: int = 4
    pool: int = 1024
    seed: int = 2


class _Rendered(IterableDataset[tuple[Scene | Clip, NDArray[np.uint8]]]):
    """Endless rendered scenes or clips, degraded by JPEG half of the time."""

    def __init__(self, garments: Garments, clips: bool, seed: int, side: int = CANVAS) -> None:
        self.garments, self.clips, self.seed, self.side = garments, clips, seed, side

    def __iter__(self) -> Iterator[tuple[Scene | Clip, NDArray[np.uint8]]]:
        rng = np.random.default_rng((self.seed, int(self.clips)))
        while True:
            thing: Scene | Clip
            if self.clips:
                thing = sample_clip(rng, self.garments)
                images = render_clip(thing, self.garments)
            else:
                count = None if self.side == CANVAS else int(rng.integers(0, 6))
                thing = sample_scene(rng, self.garments, self.side, count, number=0.45)
                images = render(thing, self.garments)[None]
            if rng.random() < 0.6:
                images = np.stack([jpeg(rng, image) for image in images])
            yield thing, images


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
        source = _Rendered(garments, clips, seed, side)
        self.loader = DataLoader(source, batch_size=None, num_workers=1, prefetch_factor=8)
        self.source: Iterator[Any] = iter(self.loader)
        self.size, self.turn = size, 0
        self.things: list[Scene | Clip] = []
        self.features: list[Tensor] = []

    def renew(self, model: LlavaForConditionalGeneration, number: int) -> None:
        """Encode `number` new entries (as many as are missing while the pool is small)."""
        if not number:
            return
        drawn = [next(self.source) for _ in range(number)]
        images = torch.cat([torch.as_tensor(found) for _, found in drawn])
        features = encode(model, images.numpy())
        features = features.view(number, -1, *features.shape[1:])
        for (thing, _), feature in zip(drawn, features, strict=True):
            if len(self.things) < self.size:
                self.things.append(thing)
                self.features.append(feature)
            else:
                self.things[self.turn], self.features[self.turn] = thing, feature
                self.turn = (self.turn + 1) % self.size

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


def ask_about(thing: Scene | Clip, rng: Generator) -> list[Question]:
    """Training questions in random order, some with a common instruction at the end."""
    if isinstance(thing, Clip):
        found = training_questions(thing, rng)
    else:
        found = scene_questions(thing, rng, kinds=3)
    tailed = []
    for question in found:
        if question.options is None and rng.random() < 0.08:
            closed = question.label in ("yes", "no") and rng.random() < 0.5
            question = replace(question, text=question.text + _TAILS[int(closed)])
        tailed.append(question)
    return tailed


class LanguageTrainer:
    """Trains projector and language model of `model` in place; resumes from `folder`."""

    def __init__(
        self,
        model: LlavaForConditionalGeneration,
        garments: Garments,
        settings: LanguageSettings,
        folder: Path,
    ) -> None:
        self.model, self.settings = model, settings
        self.path = folder / "language.pt"
        self.tokenizer: PreTrainedTokenizerFast = build_tokenizer()
        self.parts = [model.model.multi_modal_projector, model.model.language_model]
        self.optimisers = Optimisers(self.parts, settings.lr, settings.others_lr)
        self.state: dict[str, Any] = {"step": 0, "seconds": 0.0}
        if self.path.exists():
            saved = torch.load(self.path, weights_only=True)
            for part, weights in zip(self.parts, saved["parts"], strict=True):
                part.load_state_dict(weights)
            self.optimisers.load_state_dict(saved["optimisers"])
            self.state = saved["state"]
        seed = settings.seed * 1_000_003 + self.state["step"]
        self.rng = np.random.default_rng(seed)
        self.scenes = Pool(garments, False, settings.pool, seed)
        self.windows = [Pool(garments, False, settings.pool, seed + s, s) for s in (40, 64)]
        self.clips = Pool(garments, True, settings.pool // 16, seed)

    def train(self, report: Callable[[str], None] = print) -> dict[str, Any]:
        """Run until the time is used up; returns steps done and seconds used."""
        settings, state = self.settings, self.state
        while state["seconds"] < settings.seconds:
            began = time.monotonic()
            done = state["seconds"] / settings.seconds
            clip = done >= settings.clips_from and self.rng.random() < settings.clips
            small = done < settings.windows and self.rng.random() < 0.7
            pool = self.windows[int(self.rng.integers(2))] if small else self.scenes
            self._step(self.clips if clip else pool, schedule(done, decay=settings.decay))
            state["step"] += 1
            state["seconds"] += min(60.0, time.monotonic() - began)
            if state["step"] % 50 == 0:
                figures = " ".join(f"{k} {v:.3f}" for k, v in sorted(state["figures"].items()))
                report(f"language step {state['step']} {state['seconds'] / 60:.1f} min {figures}")
            if state["step"] % 250 == 0:
                self.save()
        self.save()
        return state

    def _step(self, pool: Pool, share: float) -> None:
        """One optimiser step on a batch of scenes or of clips."""
        settings = self.settings
        frames = self._frames() if pool is self.clips else [0]
        clips = settings.clip_batch * FRAMES // len(frames)
        batch = clips if pool is self.clips else settings.scene_batch
        short = min(pool.size, 4 * batch) - len(pool.things)
        growing = len(pool.things) < pool.size
        due = batch / (2 if growing else settings.reuse)
        pool.renew(self.model, max(short, int(due + self.rng.random())))
        things, features = pool.draw(self.rng, batch, frames)
        asked = [ask_about(thing, self.rng) for thing in things]
        patches = features.shape[1] // len(frames)
        sequences = pack_questions(self.tokenizer, asked, len(frames), patches)
        hints = self.state["seconds"] < settings.hints * settings.seconds
        scores, targets = answer_scores(self.model, sequences, features, hints)
        losses = F.cross_entropy(scores, targets, reduction="none")
        losses.mean().backward()  # type: ignore[no-untyped-call]
        self.optimisers.step(share)
        right = (scores.argmax(-1) == targets).tolist()
        self._note(asked, right, float(losses.detach().mean()))

    def _frames(self) -> list[int]:
        """The frames of this step's clips."""
        done = self.state["seconds"] / self.settings.seconds
        if done >= self.settings.whole or self.rng.random() < 0.1:
            return list(range(FRAMES))
        between = self.rng.choice(FRAMES - 2, int(self.rng.integers(0, 3)), replace=False)
        return [0, *sorted((between + 1).tolist()), FRAMES - 1]

    def _note(self, asked: list[list[Question]], right: list[bool], loss: float) -> None:
        """Running share of wholly right answers per split."""
        figures = self.state.setdefault("figures", {})
        spot, hits = 0, {"loss": [loss]}
        for question in (question for questions in asked for question in questions):
            # number questions have one token per digit; every answer ends with one more
            length = len(question.label) + 1 if question.label.isdigit() else 2
            name = question.split + ("-choice" if question.options else "")
            hits.setdefault(name, []).append(float(all(right[spot : spot + length])))
            spot += length
        for name, found in hits.items():
            mean = float(np.mean(found))
            figures[name] = 0.95 * figures.get(name, mean) + 0.05 * mean

    def save(self) -> None:
        """Write a checkpoint whole or not at all."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        parts = [part.state_dict() for part in self.parts]
        saved = {"parts": parts, "state": self.state, "optimisers": self.optimisers.state_dict()}
        torch.save(saved, self.path.with_suffix(".new"))
        self.path.with_suffix(".new").replace(self.path)
