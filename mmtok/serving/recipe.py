"""The recipe of a preprocessing job, and the key of what it makes of one item."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmtok.errors import InputError
from mmtok.io.files import reason
from mmtok.models.load import model_folder
from mmtok.options import check_values
from mmtok.pruning import Reducer
from mmtok.pruning.base import overrides

if TYPE_CHECKING:
    from mmtok.models.lvlm import LVLM

SCHEMA = 1
"""Changes whenever the same media and recipe would give other files."""
_ENCODER_HOOKS = frozenset({"before_encoder", "in_encoder", "after_encoder"})


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that decides what an item's features are, its bytes aside.

    Attributes:
        model: what it was loaded by.
        revision: fingerprint of the weights.
        reduce: canonical spec of the reducers, "none" without any.
        text: the question that query-aware reducers read.
        frames: frames sampled from a video, or None where `fps` says how many.
        fps: frames sampled a second.
        dtype: of the stored features.
        schema: version of the files.
    """

    model: str
    revision: str
    reduce: str
    text: str
    frames: int | None
    fps: float | None
    dtype: str
    schema: int = SCHEMA

    def canonical(self) -> str:
        """The recipe as one line of JSON, always the same for the same recipe."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    def key(self, digest: str) -> str:
        """The key of an item whose bytes have this sha256: what is stored under it never changes.

        It does not depend on the item's path, on batches or on the number of workers.
        """
        return hashlib.sha256(f"{digest}\n{self.canonical()}".encode()).hexdigest()


def check_reducers(reducers: list[Reducer]) -> None:
    """Refuse what cannot be done before the language model runs.

    Raises:
        InputError: a reducer acts inside the decoder, on its cache or on its logits.
    """
    places = ("before_", "after_", "in_", "on_", "leave_")
    hooks = {name for name in vars(Reducer) if name.startswith(places)}
    for reducer in reducers:
        acts = {name for name in hooks if overrides(reducer, name)}
        if acts and not acts & _ENCODER_HOOKS:
            raise InputError(
                f"{reducer.name} acts inside the language model ({', '.join(sorted(acts))}): it "
                "cannot be done ahead of it; expected a reducer that acts on the encoder's output"
            )


def fingerprint(name: str, config: Any, *, dummy: bool, seed: int) -> str:
    """What tells one set of weights from another: a hub commit, or a hash of the files.

    Args:
        name: what the model is loaded by.
        config: its configuration.
        dummy: its weights are random ...
        seed: ... and drawn from this seed.
    """
    if dummy:
        return f"random:{seed}"
    commit = getattr(config, "_commit_hash", None)
    if commit:
        return str(commit)
    digest, folder = hashlib.sha256(), Path(model_folder(name))
    # the processor's files decide what the tower sees as much as the weights do, and the chat
    # template where replayed features stand
    names = ("*.safetensors", "*.json", "*.jinja")
    for file in sorted(file for name in names for file in folder.glob(name)):
        with file.open("rb") as opened:
            while block := opened.read(2**20):
                digest.update(block)
    return f"sha256:{digest.hexdigest()}"


def versions() -> dict[str, str]:
    """Of what made the features, for the record."""
    return {name: version(name) for name in ("mmtok", "torch", "transformers", "pillow")}


def load_recipe(out: Path) -> Recipe:
    """The recipe of a preprocessed folder.

    Raises:
        InputError: no folder that preprocess made, or one of another version.
    """
    path = out / "run.json"
    try:
        whole = json.loads(path.read_text(encoding="utf-8"))
        found = whole.get("recipe") if isinstance(whole, dict) else None
        if not isinstance(found, dict) or found.keys() != {field.name for field in fields(Recipe)}:
            raise ValueError("no recipe, or one of another version")
        check_values("recipe", Recipe, found)
        if found["schema"] != SCHEMA:
            raise ValueError(f"made by another version: schema {found['schema']}, not {SCHEMA}")
        kind, _, seed = found["revision"].partition(":")
        if kind == "random" and not seed.isdecimal():
            raise ValueError(f"revision {found['revision']!r:.40} names no seed")
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: cannot be read ({reason(error)}), expected what `mmtok preprocess` wrote"
        ) from None
    return Recipe(**found)


def reload(recipe: Recipe, device: str = "auto") -> LVLM:
    """The model of a recipe.

    Raises:
        InputError: it cannot be loaded, or has other weights by now.
    """
    from mmtok.models.load import load

    kind, _, seed = recipe.revision.partition(":")
    dummy = kind == "random"
    commit = None if dummy or kind == "sha256" else recipe.revision
    number = int(seed) if dummy else 0
    lvlm = load(recipe.model, dummy=dummy, device=device, revision=commit, seed=number)
    found = fingerprint(recipe.model, lvlm.config, dummy=dummy, seed=number)
    if found != recipe.revision:
        raise InputError(
            f"{recipe.model}: its weights are {found}, the features were made with "
            f"{recipe.revision}; expected the same"
        )
    return lvlm
