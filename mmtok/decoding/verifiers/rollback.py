"""Rollback of BiLD, the big little decoder (arXiv 2302.07863), lossy and greedy.

The authors' code is kssteven418/BigLittleDecoder; `mmtok.decoding.lossy` says where we deviate.
Its fallback is the drafter `bild`; p is the distribution in front of the argmax.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from mmtok.decoding import lossy
from mmtok.decoding.base import Verifier
from mmtok.decoding.rules import Level
from mmtok.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Rollback(Verifier):
    """Accept a draft of at most `tau` nats, or one that is the argmax; else emit the argmax."""

    lossless: ClassVar[bool] = False
    argmax: ClassVar[bool] = True

    tau: float = 2.0

    def __post_init__(self) -> None:
        if not self.tau >= 0:
            raise InputError(f"rollback: tau must be at least 0 nats, got {self.tau!r}")

    def level(self, p: Tensor, siblings: Tensor, q: Tensor | None) -> Level:
        """See `lossy.rollback`."""
        return lossy.rollback(p, siblings, self.tau)
