"""`reduced(model, ...)`: a stock Hugging Face model that reads fewer visual tokens for a while."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmtok.errors import InputError
from mmtok.models.asked import asked, room
from mmtok.models.cache_name import cache_in, is_filled
from mmtok.models.families import Inputs
from mmtok.models.pixels import PIXELS
from mmtok.models.reduction import Reduction
from mmtok.models.refusals import (
    refuse,
    refuse_behind,
    refuse_between,
    refuse_encoded,
    refuse_filled,
    refuse_labels,
)
from mmtok.pruning import Reducer, build

if TYPE_CHECKING:
    from mmtok.accounting.scopes import Meter


@contextmanager
def reduced(
    model: Any, reduce: str | Reducer | Sequence[str | Reducer], meter: Meter | None = None
) -> Iterator[Reduction]:
    """Let a stock model read fewer visual tokens inside the `with` block.

    `model.generate(**inputs)` returns sequences that begin with the user's own prompt;
    `model(**inputs)` returns logits of the kept positions. The model's code, its attention
    implementation and its weights are untouched, and every hook is gone afterwards. One prompt, or
    one batch, at a time: threads need a model object each.

    Args:
        model: a Hugging Face image-text-to-text model of a family mmtok knows.
        reduce: a spec such as "todre(keep=0.1)", a reducer, or a list of them.
        meter: told which stage runs, for timing or counting.

    Raises:
        InputError: the family is unknown, a spec is wrong, or a reducer does not fit the model.
    """
    reduction = Reduction(model, build(reduce), meter)
    with rerouted(reduction):
        yield reduction


@contextmanager
def rerouted(reduction: Reduction) -> Iterator[None]:
    """Reroute `generate` and `forward` of one model object; undone on any exit."""
    model = reduction.model
    with ExitStack() as stack:
        stack.enter_context(reduction.seams.active())

        def before(module: Any, args: Any, kwargs: Inputs) -> Any:
            return _forward(reduction, args, kwargs)

        stack.callback(model.register_forward_pre_hook(before, with_kwargs=True).remove)
        stack.callback(_replace_generate(reduction))
        yield


def _replace_generate(reduction: Reduction) -> Callable[[], None]:
    """Shadow the model's `generate` on this one object; returns what undoes it."""
    model = reduction.model
    own = vars(model).get("generate")
    if isinstance(own, partial) and own.func is _generate:
        raise InputError("this model is inside reduced() already: pass it a list of reducers")
    model.generate = partial(_generate, reduction, model.generate)

    def undo() -> None:
        del model.generate
        if own is not None:
            model.generate = own

    return undo


def _has_pixels(inputs: Inputs) -> bool:
    return any(inputs.get(key) is not None for key in PIXELS.values())


def _by_name(function: Callable[..., Any], args: Any, kwargs: Inputs) -> Inputs:
    """All arguments of a call by their names. Reading a signature takes a while."""
    signature = inspect.signature(function)
    named = signature.bind_partial(*args, **kwargs).arguments
    more = [name for name, p in signature.parameters.items() if p.kind is p.VAR_KEYWORD]
    return named | {key: value for name in more for key, value in named.pop(name, {}).items()}


def _forward(reduction: Reduction, args: Any, kwargs: Inputs) -> Any:
    if args:
        kwargs = _by_name(reduction.model.forward, args, kwargs)
    if reduction.generating:
        return _while_generating(reduction, kwargs)
    refuse_encoded(kwargs)
    filled = is_filled(kwargs)
    if not _has_pixels(kwargs):
        if filled:
            return (), reduction.next_step(kwargs)
        reduction.text_alone(kwargs)
        return None
    if filled:
        refuse_behind(reduction)
    refuse_labels(reduction, kwargs)
    return (), reduction.prepare(kwargs, lambda inputs: _forward_positions(reduction, inputs))


