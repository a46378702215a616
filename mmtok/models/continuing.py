"""What a call of the model needs to continue a shortened prompt as `generate` would."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor, arange
from torch.nn.functional import pad

from mmtok.models.cache_name import cache_in
from mmtok.models.families import Inputs


@dataclass(frozen=True)
class Shortened:
    """A prompt that lost tokens on its way into the decoder.

    Attributes:
        mask: (B, S) of the tokens that are left.
        position: (B, 1) or (rows, B, 1) of the first token behind the prompt.
        original: tokens of the prompt as the user knows it, padding included.
    """

    mask: Tensor
    position: Tensor
    original: int

    @cached_property
    def padded(self) -> bool:
        """Whether rows are padded to one length."""
        return not bool(self.mask.all())

    def arguments(self, inputs: Inputs) -> Inputs:
        """The arguments of a step in a loop of one's own, with positions and a mask that fit.

        Positions the caller passes stay. A mask may count the prompt in full or as it is now;
        where there is none, padding alone is hidden.
        """
        cache = cache_in(inputs)
        past = 0 if cache is None else cache.get_seq_length()
        tokens = inputs["inputs_embeds"] if inputs.get("input_ids") is None else inputs["input_ids"]
        rows, new = tokens.shape[:2]
        length = self.mask.shape[1]
        if rows != len(self.mask) or past < length:
            return inputs  # a cache of another prompt
        more = dict[str, Tensor]()
        if inputs.get("position_ids") is None:
            step = arange(past - length, past - length + new, device=self.position.device)
            more["position_ids"] = self.position + step
        given = inputs.get("attention_mask")
        behind = past + new - length
        if given is None and self.padded:
            more["attention_mask"] = pad(self.mask, (0, behind), value=1)
        elif isinstance(given, Tensor) and given.shape[1:] == (self.original + behind,):
            more["attention_mask"] = pad(self.mask, (0, behind), value=1)
            more["attention_mask"][:, length:] = given[:, self.original :]
        return inputs | more
