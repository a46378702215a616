"""Tokenizers: media in, compact codes out. Every file in `methods/` is one, under its own name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmtok.codes import Codebook, Codes
from mmtok.errors import InputError
from mmtok.models.zoo import embedded_tokenizers
from mmtok.registry import Registry, parse_spec
from mmtok.tokenizers.base import Stream, Taxonomy, Tokenizer

__all__ = ["Codebook", "Codes", "Stream", "Taxonomy", "Tokenizer", "build", "registry"]

registry = Registry(
    kind="tokenizer",
    folder=Path(__file__).parent / "methods",
    package="mmtok.tokenizers.methods",
    base="Tokenizer",
    group="mmtok.tokenizers",
)


def build(tokenizer: str | Tokenizer) -> Tokenizer:
    """The tokenizer that a spec such as `patchify(patch=4)` describes, or one that ships, by name.

    An object is handed back.

    Raises:
        InputError: the spec cannot be read, or names an unknown tokenizer or argument.
    """
    made: object = tokenizer
    if isinstance(tokenizer, str) and tokenizer in (shipped := embedded_tokenizers()):
        name, arguments = parse_spec(shipped[tokenizer])
        made = registry.make(name, {**arguments, "weights": tokenizer})
    elif isinstance(tokenizer, str):
        made = registry.build(tokenizer)
    if not isinstance(made, Tokenizer):
        raise InputError(f"a tokenizer must be a spec or a Tokenizer, got {tokenizer!r}")
    return made


def __getattr__(name: str) -> Any:
    if not name.startswith("_") and name in (exports := registry.exports()):
        return registry.get(exports[name])
    raise AttributeError(f"module 'mmtok.tokenizers' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *registry.exports()})
