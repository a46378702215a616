"""Which seams of a model a list of reducers needs, and whether they can work together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from mmtok.accounting.scopes import Meter
from mmtok.errors import InputError
from mmtok.models.cache_calls import Reached
from mmtok.models.cache_seam import CacheSeam
from mmtok.models.crops import tower_stage
from mmtok.models.decoder_seam import DecoderSeam
from mmtok.models.families import Family
from mmtok.models.logit_seam import logit_stage
from mmtok.models.neuron_seam import NeuronSeam
from mmtok.pruning.base import Reducer
from mmtok.pruning.cache import CachePolicy


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
        _check_needs(model, family, reducers)
        self.tower = tower_stage(model, family, reducers)
        self.decoder = _decoder_seam(model, family, reducers, meter)
        self.neurons = _neuron_seam(self.decoder, reducers, meter)
        self.cache = _cache_seam(model, reducers, self._reached, meter)
        self.logits = logit_stage(reducers, bool(self.decoder or self.cache))
        read = {name for r in reducers for name in r.needs | r.wants} & family.facts
        _check_attention(model.get_decoder().config, self.decoder or self.cache)
        _check_attention(model.config.vision_config, read or self.tower)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Hook the decoder; unhook it whatever happens."""
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


def _check_needs(model: Any, family: Family, reducers: Sequence[Reducer]) -> None:
    offered = {"query"} | family.facts
    for reducer in reducers:
        for need in sorted(reducer.needs - offered):
            raise InputError(
                f"{reducer.name} needs {need}, which {model.config.model_type} does not have"
            )


def _check_attention(config: Any, used: Any) -> None:
    """Attention is read and masked as SDPA does: refuse other implementations at once."""
    how = getattr(config, "_attn_implementation", None)
    if used and how not in (None, "sdpa"):
        raise InputError(
            f"a reducer reads or masks attention, which works with SDPA, not {how!r}: "
            "load the model with attn_implementation='sdpa'"
        )


def _decoder_seam(
    model: Any, family: Family, reducers: Sequence[Reducer], meter: Meter
) -> DecoderSeam | None:
    decoder = model.get_decoder()
    stages = [s for r in reducers for s in r.in_decoder(len(decoder.layers))]
    if not stages and all(r.in_feedforward() is None for r in reducers):
        return None
    seam = DecoderSeam(decoder, stages, meter)
    if family.deepstack:
        deep = len(getattr(model.config.vision_config, "deepstack_visual_indexes", ()))
        if seam.first < deep:
            raise InputError(
                f"tokens cannot leave in front of decoder layer {seam.first}: the first {deep} "
                f"layers of {model.config.model_type} add visual features of their own"
            )
    return seam


def _neuron_seam(
    decoder: DecoderSeam | None, reducers: Sequence[Reducer], meter: Meter
) -> NeuronSeam | None:
    stages = [s for r in reducers if (s := r.in_feedforward()) is not None]
    if len(stages) > 1:
        raise InputError("only one reducer of a pipeline can choose the neurons of decode steps")
    return NeuronSeam(decoder, stages[0], meter) if stages and decoder else None


def _cache_seam(
    model: Any,
    reducers: Sequence[Reducer],
    reached: Callable[[int], Reached | None],
    meter: Meter,
) -> CacheSeam | None:
    decoder = model.get_decoder()
    depth = len(decoder.layers)
    evicting = [r for r in reducers if r.in_cache(depth) is not None]
    early = [layer for r in reducers if (layer := r.leave_early(depth)) is not None]
    if len(evicting) + len(early) > 1:
        raise InputError("only one reducer of a pipeline can evict entries of the KV cache")
    if not evicting and not early:
        return None

    def policy() -> CachePolicy:
        made = evicting[0].in_cache(depth) if evicting else None
        return made or CachePolicy()

    return CacheSeam(decoder, policy, reached, meter, early=min(early, default=None))
