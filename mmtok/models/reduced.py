"""`reduced(model, ...)`: a stock Hugging Face model that reads fewer visual tokens for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmtok.errors import InputError
from mmtok.models.decoder_seam import DecoderSeam
from mmtok.models.encoder_seam import (
    PIXELS,
    TOWER_OPTION,
    Media,
    compact,
    encode,
    hand_back,
    kept_places,
)
from mmtok.models.families import Inputs, family_of
from mmtok.pruning import Reducer, build
from mmtok.pruning.base import overrides
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
    """Reducers at work on one model. Made by `reduced`; carries what the last prompt became.

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
        layers = model.get_decoder().layers
        stages = [s for r in self.reducers if (s := r.in_decoder(len(layers))) is not None]
        if len(stages) > 1:
            raise InputError("only one reducer of a pipeline can drop tokens inside the decoder")
        self.seam = DecoderSeam(layers, stages[0], self.meter) if stages else None
        if self.seam and self.family.deepstack:
            deep = len(getattr(model.config.vision_config, "deepstack_visual_indexes", ()))
            if self.seam.stage.layer < deep:
                raise InputError(
                    f"tokens cannot leave behind decoder layer {self.seam.stage.layer}: the first "
                    f"{deep} layers of {model.config.model_type} add visual features of their own"
                )

    def _check_needs(self) -> None:
        offered = {"query"} | ({"cls_attention"} if self.family.has_cls else set())
        for reducer in self.reducers:
            for need in sorted(reducer.needs - offered):
                raise InputError(
                    f"{reducer.name} needs {need}, which {self.model.config.model_type} "
                    "does not have"
                )

    @contextmanager
    def active(self) -> Iterator[Reduction]:
        """Reroute `generate` and `forward` of this one model object; undone on any exit."""
        with ExitStack() as stack:
            if self.seam:
                stack.enter_context(self.seam.active())
            hook = self.model.register_forward_pre_hook(self._forward, with_kwargs=True)
            stack.callback(hook.remove)
            stock = self.model.generate
            self.model.generate = lambda *args, **kwargs: self._generate(stock, args, kwargs)
            stack.callback(lambda: self.model.__dict__.pop("generate"))
            yield self

    def _forward(self, model: Any, args: Any, kwargs: Inputs) -> Any:
        if all(kwargs.get(key) is None for key in PIXELS.values()):
            return None  # a decode step, or text alone
        if args:
            kwargs = {"input_ids": args[0]} | kwargs
        return (), self.prepare(kwargs, self._forward_positions)

    def _forward_positions(self, inputs: Inputs) -> Tensor:
        """The position ids the stock `forward` would use."""
        ids: Tensor = inputs["input_ids"]
        rope = getattr(self.model.base_model, "get_rope_index", None)
        if rope is None:
            return torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        positions: Tensor = rope(**inputs)[0]
        return positions

    def _generate_positions(self, inputs: Inputs) -> Tensor:
        """The position ids the stock `generate` would use, (B, S) or (rows, B, S) for M-RoPE."""
        positions: Tensor = self.model._prepare_position_ids_for_generation(
            inputs["input_ids"], dict(inputs)
        )
        return positions

    def _generate(self, stock: Callable[..., Any], args: Any, kwargs: Inputs) -> Any:
        kwargs = dict(kwargs)
        if args:
            kwargs["input_ids"] = args[0]
        if kwargs.get("inputs") is not None:
            kwargs["input_ids"] = kwargs.pop("inputs")
        if all(kwargs.get(key) is None for key in PIXELS.values()):
            if self.seam:
                self.seam.start(None, None)
            return stock(**kwargs)
        self._refuse(kwargs)
        prompt = kwargs["input_ids"]
        short = self.prepare(kwargs, self._generate_positions)
        self._lengths(short, prompt.shape[1])
        return _restore(stock(**short), prompt, short["input_ids"].shape[1])

    def _refuse(self, kwargs: Inputs) -> None:
        cache = kwargs.get("past_key_values")
        if cache is not None and cache.get_seq_length() > 0:
            raise InputError("reduced() starts from a whole prompt: pass no filled past_key_values")
        if kwargs.get("inputs_embeds") is not None or kwargs.get("input_ids") is None:
            raise InputError("reduced() needs input_ids with the model's visual placeholders")
        config = kwargs.get("generation_config") or self.model.generation_config
        beams = kwargs.get("num_beams") or config.num_beams or 1
        copies = kwargs.get("num_return_sequences") or config.num_return_sequences or 1
        if max(beams, copies) > 1 and self.seam:
            raise InputError(
                "beams and several return sequences do not work with dropping inside the decoder"
            )
        if kwargs.get("use_cache") is False and self.seam:
            raise InputError("dropping inside the decoder needs use_cache=True")

    def _lengths(self, inputs: Inputs, original: int) -> None:
        """`max_length` and `min_length` count the user's own prompt, not the shortened one."""
        config = inputs.get("generation_config")
        for bound in ("max", "min"):
            limit = inputs.pop(f"{bound}_length", None)
            if limit is None and config is not None:
                limit = getattr(config, f"{bound}_length", None)
            if limit and inputs.get(f"{bound}_new_tokens") is None:
                inputs[f"{bound}_new_tokens"] = max(limit - original, 1 if bound == "max" else 0)

    def prepare(self, inputs: Inputs, positions: Callable[[Inputs], Tensor]) -> Inputs:
        """Encode, reduce, and build the shorter prompt.

        Args:
            inputs: keyword arguments with `input_ids` (B, S) and pixels.
            positions: the position ids the stock model would use for these inputs.

        Returns:
            Keyword arguments with `mm_encoder_outputs` instead of pixels. Where nothing is
            dropped everything else is as it came, so the run is bit-identical to the stock one.
        """
        for reducer in self.reducers:
            inputs = reducer.before_encoder(self.model, inputs)
        self.inputs, self.select_flops = inputs, 0
        active = [r for r in self.reducers if overrides(r, "after_encoder")]
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
        if self.seam:
            mask = short.get("attention_mask")
            self.seam.start(visual, None if mask is None else mask.bool())
        return short

    def _reduce(self, part: Media, active: list[Reducer], inputs: Inputs) -> Media:
        for reducer in active:
            query = None
            if "query" in reducer.needs | reducer.wants:
                with self.meter.stage("reduce.score"):
                    query = self._query(part, inputs)
            width = part.tokens.features.shape[-1]
            self.select_flops += sum(
                reducer.select_flops(n, width) for n in part.tokens.counts.tolist()
            )
            with self.meter.stage("reduce.select"):
                part = part.reduce(reducer.select(part.tokens, query))
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


