"""Tokenizers with weights: built from a closed configuration, filled from a file or at random.

Published weights are read as plain tensors: safetensors, or pickles through `weights_only`, which
refuses code. Every name and shape has to fit; what a checkpoint holds besides is dropped by name.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields
from functools import cached_property
from pathlib import Path
from threading import get_ident
from typing import Any, ClassVar, Generic, Self, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from mmtok.errors import InputError
from mmtok.io.files import check_file, reason, replacing
from mmtok.models.zoo import located

Kind = TypeVar("Kind")

_WEIGHTS = ("model.safetensors", "diffusion_pytorch_model.safetensors")
_OWN = "mmtok"
_EXPECTED = "weights as .safetensors, .ckpt, .pt, .pth or .bin"


class Networked(Generic[Kind]):
    """What a `Tokenizer` with weights adds; put it before `Tokenizer` among the base classes.

    The class has the fields `weights` (the name of one that ships, a folder, a file or a hub
    id; None: random ones) and `seed`.

    Attributes:
        kind: its configuration, a dataclass of plain values with defaults for a small network.
    """

    kind: ClassVar[type[Any]]
    name: str
    weights: str | None
    seed: int

    @cached_property
    def config(self) -> Kind:
        """The configuration: the small one, that of mmtok's config.json, or `inferred`.

        Raises:
            InputError: none of them tells.
        """
        if self.weights is None:
            return cast(Kind, self.kind())
        file = find_weights(self.weights)
        own: Kind | None = own_config(self.kind, file)
        return self.inferred(file) if own is None else own

    def inferred(self, file: Path) -> Kind:
        """The configuration behind published weights; by default there are none.

        Raises:
            InputError: they do not tell.
        """
        raise InputError(f"{file}: {self.name} reads mmtok's weights alone, with config.json")

    @abstractmethod
    def build(self) -> nn.Module:
        """The network of `config`, freshly initialised."""

    def read(self, weights: str) -> dict[str, Tensor]:
        """The tensors behind `weights`, by name."""
        return read_weights(find_weights(weights))

    def published(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weights of `build`'s network from those of a published checkpoint."""
        return state

    @cached_property
    def network(self) -> Any:
        """The network, filled and ready.

        Raises:
            InputError: the weights cannot be read, or do not fit the configuration.
        """
        state: dict[str, Tensor] = {}
        with torch.random.fork_rng(devices=[]):
            if self.weights is not None:
                state = self.published(self.read(self.weights))
                # on no device: sizes that the weights do not have are not allocated
                with torch.device("meta"), _no_more_than(4 * len(state) + 1000, self.weights):
                    check_fit(self.build(), state, self.weights)
            torch.default_generator.manual_seed(self.seed)
            made = self.build()
        if self.weights is not None:
            fill(made, state, self.weights)
        return made.eval().requires_grad_(False)

    def identity(self) -> dict[str, Any]:
        """The configuration; the weights are added by whoever asks."""
        return {"config": asdict(cast(Any, self.config))}

    def state(self) -> Mapping[str, Tensor]:
        """The network's weights."""
        found: Mapping[str, Tensor] = self.network.state_dict()
        return found

    def save(self, folder: Path) -> None:
        """Write configuration and weights into a folder that `weights` can name."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        state = {name: weight.cpu().contiguous() for name, weight in self.state().items()}
        with replacing(folder / "model.safetensors") as beside:
            save_file(state, beside)
        with replacing(folder / "config.json") as beside:
            beside.write_text(json.dumps({_OWN: asdict(cast(Any, self.config))}, indent=1))

    def to(self, device: torch.device | str) -> Self:
        """The tokenizer itself, its weights moved to a device."""
        self.network.to(device)
        return self


def find_weights(weights: str) -> Path:
    """The weights file of a tokenizer that ships, a folder, a file or a hub id.

    Raises:
        InputError: there is none.
    """
    path = located(weights)
    if path.is_dir():
        found = [path / name for name in _WEIGHTS if (path / name).is_file()]
        found += sorted(path.glob("*.ckpt"))
        if not found:
            raise InputError(f"{path}: no weights in this folder, expected {' or '.join(_WEIGHTS)}")
        return found[0]
    if path.exists() or weights.count("/") != 1:
        return check_file(path, _EXPECTED)
    from huggingface_hub import hf_hub_download

    for name in ("config.json", *_WEIGHTS):
        try:
            file = hf_hub_download(weights, name)
        except Exception as error:  # the hub's client raises whatever its transport does
            said = error
            continue
        if name in _WEIGHTS:
            return Path(file)
    raise InputError(f"{weights}: no such file or folder, and not from the hub ({reason(said)})")


def read_weights(file: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name; nothing in it is executed.

    Raises:
        InputError: the file is damaged, or holds more than tensors in dictionaries.
    """
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(file))
        loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # both libraries raise whatever they trip over
        raise InputError(f"{file}: cannot be read as weights ({reason(error):.80})") from None
    for name in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(name), dict):
            loaded = loaded[name]
    if not isinstance(loaded, dict):
        raise InputError(f"{file}: holds no dictionary of tensors")
    return {name: value for name, value in loaded.items() if isinstance(value, Tensor)}


