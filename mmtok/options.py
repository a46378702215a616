"""What an option of a method may be: its annotation says the type, once, for every method."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from mmtok.errors import InputError

PLAIN = {
    bool: "True or False",
    int: "an int",
    float: "a finite number",
    str: "a string",
    NoneType: "None",
}


def check_types(name: str, options: Any) -> None:
    """Compare the fields of a dataclass object with their annotations.

    True and False are no numbers, an int is a float, a list is a tuple, and a float is finite.

    Args:
        name: what to call the object in the message.
        options: the object.

    Raises:
        InputError: a value is of another type.
    """
    kind = type(options)
    check_values(name, kind, {field.name: getattr(options, field.name) for field in fields(kind)})


def check_values(name: str, kind: type, values: Mapping[str, Any]) -> None:
    """The same before there is an object: `values` of some fields of the dataclass `kind`."""
    hints = _hints(kind)
    for field, value in values.items():
        if field in hints:
            check_value(f"{name}: {field}", value, hints[field])


def check_value(name: str, value: object, hint: Any) -> None:
    """The same of one value and one annotation."""
    if not fits(value, hint):
        raise InputError(f"{name} must be {wording(hint)}, got {shown(value)}")


def shown(value: object) -> str:
    """A value in one short line, as messages tell of it."""
    return " ".join(repr(value).split())[:80]


def expected(options: Any, field: str) -> str:
    """What a field's annotation allows, in words."""
    kind: Any = type(options)
    return wording(_hints(kind).get(field, float))


@cache
def _hints(kind: Any) -> dict[str, Any]:
    try:
        hints = get_type_hints(kind)
    except NameError:  # another package's class may name types that only its type checker imports
        return {}
    return {field.name: hints[field.name] for field in fields(kind)}


def fits(value: object, hint: Any) -> bool:
    """Whether a value is what an annotation says."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(fits(value, part) for part in arguments)
    if origin is Literal:
        return any(type(value) is type(known) and value == known for known in arguments)
    if origin in (tuple, Sequence):
        return isinstance(value, list | tuple) and all(fits(x, arguments[0]) for x in value)
    if origin is Callable:
        return callable(value)
    if hint in (int, float) and isinstance(value, bool):
        return False
    if hint is float:
        return isinstance(value, int | float) and abs(value) <= sys.float_info.max
    return hint is Any or isinstance(value, origin or hint)


def wording(hint: Any) -> str:
    """What an annotation allows, in words."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(wording(part) for part in arguments)
    if origin is Literal:
        return " or ".join(map(repr, arguments))
    if origin in (tuple, Sequence):
        return f"a list, each {wording(arguments[0])}"
    if origin is Callable:
        return "a function"
    return PLAIN[hint] if hint in PLAIN else getattr(hint, "__name__", str(hint))