def _restore(output: Any, prompt: Tensor, short: int) -> Any:
    """Put the user's own prompt back in front of the new tokens."""
    sequences = output if isinstance(output, Tensor) else output.sequences
    copies = len(sequences) // len(prompt)
    whole = torch.cat([prompt.repeat_interleave(copies, dim=0), sequences[:, short:]], dim=1)
    if isinstance(output, Tensor):
        return whole
    output.sequences = whole
    return output


@contextmanager
def reduced(
    model: Any, reduce: str | Reducer | Sequence[str | Reducer], meter: Meter | None = None
) -> Iterator[Reduction]:
    """Let a stock model read fewer visual tokens inside the `with` block.

    `model.generate(**inputs)` returns sequences that begin with the user's own prompt;
    `model(**inputs)` returns logits of the kept positions. The model's code, its attention
    implementation and its weights are untouched, and every hook is gone afterwards.

    Args:
        model: a Hugging Face image-text-to-text model of a family mmtok knows.
        reduce: a spec such as "todre(keep=0.1)", a reducer, or a list of them.
        meter: told which stage runs, for timing or counting.

    Raises:
        InputError: the family is unknown, a spec is wrong, or a reducer does not fit the model.
    """
    with Reduction(model, build(reduce), meter).active() as reduction:
        yield reduction
