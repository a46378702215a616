"""Measures of codes: use of codebooks, quality against cost, and what perturbed tokens do."""

from __future__ import annotations

import math

import pytest
import torch

from mmtok.codes import Codebook, Codes
from mmtok.errors import InputError
from mmtok.eval.quality import psnr
from mmtok.tokenizers import Patchify, TiTok, WavTokenizer, WeTok, measures
from mmtok.tokenizers.quantizers import FSQ, VQ

PICTURES = [torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(i)) for i in range(4)]


def codes_of(*rows: list[tuple[int, ...]] | torch.Tensor, sizes: tuple[int, ...]) -> Codes:
    ids = [torch.as_tensor(row, dtype=torch.int64).reshape(-1, len(sizes)) for row in rows]
    return Codes(
        ids=ids,
        codebook=Codebook(kind="vq", sizes=sizes),
        tokenizer="x",
        tokenizer_hash="0" * 64,
        shapes=[(1, 9)] * len(rows),
        grids=[(9999,)] * len(rows),
    )


def test_usage_and_entropy_by_hand() -> None:
    codes = codes_of([(0, 5), (1, 5)], [(1, 5), (2, 5)], sizes=(4, 10))
    assert measures.usage(codes) == [0.75, 0.1]
    assert measures.entropy(codes) == pytest.approx(1.5)  # shares 1/4, 1/2, 1/4; the other none
    even = codes_of([(i,) for i in range(8)], sizes=(8,))
    assert measures.usage(even) == [1.0]
    assert measures.entropy(even) == pytest.approx(even.codebook.bits)
    with pytest.raises(InputError, match="at least one token"):
        measures.usage(codes_of([], sizes=(4,)))
    with pytest.raises(InputError, match="at least one token"):
        measures.entropy(codes_of(sizes=(4,)))
    with pytest.raises(InputError, match="no media"):
        measures.reconstruction(TiTok(), [])


def test_reconstruction_rows() -> None:
    """Finer patches cost more and give more; fewer tokens than all are rows of their own."""
    rows = [
        measures.reconstruction(Patchify(patch=8, levels=levels), PICTURES)[0]
        for levels in (4, 16, 256)
    ]
    assert [row["tokens"] for row in rows] == [16] * 3
    assert [row["bits"] for row in rows] == [32 * 32 * 3 * bits for bits in (2, 4, 8)]
    assert rows[0]["psnr"] < rows[1]["psnr"] < rows[2]["psnr"]
    assert rows[0]["ssim"] < rows[1]["ssim"] < rows[2]["ssim"] <= 1
    tokenizer, clip = Patchify(patch=8), torch.stack(PICTURES)
    few, whole = measures.reconstruction(tokenizer, [clip, clip[:1]], tokens=[5])
    assert few["tokens"] == 5
    assert whole["tokens"] == (64 + 16) / 2
    assert few["psnr"] < whole["psnr"]
    made = tokenizer.decode(tokenizer.encode([clip, clip[:1]]))
    want = [psnr(made[0], clip).mean(), psnr(made[1], clip[:1]).mean()]
    assert whole["psnr"] == pytest.approx(float(sum(want) / 2), abs=1e-4)
    with pytest.raises(InputError, match="measures of their own"):
        measures.reconstruction(WavTokenizer(), [torch.zeros(1, 500)])


def test_nearest_entries_against_sorting() -> None:
    draw = torch.Generator().manual_seed(0)
    vectors, table = torch.randn(50, 3, generator=draw), torch.randn(20, 3, generator=draw)
    rank = torch.randint(20, (50,), generator=draw)
    order = [(table.double() - v.double()).norm(dim=1).argsort() for v in vectors]
    want = torch.stack([row[place] for row, place in zip(order, rank, strict=True)])
    assert torch.equal(measures.nearest_entries(vectors, table, rank), want)


