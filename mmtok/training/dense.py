"""Stage 1: train the vision tower to name what each patch lies on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import CLIPVisionModel

from mmtok.training.garments import KINDS, Garments
from mmtok.training.optim import Optimisers, schedule
from mmtok.training.scenes import CANVAS, PATCH, jpeg, render, sample_scene
from mmtok.training.tower import (
    GRID,
    DenseHeads,
    dense_loss,
    patch_labels,
    run_tower,
    to_pixels,
)

Batch = tuple[Tensor, dict[str, Tensor], tuple[int, int]]


@dataclass(frozen=True)
class DenseSettings:
    """How long and on what the tower trains.

    Attributes:
        seconds: wall time, the clock of the learning rate.
        windows: share of the time on 64-pixel windows, before full canvases.
        lr: peak learning rate.
        decay: share of the time at the end in which the learning rate falls.
        seed: of the scenes.
        start: first step's number, so that a later run sees other scenes.
        tokens: patches in a batch.
    """

    seconds: float
    windows: float = 0.6
    lr: float = 2.5e-3
    decay: float = 0.35
    seed: int = 1
    start: int = 0
    tokens: int = 3136


def dense_batch(rng: Generator, garments: Garments, size: int, batch: int) -> Batch:
    """Render `batch` scenes of one size with their patch labels, at a random corner."""
    images, labels = [], []
    for _ in range(batch):
        most = 14 if size == CANVAS else 4  # crowded: as many items per patch as find room
        count = most if rng.random() < 0.75 else int(rng.integers(0, most // 2))
        scene = sample_scene(rng, garments, size, count, number=0.6, kinds=range(len(KINDS)))
        owner = np.zeros((size, size), np.int8)
        image = render(scene, garments, owner)
        images.append(jpeg(rng, image) if rng.random() < 0.5 else image)
        labels.append(patch_labels(scene, owner))
    stacked = {key: torch.from_numpy(np.stack([lab[key] for lab in labels])) for key in labels[0]}
    room = GRID - size // PATCH + 1
    corner = (int(rng.integers(room)), int(rng.integers(room)))
    return torch.from_numpy(np.stack(images)), stacked, corner


class _Batches(IterableDataset[Batch]):
    """Endless batches; what a batch holds depends on its number alone."""

    def __init__(self, garments: Garments, settings: DenseSettings, size: int, start: int) -> None:
        self.garments, self.settings, self.size, self.start = garments, settings, size, start

    def __iter__(self) -> Iterator[Batch]:
        batch = max(1, self.settings.tokens // (self.size // PATCH) ** 2)
        number = self.start
        while True:
            rng = np.random.default_rng((self.settings.seed, number))
            yield dense_batch(rng, self.garments, self.size, batch)
            number += 1


def train_tower(
    tower: CLIPVisionModel,
    heads: DenseHeads,
    garments: Garments,
    settings: DenseSettings,
    folder: Path,
    report: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Train `tower` and `heads` in place; taken up again from `folder/dense.pt` if that is there.

    Returns:
        steps done and seconds used.
    """
    optimisers = Optimisers([tower, heads], settings.lr)
    state: dict[str, Any] = {"step": settings.start, "seconds": 0.0}
    path = folder / "dense.pt"
    if path.exists():
        saved = torch.load(path, weights_only=True)
        tower.load_state_dict(saved["tower"])
        heads.load_state_dict(saved["heads"])
        optimisers.load_state_dict(saved["optimisers"])
        state = saved["state"]
    for size, until in ((64, settings.windows), (CANVAS, 1.0)):
        source = _Batches(garments, settings, size, state["step"])
        loader = DataLoader(source, batch_size=None, num_workers=1, prefetch_factor=4)
        batches = iter(loader)
        while state["seconds"] < until * settings.seconds:
            _dense_step(tower, heads, optimisers, next(batches), state, settings)
            if state["step"] % 50 == 0:
                report(f"tower {size}px {_line(state)}")
            if state["step"] % 200 == 0:
                _save(path, tower, heads, optimisers, state)
        del batches, loader
    _save(path, tower, heads, optimisers, state)
    return state


