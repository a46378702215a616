"""What lossy rules do to tiny-ar's pictures: acceptance against law, class and Fréchet distance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from card import markdown

from mmtok.decoding import Drafter, DraftTree
from mmtok.eval.judge import load_judge
from mmtok.models.visual_ar import VisualAR

MODEL_DRAFT = "draftmodel(tokens=5)"
LOSSY = [
    *(f"lantern(delta={delta})" for delta in (0.05, 0.1, 0.2, 0.4)),
    *(f"lantern(delta={delta:.1f})" for delta in (2, 5)),
    "gsd",
    "typical",
]


@dataclass(kw_only=True)
class Bare(Drafter):
    """Proposes nothing: the engine, one token a forward."""

    @property
    def kind(self) -> Any:
        return "det"

    def propose(self, ids: list[list[int]], active: list[bool]) -> list[DraftTree]:
        return [DraftTree.root(row[-1]) for row in ids]


def mean(values: list[Any]) -> float:
    return sum(values) / len(values)


@dataclass(frozen=True)
class Quality:
    """What a rule does to pictures."""

    rule: str
    accepted: float
    tv: float | None
    accuracy: float
    frechet: float

    @property
    def law(self) -> str:
        """The total variation in words."""
        return "not measured" if self.tv is None else f"{self.tv:.3f}"


def quality(painter: VisualAR, rule: str, scale: float, count: int, batch: int = 50) -> Quality:
    """Draw `count` pictures of all classes alike and judge them; measure the law on four more."""
    plain = rule == "plain"
    drafts: Any = Bare() if plain else painter.drafter(MODEL_DRAFT)
    judge = painter.verifier("deterministic" if plain else rule)
    kinds = painter.vocabulary.classes
    pictures, accepted = [], []
    for start in range(0, count, batch):
        asked = [kinds[i % len(kinds)] for i in range(start, min(count, start + batch))]
        made = painter.generate(
            asked, drafts, judge, guidance=scale, seed=10_000 + start, measure_tv=False
        )
        pictures.append(painter.pictures(made.sequences))
        accepted.append(made.stats.accepted_per_step)
    tv = None
    if not judge.lossless:
        tv = painter.generate(kinds[:4], drafts, judge, guidance=scale, seed=77).stats.mean_tv
    wanted = torch.arange(count) % len(kinds)
    figures = load_judge().figures(torch.cat(pictures), wanted)
    return Quality(rule, mean(accepted), tv, figures["accuracy"], figures["frechet"])


def quality_text(found: list[Quality], count: int) -> str:
    rows = [["verifier", "accepted", "total variation", "class accuracy", "Fréchet distance"]]
    for row in found:
        name = row.rule if row.rule == "plain" else f"`{row.rule}`"
        figures = [f"{row.accuracy:.3f}", f"{row.frechet:.2f}"]
        rows.append([name, f"{row.accepted:.2f}" if row.accepted else "", row.law, *figures])
    exact = next(row for row in found if row.rule == "chain")
    text = [
        f"## Lossy rules\n\nThe same drafter, `{MODEL_DRAFT}`, and {count} pictures a row. Class "
        "accuracy and the Fréchet distance to the held-out photographs are those of the small "
        "classifier that ships (`mmtok.eval.judge`); the first two rows are draws from one law and "
        "show the noise. Total variation is measured between the law of the first judged token of "
        "a step and the target's, for lossy rules alone.\n",
        markdown(rows),
    ]
    for row in found:
        if row.rule.startswith("lantern"):
            more = row.accepted > exact.accepted
            text.append(
                f"- `{row.rule}` accepts {row.accepted:.2f} where the exact rule accepts "
                f"{exact.accepted:.2f}{'' if more else ', which is no more'}; class accuracy "
                f"{row.accuracy - exact.accuracy:+.3f}, Fréchet distance "
                f"{row.frechet - exact.frechet:+.2f}, total variation {row.law}."
            )
    return "\n".join(text) + "\n"
