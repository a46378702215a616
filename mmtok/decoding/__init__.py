"""Speculative decoding: drafters propose, the target scores a tree in one forward, verifiers judge.

Every file in `drafters/` and `verifiers/` is one method, under its own name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmtok.registry import Registry

drafter_registry = Registry(
    kind="drafter",
    folder=Path(__file__).parent / "drafters",
    package="mmtok.decoding.drafters",
    base="Drafter",
    group="mmtok.drafters",
    typed=True,
)
verifier_registry = Registry(
    kind="verifier",
    folder=Path(__file__).parent / "verifiers",
    package="mmtok.decoding.verifiers",
    base="Verifier",
    group="mmtok.verifiers",
    typed=True,
)
_HERE = {
    "generate": "mmtok.decoding.entry",
    "Generated": "mmtok.decoding.entry",
    "generate_images": "mmtok.decoding.images",
    "image_writer": "mmtok.decoding.visual",
    "generate_zipar": "mmtok.decoding.zipar",
    "DraftTree": "mmtok.decoding.tree",
    "Drafter": "mmtok.decoding.base",
    "Verifier": "mmtok.decoding.base",
    "StepResult": "mmtok.decoding.base",
    "Target": "mmtok.decoding.target",
}


def __getattr__(name: str) -> Any:
    if name in _HERE:
        from importlib import import_module

        return getattr(import_module(_HERE[name]), name)
    for registry in () if name.startswith("_") else (drafter_registry, verifier_registry):
        if name in (exports := registry.exports()):
            return registry.get(exports[name])
    raise AttributeError(f"module 'mmtok.decoding' has no attribute {name!r}")


def __dir__() -> list[str]:
    exported = {*drafter_registry.exports(), *verifier_registry.exports()}
    return sorted({"drafter_registry", "verifier_registry", *_HERE, *exported})