class DenseBeside:
    """Dense steps between the steps of something that trains on the tower's features.

    Args:
        tower: trained in place.
        heads: its read-outs, trained in place.
        garments: training photographs.
        settings: `seconds` are the time of the dense steps alone.
    """

    def __init__(
        self, tower: CLIPVisionModel, heads: DenseHeads, garments: Garments, settings: DenseSettings
    ) -> None:
        self.tower, self.heads, self.garments, self.settings = tower, heads, garments, settings
        self.optimisers = Optimisers([tower, heads], settings.lr)
        self.state: dict[str, Any] = {"step": settings.start, "seconds": 0.0}

    def catch_up(self, share: float) -> None:
        """Step on until `share` (0 to 1) of the time is used."""
        while self.state["seconds"] < min(1.0, share) * self.settings.seconds:
            began = time.monotonic()
            rng = np.random.default_rng((self.settings.seed, self.state["step"]))
            scenes = max(1, self.settings.tokens // GRID**2)
            batch = dense_batch(rng, self.garments, CANVAS, scenes)
            spent = self.state["seconds"]
            _dense_step(self.tower, self.heads, self.optimisers, batch, self.state, self.settings)
            self.state["seconds"] = spent + time.monotonic() - began

    def state_dict(self) -> dict[str, Any]:
        """Tower, read-outs, optimisers and clock."""
        parts = {"tower": self.tower.state_dict(), "heads": self.heads.state_dict()}
        return parts | {"optimisers": self.optimisers.state_dict(), "state": self.state}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Take up a saved state."""
        self.tower.load_state_dict(saved["tower"])
        self.heads.load_state_dict(saved["heads"])
        self.optimisers.load_state_dict(saved["optimisers"])
        self.state = saved["state"]


def fit_heads(
    tower: CLIPVisionModel,
    heads: DenseHeads,
    garments: Garments,
    seed: int,
    steps: int = 300,
    batches: int = 24,
) -> float:
    """Fit new read-outs to a trained tower that stays as it is, on batches of 16 scenes.

    Returns:
        the last loss.
    """
    rng = np.random.default_rng(seed)
    device = heads.kind.weight.device
    drawn = [dense_batch(rng, garments, CANVAS, 16)[:2] for _ in range(batches)]
    with torch.no_grad():
        pixels = [to_pixels(images.numpy()).to(device) for images, _ in drawn]
        hidden = torch.cat([run_tower(tower, part) for part in pixels])
    labels = {k: torch.cat([found[k] for _, found in drawn]).to(device) for k in drawn[0][1]}
    optimiser = torch.optim.AdamW(heads.parameters(), lr=1e-2)
    last = 0.0
    for step in range(steps):
        picked = torch.randint(0, len(hidden), (32,), device=device)
        loss = dense_loss(heads(hidden[picked]), {k: v[picked] for k, v in labels.items()}, (0, 0))
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.param_groups[0]["lr"] = 1e-2 * (1 - step / steps)
        optimiser.step()
        last = float(loss.detach())
    return last


def _dense_step(
    tower: CLIPVisionModel,
    heads: DenseHeads,
    optimisers: Optimisers,
    batch: Batch,
    state: dict[str, Any],
    settings: DenseSettings,
) -> None:
    """One optimiser step."""
    began = time.monotonic()
    images, labels, corner = batch
    device = heads.kind.weight.device
    labels = {key: value.to(device) for key, value in labels.items()}
    with torch.autocast(device.type, torch.bfloat16):
        hidden = run_tower(tower, to_pixels(images.numpy()).to(device), corner)
    scores = heads(hidden.float())
    loss = dense_loss(scores, labels, corner)
    loss.backward()  # type: ignore[no-untyped-call]
    optimisers.step(schedule(state["seconds"] / settings.seconds, decay=settings.decay))
    state["step"] += 1
    state["seconds"] += min(60.0, time.monotonic() - began)
    if state["step"] % 10 == 0:
        figures = {"loss": float(loss.detach())} | dense_figures(scores, labels)
        old = state.get("figures", figures)
        state["figures"] = {k: 0.8 * old.get(k, v) + 0.2 * v for k, v in figures.items()}


@torch.no_grad()
def dense_figures(scores: dict[str, Tensor], labels: dict[str, Tensor]) -> dict[str, float]:
    """Accuracy of the read-outs: kind and colour on items and at their centres, digits, seen."""
    named = {}
    covered = labels["colour"] >= 0
    centre = (labels["centre"] >= 0.25) & covered
    number = labels["rank"] >= 0
    ground = labels["kind"] == len(KINDS)
    for name, where in (("kind", covered), ("colour", covered), ("digit", number)):
        named[name] = (name, where)
    named |= {"rank": ("rank", number), "item": ("kind", centre), "ground": ("kind", ground)}
    figures = {}
    for label, (name, where) in named.items():
        if where.any():
            right = scores[name].argmax(-1)[where] == labels[name][where]
            figures[label] = float(right.float().mean())
    counted = (scores["centre"].sigmoid().sum((1, 2)) - labels["centre"].sum(1)).abs()
    figures["miscounted"] = float(counted.mean())
    figures["seen"] = float(((scores["seen"] > 0) == (labels["seen"] > 0.5)).float().mean())
    return figures


def _line(state: dict[str, Any]) -> str:
    """One line of progress."""
    figures = " ".join(f"{k} {v:.3f}" for k, v in state.get("figures", {}).items())
    return f"step {state['step']} {state['seconds'] / 60:.1f} min {figures}"


def _save(
    path: Path,
    tower: nn.Module,
    heads: nn.Module,
    optimisers: Optimisers,
    state: dict[str, Any],
) -> None:
    """Write a checkpoint whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = {"tower": tower.state_dict(), "heads": heads.state_dict(), "state": state}
    torch.save(parts | {"optimisers": optimisers.state_dict()}, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)
