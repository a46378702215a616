"""The trained weights that ship with mmtok, a folder each under `data`.

What a folder holds stands in its config.json: a tokenizer says which under `tokenizer`, models are
as transformers writes them.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from mmtok.io.files import check_name, user_path

DATA = Path(__file__).parent / "data"


@cache
def _configs() -> dict[str, dict[str, Any]]:
    return {path.parent.name: json.loads(path.read_text()) for path in DATA.glob("*/config.json")}


def embedded_names() -> tuple[str, ...]:
    """Names of the vision-language models."""
    return tuple(sorted(name for name, config in _configs().items() if "vision_config" in config))


def embedded_tokenizers() -> dict[str, str]:
    """Names of the tokenizers, and the spec that each one's weights belong to."""
    found = {name: config.get("tokenizer") for name, config in _configs().items()}
    return {name: spec for name, spec in sorted(found.items()) if isinstance(spec, str)}


def located(weights: str) -> Path:
    """The folder of a tokenizer that ships, else the path that `weights` is.

    Raises:
        InputError: no file can be called so.
    """
    return DATA / weights if weights in embedded_tokenizers() else check_name(weights)


def folder_of(name: str, beside: Path = Path()) -> Path:
    """The folder of a model that ships, else the path that `name` is, starting at `beside`.

    Raises:
        InputError: no file can be called so.
    """
    ships = DATA / name
    return ships if check_name(ships / "config.json").is_file() else beside / user_path(name)


def embedded_generators() -> tuple[str, ...]:
    """Names of the visual autoregressive models; what only drafts for one is not among them."""
    visual = {name: config.get("visual") for name, config in _configs().items()}
    drafts = {said["draft"] for said in visual.values() if isinstance(said, dict)}
    return tuple(
        sorted(n for n, said in visual.items() if isinstance(said, dict) and n not in drafts)
    )
