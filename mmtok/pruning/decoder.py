"""What a method sees of a prompt inside the decoder, and how it says which tokens go on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from mmtok.errors import InputError
from mmtok.tokens import Selection

if TYPE_CHECKING:
    from mmtok.models.taps import LayerAttention

# attention: of the layer behind the stage; own_attention: of the layer it stands in front of, for
# which that layer's queries and keys are projected once more than the model would; embeddings: what
# the first layer reads; activation: of the feed-forward network of the layer behind.
Reads = Literal["attention", "own_attention", "embeddings", "activation"]

BLOCK = 256  # rows of attention that are held at once where all are asked for


@dataclass(kw_only=True)
class DecoderPrompt:
    """One prompt as it stands in front of a decoder layer: N visual and T other tokens.

    Its tokens are places in rows of S columns, of which some may be padding.

    Attributes:
        visual: (N,) int64 places of the visual tokens, ascending, N >= 1.
        text: (T,) int64 places of all others but padding, ascending.
        hidden: (S, D) input of the layer.
        size: (N,) fp32, how many tokens each visual token has been merged from, in the vision
            tower or since.
        cell: (N, 4) int64, image or clip of each visual token and its place (t, h, w) in it.
        norm: the decoder's final norm, (..., D) -> (..., D).
        memory: what a stage leaves for later stages of the same prompt.
        attention: of the layer the stage asked for, or None.
        embeddings: (S, D) input of the first layer, or None.
        activation: (S, M) neurons of the feed-forward network behind the stage, or None.
        cls_attention: (N,) attention that CLS paid to each visual token in the vision tower; 0
            where the method does not need it. None without a tower.
        item: row of the batch.
        flops: floating point operations the rule has spent; `rows` counts by itself.
    """

    visual: Tensor
    text: Tensor
    hidden: Tensor
    size: Tensor
    cell: Tensor
    norm: Callable[[Tensor], Tensor]
    memory: dict[str, Any] = field(default_factory=dict)
    attention: LayerAttention | None = None
    embeddings: Tensor | None = None
    activation: Tensor | None = None
    cls_attention: Tensor | None = None
    item: int = 0
    flops: int = 0

    def rows(self, index: Tensor) -> Tensor:
        """(R, S) attention of the tokens at `index`, mean over heads, in fp32."""
        if self.attention is None:
            raise ValueError("this stage does not declare that it reads attention")
        return self.attention.rows(self.item, index)

    def received(self) -> Tensor:
        """(S,) attention each token receives, mean over heads and over all tokens of the prompt."""
        asking = torch.cat([self.visual, self.text])
        blocks = [self.rows(block).sum(0) for block in torch.split(asking, BLOCK)]
        return torch.stack(blocks).sum(0) / len(asking)

    @property
    def last(self) -> Tensor:
        """(1,) place of the prompt's last token."""
        return torch.cat([self.visual, self.text]).amax()[None]

    @property
    def asking(self) -> Tensor:
        """Places of the text that follows the last visual token; (0,) if none does."""
        return self.text[self.text > self.visual[-1]]


Rule = Callable[[DecoderPrompt], Selection]


@dataclass(frozen=True, kw_only=True)
class DecoderStage:
    """Drop or merge visual tokens in front of one decoder layer.

    Attributes:
        layer: the first layer that runs without them, at least 1.
        rule: one prompt -> a Selection of one item among its N visual tokens. It may merge.
        reads: what the rule needs besides the hidden states.
    """

    layer: int
    rule: Rule
    reads: frozenset[Reads] = frozenset()


def keeping(index: Tensor) -> Selection:
    """The selection of one prompt's visual tokens at `index`, given in any order."""
    return Selection(indices=[index.sort().values])


def stage_layers(
    name: str, given: Sequence[int] | None, shares: Sequence[float], depth: int
) -> list[int]:
    """In front of which layers the stages of a method stand.

    Args:
        name: of the method, for the error.
        given: what the user asked for; None: at `shares` of the depth, rounded half up, each in
            front of a layer of its own, and none where the decoder is too shallow for all.
        shares: ascending, in (0, 1).
        depth: layers of the decoder.

    Raises:
        InputError: the given layers do not ascend within 1 .. depth - 1.
    """
    if given is None:
        layers = [0]
        for share in shares:
            layers.append(max(math.floor(share * depth + 0.5), layers[-1] + 1))
        return [layer for layer in layers[1:] if layer < depth]
    layers = [x for x in given if 0 < x < depth]
    if not layers or layers != sorted(set(layers)) or len(layers) != len(given):
        raise InputError(
            f"{name}: layers must ascend within 1 to {depth - 1} in this decoder, got {given!r}"
        )
    return layers


def staged(
    places: Sequence[int], rule: Callable[[int, int, DecoderPrompt], Selection], *reads: Reads
) -> list[DecoderStage]:
    """A stage in front of each of the layers `places`; `rule` is told its number, of how many."""
    return [
        DecoderStage(layer=layer, rule=partial(rule, number, len(places)), reads=frozenset(reads))
        for number, layer in enumerate(places)
    ]


def tapered(n: int, k: int, stages: int) -> list[int]:
    """Tokens left after each stage when n of them shrink to k by the same factor each time."""
    left = [math.floor(n * (k / n) ** (stage / stages) + 0.5) for stage in range(1, stages)]
    return [*(max(count, k) for count in left), k]


def stepped(layers: int, stages: Sequence[int], counts: Sequence[int], n: int) -> list[int]:
    """Visual tokens each layer reads: n at first, counts[i] from layer stages[i] on."""
    schedule = [n] * layers
    for stage, count in zip(stages, counts, strict=True):
        schedule[stage:] = [count] * (layers - stage)
    return schedule
