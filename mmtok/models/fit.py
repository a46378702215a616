"""Whether reducers fit a model and one another, as far as its config tells: no weights needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmtok.errors import InputError
from mmtok.models.crops import check_tower
from mmtok.models.families import Family
from mmtok.pruning.base import Reducer, overrides
from mmtok.pruning.decoder import DecoderStage


def check_fit(config: Any, family: Family, reducers: Sequence[Reducer]) -> None:
    """Refuse what no model of this config can run.

    Args:
        config: of the whole model.
        family: its row of the table.
        reducers: in the order they apply.

    Raises:
        InputError: a reducer needs what this family cannot give, or two of them clash.
    """
    offered = {"query"} | family.facts
    for reducer in reducers:
        for need in sorted(reducer.needs - offered):
            raise InputError(
                f"{reducer.name} needs {need}, which {config.model_type} does not have"
            )
        if overrides(reducer, "in_encoder"):
            check_tower(reducer.name, config, family)
    depth = int(config.text_config.num_hidden_layers)
    stages = by_layer([s for r in reducers for s in r.in_decoder(depth)], depth)
    if family.deepstack and stages:
        _check_deepstack(config, min(stages))
    neurons = sum(r.in_feedforward() is not None for r in reducers)
    cache = sum(r.in_cache(depth) is not None for r in reducers)
    cache += sum(r.leave_early(depth) is not None for r in reducers)
    logits = sum(r.on_logits() is not None for r in reducers)
    _check_one(neurons, "choose the neurons of decode steps")
    _check_one(cache, "evict entries of the KV cache")
    _check_one(logits, "contrast logits")
    if logits and (stages or neurons or cache):
        raise InputError(
            "contrasting logits runs the decoder on a second prompt, which does not work beside "
            "dropping inside the decoder"
        )


def by_layer(stages: Sequence[DecoderStage], depth: int) -> dict[int, DecoderStage]:
    """Stages by the decoder layer they stand in front of.

    Raises:
        InputError: one stands outside a decoder of `depth` layers, or two in one place.
    """
    found: dict[int, DecoderStage] = {}
    for stage in stages:
        if not 1 <= stage.layer < depth:
            raise InputError(
                f"tokens can leave in front of decoder layers 1 to {depth - 1}, not {stage.layer}"
            )
        if stage.layer in found:
            raise InputError(
                f"two stages drop tokens in front of decoder layer {stage.layer}: "
                "set one of them to another layer"
            )
        found[stage.layer] = stage
    return found


def _check_one(count: int, what: str) -> None:
    if count > 1:
        raise InputError(f"only one reducer of a pipeline can {what}")


def _check_deepstack(config: Any, first: int) -> None:
    deep = len(getattr(config.vision_config, "deepstack_visual_indexes", ()))
    if first < deep:
        raise InputError(
            f"tokens cannot leave in front of decoder layer {first}: the first {deep} "
            f"layers of {config.model_type} add visual features of their own"
        )
