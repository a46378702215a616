"""Pipeline: media in, text out, and a ledger of what each stage cost.

    source -> encode -> reduce.score -> reduce.select -> prefill -> decode

An un-pruned run goes the same way with no reducers, so the two are compared stage by stage.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any

import torch
from PIL.Image import Image
from torch import Tensor

from mmtok.accounting.calls import completed, with_mask
from mmtok.accounting.flops import count_flops
from mmtok.accounting.ledger import Ledger
from mmtok.accounting.rows import Pass, ledger
from mmtok.accounting.scopes import Meter
from mmtok.accounting.timing import StageTimer
from mmtok.errors import InputError
from mmtok.io.image import load_image, to_rgb
from mmtok.io.video import Clip, check_sampling, load_video
from mmtok.models.asked import asked, width
from mmtok.models.cache_name import cache_in
from mmtok.models.lvlm import LIST_FPS, LVLM, Prompt, first_line
from mmtok.models.reduced import rerouted
from mmtok.models.reduction import Reduction
from mmtok.models.turns import Turn
from mmtok.options import fits, shown
from mmtok.pruning import Reducer, build

if TYPE_CHECKING:
    Picture = Image | str | PathLike[str]
    Video = Clip | Sequence[Image] | str | PathLike[str]


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a pipeline made of one prompt or of a batch.

    Attributes:
        texts: the answers, one per prompt.
        new_tokens: tokens of each answer, its end-of-text token included.
        ledger: one row per stage.
        reduction: the visual tokens that were left, and where they came from.
        inputs: the prompt as the processor made it, pixels included.
    """

    texts: list[str]
    new_tokens: list[int]
    ledger: Ledger
    reduction: Reduction
    inputs: dict[str, Any]

    @property
    def text(self) -> str:
        """The answer to the first prompt."""
        return self.texts[0]


class Pipeline:
    """A vision-language model with reducers in front of and inside it.

    Args:
        lvlm: what `mmtok.load` returned.
        reduce: a spec such as "todre(keep=0.1)", a reducer, a list of them, or None.

    Raises:
        InputError: no LVLM, a spec is wrong, or a reducer does not fit the model.
    """

    def __init__(
        self, lvlm: LVLM, reduce: str | Reducer | Sequence[str | Reducer] | None = None
    ) -> None:
        if not isinstance(lvlm, LVLM):
            raise InputError(f"expected what mmtok.load returns, got {shown(lvlm)}")
        self.lvlm = lvlm
        self.reducers = build(reduce)
        Reduction(lvlm.model, self.reducers)  # refuse now what cannot work later

    @property
    def spec(self) -> str:
        """The canonical spec of the reducers, "none" without any."""
        return " + ".join(r.spec for r in self.reducers) or "none"

    def generate(
        self,
        images: Sequence[Picture] | None = None,
        text: str | Sequence[Turn] = "",
        videos: Sequence[Video] | None = None,
        *,
        frames: int | None = None,
        fps: float | None = None,
        count: bool = False,
        **options: Any,
    ) -> Result:
        """Answer one question about images and clips.

        Args:
            images: paths or PIL images, all part of one prompt.
            text: the question, or the turns of a conversation (`mmtok.models.turns`).
            videos: paths, clips from `load_video`, or lists of PIL frames.
            frames: how many frames to sample from each file; default 8 unless `fps` is given.
            fps: how many frames a second to sample instead.
            count: also count FLOPs with torch's counter, in a second pass of its own.
            options: for `generate` of the model, such as `max_new_tokens` or a
                `generation_config`. Greedy and 32 new tokens, unless they say otherwise.

        Raises:
            InputError: a file cannot be read, or an option does not fit, such as one whose work
                a ledger cannot tell apart (docs/ledger.md).
        """
        timer = StageTimer(self.lvlm.device, cpu_peak=True)
        with timer.stage("source"):
            prompt = _read((images, videos, text), frames, fps)
            inputs = self.lvlm.inputs_batch([prompt], fps=fps or LIST_FPS)
        return self.run(inputs, timer=timer, count=count, **options)

    def generate_batch(
        self, prompts: Sequence[Prompt], *, count: bool = False, **options: Any
    ) -> Result:
        """Answer a batch of (images, clips, text) prompts in one forward; see `generate`."""
        if not isinstance(prompts, list | tuple) or not all(map(_is_prompt, prompts)):
            raise InputError(
                f"expected a list of (images, videos, text) prompts, got {shown(prompts)}"
            )
        timer = StageTimer(self.lvlm.device, cpu_peak=True)
        with timer.stage("source"):
            inputs = self.lvlm.inputs_batch([_read(prompt) for prompt in prompts])
        return self.run(inputs, timer=timer, count=count, **options)

    def run(
        self,
        inputs: dict[str, Any],
        *,
        timer: StageTimer | None = None,
        count: bool = False,
        **options: Any,
    ) -> Result:
        """Answer prompts that the model's processor has already made.

        Args:
            inputs: keyword arguments of the model's `generate`; a missing attention mask is
                inferred as it does.
            timer: goes on with a timer that has seen the stage "source".
            count: as in `generate`.
            options: as in `generate`.
        """
        if count and (cache_in(options) is not None or options.get("streamer") is not None):
            raise InputError(
                "count=True runs the prompt twice, but a KV cache or a streamer serves one run: "
                "leave it out, or count in a call of its own"
            )
        timer = timer or StageTimer(self.lvlm.device, cpu_peak=True)
        cuda = [self.lvlm.device] if self.lvlm.device.type == "cuda" else []
        draws = torch.get_rng_state(), [torch.cuda.get_rng_state(d) for d in cuda]
        timed = self.one_pass(inputs, timer, **options)
        counted = None
        if count:
            with torch.random.fork_rng(cuda), count_flops() as counted:
                torch.set_rng_state(draws[0])  # a sampled answer is counted, not another one
                for device, state in zip(cuda, draws[1], strict=True):
                    torch.cuda.set_rng_state(state, device)
                self.one_pass(inputs, counted, **options)
        new = timed.sequences[:, timed.inputs["input_ids"].shape[1] :]
        return Result(
            texts=self.lvlm.decode(new),
            new_tokens=_lengths(new, asked(self.lvlm.model, options, "eos_token_id")),
            ledger=ledger(self.lvlm, self.spec, timed, timer, counted),
            reduction=timed.reduction,
            inputs=timed.inputs,
        )

    @torch.inference_mode()
    def one_pass(self, inputs: dict[str, Any], meter: Meter, **options: Any) -> Pass:
        """Run the model once, reporting its stages to `meter`."""
        model = self.lvlm.model
        inputs = with_mask(model, inputs, options)
        options = completed(model, options, inputs["input_ids"].shape[1])
        reduction = Reduction(model, self.reducers, meter)
        with rerouted(reduction), _prefill_then_decode(model, meter) as (caches, places):
            try:
                made = model.generate(**inputs, **options)
            except InputError:
                raise
            except ValueError as error:  # what transformers says of an option
                raise InputError(f"generate: {first_line(error)}") from error
        sequences: Tensor = made if isinstance(made, Tensor) else made.sequences
        other = reduction.contrast
        return Pass(
            inputs=inputs,
            sequences=sequences,
            reduction=reduction,
            kv_bytes=tuple(caches),
            contrast_bytes=None if other is None else cache_bytes(other.cache),
            width=width(model, options),
            last_position=None if places[0] is None else int(places[0].max()),
        )


