"""Quantisers: vectors to ids and back, with the gradients and losses that train them.

FSQ (arXiv 2309.15505), VQ with exponential moving averages, k-means start and revival of dead codes
(arXiv 1711.00937) and residual VQ (arXiv 2107.03312). The last two are vector-quantize-pytorch's,
whose revival also resets the running sums; in several published codecs it does not, and the next
update undoes it. Only the straight-through gradient is not taken from there. FSQ is ours since the
library's has no dimensions of two levels and adds its index up in float32, which is exact to 2^24
only. Lookup-free quantisers are in `quantizers_lfq`.

Shapes: B items, N vectors, D wide, Q codebooks.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.codes import Codebook
from mmtok.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """What a quantiser makes of (B, N, D).

    Attributes:
        vectors: (B, N, D) quantised; gradients pass straight through to the input.
        ids: (B, N, Q) int64.
        loss: what training adds up, weighted.
        parts: the terms of `loss` by name, unweighted and detached.
    """

    vectors: Tensor
    ids: Tensor
    loss: Tensor
    parts: dict[str, Tensor]


class Quantizer(nn.Module, ABC):
    """Vectors to ids and back. Calling it gives a `Quantized`."""

    codebook: Codebook

    @abstractmethod
    def forward(self, x: Tensor) -> Quantized:
        """Quantise (B, N, D)."""

    @abstractmethod
    def lookup(self, ids: Tensor) -> Tensor:
        """Vectors (B, N, D) of ids (B, N, Q)."""


class FSQ(Quantizer):
    """Finite scalar quantisation: every dimension is bounded and rounded to a few levels.

    Args:
        levels: values of each dimension, at least 2; their product is the codebook's size.
    """

    levels: Tensor
    weights: Tensor

    def __init__(self, levels: tuple[int, ...]) -> None:
        super().__init__()
        size = math.prod(levels)
        self.codebook = Codebook(kind="fsq", sizes=(size,), levels=tuple(levels))
        steps = [math.prod(levels[:i]) for i in range(len(levels))]
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        self.register_buffer("weights", torch.tensor(steps), persistent=False)

    def bound(self, z: Tensor) -> Tensor:
        """z (..., D) squeezed between the outermost levels of each dimension, not rounded yet."""
        half = (self.levels - 1) * (1 + 1e-3) / 2
        offset = torch.where(self.levels % 2 == 0, 0.5, 0.0)
        return torch.tanh(z.float() + torch.atanh(offset / half)) * half - offset

    def forward(self, x: Tensor) -> Quantized:
        """Quantise (B, N, D) with D dimensions; there is no loss."""
        with torch.autocast(x.device.type, enabled=False):
            bounded = self.bound(x)
            rounded = bounded.round()
            middle = self.levels // 2
            ids = ((rounded.long() + middle) * self.weights).sum(-1, keepdim=True)
            vectors = (bounded + (rounded - bounded).detach()) / middle
        return Quantized(vectors=vectors.to(x.dtype), ids=ids, loss=x.new_zeros(()), parts={})

    def lookup(self, ids: Tensor) -> Tensor:
        """Vectors (B, N, D), each value in [-1, 1], of ids (B, N, 1)."""
        middle = self.levels // 2
        return (ids // self.weights % self.levels - middle) / middle


class VQ(Quantizer):
    """Nearest of `size` learned vectors, which follow the data by moving averages.

    Args:
        dim: width of the vectors.
        size: entries.
        depth: codebooks, each of which quantises what the ones before it left over.
        cosine: compare directions instead of points.
        decay: of the moving averages.
        commitment: weight of the squared distance that pulls inputs to their entry.
        kmeans: iterations of k-means on the first training batch; 0 starts at random.
        dead_below: an entry whose average count falls below this takes over a vector of the batch.
    """

    def __init__(
        self,
        dim: int,
        size: int,
        *,
        depth: int = 1,
        cosine: bool = False,
        decay: float = 0.99,
        commitment: float = 0.25,
        kmeans: int = 10,
        dead_below: float = 2,
    ) -> None:
        super().__init__()
        from vector_quantize_pytorch import ResidualVQ

        self.codebook = Codebook(kind="vq" if depth == 1 else "rvq", sizes=(size,) * depth)
        self.commitment, self.cosine = commitment, cosine
        self.layers: Any = ResidualVQ(
            dim=dim,
            num_quantizers=depth,
            codebook_size=size,
            use_cosine_sim=cosine,
            decay=decay,
            kmeans_init=kmeans > 0,
            kmeans_iters=kmeans,
            threshold_ema_dead_code=dead_below,
            rotation_trick=False,  # the plain straight-through gradient
        )

    def forward(self, x: Tensor) -> Quantized:
        """Quantise (B, N, D); in training mode the codebooks follow.

        Raises:
            InputError: not in training mode, and the codebooks were neither trained nor loaded.
        """
        if not self.training and not all(bool(x._codebook.initted) for x in self.layers.layers):
            raise InputError("this codebook has no entries yet: train it, or load its weights")
        with torch.autocast(x.device.type, enabled=False):  # distances in fp16 give NaN
            found, ids, losses = self.layers(x.float())
            # The library passes the gradient on once per codebook, which is depth times too much.
            z = F.normalize(x.float(), dim=-1) if self.cosine else x.float()
            vectors = z + (found - z).detach()
        commitment = losses.sum()
        return Quantized(
            vectors=vectors.to(x.dtype),
            ids=ids.long(),
            loss=self.commitment * commitment,
            parts={"commitment": commitment.detach()},
        )

    def lookup(self, ids: Tensor) -> Tensor:
        """Vectors (B, N, D) of ids (B, N, q): the first q <= Q codebooks give a coarser vector."""
        books = self.layers.codebooks[: ids.shape[-1]]
        return torch.stack([book[ids[..., q]] for q, book in enumerate(books)]).sum(0)


class NormalizedVQ(Quantizer):
    """Nearest of `size` learned directions (arXiv 2110.04627), trained by gradients.

    Args:
        dim: width of the vectors.
        size: entries.
        commitment: weight of the distance that pulls inputs to their entry; the one that pulls
            entries to inputs has weight 1.
    """

    def __init__(self, dim: int, size: int, *, commitment: float = 0.25) -> None:
        super().__init__()
        self.codebook = Codebook(kind="vq", sizes=(size,))
        self.commitment = commitment
        self.embedding = nn.Embedding(size, dim)
        nn.init.uniform_(self.embedding.weight, -1 / size, 1 / size)

    def forward(self, x: Tensor) -> Quantized:
        """Quantise (B, N, D); the vectors have length 1."""
        with torch.autocast(x.device.type, enabled=False):
            z = F.normalize(x.float(), dim=-1)
            entries = F.normalize(self.embedding.weight.float(), dim=-1)
            ids = (z @ entries.T).argmax(-1, keepdim=True)  # all of length 1: nearest is largest
            q = self.lookup(ids)
            pull, follow = F.mse_loss(z, q.detach()), F.mse_loss(q, z.detach())
        return Quantized(
            vectors=(z + (q - z).detach()).to(x.dtype),
            ids=ids,
            loss=self.commitment * pull + follow,
            parts={"commitment": pull.detach(), "codebook": follow.detach()},
        )

    def lookup(self, ids: Tensor) -> Tensor:
        """Vectors (B, N, D) of length 1 of ids (B, N, 1)."""
        return F.normalize(self.embedding(ids.squeeze(-1)).float(), dim=-1)


@torch.no_grad()
def occurrence(ids: Tensor, codebook: Codebook) -> list[Tensor]:
    """How often each entry that occurs among ids (..., Q) does, as shares that sum to 1.

    Raises:
        InputError: there are no ids.
    """
    rows = ids.reshape(-1, len(codebook.sizes))
    if not len(rows):
        raise InputError("usage of no ids: expected at least one token")
    counts = (column.unique(return_counts=True)[1] for column in rows.T)
    return [count.double() / len(rows) for count in counts]


def usage(ids: Tensor, codebook: Codebook) -> dict[str, float]:
    """How much of the codebooks a set of ids (..., Q) uses, averaged over them.

    Returns:
        `used`: share of the entries that occur; `perplexity`: 2 to the entropy of the ids, which is
        the codebook's size where all entries occur equally often; `bits`: that entropy.

    Raises:
        InputError: there are no ids.
    """
    shares = occurrence(ids, codebook)
    used = [len(share) / size for share, size in zip(shares, codebook.sizes, strict=True)]
    bits = sum(float(-(share * share.log2()).sum()) for share in shares) / len(shares)
    return {"used": sum(used) / len(used), "perplexity": 2**bits, "bits": bits}
