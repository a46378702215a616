"""`load`: a vision-language model by name, from a folder, from the hub, or with random weights.

Every model is the stock transformers class with its stock processor: no remote code, no pickle.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmtok.errors import InputError
from mmtok.io.files import check_file, user_path
from mmtok.models.lvlm import LVLM
from mmtok.models.outside import check_counts, said, usable
from mmtok.models.zoo import DATA, embedded_names
from mmtok.options import check_value
from mmtok.registry import unknown

if TYPE_CHECKING:
    import torch

_DTYPES = ("float32", "float16", "bfloat16")


def shipped_names() -> tuple[str, ...]:
    """Names of the real configurations that ship with mmtok, for `dummy=True` and for planning."""
    return tuple(sorted(path.stem for path in (DATA / "configs").glob("*.json")))


def load_config(name: str) -> Any:
    """The configuration behind `name`: shipped, a family's tiny one, a folder or a config.json.

    Raises:
        InputError: the name is unknown, the file is no configuration, or its `model_type` is not
            one of an image-text-to-text model.
    """
    from mmtok.models.dummy import FAMILIES, tiny_config

    shipped = DATA / "configs" / f"{name}.json"
    if name in FAMILIES:
        return tiny_config(name)
    if name in shipped_names():
        return _read_config(shipped)
    if name in embedded_names():
        return _read_config(DATA / name / "config.json")
    path = user_path(name)
    if not name or not path.exists():
        known = (*shipped_names(), *embedded_names(), *FAMILIES)
        raise _unknown(name, known, "a model's config.json or the folder of one")
    return _read_config(path / "config.json" if path.is_dir() else path)


def load(
    name: str | PathLike[str],
    *,
    dummy: bool = False,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    revision: str | None = None,
    seed: int = 0,
    attn_implementation: str | None = None,
) -> LVLM:
    """A vision-language model, ready for inference.

    Args:
        name: an embedded model ("tiny"), a folder, or a hub id ("llava-hf/llava-1.5-7b-hf"). With
            `dummy`: a shipped configuration ("llava-1.5-7b"), a family ("qwen2_vl": a tiny one), a
            folder or a config.json.
        dummy: random weights drawn from `seed`, with a byte tokenizer; nothing is downloaded.
        dtype: "float32", "float16", "bfloat16" or torch's own; "auto": float32 on a CPU, else as
            published.
        device: "cpu", "cuda", "cuda:1" or torch's own; "auto": a GPU if there is one.
        revision: branch, tag or commit of a hub id.
        seed: of the random weights.
        attn_implementation: as in transformers; default SDPA where the family has it.

    Raises:
        InputError: the name is unknown, files are missing or unreadable, the hub cannot be
            reached, there is no such device, or the model does not read images.
    """
    import torch

    from mmtok.models.weights import pick_device

    check_value("name", name, str | PathLike)
    check_value("seed", seed, int)
    name, where = str(name), pick_device(device)
    dtype = str(dtype).removeprefix("torch.")
    if dtype not in ("auto", *_DTYPES):
        raise InputError(f"dtype must be auto, {', '.join(_DTYPES)}; got {dtype!r}")
    if dtype == "auto" and where.type == "cpu":
        dtype = "float32"
    if not 0 <= seed < 2**63:
        raise InputError(f"seed must be an int from 0 to 2**63 - 1, got {seed}")
    options: dict[str, Any] = {} if dtype == "auto" else {"dtype": getattr(torch, dtype)}
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    if dummy:
        model, processor = _random(name, where, seed, **options)
    else:
        model, processor = _pretrained(name, revision, **options)
    model.to(where).eval().requires_grad_(False)
    return LVLM(model=model, processor=processor, name=name, config=model.config)


def _random(name: str, where: torch.device, seed: int, **options: Any) -> tuple[Any, Any]:
    from mmtok.models.processors import build_processor
    from mmtok.models.weights import random_model

    config = load_config(name)
    with usable(name), _clear_errors(name):
        processor = build_processor(config)
        model = random_model(config, where, seed, **options)
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    return model, processor


def _pretrained(name: str, revision: str | None, **options: Any) -> tuple[Any, Any]:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from mmtok.models.speech import SPEECH, chat_template

    config = published_config(name, revision)
    source, common = model_folder(name), {"revision": revision} if revision else {}
    with usable(name), _clear_errors(name):
        processor = AutoProcessor.from_pretrained(source, trust_remote_code=False, **common)
        model = AutoModelForImageTextToText.from_pretrained(
            source, trust_remote_code=False, use_safetensors=True, **common, **options
        )
    if processor.chat_template is None and config.model_type in SPEECH:
        processor.chat_template = chat_template(SPEECH[config.model_type])
    return model, processor


def published_config(name: str, revision: str | None = None) -> Any:
    """The configuration that comes with a model's weights; these are not read.

    Raises:
        InputError: as `load` does.
    """
    from transformers import AutoConfig

    common = {"revision": revision} if revision else {}
    source = model_folder(name)
    with _clear_errors(name, Exception):  # configuration classes raise whatever they trip over
        config = AutoConfig.from_pretrained(source, trust_remote_code=False, **common)
        _check_config(config, name)
    return config


def model_folder(name: str) -> str:
    """Folder or hub id of a model with weights.

    Raises:
        InputError: neither, or a folder without weights.
    """
    if name in embedded_names():
        return str(DATA / name)
    path = user_path(name)
    if name and path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(f"{name}: no config.json in this folder; expected a model's folder")
        if not any(path.glob("*.safetensors")):
            raise InputError(f"{name}: no .safetensors weights here; dummy=True needs none")
        return str(path)
    if name in shipped_names():
        raise InputError(
            f"{name!r} ships as a configuration without weights: pass dummy=True for random ones, "
            "or a hub id or folder for trained ones"
        )
    if name.count("/") != 1 or _looks_like_a_path(name):
        raise _unknown(name, (*embedded_names(), *shipped_names()))
    return name


def _read_config(path: Path) -> Any:
    import json

    from transformers import AutoConfig

    check_file(path, "a model's config.json")
    try:
        fields = json.loads(path.read_text())
        if not isinstance(fields, dict) or "model_type" not in fields:
            raise ValueError("it names no model_type")
        check_counts(fields, str(path))  # they divide by some, and say nothing of which
        config = AutoConfig.for_model(**fields)
        _check_config(config, str(path))
    except InputError:
        raise
    except Exception as error:  # configuration classes raise whatever they trip over
        raise InputError(f"{path}: not a model's config.json: {said(error)}") from error
    return config


def _check_config(config: Any, name: str) -> None:
    """Raises InputError unless the model reads images and has parts of at least 1 of everything."""
    from transformers import AutoModelForImageTextToText

    if type(config) not in AutoModelForImageTextToText._model_mapping:
        raise InputError(
            f"{name}: model_type {config.model_type!r} is not an image-text-to-text model; "
            "expected a vision-language model such as llava or qwen2_5_vl"
        )
    check_counts(config.to_dict(), name)


def _unknown(name: str, known: Sequence[str], place: str = "a model's folder") -> InputError:
    if _looks_like_a_path(name):
        return InputError(f"{name}: no such folder or file; expected {place}")
    hint = unknown("model", name, list(known))
    return InputError(f"{hint}; a folder or a hub id (owner/name) works too")


def _looks_like_a_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith(".json")


@contextmanager
def _clear_errors(name: str, *more: type[Exception]) -> Iterator[None]:
    """What transformers raises where something is missing or broken, in one line."""
    from safetensors import SafetensorError

    kinds: tuple[type[Exception], ...] = (OSError, ValueError, ImportError, SafetensorError, *more)
    try:
        yield
    except InputError:
        raise
    except kinds as error:
        line = said(error).rstrip(".")
        raise InputError(
            f"cannot load {name!r}: {line}. Check the name and the network, or give "
            "a local folder with config.json, .safetensors and processor files."
        ) from error
