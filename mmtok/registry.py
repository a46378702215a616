"""Names to classes, found by file and imported on first use; specs such as `todre(keep=0.1)`.

A method is one file in its folder: the file's stem is its name, the class that derives from the
folder's base is what the name stands for. Other packages add methods through entry points. The
files are read as text until a method is asked for, so listing costs no import.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import fields, is_dataclass
from functools import cached_property, lru_cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from mmtok.errors import InputError
from mmtok.options import check_values


class Registry:
    """All methods of one kind.

    Args:
        kind: what a method is called in messages ("reducer").
        folder: directory of the method files.
        package: dotted name under which that directory is importable.
        base: name of the class a method derives from, or the end of it (CacheReducer).
        group: entry-point group of methods in other packages.
        hyphens: names are written with "-" where the file has "_".
        typed: values are compared with the annotations before there is an object; for methods
            that do not compare them themselves.
    """

    def __init__(
        self,
        *,
        kind: str,
        folder: Path,
        package: str,
        base: str,
        group: str,
        hyphens: bool = False,
        typed: bool = False,
    ) -> None:
        self.kind, self.folder, self.package = kind, folder, package
        self.base, self.group, self.hyphens, self.typed = base, group, hyphens, typed

    @cached_property
    def targets(self) -> dict[str, str]:
        """Name to "module:Class", sorted by name.

        Raises:
            ImportError: the folder is missing (a checkout without symbolic links), or two methods
                have one name.
        """
        if not self.folder.is_dir():
            raise ImportError(
                f"{self.folder} is not a folder: the checkout lost its symbolic links; "
                "run `git config core.symlinks true` and check out again"
            )
        found = {}
        for path in sorted(self.folder.glob("*.py")):
            if (name := self._class_in(path)) is not None:
                found[self._spelt(path.stem)] = f"{self.package}.{path.stem}:{name}"
        for point in entry_points(group=self.group):
            name = self._spelt(point.name)
            if name in found:
                raise ImportError(f"two {self.kind}s are called {name!r}")
            found[name] = point.value
        return dict(sorted(found.items()))

    def _class_in(self, path: Path) -> str | None:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and any(
                isinstance(base, ast.Name) and base.id.endswith(self.base) for base in node.bases
            ):
                return node.name
        return None

    def _spelt(self, name: str) -> str:
        return name.replace("_", "-") if self.hyphens else name

    def names(self) -> list[str]:
        """Every registered name."""
        return list(self.targets)

    def exports(self) -> dict[str, str]:
        """Class name to registered name, for `from mmtok.pruning import ToDRE`."""
        return {target.split(":")[1]: name for name, target in self.targets.items()}

    def get(self, name: str) -> type[Any]:
        """The class called `name`.

        Raises:
            InputError: no such method; the message names the nearest ones.
        """
        if (target := self.targets.get(self._spelt(name))) is None:
            raise InputError(unknown(self.kind, name, self.names()))
        module, _, attribute = target.partition(":")
        loaded: type[Any] = getattr(import_module(module), attribute)
        return loaded

    def build(self, spec: str) -> Any:
        """The object a spec describes: `name` or `name(argument=literal, ...)`.

        Raises:
            InputError: the spec cannot be read, or names an unknown method or argument.
        """
        return self.make(*parse_spec(spec))

    def make(self, name: str, arguments: Mapping[str, Any]) -> Any:
        """The object of the method `name` with these arguments.

        Raises:
            InputError: an unknown method or argument, or a value of another type.
        """
        method = self.get(name)
        known = [field.name for field in fields(method)] if is_dataclass(method) else []
        for argument in arguments:
            if argument not in known:
                raise InputError(unknown(f"argument of {name}", argument, known))
        if self.typed and is_dataclass(method):
            check_values(name, method, arguments)
        return method(**arguments)


def parse_spec(spec: str) -> tuple[str, dict[str, Any]]:
    """Split `name(argument=literal, ...)` into the name and its arguments, evaluating nothing.

    Raises:
        InputError: anything but a name with literal keyword arguments.
    """
    name, arguments = _read(spec)
    return name, deepcopy(arguments)  # what a caller does to a list stays with that caller


@lru_cache(maxsize=256)
def _read(spec: str) -> tuple[str, dict[str, Any]]:
    wrong = InputError(
        f"cannot read spec {spec!r}: expected name or name(argument=value, ...), "
        "for example todre(keep=0.1)"
    )
    if len(spec) > 1000:
        raise InputError(f"spec of {len(spec)} characters is longer than 1000")
    try:
        node = ast.parse(spec.strip(), mode="eval").body
        if isinstance(node, ast.Name):
            return node.id, {}
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.args:
            raise wrong
        arguments = {}
        for keyword in node.keywords:
            if keyword.arg is None or keyword.arg in arguments:
                raise wrong
            arguments[keyword.arg] = ast.literal_eval(keyword.value)
        return node.func.id, arguments
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise wrong from error


def unknown(what: str, given: str, known: list[str]) -> str:
    """One line that names the nearest known names and then all of them."""
    near = difflib.get_close_matches(given, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"unknown {what} {given!r}: {hint}known: {', '.join(known) or 'none'}"