def _while_generating(reduction: Reduction, kwargs: Inputs) -> Any:
    """A step of the prompt that `generate` runs, which comes with positions and a mask that fit;
    or a call that somebody makes in between, which leaves that prompt alone.
    """
    if _has_pixels(kwargs):
        refuse_between(reduction, pixels=True)
    if not reduction.inside:
        return None
    if reduction.cache is None:
        reduction.cache = cache_in(kwargs)
    elif cache_in(kwargs) is not reduction.cache:
        refuse_between(reduction, pixels=False)
    return ((), reduction.next_step(kwargs)) if is_filled(kwargs) else None


def _forward_positions(reduction: Reduction, inputs: Inputs) -> Tensor:
    """The position ids the stock `forward` would use."""
    ids: Tensor = inputs["input_ids"]
    rope = getattr(reduction.model.base_model, "get_rope_index", None)
    if rope is None:
        return torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    positions: Tensor = rope(**inputs)[0]
    return positions


def generate_positions(model: Any, inputs: Inputs) -> Tensor:
    """The position ids the stock `generate` would use, (B, S) or (rows, B, S) for M-RoPE."""
    prepare = model._prepare_position_ids_for_generation
    positions: Tensor = prepare(inputs["input_ids"], dict(inputs))
    return positions


@torch.no_grad()  # as the stock method: the tower runs here, and must not record its graph
def _generate(reduction: Reduction, stock: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if args:
        kwargs = _by_name(stock, args, kwargs)
    if reduction.generating:  # an assistant, or a call from a logits processor
        refuse_between(reduction, pixels=_has_pixels(kwargs))
        return stock(**kwargs)
    if kwargs.get("inputs") is not None:
        kwargs["input_ids"] = kwargs.pop("inputs")
    refuse_filled(kwargs)
    refuse_encoded(kwargs)
    if not _has_pixels(kwargs):
        reduction.text_alone(kwargs)
        with _generating(reduction):
            return stock(**kwargs)
    refuse(reduction, kwargs)
    prompt = kwargs["input_ids"]
    _count_from(reduction.model, kwargs, prompt.shape[1])
    if kwargs.get("streamer") is not None:
        kwargs["streamer"] = _WholePrompt(kwargs["streamer"], prompt)
    short = reduction.prepare(kwargs, lambda inputs: generate_positions(reduction.model, inputs))
    if reduction.contrast:
        short["logits_processor"] = [reduction.contrast, *(kwargs.get("logits_processor") or [])]
    with _generating(reduction):
        output = stock(**short)
    return _restore(output, prompt, short["input_ids"].shape[1])


@contextmanager
def _generating(reduction: Reduction) -> Iterator[None]:
    reduction.generating = True
    try:
        yield
    finally:
        reduction.generating, reduction.cache = False, None


def _count_from(model: Any, inputs: Inputs, original: int) -> None:
    """`max_length` and `min_length` count the user's own prompt, not the shortened one."""
    for bound in ("max", "min"):
        length, new = f"{bound}_length", f"{bound}_new_tokens"
        limit = asked(model, inputs, length)
        inputs.pop(length, None)
        if limit and asked(model, inputs, new) is None:
            inputs[new] = room(limit, original) if bound == "max" else max(limit - original, 0)


class _WholePrompt:
    """Shows a streamer the user's own prompt where `generate` shows the shortened one."""

    def __init__(self, streamer: Any, prompt: Tensor) -> None:
        self.streamer, self.prompt = streamer, prompt
        self.started = False

    def put(self, value: Tensor) -> None:
        """The prompt first, then new tokens."""
        self.streamer.put(value if self.started else self.prompt.cpu())
        self.started = True

    def end(self) -> None:
        """No more tokens."""
        self.streamer.end()


def _restore(output: Any, prompt: Tensor, short: int) -> Any:
    """Put the user's own prompt back in front of the new tokens."""
    sequences = output if isinstance(output, Tensor) else output.sequences
    copies = len(sequences) // len(prompt)
    whole = torch.cat([prompt.repeat_interleave(copies, dim=0), sequences[:, short:]], dim=1)
    if isinstance(output, Tensor):
        return whole
    output.sequences = whole
    return output
