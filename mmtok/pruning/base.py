"""What a reducer is: a frozen dataclass that overrides only the hooks it needs."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from mmtok.errors import InputError
from mmtok.options import check_types, expected
from mmtok.tokens import Query, Selection, VisualTokens

if TYPE_CHECKING:
    from mmtok.pruning.cache import CachePolicy
    from mmtok.pruning.decoder import DecoderStage
    from mmtok.pruning.neurons import NeuronStage
    from mmtok.pruning.stages import EncoderStage, LogitStage


ELSEWHERE = {
    "before_encoder": "on the pixels",
    "in_encoder": "inside the vision tower",
    "in_decoder": "inside the decoder",
    "in_feedforward": "in the decoder's feed-forward networks",
    "in_cache": "in the KV cache",
    "on_logits": "on the logits",
}
"""Hooks besides `after_encoder` -> where a reducer acts that overrides them."""


@dataclass(frozen=True, kw_only=True)
class Reducer:
    """A method that keeps fewer visual tokens.

    Attributes:
        needs: what the method cannot work without, of {"cls_attention",
            "cls_joint", "keys", "query"}.
        wants: what it uses where the model has it.
        budget: "exact", or "threshold" where content decides the count and `keep` is the most.
        keep: tokens kept per image or video: an int, or a float in (0, 1] for a share of them,
            rounded half up and at least one. `keep=1` is one token; with `keep=1.0` the method is
            not even asked.

    Raises:
        InputError: keep is neither, or an option is not of the type its field is annotated with.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    wants: ClassVar[frozenset[str]] = frozenset()
    budget: ClassVar[str] = "exact"

    keep: int | float = 1.0

    def __post_init__(self) -> None:
        keep = self.keep
        share = isinstance(keep, float) and 0 < keep <= 1
        count = isinstance(keep, int) and not isinstance(keep, bool) and keep >= 1
        if not share and not count:
            raise InputError(
                f"{self.name}: keep must be a number of tokens (an int >= 1) or a share of them "
                f"(a float in (0, 1]), got {keep!r}"
            )
        check_types(self.name, self)

    @property
    def name(self) -> str:
        """The registered name: the stem of the file the class stands in."""
        return type(self).__module__.rpartition(".")[2]

    @property
    def spec(self) -> str:
        """The canonical spec that builds this object again."""
        arguments = ", ".join(f"{f.name}={getattr(self, f.name)!r}" for f in fields(self))
        return f"{self.name}({arguments})"

    @property
    def keeps_all(self) -> bool:
        """Whether all tokens stay, however many there are: nothing has to be read or scored."""
        return isinstance(self.keep, float) and self.keep == 1

    def check_number(
        self,
        name: str,
        low: float = 0,
        high: float = math.inf,
        *,
        above: bool = False,
        below: bool = False,
    ) -> None:
        """InputError unless an option is in [low, high], or None; `above` leaves low out, `below`
        leaves high out.
        """
        value = getattr(self, name)
        inside = value is None or low <= value <= high
        if not inside or (above and value == low) or (below and value == high):
            least = f"{'>' if above else '>='} {low:g}"
            most = f" and {'<' if below else '<='} {high:g}" if high < math.inf else ""
            raise InputError(
                f"{self.name}: {name} must be {expected(self, name)} {least}{most}, got {value!r}"
            )

    def let_content_decide(self) -> None:
        """Declare `budget = "threshold"` where an option of this object turns the exact one off."""
        object.__setattr__(self, "budget", "threshold")

    def keep_count(self, n: int) -> int:
        """How many of n tokens survive: the share rounded half up, at least 1 and at most n."""
        k = math.floor(self.keep * n + 0.5) if isinstance(self.keep, float) else self.keep
        return min(max(k, 1), n)

    def encoder_count(self, n: int) -> int:
        """How many of an item's n tokens enter the language model: the budget if the method acts
        behind the encoder. An upper bound where the count depends on content.
        """
        return self.keep_count(n) if overrides(self, "after_encoder") else n

    def select_flops(self, n: int, width: int, *, key_width: int = 0, text: int = 0) -> int:
        """Floating point operations of `after_encoder`: matrix products and the like, as the FLOP
        counter counts them. At most so many where content decides; `Selection.flops` says then
        how many a choice took.

        Args:
            n: tokens of one item.
            width: of a token's features.
            key_width: of a token's keys.
            text: tokens of the query.
        """
        return 0

    def encoder_schedule(
        self, layers: int, patches: int, *, key_width: int, prefix: int
    ) -> tuple[list[int], int]:
        """Patches left behind each of the tower's layers, and FLOPs of merging, for one crop.

        Upper and lower bound where the count depends on content.

        Args:
            layers: of the tower, up to the one whose output the model reads.
            patches: that enter.
            key_width: of one head.
            prefix: tokens before the patches.
        """
        return [patches] * layers, 0

    def decoder_schedule(self, layers: int, visual: int) -> list[int]:
        """Visual tokens each decoder layer reads when `visual` of them enter; an upper bound
        where the count depends on content.
        """
        return [visual] * layers

    def cache_count(self, layer: int, entries: int, visual: int) -> int:
        """KV entries of a prompt that each head of a decoder layer holds once the prefill is done.

        Args:
            layer: which decoder layer.
            entries: tokens of the prompt that the layer reads.
            visual: how many of them are visual.
        """
        return entries

    def before_encoder(self, model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        """Change the model's inputs, pixels included, before the vision tower runs."""
        return inputs

    def after_encoder(self, tokens: VisualTokens, query: Query | None) -> Selection:
        """Choose among the tokens that leave the vision tower."""
        return keep_all(tokens)

    def in_encoder(self) -> EncoderStage | None:
        """What to merge inside the vision tower."""
        return None

    def in_decoder(self, layers: int) -> list[DecoderStage]:
        """Where and how tokens leave inside a decoder of `layers` layers."""
        return []

    def in_feedforward(self) -> NeuronStage | None:
        """Which neurons of the feed-forward networks decode steps compute; None: all."""
        return None

    def in_cache(self, layers: int) -> CachePolicy | None:
        """Which KV entries stay, for one batch of prompts and a decoder of `layers` layers."""
        return None

    def leave_early(self, layers: int) -> int | None:
        """The first decoder layer whose KV cache drops, once the prefill is done, the tokens that
        the last layer did not read any more; None if caches keep what their layers read.
        """
        return None

    def on_logits(self) -> LogitStage | None:
        """What to contrast the logits of every new token with."""
        return None

    def select(self, tokens: VisualTokens, query: Query | None = None) -> Selection:
        """The selection `after_encoder` makes, as a pure function of tensors.

        Raises:
            InputError: the method needs something that `tokens` or `query` does not hold, or acts
                elsewhere in the model only.
        """
        self._check_acts_here()
        if "query" in self.needs and query is None:
            raise InputError(f"{self.name} needs a query: pass the text's embeddings")
        for name in self.needs - {"query"}:
            if getattr(tokens, name) is None:
                raise InputError(f"{self.name} needs {name}, which these tokens do not carry")
        return self.after_encoder(tokens, query)

    def _check_acts_here(self) -> None:
        acts = [where for hook, where in ELSEWHERE.items() if overrides(self, hook)]
        if acts and not overrides(self, "after_encoder"):
            raise InputError(
                f"{self.name} does not choose among the tokens that leave the vision tower, "
                f"it acts {' and '.join(acts)}: run it with mmtok.reduced(model, ...)"
            )


def overrides(reducer: Reducer, hook: str) -> bool:
    """Whether a reducer has its own version of a hook, so that the work behind it is needed."""
    return getattr(type(reducer), hook) is not getattr(Reducer, hook)


def keep_all(tokens: VisualTokens) -> Selection:
    """Every valid token."""
    return Selection(indices=[row.nonzero().squeeze(1) for row in tokens.mask])


def per_item(
    tokens: VisualTokens,
    keep_count: Callable[[int], int],
    choose: Callable[[int, Tensor, int], Tensor],
) -> Selection:
    """Select item by item, so that no batch-mate or padding can change another item's choice.

    Args:
        tokens: the candidates.
        keep_count: number of valid tokens -> number to keep.
        choose: (item, valid (n,) int64, k) -> k places among the valid ones, in any order; called
            only when something must go.
    """
    indices = []
    for item, row in enumerate(tokens.mask):
        valid = row.nonzero().squeeze(1)
        k = keep_count(len(valid))
        if k < len(valid):
            valid = valid[choose(item, valid, k).sort().values]
        indices.append(valid)
    return Selection(indices=indices)


def seeded(seed: int, item_id: str) -> torch.Generator:
    """A CPU generator that depends on the seed and the item, not on its place in a batch."""
    return torch.Generator().manual_seed(zlib.crc32(f"{seed}:{item_id}".encode()))
