"""Benchmarks and how they are run and scored. Every file in `methods/` is one, under its name.

from mmtok.eval import build, evaluate
report = evaluate(lvlm, build("scenes"), ["todre(keep=0.1)"])
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmtok.registry import Registry, parse_spec

if TYPE_CHECKING:
    from mmtok.eval.base import Item, Task
    from mmtok.eval.evaluation import Report, evaluate
    from mmtok.eval.scoring import paired, score

__all__ = ["Item", "Report", "Task", "build", "evaluate", "paired", "registry", "score"]

registry = Registry(
    kind="task",
    folder=Path(__file__).parent / "methods",
    package="mmtok.eval.methods",
    base="Task",
    group="mmtok.tasks",
    hyphens=True,
)

_EXPORTS = {
    "Item": "mmtok.eval.base",
    "Report": "mmtok.eval.evaluation",
    "Task": "mmtok.eval.base",
    "evaluate": "mmtok.eval.evaluation",
    "paired": "mmtok.eval.scoring",
    "score": "mmtok.eval.scoring",
}


def build(spec: str, **settings: Any) -> Task:
    """The task that a spec such as `scenes` or `chair(cut_sentence=True)` describes.

    Args:
        spec: a name, or a name with fields of the task.
        settings: more fields; those that are None count as not given.

    Raises:
        InputError: no such task, or a field it does not have.
    """
    name, bracket, rest = spec.partition("(")
    name, fields = parse_spec(name.strip().replace("-", "_") + bracket + rest)
    given = {k: v for k, v in settings.items() if v is not None}
    task: Task = registry.make(name, fields | given)
    return task


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    if not name.startswith("_") and name in (exports := registry.exports()):
        return registry.get(exports[name])
    raise AttributeError(f"module 'mmtok.eval' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *registry.exports()})
