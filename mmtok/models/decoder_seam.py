"""The decoder seam: drop visual tokens inside the decoder, with stock layers and shorter KV caches.

Hooks on the decoder layers gather the hidden states, the rotary embeddings and the mask of the
prompt once a rule has decided, so every later layer computes and caches the survivors only. In
decode steps the mask's columns are gathered the same way. Nothing else of the model changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mmtok.accounting.analytic import head_shape
from mmtok.accounting.scopes import Meter
from mmtok.errors import InputError
from mmtok.models.cache_name import cache_in
from mmtok.models.fit import by_layer
from mmtok.models.survivors import Survivors
from mmtok.models.taps import LayerAttention, probe, tap
from mmtok.pruning.decoder import DecoderPrompt, DecoderStage


class DecoderSeam:
    """Applies stages to a stack of decoder layers while its context is open.

    Args:
        decoder: the language model without its head: `layers` and a final `norm`.
        stages: where and how to drop, at most one in front of a layer; none to only watch.
        meter: told that the stage "reduce.score" runs.

    Attributes:
        left: per layer, what reaches it of the last prompt; None where that is not known yet.
        score_flops: floating point operations spent on the rules.
        sighted: which prompts of the last batch hold visual tokens.

    Raises:
        InputError: a stage does not fit the layers.
    """

    def __init__(self, decoder: Any, stages: Sequence[DecoderStage], meter: Meter) -> None:
        self.decoder, self.meter = decoder, meter
        self.layers: nn.ModuleList = decoder.layers
        self.stages = by_layer(stages, len(self.layers))
        self.first = min(self.stages, default=len(self.layers))
        self.start(None, None, None)

    def start(
        self,
        visual: Tensor | None,
        valid: Tensor | None,
        cell: Tensor | None,
        facts: Tensor | None = None,
    ) -> None:
        """Get ready for a prompt. Where `visual` is None the layers run untouched.

        Args:
            visual: (B, S) bool, its visual tokens.
            valid: (B, S) bool, its tokens but padding; None if there is no padding.
            cell: (4, B, S) int64, image or clip of each visual token and its (t, h, w).
            facts: (2, B, S) patches merged into each token so far, and its CLS attention.
        """
        self.left: list[Survivors | None] = [None] * len(self.layers)
        self.score_flops = 0
        self._pending = visual is not None
        self._seen: dict[str, Any] = {}
        if visual is None or cell is None:
            return
        self._visual, self._cell = visual, cell
        self.sighted = visual.any(1).nonzero().squeeze(1)
        self._memory: list[dict[str, Any]] = [{} for _ in visual]
        self._current = Survivors.all_of(torch.ones_like(visual) if valid is None else valid)
        self._cls = None if facts is None else facts[1]
        if facts is not None:
            self._current = replace(self._current, size=facts[0])
        self.left[: self.first] = [self._current] * self.first

    @contextmanager
    def active(self) -> Iterator[None]:
        """Hook the layers; unhook them whatever happens."""
        with ExitStack() as stack:
            reads = frozenset[str]().union(*(s.reads for s in self.stages.values()))
            if "embeddings" in reads:
                hook = self.layers[0].register_forward_pre_hook(self._embedded, with_kwargs=True)
                stack.callback(hook.remove)
            for place in range(self.first, len(self.layers)):
                behind, stage = self.layers[place - 1], self.stages.get(place)
                if stage and "attention" in stage.reads:
                    see = partial(self._see, "attention")
                    stack.enter_context(tap(behind, see, when=lambda: self._pending))
                if stage and "activation" in stage.reads:
                    stack.callback(_neurons(behind).register_forward_pre_hook(self._fired).remove)
                hook = self.layers[place].register_forward_pre_hook(
                    partial(self._enter, place), with_kwargs=True
                )
                stack.callback(hook.remove)
            yield

    def _see(self, name: str, value: Any) -> None:
        if self._pending:
            self._seen[name] = value

    def _embedded(self, layer: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        self._see("embeddings", args[0] if args else kwargs["hidden_states"])

    def _fired(self, layer: nn.Module, args: Any) -> None:
        self._see("activation", args[0])

    def _enter(self, place: int, layer: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        if self._pending:
            hidden, kwargs = self._prompt(place, layer, hidden, kwargs)
        elif (left := self.left[place]) is not None and not left.whole:
            kwargs = kwargs | {"attention_mask": _step_mask(left, layer, hidden, kwargs)}
        if args:
            return (hidden, *args[1:]), kwargs
        return args, kwargs | {"hidden_states": hidden}

    def _prompt(
        self, place: int, layer: nn.Module, hidden: Tensor, kwargs: dict[str, Any]
    ) -> tuple[Tensor, dict[str, Any]]:
        if hidden.shape[1] != self._current.index.shape[1]:
            raise InputError("dropping inside the decoder needs the prompt in one piece, unchunked")
        if stage := self.stages.get(place):
            hidden = self._decide(stage, layer, hidden, self._arguments(kwargs))
        kwargs = self._arguments(kwargs)
        self.left[place] = self._current
        if place == len(self.layers) - 1:
            self._pending = False
            self._seen = {}
        return hidden, kwargs

    def _arguments(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        now = self._current
        return kwargs if now.whole else kwargs | now.arguments(kwargs)

    def _decide(
        self, stage: DecoderStage, layer: nn.Module, hidden: Tensor, kwargs: dict[str, Any]
    ) -> Tensor:
        with self.meter.stage("reduce.score"):
            now = self._current
            if "own_attention" in stage.reads:
                self._seen["attention"] = probe(layer, hidden, kwargs)
                heads, kv_heads, width = head_shape(self.decoder.config)
                self.score_flops += 2 * hidden.numel() * (heads + 2 * kv_heads) * width
            visual = self._visual.gather(1, now.index) & now.real
            keep, size, changed = now.real.clone(), now.size.clone(), hidden
            for item, row in enumerate(visual):
                places = row.nonzero().squeeze(1)
                if len(places) == 0:
                    continue
                prompt = self._view(stage, item, places, hidden)
                selection = stage.rule(prompt)
                self.score_flops += prompt.flops
                slots = places[selection.indices[0]]
                keep[item, places] = False
                keep[item, slots] = True
                if selection.merge is not None:
                    source, slot, _ = selection.merge[0]
                    grown = torch.zeros_like(slots, dtype=torch.float32)
                    size[item, slots] = grown.index_add_(0, slot, prompt.size[source])
                    changed = changed.clone() if changed is hidden else changed
                    changed[item, slots] = selection.apply(hidden[item, places][None])[0]
            if stage.reads & {"attention", "own_attention"}:
                self.score_flops += self._seen.pop("attention").flops
            if bool((keep == now.real).all()):
                self._current = replace(now, size=size)
                return changed
            self._current, changed = now.keep(keep, size, changed)
            return changed

    def _view(
        self, stage: DecoderStage, item: int, places: Tensor, hidden: Tensor
    ) -> DecoderPrompt:
        now = self._current
        index, real = now.index[item], now.real[item]
        text = real & ~self._visual[item, index]
        attention: LayerAttention | None = None
        if stage.reads & {"attention", "own_attention"}:
            attention = self._seen["attention"]
        embeddings = self._seen.get("embeddings")
        activation = self._seen.get("activation")
        return DecoderPrompt(
            visual=places,
            text=text.nonzero().squeeze(1),
            hidden=hidden[item],
            size=now.size[item, places],
            cell=self._cell[:, item, index[places]].T,
            norm=self.decoder.norm,
            memory=self._memory[item],
            attention=attention,
            embeddings=None if embeddings is None else embeddings[item, index],
            activation=None if activation is None else activation[item],
            cls_attention=None if self._cls is None else self._cls[item, index[places]],
            item=item,
        )


def _step_mask(
    left: Survivors, layer: Any, hidden: Tensor, kwargs: dict[str, Any]
) -> Tensor | None:
    attention, cache = layer.self_attn, cache_in(kwargs)
    return left.step_mask(
        past=cache.get_seq_length(attention.layer_idx),
        stored=cache.layers[attention.layer_idx].keys.shape[-2],
        new=hidden.shape[1],
        window=getattr(attention, "sliding_window", None),
    )


def _neurons(layer: Any) -> nn.Module:
    """The module whose input is the activation of a layer's gated feed-forward network."""
    found = getattr(getattr(layer, "mlp", None), "down_proj", None)
    if not isinstance(found, nn.Module):
        raise InputError(
            f"{type(layer).__name__} has no mlp.down_proj: neurons of its feed-forward network "
            "cannot be read"
        )
    return found
