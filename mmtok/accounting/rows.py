"""From one measured pass to the rows of its ledger."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmtok.accounting import hardware
from mmtok.accounting.analytic import decoder_flops
from mmtok.accounting.encoders import encoder_flops
from mmtok.accounting.ledger import STAGES, Ledger, Stage
from mmtok.accounting.merged import measured_saving
from mmtok.accounting.shapes import media_shapes
from mmtok.errors import InputError
from mmtok.models.counts import tokens_per_prompt

if TYPE_CHECKING:
    from mmtok.accounting.flops import FlopCount
    from mmtok.accounting.timing import StageTimer
    from mmtok.models.lvlm import LVLM
    from mmtok.models.reduction import Reduction


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One run of a pipeline.

    Attributes:
        inputs: the prompt as the processor made it.
        sequences: (B, S + new) token ids, beginning with the whole prompt.
        reduction: the reducers' work on it.
        kv_bytes: size of the KV cache after the prefill and at the end.
        contrast_bytes: of the cache that a second branch for contrasted logits filled.
        width: beams, or copies of each prompt.
        last_position: the largest that the decoder read, where the model passes positions.
    """

    inputs: dict[str, Any]
    sequences: Tensor
    reduction: Reduction
    kv_bytes: tuple[int, ...]
    contrast_bytes: int | None = None
    width: int = 1
    last_position: int | None = None

    @property
    def rows(self) -> int:
        """Sequences the decoder runs at once."""
        return len(self.inputs["input_ids"]) * self.width

    @property
    def new_tokens(self) -> int:
        """Tokens generated per prompt, the longest answer of the batch."""
        return self.sequences.shape[1] - int(self.inputs["input_ids"].shape[1])

    @property
    def neurons(self) -> int | None:
        """Neurons of each feed-forward network that decode steps compute; None: all."""
        seam = self.reduction.seams.neurons
        width = self.reduction.model.config.get_text_config().intermediate_size
        return None if seam is None or not seam.chosen else seam.stage.width(width)

    def layer_lengths(self) -> list[int]:
        """Tokens of the prompt that each decoder layer reads, padding included."""
        seam, layers = self.reduction.seams.decoder, len(self.reduction.model.get_decoder().layers)
        lengths = [self.reduction.prompt_length] * layers
        if seam is not None:
            for layer, left in enumerate(seam.left):
                lengths[layer] = lengths[layer] if left is None else left.index.shape[1]
        return lengths

    def cache_lengths(self) -> list[int]:
        """Entries that each decoder layer's KV cache holds after the prefill, padding included."""
        cache, lengths = self.reduction.seams.cache, self.layer_lengths()
        return lengths if cache is None else cache.lengths(lengths)

    def decode_reads(self) -> list[list[int]]:
        """Entries each layer reads in each decode step, the step's own token included."""
        cache, held = self.reduction.seams.cache, self.cache_lengths()
        chosen = [] if cache is None else cache.reads
        return [
            [(chosen[step - 1] if chosen else {}).get(i, n + step) for i, n in enumerate(held)]
            for step in range(1, self.new_tokens)
        ]


def ledger(
    lvlm: LVLM, spec: str, done: Pass, timer: StageTimer, counted: FlopCount | None
) -> Ledger:
    """The account of one pass: times from `timer`, FLOPs from `counted` where it was made."""
    times = timer.times()
    analytic = analytic_flops(lvlm, done)
    tokens = _tokens(done)
    caches: dict[str, int | None] = {"decode.contrast": done.contrast_bytes}
    caches |= zip(("prefill", "decode"), done.kv_bytes, strict=False)
    peak = hardware.find(_device_name(lvlm.device))
    rows = []
    for name in STAGES:
        if name not in times:
            continue
        time = times[name]
        flops = counted.by_stage.get(name, 0) if counted and name != "source" else None
        work = analytic.get(name)
        rows.append(
            Stage(
                name,
                *tokens[name],
                flops=flops,
                flops_analytic=work,
                device_ms=time.device_ms,
                host_ms=time.host_ms,
                peak_mib=time.peak_mib,
                kv_bytes=caches.get(name),
                mfu=hardware.mfu(work, time.device_ms, peak, lvlm.dtype),
                mbu=_mbu(lvlm, name, done, time.device_ms, peak),
            )
        )
    return Ledger(
        rows, uncounted=counted.uncounted if counted else {}, meta=_meta(lvlm, spec, done)
    )


