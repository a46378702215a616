"""Train `tiny-ar-draft`, the drafter of `tiny-ar`, on what the guided target says.

    python -m mmtok.training.draft --out runs/tiny-ar-draft

On-policy distillation, as in DistillSpec (arXiv 2310.08461; no code of its authors): the target
draws pictures with guidance, all classes alike, and a model of one layer learns its distribution
at every token of them. Drafts are made without guidance, in half the work, and still agree with a
guided target. Needs no photographs: the target that ships, or another folder, is all the data.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmtok.errors import InputError
from mmtok.models.cache_name import cache_name
from mmtok.models.causal import load_causal
from mmtok.training import checkpoint
from mmtok.training.ar import GUIDANCE, TOKENS, VOCABULARY, build_model, export
from mmtok.training.optim import Optimisers, schedule


@dataclass(frozen=True, kw_only=True)
class DraftSettings:
    """How long and how the drafter trains.

    Attributes:
        rounds: times that the target draws.
        pictures: drawn in a round.
        passes: over the pictures of a round.
        batch: pictures of a step.
        guidance: scale of the target.
        lr: peak learning rate of the layer's matrices.
        others_lr: that of embeddings and norms.
        seed: of weights, draws and order.

    Raises:
        InputError: a round has no batch.
    """

    rounds: int = 15
    pictures: int = 640
    passes: int = 4
    batch: int = 64
    guidance: float = GUIDANCE
    lr: float = 4e-3
    others_lr: float = 3e-3
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.batch <= self.pictures:
            raise InputError(f"draft: batch of {self.batch}, expected 1 to {self.pictures}")


@torch.no_grad()
def draw_guided(
    model: Any, classes: Tensor, scale: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Sequences (B, 65) of these class numbers (B,) and guided log-probabilities (B, 64, V).

    Code tokens alone are drawn; the others have probability 0.
    """
    from transformers import DynamicCache

    first = classes[:, None] + VOCABULARY.first_class
    token = torch.cat([first, torch.full_like(first, VOCABULARY.unconditional)])
    held = {cache_name(model): DynamicCache(config=model.config)}
    ids, laws = [first], []
    for _ in range(TOKENS):
        with torch.autocast(token.device.type, torch.bfloat16):
            scores = model(input_ids=token, use_cache=True, **held).logits[:, -1]
        cond, uncond = scores.float().chunk(2)
        guided = uncond + scale * (cond - uncond)
        guided[:, VOCABULARY.first_class :] = -torch.inf
        laws.append(guided.log_softmax(-1))
        drawn = torch.multinomial(laws[-1].exp().cpu(), 1, generator=generator)
        ids.append(drawn.to(first.device))
        token = ids[-1].repeat(2, 1)
    return torch.cat(ids, 1), torch.stack(laws, 1)


def divergence(draft: Any, ids: Tensor, law: Tensor) -> Tensor:
    """Mean KL(target, drafter) in nats over the codes of (B, 65) ids, law (B, 64, V)."""
    with torch.autocast(ids.device.type, torch.bfloat16):
        scores = draft(input_ids=ids[:, :-1], use_cache=False).logits
    codes = slice(0, VOCABULARY.first_class)
    own = scores.float().log_softmax(-1)[..., codes]
    return F.kl_div(own, law[..., codes], log_target=True, reduction="none").sum(-1).mean()


class DraftTrainer:
    """Distils `target` into a small model; resumes from `folder` at the last round.

    Raises:
        InputError: the checkpoint there was made with other settings or other data.
    """

    def __init__(self, target: Any, settings: DraftSettings, folder: Path) -> None:
        self.target, self.settings = target, settings
        self.path = folder / "draft.pt"
        self.model = build_model(width=128, layers=1, tied=True, seed=settings.seed)
        self.model.to(target.device).train()
        self.optimisers = Optimisers([self.model], settings.lr, settings.others_lr)
        self.round = 0
        self._said = {**asdict(settings), "target": checkpoint.digest(*target.parameters())}
        saved = checkpoint.load(self.path, self._said)
        if saved is not None:
            self.model.load_state_dict(saved["model"])
            self.optimisers.load_state_dict(saved["optimisers"])
            self.round = saved["round"]

    def train(self, report: Callable[[str], None] = print, until: int | None = None) -> None:
        """Go on to the last round, or to `until`; a checkpoint after each."""
        last = self.settings.rounds if until is None else min(until, self.settings.rounds)
        while self.round < last:
            apart, agree = self._round()
            self.round += 1
            report(f"draft round {self.round} nats apart {apart:.3f} accepted {agree:.3f}")
            state = {"model": self.model.state_dict(), "round": self.round}
            state["optimisers"] = self.optimisers.state_dict()
            checkpoint.save(self.path, state, self._said)

    def _round(self) -> tuple[float, float]:
        """One round; divergence and acceptance on its pictures before they were learnt from."""
        settings = self.settings
        seed = settings.seed * 1_000_003 + self.round
        generator = torch.Generator().manual_seed(seed)
        classes = torch.arange(settings.pictures) % len(VOCABULARY.classes)
        ids, law = draw_guided(
            self.target, classes.to(self.target.device), settings.guidance, generator
        )
        figures = agreement(self.model, ids, law)
        steps = settings.pictures // settings.batch * settings.passes
        for step in range(steps):
            places = checkpoint.batch_at(step, settings.batch, settings.pictures, seed)
            loss = divergence(self.model, ids[places], law[places])
            torch.autograd.backward(loss)
            done = (self.round + step / steps) / settings.rounds
            self.optimisers.step(schedule(done, decay=0.7))
        return figures


@torch.no_grad()
def agreement(draft: Any, ids: Tensor, law: Tensor) -> tuple[float, float]:
    """(KL in nats, mean of sum min(p, q)): how often one draft would be accepted."""
    apart = float(divergence(draft, ids, law))
    own = draft(input_ids=ids[:, :-1], use_cache=False).logits.float().softmax(-1)
    return apart, float(torch.minimum(own, law.exp()).sum(-1).mean())


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="train the drafter tiny-ar-draft")
    parser.add_argument("--target", default="tiny-ar", help="folder of the target")
    parser.add_argument("--out", type=Path, default=Path("runs/tiny-ar-draft"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="CPU threads, by default all")
    for field in fields(DraftSettings):
        parser.add_argument(f"--{field.name}", type=type(field.default), default=field.default)
    options = vars(parser.parse_args())
    if options["threads"]:
        torch.set_num_threads(options["threads"])
    settings = DraftSettings(**{field.name: options[field.name] for field in fields(DraftSettings)})
    target = load_causal(options["target"], options["device"])
    trainer = DraftTrainer(target, settings, options["out"])
    trainer.train(lambda line: print(line, flush=True))
    generator = torch.Generator().manual_seed(-1)
    classes = (torch.arange(200) % len(VOCABULARY.classes)).to(target.device)
    drawn = draw_guided(target, classes, settings.guidance, generator)
    apart, agree = agreement(trainer.model.eval(), *drawn)
    export(trainer.model.cpu(), options["out"] / "export")
    figures = {"nats_apart": apart, "accepted": agree}
    (options["out"] / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
