"""Options of `generate`, read as `generate` reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmtok.errors import InputError
from mmtok.options import fits, shown


def asked(model: Any, options: Mapping[str, Any], name: str) -> Any:
    """What `generate` would read for the option `name`; None where nobody sets it.

    It looks in the call, then in the call's generation configuration, then in the model's.
    """
    configs = (options.get("generation_config"), model.generation_config)
    found = next((x for c in configs if (x := getattr(c, name, None)) is not None), None)
    found = options.get(name, found)
    # What older checkpoints say; `generate` makes a dynamic cache of it.
    return None if (name, found) == ("cache_implementation", "hybrid") else found


def width(model: Any, options: Mapping[str, Any]) -> int:
    """Sequences that run for each prompt: beams, or copies."""
    names = ("num_beams", "num_return_sequences")
    return max(asked(model, options, name) or 1 for name in names)


def room(limit: Any, prompt: int) -> int:
    """New tokens that a `max_length` leaves behind a prompt of so many tokens.

    Raises:
        InputError: none, or the limit is no number.
    """
    if not fits(limit, int):
        raise InputError(f"max_length must be an int, got {shown(limit)}")
    if limit <= prompt:
        raise InputError(f"max_length {limit} leaves no room behind {prompt} prompt tokens")
    return int(limit - prompt)
