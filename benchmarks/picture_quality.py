"""What lossy rules do to tiny-ar's pictures: acceptance against law, class and Fréchet distance."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from card import markdown
from drafting import Mean, clustered
from torch import Tensor
from torch.nn.functional import linear

from mmtok.decoding import Drafter, DraftTree, generate_zipar
from mmtok.decoding.visual import ImageWriter
from mmtok.eval.judge import load_judge
from mmtok.models.visual_ar import VisualAR

MODEL_DRAFT = "draftmodel(tokens=5)"
LOSSY = [
    *(f"lantern(delta={delta})" for delta in (0.1, 0.2, 0.4)),
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


class _Writer(ImageWriter):
    """A visual autoregressive model as a causal model over its codes, for ZipAR."""

    def __init__(self, painter: VisualAR) -> None:
        rows, columns = painter.tokenizer.grid(painter.vocabulary.shape)
        codes, self.first = painter.vocabulary.codes, painter.vocabulary.first_code
        super().__init__(painter.model, codes=codes, rows=rows, columns=columns)

    def embed(self, codes: Tensor) -> Tensor:
        embedded: Tensor = self.model.get_input_embeddings()(codes + self.first)
        return embedded

    def head(self, hidden: Tensor) -> Tensor:
        weight = self.model.lm_head.weight[self.first : self.first + self.codes]
        return linear(hidden, weight)


def zipped(
    painter: VisualAR,
    kinds: Sequence[str],
    window: int,
    scale: float,
    seed: int,
    temperature: float,
) -> tuple[Tensor, int]:
    """Pictures by ZipAR: token ids (B, codes), and forwards of the model."""
    writer = _Writer(painter)
    prompts, negative = painter.prompts(kinds)
    sampling = {"do_sample": temperature > 0} | (
        {"temperature": temperature} if temperature else {}
    )
    made = generate_zipar(
        writer,
        prompts,
        window=window,
        guidance_scale=scale,
        negative=negative,
        seed=seed,
        **sampling,
    )
    return made.codes.flatten(1) + writer.first, made.target_forwards


def mean(values: list[Any]) -> float:
    return sum(values) / len(values)


@dataclass(frozen=True)
class Quality:
    """What a rule does to pictures.

    Attributes:
        tv: None where it is not measured, 0 for exact rules.
        accuracy: share of pictures that show their class.
        error: standard error of that.
    """

    rule: str
    accepted: float
    tv: Mean | float | None
    accuracy: float
    error: float
    frechet: float


def judged(
    rule: str, accepted: float, tv: Mean | float | None, pictures: Tensor, classes: int
) -> Quality:
    """Have pictures judged, whose classes come in turn."""
    count = len(pictures)
    figures = load_judge().figures(pictures, torch.arange(count) % classes)
    accuracy = figures["accuracy"]
    error = (accuracy * (1 - accuracy) / count) ** 0.5
    return Quality(rule, accepted, tv, accuracy, error, figures["frechet"])


def batches(kinds: Sequence[str], count: int, size: int = 50) -> list[tuple[int, list[str]]]:
    """The first seed and the classes of every batch."""
    whole = [kinds[i % len(kinds)] for i in range(count)]
    return [(10_000 + at, whole[at : at + size]) for at in range(0, count, size)]


def by_rule(painter: VisualAR, rule: str, scale: float, count: int, law: Sequence[str]) -> Quality:
    """Draw `count` pictures of all classes alike; measure the law on others, of `law`'s classes."""
    plain = rule == "plain"
    drafts: Any = Bare() if plain else painter.drafter(MODEL_DRAFT)
    judge = painter.verifier("deterministic" if plain else rule)
    kinds = painter.vocabulary.classes
    pictures, steps, accepted = [], 0, 0
    for seed, asked in batches(kinds, count):
        made = painter.generate(asked, drafts, judge, guidance=scale, seed=seed, measure_tv=False)
        pictures.append(painter.pictures(made.sequences))
        steps, accepted = steps + made.stats.row_steps, accepted + sum(made.stats.hits)
    tv: Mean | float | None = 0.0
    if not judge.lossless:
        runs = (
            painter.generate([k], drafts, judge, guidance=scale, seed=i, measure_tv=True)
            for i, k in enumerate(law)
        )
        tv = clustered([run.stats.tv for run in runs])
    return judged(rule, accepted / steps, tv, torch.cat(pictures), len(kinds))


def by_zipar(painter: VisualAR, window: int, scale: float, count: int) -> Quality:
    """The same of ZipAR, which has no drafts and so no law of judged tokens."""
    kinds, pictures = painter.vocabulary.classes, []
    for seed, asked in batches(kinds, count):
        codes, forwards = zipped(painter, asked, window, scale, seed, 1.0)
        pictures.append(painter.pictures(torch.cat([codes[:, :1], codes], 1)))
    accepted = painter.tokens / forwards - 1
    return judged(f"ZipAR, window {window}", accepted, None, torch.cat(pictures), len(kinds))


def words_of(tv: Mean | float | None) -> str:
    return "not measured" if tv is None else str(tv) if isinstance(tv, Mean) else f"{tv:.0f}, exact"


def lantern(found: list[Quality]) -> str:
    """Whether LANTERN buys acceptance, and for what."""
    exact = next(row for row in found if row.rule == "chain")
    tried = [row for row in found if row.rule.startswith("lantern")]
    more = sorted((r for r in tried if r.accepted > exact.accepted), key=lambda r: r.accepted)
    text = f"LANTERN accepts more than the exact rule at {len(more)} of {len(tried)} settings"
    for word, row in zip(("least", "most"), (more[0], more[-1]) if more else (), strict=False):
        text += (
            f"; the {word} at `{row.rule}`, {row.accepted:.2f} against {exact.accepted:.2f}, with "
            f"class accuracy {row.accuracy - exact.accuracy:+.3f} and Fréchet distance "
            f"{row.frechet - exact.frechet:+.2f}"
        )
    return f"{text}.\n"


def quality_section(
    painter: VisualAR, scale: float, count: int, law: Sequence[str], windows: Sequence[int]
) -> str:
    """Markdown: acceptance against quality, by rule."""
    found = []
    for rule in ("plain", "chain", *LOSSY):
        found.append(by_rule(painter, rule, scale, count, law))
        print(found[-1], file=sys.stderr, flush=True)
    found += [by_zipar(painter, window, scale, count) for window in windows]
    rows = [["verifier", "accepted per step", "TV", "class accuracy", "Fréchet distance"]]
    for row in found:
        name = f"`{row.rule}`" if row.rule in ("chain", *LOSSY) else row.rule
        figures = [f"{row.accuracy:.3f} ± {row.error:.3f}", f"{row.frechet:.2f}"]
        rows.append([name, f"{row.accepted:.2f}", words_of(row.tv), *figures])
    return (
        f"### Pictures, lossy rules\n\nDrafter `{MODEL_DRAFT}`, sampling at temperature 1, {count} "
        f"pictures a row, TV on {len(law)}. *Accepted per step* leaves out the forward that reads "
        "the prompt. Class accuracy (± one standard error) and the Fréchet distance to held-out "
        "photographs are those of the small classifier that ships (`mmtok.eval.judge`); the first "
        "two rows draw from one law: between them lies nothing but noise. Greedy rules draw one "
        "picture a class and are not judged.\n\n"
        f"{markdown(rows)}\n{lantern(found)}"
    )
