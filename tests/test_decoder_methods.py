"""Every rule inside the decoder against a slow fp64 reference written from its definition alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from mmtok import InputError
from mmtok.models.taps import LayerAttention
from mmtok.pruning import FastV
from mmtok.pruning.decoder import DecoderPrompt
from tests.test_methods import dot

SEEDS = range(4)
LENGTH, START = 60, 6


def prompt(seed: int, n: int = 40, **facts: Any) -> DecoderPrompt:
    """A random prompt of 60 tokens under a causal mask, n visual ones from place 6 on."""
    generator = torch.Generator().manual_seed(seed)
    query, key = torch.randn(2, 2, 3, LENGTH, 4, generator=generator)
    seen = LayerAttention(query=query, key=key, mask=None, causal=True, scale=0.5)
    place = torch.arange(LENGTH)
    inside = (place >= START) & (place < START + n)
    order = torch.arange(n)
    values: dict[str, Any] = {
        "visual": place[inside],
        "text": place[~inside],
        "hidden": torch.randn(LENGTH, 8, generator=generator),
        "size": torch.ones(n),
        "cell": torch.stack([order * 0, order // 8, order % 8 // 4, order % 4], dim=1),
        "norm": lambda x: x,
        "attention": seen,
        "embeddings": torch.randn(LENGTH, 8, generator=generator),
        "item": 1,
    }
    return DecoderPrompt(**values | facts)


def row(seen: DecoderPrompt, place: int) -> list[float]:
    """One row of attention, mean over heads."""
    total = [0.0] * LENGTH
    heads = seen.attention.query[seen.item]  # type: ignore[union-attr]
    keys = seen.attention.key[seen.item]  # type: ignore[union-attr]
    for q, k in zip(heads.double(), keys.double(), strict=True):
        e = [math.exp(0.5 * dot(q[place].tolist(), k[j].tolist())) for j in range(place + 1)]
        total = [t + w / sum(e) for t, w in zip(total, e + [0.0] * LENGTH, strict=False)]
    return [t / len(heads) for t in total]


def best(score: list[float], k: int) -> list[int]:
    return sorted(sorted(range(len(score)), key=lambda i: -score[i])[:k])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("last", [59, 54])
def test_fastv(seed: int, last: int) -> None:
    """Also where the prompt is padded on the right: the last real token asks."""
    seen = prompt(seed)
    seen.text = seen.text[seen.text <= last]
    (stage,) = FastV(keep=0.3).in_decoder(8)
    assert stage.layer == 2
    want = best(row(seen, last)[START : START + 40], 12)
    assert stage.rule(seen).indices[0].tolist() == want


def test_fastv_plans_and_refuses() -> None:
    assert FastV(keep=0.5).decoder_schedule(5, 9) == [9, 9, 5, 5, 5]
    assert FastV(keep=1.0).in_decoder(8) == []
    with pytest.raises(InputError, match="below 4"):
        FastV(layer=4).in_decoder(4)
