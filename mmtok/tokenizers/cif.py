"""Continuous integrate-and-fire: as many acoustic vectors as there are tokens to say.

Paraformer (arXiv 2206.08317), after CIF (arXiv 1905.11235); authors' code: FunASR, MIT. Every frame
of an encoder gets a weight; each time the weights have added up to 1 a vector is complete.

Token k is the integral over [k, k + 1) of the frames laid end to end, each as long as its weight.
That is computed at once, by running sums in float64 and as many scatters as one frame meets tokens:
two, if no weight is above 1. Deviations from the authors' two functions, whose results differ from
each other: a frame may complete any number of tokens; a row that never fires is fine; a sum that
rounding leaves 1e-4 below a whole number counts as that number; frames behind an item's end are
taken as zeros, so that an item in a batch gets what it gets alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.errors import InputError
from mmtok.tokenizers.network import fill, find_weights, read_weights

_ROUNDING = 1e-4  # that a sum of weights may lack of a whole number
_MOST_TOKENS = 2**20
_KEY = "cif_conv1d.weight"


@dataclass(frozen=True, kw_only=True)
class Fired:
    """What integrate-and-fire makes of B items.

    Attributes:
        vectors: (B, K, D), zeros behind each item's own.
        counts: (B,) int64, vectors of each item; K is the most of them.
        alphas: (B, T') the weights that were integrated.
        fires: (B, T') what has added up at each frame since the last whole number, before a
            completed token is taken off: at 1 or more a token ends there.
        total: (B,) sum of the weights as predicted, whose distance to the true count is the loss.
    """

    vectors: Tensor
    counts: Tensor
    alphas: Tensor
    fires: Tensor
    total: Tensor


def integrate(
    hidden: Tensor, alphas: Tensor, counts: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Vectors (B, K, D), counts (B,) and fires (B, T) of frames (B, T, D) with weights (B, T).

    Args:
        hidden: frames.
        alphas: their weights, at least 0.
        counts: tokens of each item, where they are known; by default all that are complete.

    Raises:
        InputError: shapes do not fit, or weights are negative, not finite or add up to too much.
    """
    b, t, d = hidden.shape
    if alphas.shape != (b, t) or not bool(torch.isfinite(alphas).all() & (alphas >= 0).all()):
        raise InputError(f"cif: weights must be finite, at least 0 and of shape {(b, t)}")
    ends = alphas.double().cumsum(1)
    if t and float(ends[:, -1].detach().max()) > _MOST_TOKENS:
        raise InputError(f"cif: weights add up to more than {_MOST_TOKENS} tokens")
    starts = F.pad(ends[:, :-1], (1, 0))
    if counts is None:
        counts = (alphas.double().sum(1) + _ROUNDING).floor().long()
    size = int(counts.max())
    first = starts.detach().floor()
    vectors = hidden.new_zeros(b, size + 1, d)
    for step in range(int((ends.detach().floor() - first).max()) + 1 if t else 0):
        token = first + step
        share = torch.minimum(ends, token + 1) - torch.maximum(starts, token)
        place = torch.minimum(token.long(), counts[:, None])  # of a token that is not asked for
        part = share.clamp(min=0).to(hidden.dtype)[..., None] * hidden
        vectors = vectors.scatter_add(1, place[..., None].expand_as(part), part)
    keep = torch.arange(size, device=hidden.device) < counts[:, None]
    fires = (starts - first + alphas).to(alphas.dtype)
    return vectors[:, :size] * keep[..., None], counts, fires


class CIFPredictor(nn.Module):
    """Weights from a convolution over frames, and the vectors they make.

    Args:
        dim: D.
        kernel: frames the convolution sees, odd: as many on either side.
        depthwise: Paraformer's first version: one filter per channel, added to the frame itself.
        tail: weight of one more frame of zeros when the count is not known, which completes a last
            token that lacks little: 0.45 in Paraformer's first version, 0 by default in the second.
        smooth, noise: a weight is max(0, smooth * sigmoid - noise).

    Raises:
        InputError: the kernel is even.
    """

    def __init__(
        self,
        dim: int,
        *,
        kernel: int = 3,
        depthwise: bool = False,
        tail: float = 0.0,
        smooth: float = 1.0,
        noise: float = 0.0,
    ) -> None:
        super().__init__()
        if kernel % 2 == 0:
            raise InputError(f"cif: the kernel must be odd, got {kernel}")
        self.depthwise, self.tail, self.smooth, self.noise = depthwise, tail, smooth, noise
        groups = dim if depthwise else 1
        self.cif_conv1d = nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=groups)
        self.cif_output = nn.Linear(dim, 1)

    def weights(self, hidden: Tensor) -> Tensor:
        """Weights (B, T) of frames (B, T, D)."""
        mixed = self.cif_conv1d(hidden.transpose(1, 2)).transpose(1, 2)
        made = self.cif_output(torch.relu(mixed + hidden if self.depthwise else mixed))
        weights: Tensor = torch.relu(self.smooth * torch.sigmoid(made) - self.noise).squeeze(-1)
        return weights

    def forward(self, hidden: Tensor, lengths: Tensor, counts: Tensor | None = None) -> Fired:
        """Vectors of frames (B, T, D), of which each item has its `lengths` (B,).

        Args:
            hidden: frames of an encoder.
            lengths: int64, 1 to T.
            counts: the true number of tokens (B,), in training: weights are scaled to add up to it.

        Raises:
            InputError: lengths or counts are not of shape (B,) or out of range.
        """
        b, t, _ = hidden.shape
        if lengths.shape != (b,) or not bool(((lengths >= 1) & (lengths <= t)).all()):
            raise InputError(f"cif: expected {b} lengths of 1 to {t}, got {lengths.tolist()!s:.40}")
        if counts is not None and (counts.shape != (b,) or not bool((counts >= 0).all())):
            raise InputError(f"cif: expected {b} counts of at least 0")
        inside = torch.arange(t, device=hidden.device) < lengths[:, None]
        hidden = torch.where(inside[..., None], hidden, 0.0)
        alphas = torch.where(inside, self.weights(hidden), 0.0)
        total = alphas.sum(1)
        if counts is not None:
            alphas = alphas * (counts / total.clamp(min=torch.finfo(total.dtype).tiny))[:, None]
        elif self.tail:
            hidden = F.pad(hidden, (0, 0, 0, 1))
            place = torch.arange(t + 1, device=hidden.device) == lengths[:, None]
            alphas = torch.where(place, self.tail, F.pad(alphas, (0, 1)))
            total = alphas.sum(1)
        vectors, counts, fires = integrate(hidden, alphas, counts)
        return Fired(vectors=vectors, counts=counts, alphas=alphas, fires=fires, total=total)

    @classmethod
    def load(cls, weights: str | Path, *, tail: float = 0.45) -> CIFPredictor:
        """The predictor among the weights of a Paraformer, whatever their prefix.

        Raises:
            InputError: the file cannot be read, or does not hold exactly one predictor.
        """
        file = find_weights(str(weights))
        state = read_weights(file)
        found = [name.removesuffix(_KEY) for name in state if name.endswith(_KEY)]
        if len(found) != 1 or state[found[0] + _KEY].ndim != 3:
            raise InputError(f"{file}: holds {len(found)} predictors of CIF, expected 1")
        dim, inputs, kernel = state[found[0] + _KEY].shape
        made = cls(dim, kernel=kernel, depthwise=inputs == 1 < dim, tail=tail)
        parts = (found[0] + "cif_conv1d.", found[0] + "cif_output.")
        own = {k.removeprefix(found[0]): w for k, w in state.items() if k.startswith(parts)}
        fill(made, own, str(file))
        return made.eval().requires_grad_(False)