def test_perturbed_ids_stay_near() -> None:
    """As many are drawn as asked for; the new ones are among the nearest, in every codebook."""
    torch.manual_seed(0)
    quantizer = VQ(3, 40, depth=2)
    quantizer(torch.randn(1, 500, 3))
    ids = torch.randint(40, (3000, 2), generator=torch.Generator().manual_seed(1))
    codes = codes_of(ids[:1000], ids[1000:], sizes=(40, 40))
    made = measures.perturb(codes, quantizer.eval().lookup, share=0.5, nearest=4)
    assert made.counts == codes.counts
    moved = torch.cat(made.ids) != ids
    assert moved.float().mean() == pytest.approx(0.5 * 3 / 4, abs=0.02)  # rank 0 is the id itself
    for q, book in enumerate(quantizer.layers.codebooks):
        order = torch.cdist(book, book).argsort(dim=1)
        place = (order[ids[:, q]] == torch.cat(made.ids)[:, q, None]).nonzero()[:, 1]
        assert sorted(place.unique().tolist()) == [0, 1, 2, 3]
    again = measures.perturb(codes, quantizer.lookup, share=0.5, nearest=4)
    assert all(torch.equal(a, b) for a, b in zip(again.ids, made.ids, strict=True))
    other = measures.perturb(codes, quantizer.lookup, share=0.5, nearest=4, seed=1)
    assert not torch.equal(other.ids[0], made.ids[0])
    for share, nearest in ((0, 4), (1, 1)):
        same = measures.perturb(codes, quantizer.lookup, share=share, nearest=nearest)
        assert torch.equal(torch.cat(same.ids), ids)


def test_robustness_grows_with_the_damage() -> None:
    tokenizer = WeTok()
    lookup = tokenizer.network.quantize.lookup
    none, some, much = (
        measures.robustness(tokenizer, PICTURES, lookup, share=share, nearest=nearest)
        for share, nearest in ((0.0, 8), (0.2, 8), (1.0, 16))
    )
    assert none["replaced"] == 0
    assert none["psnr"] == none["psnr_clean"]
    assert none["distance"] == none["distance_clean"]
    assert 0 < some["replaced"] < much["replaced"] < 1
    assert some["psnr_clean"] == none["psnr"]
    made = measures.robustness(
        tokenizer,
        PICTURES,
        lookup,
        share=1,
        nearest=16,
        distance=lambda a, b: float(len(a) + len(b)),
    )
    assert made["distance"] == 8
    assert made["psnr"] == much["psnr"]
    clean = tokenizer.decode(tokenizer.encode(PICTURES))
    changed = measures.perturb(tokenizer.encode(PICTURES), lookup, share=1, nearest=16)
    assert not torch.equal(tokenizer.decode(changed)[0], clean[0])
    assert measures.thumbnail_distance(torch.stack(clean), torch.stack(clean)) == pytest.approx(
        0, abs=1e-6
    )
    moved = torch.stack(clean) + 0.5
    assert measures.thumbnail_distance(moved, torch.stack(clean)) == pytest.approx(48 / 4, rel=1e-3)


def test_what_cannot_be_measured_is_refused() -> None:
    tokenizer = TiTok()
    lookup = tokenizer.network.quantize.lookup
    codes = tokenizer.encode(PICTURES)
    for share, nearest in ((-0.1, 4), (math.nan, 4), (0.5, 0), (0.5, 257)):
        with pytest.raises(InputError, match="expected a share of 0 to 1 and 1 to 256 nearest"):
            measures.perturb(codes, lookup, share=share, nearest=nearest)
    large = Codebook(kind="fsq", sizes=(8**7,), levels=(8,) * 7)
    with pytest.raises(InputError, match="expected at most 1048576"):
        measures.entries(large, FSQ((8,) * 7).lookup)
    with pytest.raises(InputError, match="of one size"):
        measures.robustness(
            tokenizer, [PICTURES[0], PICTURES[1][:, :20]], lookup, share=0.5, nearest=4
        )
