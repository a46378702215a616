"""The cache seam: evict KV entries after the prefill, with stock layers and truly shorter caches.

As soon as a decoder layer has read the prompt, a policy chooses per KV head what stays, and the
layer's cache is replaced by one that holds only that. Its length keeps counting what is gone, so
the model's positions are those of a full run; the mask of each decode step is made to fit. A policy
may also choose anew in every step which of the stored entries are read.

Layers with a sliding window are left alone: their caches are bounded by the window already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from mmtok.accounting.analytic import slides
from mmtok.accounting.scopes import Meter
from mmtok.errors import InputError
from mmtok.models.cache_calls import (
    Reached,
    Select,
    index_of,
    read_by,
    rotary_ahead,
    rotary_of,
)
from mmtok.models.cache_name import cache_in
from mmtok.models.taps import LayerAttention, leave, tap
from mmtok.pruning.cache import CachePolicy, Entries, Prompt, Stored

if TYPE_CHECKING:
    from mmtok.models.cache_layer import ShortLayer


class CacheSeam:
    """Applies a cache policy to a decoder while its context is open.

    Args:
        decoder: the language model, with `config`, `layers` and `rotary_emb`.
        policy: makes a policy for a batch of prompts.
        reached: layer -> what reaches it of the prompt, None for everything; called as soon as the
            layer has read it.
        meter: told that the stage "reduce.score" runs.
        early: the first layer that drops, once the prefill is done, what the last layer did not
            read any more; None for no layer.

    Attributes:
        reads: for each decode step, layer -> entries it read, where a policy chose.

    Raises:
        InputError: no layer has a cache that grows.
    """

    def __init__(
        self,
        decoder: Any,
        policy: Callable[[], CachePolicy],
        reached: Callable[[int], Reached | None],
        meter: Meter,
        *,
        early: int | None = None,
    ) -> None:
        self.decoder, self.meter, self.early = decoder, meter, early
        self.reached, self.make_policy = reached, policy
        layers = enumerate(decoder.layers)
        self.layers = {i: layer for i, layer in layers if not slides(decoder.config, i)}
        if not self.layers:
            raise InputError(
                "every decoder layer has a sliding window, which bounds its KV cache already: "
                "methods that evict entries do not fit this model"
            )
        self._taps: dict[int, ExitStack] = {}
        self._selecting: list[Select] = []
        self.start(None)

    def start(self, prompt: Prompt | None) -> None:
        """Get ready for a batch of prompts; None lets the layers run untouched."""
        self._close_taps()
        self.prompt, self.policy = prompt, self.make_policy()
        self.reads: list[dict[int, int]] = []
        self._entry_flops = 0
        self._calls: dict[int, tuple[Prompt, dict[str, Any]]] = {}
        self._slots: dict[int, Tensor] = {}
        self._filled: tuple[Prompt, list[Any]] | None = None
        if prompt is None:
            return
        self.policy.begin(prompt)
        if self.policy.reads_queries:
            for number, layer in self.layers.items():
                self._taps[number] = ExitStack()
                self._taps[number].enter_context(tap(layer, self._listener(number)))

    def next_step(self, ids: Tensor | None) -> None:
        """A decode step is about to begin, for tokens (B, new)."""
        if self.prompt is not None:
            self.reads.append({})
            self.policy.token(ids)

    @property
    def flops(self) -> int:
        """Floating point operations spent on choosing, in closed form."""
        return self._entry_flops + self.policy.flops

    def lengths(self, read: list[int]) -> list[int]:
        """Entries each layer's cache holds after the prefill, predicted from counts alone.

        Args:
            read: tokens each layer reads, padding included.
        """
        held, prompt = list(read), self.prompt
        if prompt is None:
            return held
        for number in self.layers:
            valid, visual, slot = read_by(prompt, self.reached(number))
            rows = list(zip(valid.sum(1).tolist(), visual.sum(1).tolist(), strict=True))
            kept = [self._count(number, item, *row) for item, row in enumerate(rows)]
            if self._leaves_early(number):
                kept = (valid & self._last_reads(prompt).gather(1, slot)).sum(1).tolist()
            if self.policy.selects or any(k < n for k, (n, _) in zip(kept, rows, strict=True)):
                held[number] = max(kept)
        return held

    @contextmanager
    def active(self) -> Iterator[None]:
        """Hook the layers; unhook them whatever happens."""
        with ExitStack() as stack:
            stack.callback(self._close_taps)
            for number, layer in self.layers.items():
                stack.enter_context(self._hooked(number, layer))
            if self.early is not None:
                hook = self.decoder.layers[-1].register_forward_hook(self._leave)
                stack.callback(hook.remove)
            yield

    def _close_taps(self) -> None:
        leave(self._selecting)
        for number in list(self._taps):
            self._taps.pop(number).close()

    def _listener(self, number: int) -> Callable[[LayerAttention], None]:
        def heard(attention: LayerAttention) -> None:
            if number in self._calls:
                self._taps.pop(number).close()  # decode steps run without it
                self._evict(number, attention)

        return heard

    @contextmanager
    def _hooked(self, number: int, layer: nn.Module) -> Iterator[None]:
        def before(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
            new = (args[0] if args else kwargs["hidden_states"]).shape[1]
            held = self._enter(number, kwargs)
            if held is None:
                return None
            if self.policy.selects and new == 1:
                attend = partial(self._step, number, held)
                self._selecting.append(Select(attend))
                self._selecting[-1].__enter__()  # type: ignore[no-untyped-call]
            return args, kwargs | {"attention_mask": held.visible(new)}

        def after(module: nn.Module, args: Any, output: Any) -> None:
            if self._selecting:
                leave(self._selecting)
            elif output is not None and number in self._calls and not self.policy.reads_queries:
                self._evict(number, None)

        hooks = [
            layer.register_forward_pre_hook(before, with_kwargs=True),
            layer.register_forward_hook(after, always_call=True),
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _enter(self, number: int, kwargs: dict[str, Any]) -> ShortLayer | None:
        """Note the call if it is a prefill; the layer's cache if it is one of ours."""
        from mmtok.models.cache_layer import ShortLayer

        cache, index = cache_in(kwargs), index_of(self.layers[number])
        if self.prompt is None or cache is None:
            return None
        if cache.get_seq_length(index) == 0:
            self._calls[number] = (self.prompt, kwargs)
            return None
        held = cache.layers[index]
        return held if isinstance(held, ShortLayer) else None

    def _evict(self, number: int, attention: LayerAttention | None) -> None:
        from mmtok.models.cache_layer import shorten

        (prompt, kwargs), index = self._calls.pop(number), index_of(self.layers[number])
        layers = cache_in(kwargs).layers
        valid, visual, slot = read_by(prompt, self.reached(number))
        kept, dropped = [], self.policy.selects
        with self.meter.stage("reduce.score"):
            for item, row in enumerate(valid):
                place = row.nonzero().squeeze(1)
                entries = Entries(
                    layer=number,
                    item=item,
                    keys=layers[index].keys[item][:, place],
                    values=layers[index].values[item][:, place],
                    visual=visual[item, place],
                    place=place,
                    attention=attention,
                    rotary=rotary_of(self.layers[number], kwargs, item, place),
                    ahead=lambda steps: rotary_ahead(self.decoder, self.layers[number], steps),
                )
                k = self._count(number, item, len(place), int(entries.visual.sum()))
                rule = self.policy.keep if k < len(place) else keep_all
                kept.append(place[rule(entries)])
                dropped |= k < len(place)
                self._entry_flops += entries.flops
        if dropped:
            short = layers[index] = shorten(layers[index], kept)
            by_head = slot[:, None].expand(-1, short.place.shape[1], -1)
            self._slots[number] = by_head.gather(2, short.place)
        self._filled = (prompt, layers)

    def _count(self, number: int, item: int, entries: int, visual: int) -> int:
        """What a prompt keeps in a layer: all, if it holds no visual token."""
        if self.prompt is None or not bool(self.prompt.visual[item].any()):
            return entries
        return self.policy.count(number, entries, visual)

    def _leaves_early(self, number: int) -> bool:
        return self.early is not None and number >= self.early

    def _last_reads(self, prompt: Prompt) -> Tensor:
        """(B, S) bool: which tokens of the prompt the last layer reads."""
        valid, _, slot = read_by(prompt, self.reached(len(self.decoder.layers) - 1))
        row, column = valid.nonzero(as_tuple=True)
        reads = torch.zeros_like(prompt.valid)
        reads[row, slot[row, column]] = True
        return reads

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        """Behind the last layer of a prefill: earlier caches drop what that one did not read."""
        from mmtok.models.cache_layer import shorten

        filled, self._filled = self._filled, None
        if filled is None:
            return
        prompt, layers = filled
        reads = self._last_reads(prompt)
        for number in filter(self._leaves_early, self.layers):
            valid, _, slot = read_by(prompt, self.reached(number))
            stay, index = valid & reads.gather(1, slot), index_of(self.layers[number])
            if not torch.equal(stay, valid):
                heads = layers[index].keys.shape[1]
                kept = [row.nonzero().squeeze(1).expand(heads, -1) for row in stay]
                layers[index] = shorten(layers[index], kept)

    def _step(self, number: int, held: ShortLayer, query: Tensor, scale: float) -> Tensor | None:
        """Attention of one new token to what the policy lets it read; None for everything."""
        from mmtok.models.cache_layer import take

        batch, groups, stored, size = held.keys.shape
        grouped, real = query.reshape(batch, groups, -1, size), held.stored_real()
        with self.meter.stage("reduce.score"):
            read = self.policy.step(
                Stored(
                    layer=number,
                    query=grouped,
                    keys=held.keys,
                    slot=self._slots[number],
                    real=real,
                    scale=scale,
                )
            )
            self.reads[-1][number] = stored
            if read is None or self.prompt is None:
                return None
            text = ~self.prompt.visual.any(1)  # prompts without visual tokens read everything
            read = read | (text[:, None] & real)[:, None]
            count = int(read.sum(-1).max())
            index = (~read).int().argsort(dim=-1, stable=True)[..., :count]
            shown = read.gather(-1, index)
            self.reads[-1][number] = count
        keys, values = take(held.keys, index), take(held.values, index)
        mask = None if bool(shown.all()) else shown[:, :, None]
        out = scaled_dot_product_attention(grouped, keys, values, attn_mask=mask, scale=scale)
        return out.reshape(query.shape)


def keep_all(entries: Entries) -> Tensor:
    """(G, n) places of all entries."""
    return torch.arange(len(entries), device=entries.keys.device).expand(len(entries.keys), -1)
