"""Causal language models from folders that nobody vouches for: targets and the models that draft.

What config.json claims is held against the weights beside it before anything of that size is made,
and only a model of which every weight was read is given out: transformers fills what it lacks with
random numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmtok.errors import InputError
from mmtok.io.files import check_file
from mmtok.models.zoo import embedded_generators, folder_of

if TYPE_CHECKING:
    import torch

_CONFIG_BYTES = 2**22
_MOST = 2**24  # of any whole number in config.json, but for the bases of rotary embeddings
_MOST_PARTS = 2**10  # of what is made one by one in Python
_PARTS = ("layer", "expert", "label")
_BUFFERS = 2**26  # numbers that come with no weights, such as tables of positions
_ATTENTION = (None, "sdpa", "eager")


def load_causal(name: str, device: torch.device | str = "cpu") -> Any:
    """The causal language model of a folder, or one that ships, in float32.

    Raises:
        InputError: there is none, it cannot be read, or its weights are not those that its
            configuration describes.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = folder_of(name)
    if not name or not (folder / "config.json").is_file():
        known = ", ".join(embedded_generators())
        raise InputError(f"{name}: no model; expected {known} or a folder with a config.json")
    for file in folder.iterdir():  # transformers opens what it finds, and waits for a pipe
        if file.suffix in (".json", ".safetensors"):
            check_file(file, "a file of a model")
    _check_config(folder / "config.json")
    ours: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
    try:
        config = AutoConfig.from_pretrained(folder, **ours)
        _check_size(folder, config)
        model, found = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            use_safetensors=True,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            output_loading_info=True,
            **ours,
        )
    except InputError:
        raise
    except Exception as error:  # transformers raises whatever it trips over
        line = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{name}: cannot be read as a causal language model ({line})") from None
    for what in ("missing", "unexpected", "mismatched"):
        keys = found[f"{what}_keys"]  # with both shapes, where these differ
        if odd := sorted(key if isinstance(key, str) else key[0] for key in keys):
            raise InputError(
                f"{name}: the weights are not those of config.json: {len(odd)} {what}, such as "
                f"{odd[0][:100]}; save both with save_pretrained"
            )
    return model.to(device).eval().requires_grad_(False)


def _check_config(file: Path) -> None:
    """Refuse what would fill the memory where a configuration, or a model's skeleton, is made."""
    from mmtok.tokenizers.network import read_json

    if file.stat().st_size > _CONFIG_BYTES:
        raise InputError(f"{file}: is larger than {_CONFIG_BYTES} bytes, expected a configuration")
    for key, value in _entries(read_json(file)):
        most = _MOST_PARTS if any(part in key for part in _PARTS) else _MOST
        free = isinstance(value, bool) or "theta" in key or "base" in key
        if isinstance(value, int | float) and not free and not abs(value) <= most:
            raise InputError(f"{file}: {key} is {value!r:.40}, expected at most {most}")
        if "attn_implementation" in key and value not in _ATTENTION:
            raise InputError(f"{file}: {key} is {value!r:.40}, expected sdpa, eager or no such key")


def _entries(values: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a JSON document that holds no others, with the last key above it."""
    if isinstance(values, dict):
        for name, value in values.items():
            yield from _entries(value, name)
    elif isinstance(values, list):
        for value in values:
            yield from _entries(value, key)
    else:
        yield key, values


def _check_size(folder: Path, config: Any) -> None:
    """Refuse a configuration of more layers or numbers than the weights hold.

    Raises:
        InputError: it is one, or the weights are missing or damaged.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    from mmtok.tokenizers.network import shapes_of

    shapes = [shape for file in folder.glob("*.safetensors") for shape in shapes_of(file).values()]
    held, layers = sum(map(math.prod, shapes)), config.get_text_config().num_hidden_layers
    if not held:
        raise InputError(f"{folder}: no .safetensors weights here; expected a model's folder")
    if layers > len(shapes):
        raise InputError(
            f"{folder}: config.json has {layers} layers, the weights are {len(shapes)} tensors"
        )
    with torch.device("meta"), no_init_weights():
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    model.tie_weights()
    wanted = sum(weight.numel() for weight in model.parameters())
    if wanted > held or sum(buffer.numel() for buffer in model.buffers()) > _BUFFERS:
        raise InputError(
            f"{folder}: config.json describes {wanted} parameters, the weights hold {held}"
        )
