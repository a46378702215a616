"""Which seams of a model a list of reducers needs, and whether they can work together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

from torch import nn

from mmtok.accounting.scopes import Meter
from mmtok.errors import InputError
from mmtok.models.cache_calls import Reached
from mmtok.models.cache_seam import CacheSeam
from mmtok.models.decoder_seam import DecoderSeam
from mmtok.models.families import Family
from mmtok.models.fit import check_fit
from mmtok.models.neuron_seam import NeuronSeam
from mmtok.pruning.base import Reducer
from mmtok.pruning.cache import CachePolicy

Stage = TypeVar("Stage")


class Seams:
    """The seams that reducers work through, beyond the encoder's; None where none needs it.

    Args:
        model: a Hugging Face model with a language head.
        family: its row of the table.
        reducers: in the order they apply.
        meter: told which stage runs.

    Attributes:
        tower: the stage that merges inside the vision tower.
        decoder: drops tokens between decoder layers.
        neurons: skips neurons in decode steps.
        cache: evicts KV entries.
        logits: the stage that contrasts logits.

    Raises:
        InputError: a reducer needs what this family cannot give, or two of them clash.
    """

    def __init__(
        self, model: Any, family: Family, reducers: Sequence[Reducer], meter: Meter
    ) -> None:
        check_fit(model.config, family, reducers)
        self.tower = _first(r.in_encoder() for r in reducers)
        self._model, decoder = model, model.get_decoder()
        self.decoder = _decoder_seam(decoder, reducers, meter)
        self.neurons = _neuron_seam(self.decoder, reducers, meter)
        self.cache = _cache_seam(decoder, reducers, self._reached, meter)
        self.logits = _first(r.on_logits() for r in reducers)
        read = {name for r in reducers for name in r.needs | r.wants} & family.facts
        _check_attention(decoder.config, self.decoder or self.cache)
        _check_attention(model.config.vision_config, read or self.tower)

    @property
    def inside(self) -> bool:
        """Whether something acts inside the language model."""
        return bool(self.decoder or self.cache)

    @property
    def none(self) -> bool:
        """Whether nothing acts on a prompt but what stands before and behind the vision tower."""
        return not (self.tower or self.inside or self.logits)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Hook the decoder; unhook it whatever happens.

        Raises:
            InputError: compiled code would run past the hooks.
        """
        if self.inside:
            _check_compiled(self._model)
        with ExitStack() as stack:
            # The cache's hooks come last: its masks count what caches hold.
            for seam in (self.decoder, self.neurons, self.cache):
                if seam is not None:
                    stack.enter_context(seam.active())
            yield

    def _reached(self, layer: int) -> Reached | None:
        """What reaches a decoder layer of the last prompt; None if everything."""
        left = self.decoder.left[layer] if self.decoder else None
        return None if left is None or left.whole else (left.index, left.real)


def _check_attention(config: Any, used: Any) -> None:
    """Attention is read and masked as SDPA does: refuse other implementations at once."""
    how = getattr(config, "_attn_implementation", None)
    if used and how not in (None, "sdpa"):
        raise InputError(
            f"a reducer reads or masks attention, which works with SDPA, not {how!r}: "
            "load the model with attn_implementation='sdpa'"
        )


def _check_compiled(model: Any) -> None:
    """Compiled code does not notice hooks that came later, which would silently do nothing."""
    decoder = model.get_decoder()
    parts = set(decoder.modules())
    for module in filter(_is_compiled, model.modules()):
        if module in parts or any(part is decoder for part in module.modules()):
            raise InputError(
                f"{type(module).__name__} is compiled, and compiled code would run past reducers "
                "inside the decoder or its KV cache: pass the model as it was before "
                "torch.compile, or a reducer that acts in front of the decoder"
            )


def _is_compiled(module: nn.Module) -> bool:
    """By `module.compile()`, by `torch.compile(module)` or by a compiled `forward`."""
    wrapped = "_orig_mod" in module._modules
    forward = vars(module).get("forward")
    by_hand = hasattr(forward, "_torchdynamo_orig_callable")
    return wrapped or by_hand or module._compiled_call_impl is not None


def _first(stages: Iterable[Stage | None]) -> Stage | None:
    """What the only reducer that has such a stage wants."""
    return next((stage for stage in stages if stage is not None), None)


def _decoder_seam(decoder: Any, reducers: Sequence[Reducer], meter: Meter) -> DecoderSeam | None:
    stages = [s for r in reducers for s in r.in_decoder(len(decoder.layers))]
    if not stages and all(r.in_feedforward() is None for r in reducers):
        return None
    return DecoderSeam(decoder, stages, meter)


def _neuron_seam(
    decoder: DecoderSeam | None, reducers: Sequence[Reducer], meter: Meter
) -> NeuronSeam | None:
    stage = _first(r.in_feedforward() for r in reducers)
    return NeuronSeam(decoder, stage, meter) if stage and decoder else None


def _cache_seam(
    decoder: Any,
    reducers: Sequence[Reducer],
    reached: Callable[[int], Reached | None],
    meter: Meter,
) -> CacheSeam | None:
    depth = len(decoder.layers)
    evicting = [r for r in reducers if r.in_cache(depth) is not None]
    early = [layer for r in reducers if (layer := r.leave_early(depth)) is not None]
    if not evicting and not early:
        return None

    def policy() -> CachePolicy:
        made = evicting[0].in_cache(depth) if evicting else None
        return made or CachePolicy()

    return CacheSeam(decoder, policy, reached, meter, early=min(early, default=None))
