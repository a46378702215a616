"""`mmtok list`: everything that can be named in a command, found without importing any of it."""

from __future__ import annotations

from pathlib import Path

from mmtok.cli import options as opt
from mmtok.cli.output import answer

_PACKAGE = Path(__file__).parents[1]
# kind of method: (folder, base class, entry-point group)
_KINDS = {
    "reducers": ("pruning/methods", "Reducer", "mmtok.reducers"),
    "tokenizers": ("tokenizers/methods", "Tokenizer", "mmtok.tokenizers"),
    "drafters": ("decoding/drafters", "Drafter", "mmtok.drafters"),
    "verifiers": ("decoding/verifiers", "Verifier", "mmtok.verifiers"),
    "strategies": ("decoding/strategies", "Strategy", "mmtok.strategies"),
    "tasks": ("eval/methods", "Task", "mmtok.tasks"),
}


def listing(as_json: opt.Json = False) -> None:
    """List methods and models."""
    found = inventory()
    if as_json:
        answer(found)
        return
    for kind, names in found.items():
        print(f"{kind}: {', '.join(names) or 'none yet'}")


def inventory() -> dict[str, list[str]]:
    """Names of everything registered, by kind. Models: trained ones, then configurations."""
    from mmtok.models.dummy import FAMILIES
    from mmtok.models.load import shipped_names
    from mmtok.models.zoo import embedded_generators, embedded_names, embedded_tokenizers
    from mmtok.registry import Registry

    found = {}
    for kind, (folder, base, group) in _KINDS.items():
        registry = Registry(
            kind=kind,
            folder=_PACKAGE / folder,
            package="mmtok." + folder.replace("/", "."),
            base=base,
            group=group,
            hyphens=kind == "tasks",
        )
        found[kind] = registry.names() if registry.folder.is_dir() else []
    found["tokenizers"] += embedded_tokenizers()
    found["models"] = [*embedded_names(), *shipped_names()]
    found["generators"] = list(embedded_generators())
    found["families"] = list(FAMILIES)
    return found
