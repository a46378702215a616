"""Lookup-free quantisation, in groups (WeTok, arXiv 2508.05599, github.com/zhuangshaobin/WeTok).

Every channel becomes its sign; d channels in a row are the bits of one id, the first the least
significant one, and a token has one id per group. One group is plain LFQ (arXiv 2310.05737).

The entropy loss softmax(2 x.c / T) over all 2^d sign vectors c is never built per token. It is a
product of d independent bits with logit 4 x / T, so the entropy of one token is a sum of binary
entropies. The mean over tokens does not factor, but it is the product of two tables of 2^(d/2)
columns each, one for either half of the bits, summed over tokens: what is kept is n * 2^(d/2) + 2^d
numbers instead of n * 2^d. Values and gradients are those of the full softmax.

Following the authors' code, that mean runs over tokens and groups (`pooled`); the paper's text
reads as one mean per group, which `pooled=False` gives. An input of exactly 0 counts as -1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmtok.codes import Codebook
from mmtok.errors import InputError
from mmtok.tokenizers.quantizers import Quantized, Quantizer

MAX_BITS = 24
"""Most bits of one id: the mean over tokens holds 2^bits numbers, 64 MiB of them here."""


class GroupedLFQ(Quantizer):
    """Signs of the channels as ids.

    Args:
        groups: ids per token.
        bits: channels, and so bits, per id.
        entropy: weight of (mean entropy of a token - entropy of the mean).
        commitment: weight of the squared distance between input and signs.
        temperature: of the softmax in the entropies.
        pooled: take the entropy of the mean over all groups instead of each group's own.

    Raises:
        InputError: no group, or `bits` outside 1 .. `MAX_BITS`.
    """

    weights: Tensor

    def __init__(
        self,
        groups: int,
        bits: int,
        *,
        entropy: float = 0.1,
        commitment: float = 0.25,
        temperature: float = 0.01,
        pooled: bool = True,
    ) -> None:
        super().__init__()
        if groups < 1 or not 1 <= bits <= MAX_BITS:
            raise InputError(f"{groups} groups of {bits} bits: expected 1 to {MAX_BITS} bits each")
        kind = "lfq" if groups == 1 else "grouped-lfq"
        self.codebook = Codebook(kind=kind, sizes=(2**bits,) * groups, levels=(2,) * bits)
        self.groups, self.bits = groups, bits
        self.entropy, self.commitment = entropy, commitment
        self.temperature, self.pooled = temperature, pooled
        self.register_buffer("weights", 2 ** torch.arange(bits), persistent=False)

    def forward(self, x: Tensor) -> Quantized:
        """Quantise (B, N, groups * bits); the losses are computed in training mode only."""
        code = torch.where(x > 0, 1.0, -1.0).to(x.dtype)
        split = (x > 0).reshape(*x.shape[:-1], self.groups, self.bits)
        ids = (split * self.weights).sum(-1)
        loss, parts = x.new_zeros(()), {}
        if self.training:
            with torch.autocast(x.device.type, enabled=False):
                sample, mean = self.entropies(x)
                distance = F.mse_loss(x.float(), code.float())
            loss = self.entropy * (sample - mean) + self.commitment * distance
            named = (("sample_entropy", sample), ("mean_entropy", mean), ("commitment", distance))
            parts = {name: value.detach() for name, value in named}
        return Quantized(vectors=x + (code - x).detach(), ids=ids, loss=loss, parts=parts)

    def lookup(self, ids: Tensor) -> Tensor:
        """Vectors (B, N, groups * bits) of -1 and 1 of ids (B, N, groups)."""
        digits = ids[..., None] // self.weights % 2
        return (2 * digits - 1).flatten(-2).float()

    def entropies(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean entropy of one id, and entropy of the mean over tokens, in nats."""
        logit = 4 / self.temperature * x.float().reshape(-1, self.groups, self.bits)
        low = logit.abs()
        sample = (F.softplus(-low) + low * torch.sigmoid(-low)).sum(-1).mean()
        logit = logit.transpose(0, 1)  # (groups, n, bits)
        if self.pooled:
            logit = logit.reshape(1, -1, self.bits)
        half = self.bits // 2
        first, second = _table(logit[..., :half]), _table(logit[..., half:])
        mean = first.transpose(1, 2) @ second / logit.shape[1]
        return sample, -(mean * torch.log(mean + 1e-5)).sum((1, 2)).mean()


def _table(logit: Tensor) -> Tensor:
    """Probability (..., n, 2^d) of every pattern of d independent bits with these logits."""
    d = logit.shape[-1]
    patterns = torch.arange(2**d, device=logit.device)
    bits = (patterns[:, None] >> torch.arange(d, device=logit.device) & 1).float()
    return torch.exp(F.logsigmoid(logit) @ bits.T + F.logsigmoid(-logit) @ (1 - bits).T)
