"""Parts of a stock model: some of its layers under its own embeddings, norm and head.

Nothing is changed in the model. A part is a second set of the outermost modules around the very
same layers and weights, so it runs whatever the family's own code does around its layers.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from mmtok.errors import InputError


def decoder_of(model: Any) -> Any:
    """The language model without its head: `layers` and a final `norm`.

    Raises:
        InputError: the model is not built like that.
    """
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    stack, norm = getattr(decoder, "layers", None), getattr(decoder, "norm", None)
    if (
        not isinstance(stack, nn.ModuleList)
        or norm is None
        or model.get_output_embeddings() is None
    ):
        raise InputError(
            f"early exits need a decoder with layers and norm under a head, {type(model).__name__} "
            "has none; use a drafter that needs no layers, such as lookup or recycling"
        )
    return decoder


def head_of(model: Any) -> Any:
    """What turns hidden states behind the norm into logits."""
    whole = isinstance(model, nn.Module)
    return model.get_output_embeddings() if whole else model.head


def depth_of(model: Any) -> int:
    """How many decoder layers a model has."""
    return len(decoder_of(model).layers)


def part(model: Any, first: int, last: int) -> Any:
    """The model with the layers first to last - 1 only, sharing every weight.

    Raises:
        InputError: the model is not built of layers, or its forward was replaced.
    """
    if not isinstance(model, nn.Module):  # a wrapper around one, such as an image writer
        outer = object.__new__(type(model))
        vars(outer).update(vars(model), model=part(model.model, first, last))
        return outer
    decoder = decoder_of(model)
    path = next(name for name, module in model.named_modules() if module is decoder)
    top = at = _copied(model)
    for name in path.split(".") if path else ():
        inner = _copied(getattr(at, name))
        vars(at)["_modules"][name] = inner
        at = inner
    vars(at)["_modules"]["layers"] = nn.ModuleList(list(decoder.layers)[first:last])
    return top


def _copied(module: Any) -> Any:
    if "forward" in vars(module):
        raise InputError(
            f"early exits need the plain model, the forward of this {type(module).__name__} is "
            "wrapped; load it without device_map and use it outside other contexts"
        )
    second = copy.copy(module)
    vars(second)["_modules"] = dict(vars(module)["_modules"])
    return second


@contextmanager
def watching(model: Any, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """Collect what these layers, counted from 1, give: (B, n, D) each, of the last forward."""
    seen: dict[int, Tensor] = {}
    with ExitStack() as stack:
        for layer in layers:

            def see(module: Any, args: Any, output: Any, layer: int = layer) -> None:
                seen[layer] = output[0] if isinstance(output, tuple) else output

            hook = decoder_of(model).layers[layer - 1].register_forward_hook(see)
            stack.callback(hook.remove)
        yield seen


@contextmanager
def entering(model: Any, hidden: Tensor | None) -> Iterator[None]:
    """Let the first layer read these hidden states (B, n, D) instead of what reaches it."""

    def enter(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if args:
            return (hidden, *args[1:]), kwargs
        return args, kwargs | {"hidden_states": hidden}

    if hidden is None:
        yield
        return
    hook = decoder_of(model).layers[0].register_forward_pre_hook(enter, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
