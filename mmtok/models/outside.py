"""Configurations that come from outside: what their numbers may be, and one line where they fail.

A config.json is the user's input like any picture. Its fields are read in a hundred places; so what
a field may be is not checked in each of them: numbers that cost memory or divide are held against
bounds once, and whatever else a value trips is told of in one line, naming the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mmtok.errors import InputError
from mmtok.models.lvlm import first_line
from mmtok.options import shown

_BOUNDS = {
    re.compile(
        "num_hidden_layers|depth|head_dim|num_(attention_heads|key_value_heads|heads)"
    ): 10_000,
    re.compile(
        "((temporal_)?patch|spatial_merge|image|window)_size|num_channels|in_channels"
        "|scale_factor|spatial_pool_stride|mm_tokens_per_image|(image|video)_seq_length"
    ): 100_000,
    re.compile(
        "(hidden|intermediate|out_hidden|vocab)_size|embed_dim|num_position_embeddings"
    ): 100_000_000,
}
"""Fields that are at least 1 in every configuration that has them, and the most that is taken: far
above any model, and below what would fill the memory before it is found to be nonsense."""

_TRIPS = (
    ArithmeticError,
    AssertionError,  # torch's word for a padding id beyond its table
    AttributeError,
    LookupError,
    RuntimeError,
    StopIteration,  # an alphabet that a vocabulary is too small for
    TypeError,
    ValueError,
)
"""What code raises that reads a number and finds a list, nothing, or one that fits no other."""


@contextmanager
def usable(name: str | None) -> Iterator[None]:
    """Tell in one line what a user's configuration trips; what ships has no excuse.

    Args:
        name: what the configuration was read by; None where weights vouch for it.

    Raises:
        InputError: the block could not work with the configuration.
    """
    try:
        yield
    except InputError:
        raise
    except _TRIPS as error:
        # else it is a bug, whose traceback is wanted, or memory, which has a line of its own
        if name is None or _ships(name) or "memory" in str(error):
            raise
        what = f"{type(error).__name__}: {said(error)}"
        raise InputError(f"{name}: cannot use this configuration: {what}") from error


def _ships(name: str) -> bool:
    from mmtok.models.dummy import FAMILIES
    from mmtok.models.load import shipped_names
    from mmtok.models.zoo import embedded_names

    return name.lower() in (*shipped_names(), *embedded_names(), *FAMILIES)


def said(error: Exception) -> str:
    """What an error says, in one line of at most 300 characters."""
    from huggingface_hub.errors import StrictDataclassError

    # the cause of a field's error stands in its second line
    strict = isinstance(error, StrictDataclassError)
    text = " ".join(str(error).split()) if strict else first_line(error)
    return text if len(text) <= 300 else f"{text[:299]}…"


def check_counts(fields: dict[str, Any], name: str) -> None:
    """Hold the sizes of a configuration against their bounds.

    Args:
        fields: of its config.json, parts inside one another.
        name: what it was read by.

    Raises:
        InputError: one is below 1, no number, or beyond any model.
    """
    for field, value, most in _counts(fields):
        several = value if isinstance(value, list | tuple) else [value]
        if not several or not all(type(one) in (int, float) and one >= 1 for one in several):
            raise InputError(f"{name}: {field} must be at least 1, got {shown(value)}")
        if max(several) > most:
            raise InputError(f"{name}: {field} must be at most {most}, got {shown(value)}")


def _counts(fields: dict[str, Any], inside: str = "") -> Iterator[tuple[str, Any, int]]:
    """The fields that have bounds and say something, with the parts they are in."""
    for name, value in fields.items():
        if isinstance(value, dict):
            yield from _counts(value, f"{inside}{name}.")
        elif value is not None:  # a default of the model's class, or none
            yield from (
                (f"{inside}{name}", value, most)
                for pattern, most in _BOUNDS.items()
                if pattern.fullmatch(str(name))
            )
