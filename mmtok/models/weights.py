"""Where weights live and how random ones are drawn quickly, straight in the wanted type."""

from __future__ import annotations

from typing import Any

import torch

from mmtok.errors import InputError

_STD = 0.02
_BLOCK = 65_521  # numbers drawn per tensor; a larger one repeats them (a prime: no two rows agree)


def pick_device(device: str | torch.device) -> torch.device:
    """The torch device named "auto", "cpu", "cuda" or "cuda:1".

    Raises:
        InputError: there is no such device here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InputError(f"device must be auto, cpu or cuda; got {device!r}") from error
    if found.type not in ("cpu", "cuda"):
        raise InputError(f"device must be auto, cpu or cuda; got {device!r}")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"device {device!r} asked, but torch sees {torch.cuda.device_count()} GPUs; "
            "use device='cpu' or 'auto'"
        )
    return found


def random_model(config: Any, device: torch.device, seed: int, **options: Any) -> Any:
    """The stock model of `config` with random weights: normal with deviation 0.02, norms at 1.

    Args:
        config: of an image-text-to-text model.
        device: where the weights are made.
        seed: the same seed gives the same weights on the same kind of device.
        options: `dtype` and `attn_implementation`, passed to transformers.
    """
    from transformers import AutoModelForImageTextToText
    from transformers.initialization import no_init_weights

    with device, no_init_weights():
        model = AutoModelForImageTextToText.from_config(config, **options)
    generator = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            is_norm = "norm" in type(module).__name__.lower()
            for name, weight in module.named_parameters(recurse=False):
                if is_norm:
                    weight.fill_(float(name == "weight"))
                else:
                    _fill(weight, generator)
    model.tie_weights()
    return model


def _fill(weight: torch.Tensor, generator: torch.Generator) -> None:
    flat = weight.view(-1)
    block = torch.empty(min(len(flat), _BLOCK), dtype=flat.dtype, device=flat.device)
    block.normal_(0, _STD, generator=generator)
    for start in range(0, len(flat), _BLOCK):
        part = flat[start : start + _BLOCK]
        part.copy_(block[: len(part)])
