"""What reducers make of one prompt: encode, choose, and build the shorter prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmtok.errors import InputError
from mmtok.models.cache_calls import Reached, check_cache
from mmtok.models.cache_seam import CacheSeam
from mmtok.models.decoder_seam import DecoderSeam
from mmtok.models.encoder_seam import (
    PIXELS,
    TOWER_OPTION,
    Media,
    compact,
    encode,
    hand_back,
    kept_places,
    token_cells,
)
from mmtok.models.families import Inputs, family_of
from mmtok.models.neuron_seam import NeuronSeam
from mmtok.pruning.base import Reducer, overrides
from mmtok.pruning.cache import CachePolicy, Prompt
from mmtok.pruning.neurons import NeuronStage
from mmtok.tokens import Query, VisualTokens

if TYPE_CHECKING:
    from mmtok.accounting.scopes import Meter

# What the vision tower reads; the decoder has no use for it once positions are set.
_PIXEL_INPUTS = (*PIXELS.values(), TOWER_OPTION)
_ENCODER_INPUTS = (
    *(*_PIXEL_INPUTS, "pixel_attention_mask"),
    *("image_sizes", "image_sizes_videos", "batch_num_images"),
    *("image_grid_thw", "video_grid_thw", "second_per_grid_ts"),
)


class _NoMeter:
    def stage(self, name: str) -> Any:
        return nullcontext()


class Reduction:
    """Reducers at work on one model; carries what the last prompt became.

    Args:
        model: a Hugging Face model with a language head, of a family in the table.
        reducers: in the order they apply.
        meter: told which stage runs: a StageTimer, a FlopCount or nothing.

    Attributes:
        media: visual tokens of the last prompt after reduction, one entry per modality.
        prompt_length: tokens of the last prompt after reduction, padding included.
        inputs: keyword arguments the vision tower was run on.
        select_flops: floating point operations spent on selection, in closed form.

    Raises:
        InputError: a reducer needs what this family cannot give, or two of them clash.
    """

    def __init__(self, model: Any, reducers: Sequence[Reducer], meter: Meter | None = None) -> None:
        self.model, self.reducers = model, list(reducers)
        self.meter: Meter = meter or _NoMeter()
        self.family = family_of(model)
        self.media: list[Media] = []
        self.prompt_length = 0
        self.inputs: Inputs = {}
        self.select_flops = 0
        self._check_needs()
        self.seam = self._decoder_seam()
        self.neurons = self._neuron_seam()
        self.cache = self._cache_seam()
        self._check_attention()

    def _decoder_seam(self) -> DecoderSeam | None:
        decoder = self.model.get_decoder()
        stages = [s for r in self.reducers for s in r.in_decoder(len(decoder.layers))]
        if not stages and not self._neuron_stages():
            return None
        seam = DecoderSeam(decoder, stages, self.meter)
        if self.family.deepstack:
            deep = len(getattr(self.model.config.vision_config, "deepstack_visual_indexes", ()))
            if seam.first < deep:
                raise InputError(
                    f"tokens cannot leave in front of decoder layer {seam.first}: the first "
                    f"{deep} layers of {self.model.config.model_type} add visual features of "
                    "their own"
                )
        return seam

    def _neuron_stages(self) -> list[NeuronStage]:
        return [s for r in self.reducers if (s := r.in_feedforward()) is not None]

    def _neuron_seam(self) -> NeuronSeam | None:
        stages = self._neuron_stages()
        if len(stages) > 1:
            raise InputError(
                "only one reducer of a pipeline can choose the neurons of decode steps"
            )
        return NeuronSeam(self.seam, stages[0], self.meter) if stages and self.seam else None

    def _cache_seam(self) -> CacheSeam | None:
        decoder = self.model.get_decoder()
        depth = len(decoder.layers)
        evicting = [r for r in self.reducers if r.in_cache(depth) is not None]
        early = [layer for r in self.reducers if (layer := r.leave_early(depth)) is not None]
        if len(evicting) + len(early) > 1:
            raise InputError("only one reducer of a pipeline can evict entries of the KV cache")
        if not evicting and not early:
            return None

        def policy() -> CachePolicy:
            made = evicting[0].in_cache(depth) if evicting else None
            return made or CachePolicy()

        return CacheSeam(decoder, policy, self._reached, self.meter, early=min(early, default=None))

    def _reached(self, layer: int) -> Reached | None:
        """What reaches a decoder layer of the last prompt; None if everything."""
        left = self.seam.left[layer] if self.seam else None
        return None if left is None or left.whole else (left.index, left.real)

    def _check_needs(self) -> None:
        offered = {"query"} | self.family.facts
        for reducer in self.reducers:
            for need in sorted(reducer.needs - offered):
                raise InputError(
                    f"{reducer.name} needs {need}, which {self.model.config.model_type} "
                    "does not have"
                )

    def _check_attention(self) -> None:
        """Attention is read and masked as SDPA does: refuse other implementations at once."""
        read = {name for r in self.reducers for name in r.needs | r.wants} & self.family.facts
        parts = [
            (self.model.get_decoder().config, self.seam or self.cache),
            (self.model.config.vision_config, read),
        ]
        for config, reads in parts:
            how = getattr(config, "_attn_implementation", None)
            if reads and how not in (None, "sdpa"):
                raise InputError(
                    f"a reducer reads or masks attention, which works with SDPA, not {how!r}: "
                    "load the model with attn_implementation='sdpa'"
                )

    def prepare(self, inputs: Inputs, positions: Callable[[Inputs], Tensor]) -> Inputs:
        """Encode, reduce, and build the shorter prompt.

        Args:
            inputs: keyword arguments with `input_ids` (B, S) and pixels.
            positions: the position ids the stock model would use for these inputs.

        Returns:
            Keyword arguments with `mm_encoder_outputs` instead of pixels. Where nothing is
            dropped everything else is as it came, so the run is bit-identical to the stock one.
        """
        if self.cache and inputs.get("past_key_values") is not None:
            check_cache(inputs["past_key_values"])
        for reducer in self.reducers:
            inputs = reducer.before_encoder(self.model, inputs)
        self.inputs, self.select_flops = inputs, 0
        active = [r for r in self.reducers if overrides(r, "after_encoder") and not r.keeps_all]
        wants = {name for r in active for name in r.needs | r.wants}
        self.media = encode(self.model, self.family, inputs, wants, self.meter)
        self.media = [self._reduce(part, active, inputs) for part in self.media]
        keep, visual = kept_places(inputs["input_ids"].shape, self.media)
        outputs = {part.kind: hand_back(self.family, part) for part in self.media}
        whole = all(part.whole for part in self.media)
        gone = _PIXEL_INPUTS if whole else _ENCODER_INPUTS
        short = {name: value for name, value in inputs.items() if name not in gone}
        if not whole:
            short |= self._shorten(inputs, keep, positions)
            visual = compact(keep, {"visual": (visual, False)})["visual"]
        short["mm_encoder_outputs"] = outputs
        self.prompt_length = short["input_ids"].shape[1]
        mask = short.get("attention_mask")
        if self.seam or self.cache:
            cell = compact(keep, {"cell": (token_cells(keep.shape, self.media), -1)})["cell"]
            valid = None if mask is None else mask.bool()
        if self.seam:
            self.seam.start(visual, valid, cell)
        if self.neurons:
            self.neurons.start()
        if self.cache:
            real = torch.ones_like(visual) if valid is None else valid
            ids = short["input_ids"]
            self.cache.start(Prompt(ids=ids, valid=real, visual=visual, cell=cell))
        return short

    def next_step(self, inputs: Inputs) -> None:
        """A forward that continues a prompt is about to run."""
        if self.cache:
            self.cache.next_step(inputs.get("input_ids"))

    def text_alone(self, inputs: Inputs) -> None:
        """A prompt without pixels passes by: nothing to reduce, no state of an earlier one."""
        self.media, self.inputs, self.select_flops = [], inputs, 0
        self.prompt_length = inputs["input_ids"].shape[1] if "input_ids" in inputs else 0
        if self.seam:
            self.seam.start(None, None, None)
        if self.neurons:
            self.neurons.start()
        if self.cache:
            self.cache.start(None)

    def _reduce(self, part: Media, active: list[Reducer], inputs: Inputs) -> Media:
        for reducer in active:
            query = None
            if "query" in reducer.needs | reducer.wants:
                with self.meter.stage("reduce.score"):
                    query = self._query(part, inputs)
            with self.meter.stage("reduce.select"):
                chosen = reducer.select(part.tokens, query)
                reduced = part.reduce(chosen)
            spent = chosen.flops
            self.select_flops += (
                _select_flops(reducer, part.tokens, query) if spent is None else spent
            )
            part = reduced
        return part

    def _query(self, part: Media, inputs: Inputs) -> Query:
        """The embeddings of the text around each item: its prompt without placeholders."""
        ids = inputs["input_ids"]
        text = torch.ones_like(ids, dtype=torch.bool)
        if inputs.get("attention_mask") is not None:
            text &= inputs["attention_mask"].bool()
        for kind in PIXELS:
            text &= ids != getattr(self.model.config, f"{kind}_token_id", -1)
        rows = torch.stack([place[0] // ids.shape[1] for place in part.places])
        embeddings = self.model.get_input_embeddings()(ids.masked_fill(~text, 0))
        return Query(embeddings=embeddings[rows], mask=text[rows])

    def _shorten(
        self, inputs: Inputs, keep: Tensor, positions: Callable[[Inputs], Tensor]
    ) -> Inputs:
        ids = inputs["input_ids"]
        mask = inputs.get("attention_mask")
        mask = torch.ones_like(ids) if mask is None else mask
        place = inputs.get("position_ids")
        pad = getattr(self.model.generation_config, "pad_token_id", None)
        values = {
            "input_ids": (ids, 0 if pad is None else pad),
            "attention_mask": (mask, 0),
            "position_ids": (positions(inputs) if place is None else place, 0),
        }
        for name, fill in {"token_type_ids": 0, "mm_token_type_ids": 0, "labels": -100}.items():
            if inputs.get(name) is not None:
                values[name] = (inputs[name], fill)
        values["position_ids"] = (
            values["position_ids"][0].expand(*values["position_ids"][0].shape[:-2], *ids.shape),
            0,
        )
        return dict(compact(keep, values))

    @property
    def score_flops(self) -> int:
        """Floating point operations spent on the last prompt's scores, in closed form."""
        inside = self.seam.score_flops if self.seam else 0
        inside += self.cache.flops if self.cache else 0
        return inside + sum(part.score_flops for part in self.media)

    @property
    def tokens(self) -> list[tuple[str, int, int]]:
        """(item, tokens in, tokens out) of every image and clip of the last prompt."""
        return [
            (name, len(places), len(kept))
            for part in self.media
            for name, places, kept in zip(part.tokens.item_ids, part.places, part.kept, strict=True)
        ]

    @property
    def visual_tokens(self) -> list[VisualTokens]:
        """The surviving tokens, one entry per modality, features as the decoder reads them."""
        return [part.tokens for part in self.media]


def _select_flops(reducer: Reducer, tokens: VisualTokens, query: Query | None) -> int:
    """Closed form of one selection, over all items."""
    width = tokens.features.shape[-1]
    keys = 0 if tokens.keys is None else tokens.keys.shape[-1]
    counts = tokens.counts.tolist()
    texts = [0] * len(counts) if query is None else query.mask.sum(1).tolist()
    return sum(
        reducer.select_flops(n, width, key_width=keys, text=text)
        for n, text in zip(counts, texts, strict=True)
    )
