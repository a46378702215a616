"""Names of images and clips: from their own pixels, whatever else is in the batch."""

from __future__ import annotations

import pytest
import torch

from mmtok.accounting.timing import StageTimer
from mmtok.models.encoder_seam import encode
from mmtok.models.families import FAMILIES
from mmtok.models.pixels import digest
from mmtok.models.visual import describe
from mmtok.pruning import Random, VisualTokens
from tests.conftest import batch, tiny_model


def tokens_of(case: tuple[str, str], rows: tuple[int, ...]) -> list[VisualTokens]:
    model, _ = tiny_model(case[0])
    with torch.no_grad():
        facts, meter = (model, FAMILIES[case[0]], batch(*case, rows)), StageTimer()
        encoded = encode(*facts, {"draw"}, meter)
        media = describe(*facts, encoded, {"draw"}, meter)
    return [part.tokens for part in media]


def test_each_picture_has_a_draw_of_its_own(case: tuple[str, str]) -> None:
    """In every family: different within a batch, the same alone."""
    together = [t for part in tokens_of(case, (0, 1)) for t in drawn(part)]
    alone = [t for row in (0, 1) for part in tokens_of(case, (row,)) for t in drawn(part)]
    assert together == alone
    assert len({name for name, _ in together}) == len(together) > 1
    assert len({tuple(places) for _, places in together}) > 1


def drawn(tokens: VisualTokens) -> list[tuple[str, list[int]]]:
    places = Random(keep=4).select(tokens).indices
    return [(n, p.tolist()) for n, p in zip(tokens.item_ids, places, strict=True)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_digest_sees_every_part_of_a_picture(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    picture = torch.rand(3, 30, 40, generator=generator).to(dtype)
    assert digest(picture) == digest(picture.clone())
    for place in ((0, 0, 0), (1, 17, 3), (2, 29, 39)):
        other = picture.clone()
        other[place] += 1
        assert digest(other) != digest(picture)
    assert len({digest(torch.zeros(0)), digest(torch.zeros(1)), digest(torch.zeros(2))}) == 3
