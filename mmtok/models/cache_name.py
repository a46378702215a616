"""A KV cache under either name: `cache` from transformers 5.24 on, `past_key_values` before.

Which one holds is asked of the model or of the call, never of a version: models from outside the
library keep the older name.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from mmtok.errors import InputError

_OF_FORWARD = ("cache", "past_key_values")
CACHE_NAMES = (*_OF_FORWARD, "cache_params")  # `generate` of 5.24 takes the last one as well


def cache_in(values: Mapping[str, Any]) -> Any:
    """The KV cache among the arguments of a call, or in what a model returned; None without one."""
    return next((values[name] for name in CACHE_NAMES if values.get(name) is not None), None)


def is_filled(values: Mapping[str, Any]) -> bool:
    """Whether the arguments of a call bring a KV cache that holds something."""
    cache = cache_in(values)
    return cache is not None and cache.get_seq_length() > 0


def without_cache(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The same arguments with no KV cache."""
    return dict(arguments) | {name: None for name in CACHE_NAMES if name in arguments}


def cache_name(model: Any) -> str:
    """The name under which `forward` takes a KV cache.

    Raises:
        InputError: it takes none.
    """
    takes = inspect.signature(model.forward).parameters
    for name in _OF_FORWARD:
        if name in takes:
            return name
    raise InputError(f"{type(model).__name__} takes no KV cache")
