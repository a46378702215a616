"""SparseVLM: the words that look at the image judge its tokens (arXiv 2410.04417, v1).

Authors' repository: Gumpest/SparseVLMs. Words whose embeddings resemble the image's are raters. At
three depths the visual tokens they attend to least leave; the best of these are clustered, and each
cluster goes on as one token, the mean of its members.

Deviations: `keep` is what the last stage leaves, clusters counted, and the stages before shrink by
the same factor each; the released tables hold for 576 tokens only, and the paper's ratio by
rank is not exact. The density of the clustering has no random part. A cluster stands where its peak
stood and keeps that position; the authors put clusters last and number anew. Their v2 corrects
attention by a Gram matrix of rotations whose exact form we could not establish: it is not built.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmtok.pruning.base import Reducer
from mmtok.pruning.decoder import (
    DecoderPrompt,
    DecoderStage,
    keeping,
    stage_layers,
    staged,
    stepped,
    tapered,
)
from mmtok.pruning.dpc import density_peaks
from mmtok.pruning.rank import top
from mmtok.tokens import Selection


@dataclass(frozen=True, kw_only=True)
class SparseVLM(Reducer):
    """Drop what the relevant words attend to least in three steps, and recycle the best of it.

    Attributes:
        keep: visual tokens of a prompt left after the last stage, clusters among them.
        layers: first layers that run on fewer tokens, ascending. Default: layers 3, 7 and 16 of
            32, or as deep in another decoder.
        recycle: share of the dropped tokens that is clustered; 0: none.
    """

    keep: int | float = 0.2
    layers: tuple[int, ...] | None = None
    recycle: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_number("recycle", 0, 1, below=True)

    def in_decoder(self, layers: int) -> list[DecoderStage]:
        """One stage per layer; none if all is kept.

        Raises:
            InputError: the decoder has no such layers.
        """
        places = self._places(layers)
        return [] if self.keeps_all else staged(places, self._rated, "attention", "embeddings")

    def decoder_schedule(self, layers: int, visual: int) -> list[int]:
        """Fewer from each stage on."""
        places = self._places(layers)
        counts = tapered(visual, self.keep_count(visual), len(places))
        return stepped(layers, places, counts, visual)

    def _places(self, layers: int) -> list[int]:
        return stage_layers(self.name, self.layers, (3 / 32, 7 / 32, 16 / 32), layers)

    def _rated(self, stage: int, stages: int, prompt: DecoderPrompt) -> Selection:
        if self.name not in prompt.memory:
            prompt.memory[self.name] = len(prompt.visual), self._raters(prompt)
        first, raters = prompt.memory[self.name]
        now, total = len(prompt.visual), tapered(first, self.keep_count(first), stages)[stage]
        if total >= now:
            return keeping(torch.arange(now, device=prompt.visual.device))
        # Text never leaves, so a rater is known by its place among the text.
        places = prompt.last if raters is None else prompt.text[raters]
        score = prompt.rows(places).mean(0)[prompt.visual]
        plain, clusters = split_budget(now, total, self.recycle)
        order = top(score, now)
        if clusters == 0:
            return keeping(order[:plain])
        again = order[plain : plain + recycled(now - plain, self.recycle)]
        prompt.flops += 2 * len(again) ** 2 * prompt.hidden.shape[1]
        x = prompt.hidden[prompt.visual[again]]
        return with_clusters(order[:plain], again, *density_peaks(x, clusters, clusters))

    def _raters(self, prompt: DecoderPrompt) -> Tensor | None:
        """Places among the text of the words that judge; None where no text follows the image."""
        asking, x = prompt.asking, prompt.embeddings
        if x is None or len(asking) == 0:
            return None
        prompt.flops += 2 * len(prompt.visual) * len(asking) * x.shape[1]
        words = raters(x[prompt.visual], x[asking])
        return torch.searchsorted(prompt.text, asking[words])


def rater_score(visual: Tensor, text: Tensor) -> Tensor:
    """(T,) how much each word resembles the (N, D) visual tokens: mean softmax over the words."""
    return (visual.float() @ text.float().T).softmax(1).mean(0)


def raters(visual: Tensor, text: Tensor) -> Tensor:
    """Indices of the words above the mean score; all words where none is."""
    score = rater_score(visual, text)
    above = score > score.mean()
    return (above if bool(above.any()) else ~above).nonzero().squeeze(1)


def recycled(dropped: int, share: float) -> int:
    """How many of the dropped tokens are clustered."""
    return min(int(share * dropped) + 1, dropped) if share else 0


def split_budget(n: int, total: int, share: float) -> tuple[int, int]:
    """Plain tokens and clusters that make up `total` of n exactly.

    One cluster for every ten recycled tokens, and one more; less only where the budget is so small
    that a single plain token would not fit otherwise.
    """
    if share == 0:
        return total, 0
    for plain in range(total, 0, -1):
        clusters = recycled(n - plain, share) // 10 + 1
        if plain + clusters <= total:
            return plain, clusters
    return 1, total - 1


def with_clusters(kept: Tensor, again: Tensor, peaks: Tensor, label: Tensor) -> Selection:
    """The selection of `kept` tokens and of clusters of `again`, each the mean of its members."""
    index = torch.cat([kept, again[peaks]]).sort().values
    source = torch.cat([kept, again])
    stands = torch.cat([kept, again[peaks][label]])
    weight = torch.cat(
        [torch.ones(len(kept), device=kept.device), 1 / label.bincount().float()[label]]
    )
    return Selection(indices=[index], merge=[(source, torch.searchsorted(index, stands), weight)])
