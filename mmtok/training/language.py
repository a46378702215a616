"""Stage 2: teach the projector and the language model to answer.

Scenes and clips wait with their features in a pool; each is asked new questions a few times before
a new one takes its place. No gradient reaches the tower, but it may be trained on beside. Besides
the answers there are facts to learn (`facts`), without which places, counts and clips stay at
chance for long. Matrix products are in bfloat16.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from torch.nn import functional as F
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from mmtok.training.clips import FRAMES, Clip, training_questions
from mmtok.training.counting import least_needed_head, start_naming, start_reading
from mmtok.training.dense import DenseBeside
from mmtok.training.facts import FactHeads
from mmtok.training.garments import Garments
from mmtok.training.optim import Optimisers, schedule
from mmtok.training.pool import Pool
from mmtok.training.questions import Question, scene_questions
from mmtok.training.scenes import Scene
from mmtok.training.sequences import pack_questions, read_through
from mmtok.training.tokens import EOS, build_tokenizer
from mmtok.training.tower import IGNORE

_TAILS = ("\nAnswer the question using a single word or phrase.", " Please answer yes or no.")


@dataclass(frozen=True)
class LanguageSettings:
    """How long and on what the language model trains.

    Attributes:
        seconds: wall time, the clock of the learning rate.
        windows: share of the time in which most scenes are of 40 or 64 pixels: in few patches
            the model finds out sooner where to look.
        facts: weight of the facts' loss, against 1 for the answers'.
        clips: share of the steps about clips, once `clips_from` has passed.
        clips_from: share of the time before the first clip.
        counting: share of the time after which the model is shown how to count (`counting`).
        whole: share of the time after which every clip keeps its eight frames; before that most are
            cut to two to four, first and last among them.
        towers: share of the time in which dense steps of the tower go on beside, if any.
        lr: peak learning rate of the layers' matrices.
        others_lr: that of embeddings, norms and projector.
        decay: share of the time at the end in which the learning rate falls.
        scene_batch: scenes in a step about scenes.
        clip_batch: clips of eight frames in a step about clips, or as many frames in shorter ones.
        reuse: how often a scene or clip is asked about before it is replaced.
        pool: scenes kept; a fourth as many clips.
        seed: of scenes and questions.
    """

    seconds: float
    windows: float = 0.08
    facts: float = 0.4
    clips: float = 0.45
    clips_from: float = 0.15
    counting: float = 0.25
    whole: float = 0.78
    towers: float = 0.75
    lr: float = 6e-3
    others_lr: float = 1e-3
    decay: float = 0.6
    scene_batch: int = 12
    clip_batch: int = 2
    reuse: int = 4
    pool: int = 768
    seed: int = 2


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
        beside: DenseBeside | None = None,
    ) -> None:
        self.model, self.garments, self.settings = model, garments, settings
        self.beside = beside
        self.path = folder / "language.pt"
        self.tokenizer: PreTrainedTokenizerFast = build_tokenizer()
        self.heads = FactHeads(model.config.text_config.hidden_size).to(model.device)
        self.parts = [model.model.multi_modal_projector, model.model.language_model, self.heads]
        self.optimisers = Optimisers(self.parts, settings.lr, settings.others_lr)
        self.state: dict[str, Any] = {"step": 0, "seconds": 0.0}
        if self.path.exists():
            saved = torch.load(self.path, weights_only=True)
            for part, weights in zip(self.parts, saved["parts"], strict=True):
                part.load_state_dict(weights)
            self.optimisers.load_state_dict(saved["optimisers"])
            self.state = saved["state"]
            if self.beside is not None and "beside" in saved:
                self.beside.load_state_dict(saved["beside"])
        seed = settings.seed * 1_000_003 + self.state["step"]
        self.rng = np.random.default_rng(seed)
        self.scenes = Pool(garments, False, settings.pool, seed)
        self.windows = [Pool(garments, False, settings.pool, seed + s, s) for s in (40, 64)]
        self.clips = Pool(garments, True, settings.pool // 4, seed)

    def train(self, report: Callable[[str], None] = print) -> dict[str, Any]:
        """Run until the time is used up; returns steps done and seconds used."""
        settings, state = self.settings, self.state
        while state["seconds"] < settings.seconds:
            began = time.monotonic()
            done = state["seconds"] / settings.seconds
            clip = done >= settings.clips_from and self.rng.random() < settings.clips
            small = done < settings.windows and self.rng.random() < 0.7
            pool = self.windows[int(self.rng.integers(2))] if small else self.scenes
            if self.beside is not None:
                self.beside.catch_up(done / settings.towers)
            if done >= settings.counting and not state.get("counting"):
                state["counting"] = self._start_counting()
            self._step(self.clips if clip else pool, schedule(done, decay=settings.decay))
            state["step"] += 1
            state["seconds"] += min(60.0, time.monotonic() - began)
            if state["step"] % 50 == 0:
                figures = " ".join(f"{k} {v:.3f}" for k, v in sorted(state["figures"].items()))
                report(f"language step {state['step']} {state['seconds'] / 60:.1f} min {figures}")
            if state["step"] % 100 == 0:
                self.save()
        self.save()
        return state

    def _start_counting(self) -> list[float]:
        """Set the parts that count (`counting`); returns how well they do."""
        scenes = Pool(self.garments, False, self.settings.pool, self.settings.seed + 1)
        scenes.renew(self.model, min(self.settings.pool, 512))
        things, features = scenes.draw(self.rng, len(scenes.things), [0])
        shown = [thing for thing in things if isinstance(thing, Scene)]
        asked = [ask_about(thing, self.rng) for thing in things[:32]]
        sequences = pack_questions(self.tokenizer, asked, 1)
        features = features.to(self.model.device)
        head = least_needed_head(self.model, sequences, features[:32])
        left = start_reading(self.model, features, shown, head)
        return [left, start_naming(self.model, features, shown)]

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
        sequences = sequences.to(self.model.device)
        with torch.autocast(self.model.device.type, torch.bfloat16):
            hidden = read_through(self.model, sequences, features)
        answered = sequences.targets != IGNORE
        targets = sequences.targets[answered]
        scores = self.model.lm_head(hidden[-1][answered].float())
        # that an answer ends after a word is learnt at once, after which digit is not
        weights = torch.where(targets == EOS, 0.4, 1.0)
        losses = F.cross_entropy(scores, targets, reduction="none") * weights
        loss = losses.sum() / weights.sum()
        known, figures = self.heads(hidden, sequences, things)
        (loss + settings.facts * known).backward()
        self.optimisers.step(share)
        right = (scores.argmax(-1) == targets).tolist()
        medium = "clip-" if pool is self.clips else ""
        figures |= {"loss": float(loss.detach()), "facts": float(known.detach())}
        self._note(asked, right, {medium + name: value for name, value in figures.items()})

    def _frames(self) -> list[int]:
        """The frames of this step's clips."""
        done = self.state["seconds"] / self.settings.seconds
        if done >= self.settings.whole or self.rng.random() < 0.1:
            return list(range(FRAMES))
        between = self.rng.choice(FRAMES - 2, int(self.rng.integers(0, 3)), replace=False)
        return [0, *sorted((between + 1).tolist()), FRAMES - 1]

    def _note(
        self, asked: list[list[Question]], right: list[bool], found: dict[str, float]
    ) -> None:
        """Running means of the figures found and of the share of wholly right answers."""
        figures = self.state.setdefault("figures", {})
        spot, hits = 0, {name: [value] for name, value in found.items()}
        for question in (question for questions in asked for question in questions):
            # number questions have one token per digit; every answer ends with one more
            length = len(question.label) + 1 if question.label.isdigit() else 2
            name = question.split + ("-choice" if question.options else "")
            if question.split == "clip" and question.options is None:
                word = question.text.split()[2]  # first, last, or
                name = "clip-" + {"does": "way", "items": "tally", "a": "seen"}.get(word, word)
            hits.setdefault(name, []).append(float(all(right[spot : spot + length])))
            spot += length
        for name, values in hits.items():
            mean = float(np.mean(values))
            figures[name] = 0.97 * figures.get(name, mean) + 0.03 * mean

    def save(self) -> None:
        """Write a checkpoint whole or not at all."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        parts = [part.state_dict() for part in self.parts]
        saved = {"parts": parts, "state": self.state, "optimisers": self.optimisers.state_dict()}
        if self.beside is not None:
            saved["beside"] = self.beside.state_dict()
        torch.save(saved, self.path.with_suffix(".new"))
        self.path.with_suffix(".new").replace(self.path)
