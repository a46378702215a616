"""What reducers make of one prompt: encode, choose, and build the shorter prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmtok.models.cache_calls import check_cache
from mmtok.models.cache_name import cache_in
from mmtok.models.choice import choose
from mmtok.models.continuing import Shortened
from mmtok.models.encoder_seam import (
    TOWER_OPTION,
    compact,
    encode,
    hand_back,
    kept_places,
    token_cells,
    token_facts,
)
from mmtok.models.families import Inputs, family_of
from mmtok.models.logit_seam import Contrast
from mmtok.models.pixels import PIXELS
from mmtok.models.seams import Seams
from mmtok.models.visual import Media, describe
from mmtok.pruning.base import Reducer, overrides
from mmtok.pruning.cache import Prompt
from mmtok.tokens import VisualTokens

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
        seams: where in the model the reducers act.
        prompt_length: tokens of the last prompt after reduction, padding included.
        inputs: keyword arguments the vision tower was run on.
        select_flops: floating point operations spent on selection, in closed form.
        contrast: the second branch of the last prompt, where logits are contrasted.
        shortened: what continues the last prompt, where tokens left in front of the decoder.
        generating: whether `generate` runs, which hands `forward` the features of `prepare`.
        cache: the KV cache of the prompt that `generate` runs, once its prefill has begun.

    Raises:
        InputError: a reducer needs what this family cannot give, or two of them clash.
    """

    def __init__(self, model: Any, reducers: Sequence[Reducer], meter: Meter | None = None) -> None:
        self.model, self.reducers = model, list(reducers)
        self.meter: Meter = meter or _NoMeter()
        self.family = family_of(model)
        self.seams = Seams(model, self.family, self.reducers, self.meter)
        self._outputs: dict[str, Any] = {}
        self._media: list[Media] | Callable[[], list[Media]] = []
        self.prompt_length = 0
        self.inputs: Inputs = {}
        self.select_flops = 0
        self.contrast: Contrast | None = None
        self.shortened: Shortened | None = None
        self.generating = False
        self.cache: Any = None

    def prepare(self, inputs: Inputs, positions: Callable[[Inputs], Tensor]) -> Inputs:
        """Encode, reduce, and build the shorter prompt.

        Args:
            inputs: keyword arguments with `input_ids` (B, S) and pixels.
            positions: the position ids the stock model would use for these inputs.

        Returns:
            Keyword arguments with `mm_encoder_outputs` instead of pixels. Where nothing is
            dropped everything else is as it came, so the run is bit-identical to the stock one.
        """
        if self.seams.cache:
            self.seams.cache.start(None)  # an interrupted prompt leaves nothing to the tower
        inside = self.seams.decoder or self.seams.cache
        if inside and (cache := cache_in(inputs)) is not None:
            check_cache(cache)
        entered = self.encode(inputs)
        if entered is None:
            return self._as_it_came()
        self.contrast = self._second_branch(entered, positions)
        return self.assemble(positions)

    def encode(self, inputs: Inputs) -> list[Media] | None:
        """Run the vision tower and the reducers behind it; `media` is what they leave.

        Returns:
            The visual tokens as they left the tower; None where no reducer looks at them.
        """
        for reducer in self.reducers:
            inputs = reducer.before_encoder(self.model, inputs)
        self.inputs = inputs
        active = [r for r in self.reducers if overrides(r, "after_encoder") and not r.keeps_all]
        readers = active + [r for r in self.reducers if overrides(r, "on_logits")]
        wants = {name for r in readers for name in r.needs | r.wants}
        wants |= {"draw"} if any(hasattr(r, "seed") for r in active) else set()
        facts = (self.model, self.family, inputs)
        encoded = encode(*facts, wants, self.meter, self.seams.tower)
        self._outputs = {part.kind: part.output for part in encoded}
        self.select_flops = sum(part.tower.flops for part in encoded if part.tower)
        if not readers and self.seams.none:
            facts = (self.model, self.family, _apart(inputs))
            self._media = partial(describe, *facts, encoded, wants, self.meter)
            return None
        entered = describe(*facts, encoded, wants, self.meter)
        self.media = [self._reduce(part, active, inputs) for part in entered]
        return entered

    @property
    def media(self) -> list[Media]:
        """Visual tokens of the last prompt after reduction, one entry per modality. Where no
        reducer looks at them, they are made when somebody asks.
        """
        if callable(self._media):
            self._media = self._media()
        return self._media

    @media.setter
    def media(self, media: list[Media]) -> None:
        """Tokens from elsewhere, for `assemble`."""
        self._media = media

    def _as_it_came(self) -> Inputs:
        """The prompt with the tower's outputs in place of pixels."""
        self.contrast = self.shortened = None
        self.prompt_length = self.inputs["input_ids"].shape[1]
        short = {name: value for name, value in self.inputs.items() if name not in _PIXEL_INPUTS}
        short["mm_encoder_outputs"] = {  # `generate` repeats what it gets, in place
            kind: type(output)(**output) for kind, output in self._outputs.items()
        }
        return short

    def assemble(self, positions: Callable[[Inputs], Tensor]) -> Inputs:
        """The shorter prompt that `inputs` and `media` make, as of `prepare`."""
        keep, visual = kept_places(self.inputs["input_ids"].shape, self.media)
        short = self._prompt(self.media, keep, positions)
        self.prompt_length = short["input_ids"].shape[1]
        self.shortened = None
        if not all(part.whole for part in self.media):
            behind = short["position_ids"][..., -1:] + 1
            self.shortened = Shortened(short["attention_mask"], behind, keep.shape[1])
        if self.seams.decoder or self.seams.cache:
            self._start(short, keep, visual)
        return short

    def _start(self, short: Inputs, keep: Tensor, visual: Tensor) -> None:
        """Tell the seams inside the language model of a prompt that is about to run."""
        cell = token_cells(keep.shape, self.media)
        facts = token_facts(keep.shape, self.media)
        there = compact(keep, {"visual": (visual, False), "cell": (cell, -1), "facts": (facts, 0)})
        mask = short.get("attention_mask")
        valid = None if mask is None else mask.bool()
        if self.seams.decoder:
            self.seams.decoder.start(there["visual"], valid, there["cell"], there["facts"])
        if self.seams.neurons:
            self.seams.neurons.start()
        if self.seams.cache:
            real = torch.ones_like(there["visual"]) if valid is None else valid
            prompt = Prompt(
                ids=short["input_ids"], valid=real, visual=there["visual"], cell=there["cell"]
            )
            self.seams.cache.start(prompt)

    def _prompt(
        self, media: list[Media], keep: Tensor, positions: Callable[[Inputs], Tensor]
    ) -> Inputs:
        """The prompt without pixels, with the tokens that `keep` marks."""
        whole = all(part.whole for part in media)
        gone = _PIXEL_INPUTS if whole else _ENCODER_INPUTS
        short = {name: value for name, value in self.inputs.items() if name not in gone}
        if not whole:
            short |= self._shorten(self.inputs, keep, positions)
        short["mm_encoder_outputs"] = {part.kind: hand_back(self.family, part) for part in media}
        return short

    def _second_branch(
        self, entered: list[Media], positions: Callable[[Inputs], Tensor]
    ) -> Contrast | None:
        """A prompt of its own: its positions are those of a prompt that short."""
        stage = self.seams.logits
        if stage is None:
            return None
        with self.meter.stage("reduce.select"):
            media = [part.reduce(stage.negative(part.tokens)) for part in entered]
        keep, _ = kept_places(self.inputs["input_ids"].shape, media)
        short = self._prompt(media, keep, positions)
        names = {"input_ids", "attention_mask", "token_type_ids", "mm_encoder_outputs"}
        prompt = {name: value for name, value in short.items() if name in names}
        if prompt.get("attention_mask") is None:
            prompt["attention_mask"] = torch.ones_like(prompt["input_ids"])
        return Contrast(self.model, stage, prompt | {"position_ids": positions(prompt)}, self.meter)

    def next_step(self, inputs: Inputs) -> Inputs:
        """The arguments of a forward that continues a prompt and is about to run."""
        if self.seams.cache:
            self.seams.cache.next_step(inputs.get("input_ids"))
        return self.shortened.arguments(inputs) if self.shortened else inputs

    def text_alone(self, inputs: Inputs) -> None:
        """A prompt without pixels passes by: nothing to reduce, no state of an earlier one."""
        self.media, self.inputs, self.select_flops = [], inputs, 0
        self._outputs = {}
        self.contrast = self.shortened = None
        self.prompt_length = inputs["input_ids"].shape[1] if "input_ids" in inputs else 0
        if self.seams.decoder:
            self.seams.decoder.start(None, None, None)
        if self.seams.neurons:
            self.seams.neurons.start()
        if self.seams.cache:
            self.seams.cache.start(None)

    def _reduce(self, part: Media, active: list[Reducer], inputs: Inputs) -> Media:
        for reducer in active:
            part, spent = choose(reducer, part, self.model, inputs, self.meter)
            self.select_flops += spent
        return part

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
    def inside(self) -> bool:
        """Whether reducers act on the last prompt inside the language model."""
        return self.seams.inside and bool(self.media)

    @property
    def score_flops(self) -> int:
        """Floating point operations spent on the last prompt's scores, in closed form."""
        inside = self.seams.decoder.score_flops if self.seams.decoder else 0
        inside += self.seams.cache.flops if self.seams.cache else 0
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


def _apart(inputs: Inputs) -> Inputs:
    """Copies of all tensors but pixels, which the caller may fill anew before they are read."""
    return {
        name: value.clone() if isinstance(value, Tensor) and name not in _PIXEL_INPUTS else value
        for name, value in inputs.items()
    }
