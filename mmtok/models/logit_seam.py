"""The logit seam: contrast each new token's logits with those of the same prompt, otherwise seen.

A second branch runs the prompt with other visual tokens and a KV cache of its own. `generate` calls
it as a logits processor: behind penalties and forced tokens, before temperature, top-k and top-p,
so that sampling settings act on what the contrast leaves.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmtok.accounting.scopes import Meter
from mmtok.errors import InputError
from mmtok.models.cache_name import cache_in, cache_name
from mmtok.models.families import Inputs
from mmtok.pruning.stages import LogitStage

STAGE = "decode.contrast"


class Contrast:
    """The other branch of one batch of prompts: a logits processor.

    Args:
        model: a Hugging Face model with a language head.
        stage: how the two are contrasted.
        prompt: keyword arguments of its `forward` for the other prompt, positions included.
        meter: told that the stage "decode.contrast" runs.

    Attributes:
        lengths: tokens that each of its forwards read, padding included.
        cache: its KV cache, None before the first token.
    """

    def __init__(self, model: Any, stage: LogitStage, prompt: Inputs, meter: Meter) -> None:
        self.model, self.stage, self.meter = model, stage, meter
        self._name = cache_name(model)
        self.prompt = prompt
        self.steps = 0
        self.cache: Any = None
        self._mask: Tensor = prompt["attention_mask"]
        self._next = prompt["position_ids"][..., -1:] + 1
        self._length = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The contrasted (B, V) scores of the next token.

        Raises:
            InputError: several tokens came at once, or rows changed places.
        """
        if input_ids.shape[0] != len(self._mask) or (
            self.steps and input_ids.shape[1] != self._length + 1
        ):
            raise InputError(
                "contrasting logits needs one sequence per prompt, one new token at a time: "
                "no beams and no assistant"
            )
        self._length = input_ids.shape[1]
        with self.meter.stage(STAGE):
            other = self._forward(input_ids)
            self.steps += 1
            return self.stage.contrast(scores, other.to(scores))

    def _forward(self, input_ids: Tensor) -> Tensor:
        """(B, V) logits of the other branch.

        `forward` itself is called: hooks on the model are about the user's prompt.
        """
        inputs = self.prompt
        if self.steps:
            self._mask = torch.nn.functional.pad(self._mask, (0, 1), value=1)
            inputs = {
                "input_ids": input_ids[:, -1:],
                "attention_mask": self._mask,
                "position_ids": self._next,
                self._name: self.cache,
            }
            self._next = self._next + 1
        output = self.model.forward(**inputs, use_cache=True, logits_to_keep=1)
        self.cache = cache_in(output)
        logits: Tensor = output.logits[:, -1]
        return logits