def fill(network: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load weights into a network; names and shapes have to be exactly its own.

    Raises:
        InputError: as in `check_fit`.
    """
    check_fit(network, state, source)
    network.load_state_dict(dict(state))


@contextmanager
def _no_more_than(most: int, source: str) -> Iterator[None]:
    """Stop building a network as soon as it has too many weights: depth takes time on no device."""
    owner, left = get_ident(), most

    def count(module: nn.Module, name: str, weight: Any) -> None:
        nonlocal left
        left -= get_ident() == owner  # other threads may build networks of their own
        if left < 0:
            raise InputError(f"{source}: its configuration asks for more weights than there are")

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def check_fit(network: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Weights have exactly the names and shapes of a network.

    Raises:
        InputError: a name is missing or too many, or a shape differs.
    """
    own = network.state_dict()
    missing, more = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    wrong = [
        f"{name} is {tuple(state[name].shape)}, not {tuple(own[name].shape)}"
        for name in own.keys() & state.keys()
        if state[name].shape != own[name].shape
    ]
    for what, names in (("missing", missing), ("not expected", more), ("of wrong shape", wrong)):
        if names:
            shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            raise InputError(f"{source}: {len(names)} weights {what}: {shown}")


def pick(
    values: Mapping[str, Any], name: str, kind: type[Kind], source: str, default: Any = None
) -> Kind:
    """One value of an untrusted configuration, a whole number only within 1 .. 2^20.

    Raises:
        InputError: it is missing and has no default, or is of another type.
    """
    value = values.get(name, default)
    fits = type(value) is kind
    if isinstance(value, int) and kind is int:
        fits = fits and 1 <= value <= 2**20
    if not fits:
        raise InputError(f"{source}: {name} is {value!r:.40}, expected {kind.__name__}")
    return cast(Kind, value)


def own_config(kind: type[Kind], weights: Path) -> Kind | None:
    """The configuration that `Networked.save` wrote beside weights; None where another did.

    Raises:
        InputError: a setting is unknown, or of another type than the default.
    """
    file = weights.with_name("config.json")
    if not file.is_file() or _OWN not in (values := read_json(file)):
        return None
    said = pick(values, _OWN, dict, str(file))
    known: dict[str, Any] = {field.name: field.default for field in fields(cast(Any, kind))}
    if more := sorted(said.keys() - known.keys()):
        raise InputError(f"{file}: unknown settings {', '.join(map(str, more[:3]))}")
    made: dict[str, Any] = {}
    for name, default in known.items():
        if isinstance(default, tuple):
            items = enumerate(pick(said, name, list, str(file), list(default)))
            made[name] = tuple(pick({name: x}, name, int, f"{file}: item {i}") for i, x in items)
        else:
            made[name] = pick(said, name, type(default), str(file), default)
    return kind(**made)


def shapes_of(file: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of a safetensors file, none of which is read.

    Raises:
        InputError: it is damaged, or of another format.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as opened:
            part = cast(Any, opened)
            return {name: tuple(part.get_slice(name).get_shape()) for name in part.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file}: no safetensors file ({reason(error):.80})") from None


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object of a file.

    Raises:
        InputError: it holds none.
    """
    try:
        found = json.loads(check_file(file, "a JSON file").read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: cannot be read as JSON ({reason(error)})") from None
    if not isinstance(found, dict):
        raise InputError(f"{file}: holds no JSON object")
    return found
