"""VQToken: a clip becomes a codebook of its clusters (arXiv 2503.16980).

Authors' repository: Hai-chao-Zhang/VQToken. All tokens of a clip are clustered by k-means on their
directions, k-means++ start, and each cluster becomes one token.

Deviations: a code is the mean of its members as they are; the authors average the normalised ones
and lose their length (`normalised=True`). Codes stand in the order of the clip: a code takes the
place of the token nearest to its cluster's mean frame, then cell, the next free one where two
meet. No cluster stays empty: it gets the token farthest from its own centroid. The number of
clusters is the budget; the authors' rules for choosing it always choose 12. A still is a clip of
one frame. k-means takes 100 rounds at most (`iterations`), where the authors' code allows 300 for a
fixed number of clusters. With `mode="trained"`, an attention layer reads the codebook of normalised
members; see mmtok/pruning/vqattention.py for how it differs from theirs (`compat="repo"`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from mmtok.errors import InputError
from mmtok.pruning.base import Reducer, seeded
from mmtok.pruning.frames import Clip, read_clip
from mmtok.pruning.kmeans import Clusters, kmeans, spread_start
from mmtok.pruning.merging import Merge, merge_per_item
from mmtok.pruning.slots import Slots
from mmtok.pruning.vqattention import VQAttention, load_vq_attention
from mmtok.pruning.work import Work
from mmtok.tokens import Query, Selection, VisualTokens


@dataclass(frozen=True, kw_only=True)
class VQToken(Reducer):
    """Replace the tokens by the codes of a codebook made of them.

    Attributes:
        normalised: codes are means of normalised members, as the authors' are.
        iterations: rounds of k-means at most.
        seed: for the start of k-means.
        mode: "free" without training, "trained" with the attention layer from `weights`.
        weights: .safetensors file or one that torch saved, in the authors' layout.
        heads: of that attention layer.
        compat: "repo" for the authors' queries in the trained mode.
    """

    keep: int | float = 32
    normalised: bool = False
    iterations: int = 100
    seed: int = 0
    mode: Literal["free", "trained"] = "free"
    weights: str | None = None
    heads: int = 8
    compat: Literal["paper", "repo"] = "paper"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_number("iterations", 1)
        self.check_number("heads", 1)
        if (self.mode == "trained") != isinstance(self.weights, str):
            raise InputError("vqtoken: weights='file' goes with mode='trained', and only with it")

    @cached_property
    def attention(self) -> VQAttention:
        """The attention layer of the trained mode."""
        return load_vq_attention(self.weights or "", self.heads)

    def after_encoder(self, tokens: VisualTokens, query: Query | None) -> Selection:
        """Cluster, average, and in the trained mode attend."""
        made: dict[int, Tensor] = {}
        work = Work()

        def choose(item: int, valid: Tensor, k: int) -> Merge:
            x = tokens.features[item, valid]
            start = spread_start(x, k, seeded(self.seed, tokens.item_ids[item]), work)
            clusters = kmeans(x, start, iterations=self.iterations, work=work)
            place = centres(tokens.position[item, valid], clusters.labels, k)
            every = torch.arange(len(x), device=x.device)
            weight = self._weights(x, clusters)
            slots = Slots()
            slots.add(place, every, clusters.labels, weight)
            merge = slots.merge()
            if self.mode == "trained":
                made[item] = self._attend(x, read_clip(tokens, item, valid), merge, work)
            return merge

        chosen = merge_per_item(tokens, self.keep_count, choose)
        chosen = replace(chosen, flops=work.flops)
        if self.mode == "free":
            return chosen
        features = [
            made.get(item, tokens.features[item, index])
            for item, index in enumerate(chosen.indices)
        ]
        return replace(chosen, made=features)

    def _weights(self, x: Tensor, clusters: Clusters) -> Tensor:
        """(N,) share of each token in its code."""
        size = clusters.sizes.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
        weight = (1 / size)[clusters.labels]
        if self.normalised or self.mode == "trained":
            length = x.to(size.dtype).norm(dim=1)
            weight = torch.where(length > 0, weight / length, 0)
        return weight

    def _attend(self, x: Tensor, clip: Clip, merge: Merge, work: Work) -> Tensor:
        """(k, D) tokens that the attention layer makes of the codebook."""
        module = self.attention.to(x.device)
        (kept, (source, slot, weight)), (width, cells) = merge, module.to_q_proj.weight.shape
        k = len(kept)
        frames = clip.frames
        if x.shape[1] != width or any(len(frame) not in (cells, cells + 1) for frame in frames):
            raise InputError(
                f"vqtoken: the weights are for frames of {cells} tokens of width {width}, got "
                f"frames of {sorted({len(frame) for frame in frames})} tokens of width {x.shape[1]}"
            )
        if self.compat == "repo" and len(frames) > k:
            raise InputError(
                f"vqtoken: with compat='repo', {len(frames)} frames give {len(frames)} tokens, "
                f"more than the {k} to keep: keep at least as many as there are frames"
            )
        part = x[source].float() * weight[:, None].float()
        codebook = part.new_zeros(k, width).index_add_(0, slot, part)
        label = torch.empty_like(slot)
        label[source] = slot
        grid = torch.stack([label[frame[:cells]] for frame in frames])  # newlines have no cell
        if self.compat == "repo":
            work.flops += module.flops(len(frames), k)
            return module.attend_frames(codebook, grid).to(x.dtype)
        where = torch.nn.functional.one_hot(grid, k).float().mean(0).T
        work.flops += module.flops(k, k)
        answer: Tensor = module(codebook, where)
        return answer.to(x.dtype)

    def select_flops(self, n: int, width: int, *, key_width: int = 0, text: int = 0) -> int:
        """At most all rounds of k-means, its start, and the attention."""
        k = self.keep_count(n)
        attention = self.attention.flops(k, k) if self.mode == "trained" else 0
        return 2 * n * k * width * (self.iterations + 1) + attention if k < n else 0


def centres(position: Tensor, labels: Tensor, k: int) -> Tensor:
    """(k,) different places, one for each cluster: near its mean frame, row and column.

    The nearest frame decides, then the nearest cell; where clusters meet, the later one takes the
    next place, so that the order of the clusters' centres stays.

    Args:
        position: (N, 3) int64 (t, h, w) of each token.
        labels: (N,) int64 cluster of each token, none empty.
        k: how many clusters, at most N.
    """
    here = position.double()
    sums = here.new_zeros(k, 3).index_add_(0, labels, here)
    mean = sums / torch.bincount(labels, minlength=k)[:, None]
    squares = [(mean[:, axis, None] - here[:, axis]).square() for axis in range(3)]
    frame = squares[0] == squares[0].amin(1, keepdim=True)
    nearest = (squares[1] + squares[2]).masked_fill(~frame, torch.inf).argmin(1)
    order = nearest.argsort(stable=True)
    step = torch.arange(k, device=labels.device)
    place = (nearest[order] - step).cummax(0).values + step
    out = torch.empty_like(place)
    out[order] = torch.minimum(place, step + len(labels) - k)
    return out
