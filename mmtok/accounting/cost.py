"""What a plan returns: the two costs of a prompt, side by side."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from mmtok.accounting.ledger import Ledger, Stage, si
from mmtok.table import render


@dataclass(frozen=True)
class Cost:
    """One side of a plan.

    Attributes:
        ledger: stages with tokens, analytic FLOPs and KV bytes; nothing is measured.
        visual_tokens: visual tokens that enter the language model.
        prefill_flops: of the language model, logits included, encoder not.
        kv_bytes: bytes of the KV cache after the prefill.
    """

    ledger: Ledger
    visual_tokens: int
    prefill_flops: int
    kv_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """{"stages", "total", "prefill_flops", "kv_bytes", "visual_tokens"}, JSON-ready."""
        return {
            "stages": [asdict(stage) for stage in self.ledger.stages],
            "total": asdict(self.ledger.total),
            "prefill_flops": self.prefill_flops,
            "kv_bytes": self.kv_bytes,
            "visual_tokens": self.visual_tokens,
        }


@dataclass(frozen=True)
class Plan:
    """Baseline and reduced cost of one prompt.

    Attributes:
        baseline: all visual tokens kept.
        reduced: with the reducer; equal to the baseline without one. An upper bound where a
            method decides by content how many tokens it keeps.
        meta: model, reducer and what was assumed.
    """

    baseline: Cost
    reduced: Cost
    meta: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """{"baseline": {...}, "reduced": {...}, "meta": {...}}, JSON-ready."""
        return {
            "baseline": self.baseline.to_dict(),
            "reduced": self.reduced.to_dict(),
            "meta": dict(self.meta),
        }

    def to_json(self) -> str:
        """`to_dict` as one line of JSON."""
        return json.dumps(self.to_dict())

    def table(self) -> str:
        """Both sides stage by stage, and how many times less the reduced one costs."""
        lines = [["stage", "tokens", "reduced", "FLOPs", "reduced", "less", "KV bytes", "reduced"]]
        names = [stage.stage for stage in self.reduced.ledger.stages]
        for name in [*names, "total"]:
            full, less = (_row(side.ledger, name) for side in (self.baseline, self.reduced))
            lines.append(
                [
                    name,
                    _text(full.tokens_in),
                    _text(less.tokens_in),
                    _si(full.flops_analytic),
                    _si(less.flops_analytic),
                    _ratio(full.flops_analytic, less.flops_analytic),
                    _text(full.kv_bytes),
                    _text(less.kv_bytes),
                ]
            )
        return render(lines, total=True)


def _row(ledger: Ledger, name: str) -> Stage:
    """The stage of that name; empty where a ledger has none."""
    rows = [*ledger.stages, ledger.total]
    return next((stage for stage in rows if stage.stage == name), Stage(name))


def _text(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _si(value: int | None) -> str:
    return "" if value is None else si(value)


def _ratio(full: int | None, less: int | None) -> str:
    return f"{full / less:.2f}x" if full and less else ""
