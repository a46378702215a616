"""Methods that keep fewer visual tokens. Every file in `methods/` is one, under its own name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmtok.errors import InputError
from mmtok.pruning.base import Reducer, overrides
from mmtok.registry import Registry
from mmtok.tokens import Query, Selection, VisualTokens

__all__ = ["Query", "Reducer", "Selection", "VisualTokens", "build", "registry"]

registry = Registry(
    kind="reducer",
    folder=Path(__file__).parent / "methods",
    package="mmtok.pruning.methods",
    base="Reducer",
    group="mmtok.reducers",
)


def build(reduce: str | Reducer | Sequence[str | Reducer] | None) -> list[Reducer]:
    """Reducers in the order they apply, from a spec, an object, or a list of them.

    Raises:
        InputError: a spec cannot be read, or two of the reducers cannot work together.
    """
    if reduce is None:
        return []
    if not isinstance(reduce, str | Reducer | Sequence):
        raise InputError(f"reduce must be a spec, a reducer or a list of them, got {reduce!r}")
    items = [reduce] if isinstance(reduce, str | Reducer) else list(reduce)
    reducers = [registry.build(item) if isinstance(item, str) else item for item in items]
    for place, reducer in enumerate(reducers):
        if not isinstance(reducer, Reducer):
            raise InputError(f"a reducer must be a spec or a Reducer, got {reducer!r}")
        if place and overrides(reducer, "before_encoder"):
            raise InputError(f"{reducer.name} acts on the picture: put it first in the list")
        behind = [r.name for r in reducers[:place] if overrides(r, "after_encoder")]
        inside = [r.name for r in reducers[:place] if overrides(r, "in_encoder")]
        if inside and overrides(reducer, "in_encoder"):
            raise InputError(
                f"only one reducer of a pipeline can merge inside the vision tower: leave out "
                f"{inside[0]} or {reducer.name}"
            )
        if behind and overrides(reducer, "in_encoder"):
            raise InputError(
                f"{reducer.name} merges inside the vision tower: put it before {behind[0]}"
            )
    return reducers


def __getattr__(name: str) -> Any:
    if not name.startswith("_") and name in (exports := registry.exports()):
        return registry.get(exports[name])
    raise AttributeError(f"module 'mmtok.pruning' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *registry.exports()})