def _lengths(new: Tensor, ends: int | list[int] | None) -> list[int]:
    """Tokens of each row up to and with its first end-of-text token."""
    stop = torch.isin(new, torch.tensor([] if ends is None else ends, device=new.device).to(new))
    after = stop.cumsum(1) - stop.int() > 0
    return [int(n) for n in (~after).sum(1)]


def _read(prompt: Any, frames: int | None = None, fps: float | None = None) -> Prompt:
    """A prompt with its files decoded and its pictures in RGB."""
    images, videos, text = prompt
    check_sampling(frames, fps)
    for name, media in (("images", images), ("videos", videos)):
        if media is not None and not isinstance(media, list | tuple):
            raise InputError(f"{name} must be a list of paths or pictures, got {shown(media)}")
    pictures = [_picture(x) for x in images or ()]
    return pictures, [_clip(x, frames, fps) for x in videos or ()], text


def _is_prompt(prompt: Any) -> bool:
    return isinstance(prompt, list | tuple) and len(prompt) == 3


def _picture(given: Any) -> Image:
    if isinstance(given, str | PathLike):
        return load_image(given)
    if not isinstance(given, Image):
        raise InputError(f"images: expected paths or PIL images, got {shown(given)}")
    return to_rgb(given)


def _clip(given: Any, frames: int | None, fps: float | None) -> Clip | Sequence[Image]:
    if isinstance(given, str | PathLike):
        return load_video(given, frames=frames, fps=fps)
    if isinstance(given, Clip) or fits(given, Sequence[Image]):
        clip: Clip | Sequence[Image] = given
        return clip
    raise InputError(f"videos: expected paths, clips or lists of PIL images, got {shown(given)}")


@contextmanager
def _prefill_then_decode(
    model: Any, meter: Meter
) -> Iterator[tuple[list[int], list[Tensor | None]]]:
    """Report "prefill" until the first forward is done and "decode" from then on.

    Yields:
        Bytes of the KV cache after the prefill and at the end, and the last step's position ids.
    """
    caches: list[int] = []
    last: list[Any] = [None]
    places: list[Tensor | None] = [None]
    with ExitStack() as stage:
        stage.enter_context(meter.stage("prefill"))

        def after(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
            last[0], places[0] = cache_in(output), kwargs.get("position_ids")
            if not caches:
                caches.append(cache_bytes(last[0]))
                stage.close()
                stage.enter_context(meter.stage("decode"))

        hook = model.register_forward_hook(after, with_kwargs=True)
        try:
            yield caches, places
        finally:
            hook.remove()
    if last[0] is not None:
        caches.append(cache_bytes(last[0]))


def cache_bytes(cache: Any) -> int:
    """Bytes that the keys and values of a KV cache take."""
    return sum(
        x.numel() * x.element_size()
        for layer in cache.layers
        for x in (layer.keys, layer.values)
        if x is not None
    )