def _meta(lvlm: LVLM, spec: str, done: Pass) -> dict[str, Any]:
    """What was run on what; positions only where the prompt has more than the model knows."""
    seen, kept = _visual(done)
    meta: dict[str, Any] = {
        "model": lvlm.name,
        "reduce": spec,
        "device": _device_name(lvlm.device),
        "dtype": str(lvlm.dtype).removeprefix("torch."),
        "prompts": len(done.sequences),
        "new_tokens": done.new_tokens,
        "visual_tokens": {"in": seen, "out": kept},
    }
    known = getattr(lvlm.config.get_text_config(), "max_position_embeddings", None)
    last = done.last_position
    if known is not None and last is not None and last >= known:
        meta["positions"] = {"read": last + 1, "known": known}
    return meta


def _visual(done: Pass) -> tuple[int, int]:
    """Visual tokens of the prompts as they were made, and those that enter the language model."""
    pairs = tokens_per_prompt(done.reduction, done.inputs["input_ids"])
    return sum(n for n, _ in pairs), sum(k for _, k in pairs)


def _tokens(done: Pass) -> dict[str, tuple[int | None, int | None]]:
    """Tokens in and out of each stage, over the whole batch."""
    (before, kept), prompt = _visual(done), int(done.inputs["attention_mask"].sum())
    seen = sum(n for _, n, _ in done.reduction.tokens)  # by the tower, of pictures made smaller
    batch = done.rows
    other = done.reduction.contrast
    second = 0 if other is None else int(other.prompt["attention_mask"].sum())
    steps = batch * max(done.new_tokens - 1, 0)
    return {
        "source": (None, prompt),
        "encode": (None, seen),
        "reduce.score": (seen, seen),
        "reduce.select": (seen, kept),
        "prefill": ((prompt - before + kept) * done.width, batch),
        "decode": (steps, steps),
        "decode.contrast": (second + steps, batch + steps),
    }


def analytic_flops(lvlm: LVLM, done: Pass) -> dict[str, int]:
    """FLOPs of each stage in closed form; a stage without one is absent."""
    text = lvlm.config.get_text_config()
    lengths = done.layer_lengths()
    batch = done.rows
    work = {
        "reduce.score": done.reduction.score_flops,
        "reduce.select": done.reduction.select_flops,
    }
    try:
        shapes = media_shapes(lvlm.config, done.reduction.inputs)
        work["encode"] = encoder_flops(lvlm.config, shapes) - measured_saving(done.reduction)
        work["prefill"] = batch * decoder_flops(text, lengths)
        seam = done.reduction.seams.neurons
        blind = len(seam.blind) if seam else 0
        for rows, neurons in ((batch - blind, done.neurons), (blind, None)):
            work["decode"] = work.get("decode", 0) + rows * sum(
                decoder_flops(text, 1, read, neurons=neurons) for read in done.decode_reads()
            )
        if (other := done.reduction.contrast) is not None:
            entered = int(other.prompt["input_ids"].shape[1])
            steps = range(entered + 1, entered + done.new_tokens)
            work["decode.contrast"] = batch * (
                decoder_flops(text, entered) + sum(decoder_flops(text, 1, n) for n in steps)
            )
    except InputError:
        pass  # an architecture without closed forms: its rows say None
    return work


def _mbu(
    lvlm: LVLM, stage: str, done: Pass, ms: float, peak: hardware.Hardware | None
) -> float | None:
    """Memory bandwidth used in decoding: every step reads all weights and the KV cache once."""
    steps = done.new_tokens - 1
    if stage != "decode" or steps < 1:
        return None
    weights = sum(w.numel() * w.element_size() for w in lvlm.model.get_decoder().parameters())
    if done.reduction.seams.neurons:
        weights -= done.reduction.seams.neurons.spared_bytes
    cache = sum(done.kv_bytes) // 2  # it grows evenly from the first figure to the last
    return hardware.mbu(steps * (weights + cache), ms, peak)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
