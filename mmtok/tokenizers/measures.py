"""What a tokenizer's codes are worth: reconstruction per token, use of codebooks, robustness.

Pictures and clips; `measures_audio` has the distances of recordings. PSNR and SSIM are those of
`mmtok.eval.quality`, a clip counting as its frames.

Robustness follows RobusTok (arXiv 2509.12474, github.com/qiuk2/RobusTok): some ids are replaced by
one of the entries nearest to them, as a generator errs, and what is decoded is compared with the
original. The paper's pFID is the Fréchet distance of Inception features between decoded and
original pictures. That network is not part of mmtok, so by default the features here are thumbnails
of 4 x 4 pixels, 48 numbers: figures compare tokenizers with each other, not with published pFIDs.
`distance=` takes any other measure of two sets, `mmtok.eval.quality.fid` among them.

Deviations: nearness is measured from the entry that was chosen and not from the encoder's latent,
which codes do not hold; which ids are replaced is drawn over all items, where the authors' training
code replaces those of the first ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mmtok.codes import Codebook, Codes
from mmtok.errors import InputError
from mmtok.eval.quality import frechet_distance, psnr, ssim
from mmtok.tokenizers.base import Tokenizer
from mmtok.tokenizers.quantizers import occurrence

MAX_ENTRIES = 2**20
"""Largest codebook whose entries are ranked by nearness."""
_BLOCK = 2**24  # distances held at once


def usage(codes: Codes) -> list[float]:
    """Share of the entries that occur, for each of the Q codebooks.

    Raises:
        InputError: there are no tokens.
    """
    shares = _shares(codes)
    return [len(share) / size for share, size in zip(shares, codes.codebook.sizes, strict=True)]


def entropy(codes: Codes) -> float:
    """Bits of a token, were each codebook's ids drawn independently as often as they occur.

    At most `codes.codebook.bits`; how far below it lies is what entropy coding could save.

    Raises:
        InputError: there are no tokens.
    """
    shares = _shares(codes)
    return sum(float(-(share * share.log2()).sum()) for share in shares)


def reconstruction(
    tokenizer: Tokenizer, media: Sequence[Tensor], tokens: Sequence[int] = ()
) -> list[dict[str, float]]:
    """Quality against cost: a row for all tokens, after one for each number of first tokens.

    Args:
        tokenizer: of pictures or clips.
        media: (3, H, W) or (T, 3, H, W) in [0, 1], of at least 11 x 11 pixels.
        tokens: how many first tokens of an item to decode.

    Returns:
        Rows of means over items: `tokens`, `bits`, `psnr` in dB and `ssim`.

    Raises:
        InputError: no media, recordings, or media that the tokenizer does not take.
    """
    if not media:
        raise InputError("no media to measure")
    codes = tokenizer.encode(media)
    rows = []
    for part in (*(tokenizer.trim(codes, k) for k in tokens), codes):
        count = sum(part.counts) / len(media)
        row = {"tokens": count, "bits": count * part.codebook.bits}
        rows.append(row | _quality(tokenizer.decode(part), media))
    return rows


def perturb(
    codes: Codes, lookup: Callable[[Tensor], Tensor], *, share: float, nearest: int, seed: int = 0
) -> Codes:
    """Codes some ids of which are replaced by one of the entries nearest to them.

    Args:
        codes: of any tokenizer with vectors behind its ids.
        lookup: vectors (1, N, D) of ids (1, N, Q), as of `tokenizer.network.quantize`.
        share: how probable it is that an id is drawn to be replaced, 0 to 1.
        nearest: among how many entries the new one is drawn evenly, the old one included.
        seed: of the draws.

    Raises:
        InputError: share or nearest are out of range, or a codebook is too large to be ranked.
    """
    sizes = codes.codebook.sizes
    if not 0 <= share <= 1 or not 1 <= nearest <= min(sizes):
        raise InputError(
            f"expected a share of 0 to 1 and 1 to {min(sizes)} nearest entries, got {share!r} and "
            f"{nearest!r}"
        )
    ids = torch.cat(codes.ids)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(ids.shape, generator=generator) < share
    rank = torch.randint(nearest, ids.shape, generator=generator) * drawn
    tables = entries(codes.codebook, lookup, ids.device)
    made = [
        nearest_entries(table[column.cpu()], table, ranks)
        for column, ranks, table in zip(ids.T, rank.T, tables, strict=True)
    ]
    parts = torch.split(torch.stack(made, dim=1).to(ids.device), codes.counts)
    return replace(codes, ids=list(parts))


def entries(
    codebook: Codebook,
    lookup: Callable[[Tensor], Tensor],
    device: torch.device | str = "cpu",
) -> list[Tensor]:
    """Vectors (size, D) of all entries of each codebook, those of the others being the first.

    `lookup` gets ids on `device`; the vectors are on the CPU.

    Raises:
        InputError: a codebook has more than `MAX_ENTRIES`.
    """
    if max(codebook.sizes) > MAX_ENTRIES:
        raise InputError(f"{max(codebook.sizes)} entries, expected at most {MAX_ENTRIES}")
    tables = []
    for place, size in enumerate(codebook.sizes):
        ids = torch.zeros(1, size, len(codebook.sizes), dtype=torch.int64, device=device)
        ids[0, :, place] = torch.arange(size, device=device)
        with torch.no_grad():
            tables.append(lookup(ids)[0].float().cpu())
    return tables


def nearest_entries(vectors: Tensor, table: Tensor, rank: Tensor) -> Tensor:
    """Ids (N,) of the entries (K, D) that are `rank`-th nearest, from 0, to vectors (N, D)."""
    count, found = int(rank.max()) + 1 if len(rank) else 1, []
    rows = max(1, _BLOCK // len(table))
    for part, place in zip(torch.split(vectors, rows), torch.split(rank, rows), strict=True):
        distance = torch.cdist(part, table, compute_mode="donot_use_mm_for_euclid_dist")
        order = distance.topk(count, largest=False).indices
        found.append(order.gather(1, place[:, None])[:, 0])
    return torch.cat(found)


def thumbnail_distance(made: Tensor, reference: Tensor) -> float:
    """Fréchet distance between pictures (B, 3, H, W) reduced to their 4 x 4 mean colours."""
    small = (torch.nn.functional.adaptive_avg_pool2d(x, 4).flatten(1) for x in (made, reference))
    return frechet_distance(*small)


def robustness(
    tokenizer: Tokenizer,
    pictures: Sequence[Tensor],
    lookup: Callable[[Tensor], Tensor],
    *,
    share: float,
    nearest: int,
    seed: int = 0,
    distance: Callable[[Tensor, Tensor], float] = thumbnail_distance,
) -> dict[str, float]:
    """How far perturbed tokens take pictures from the originals; see `perturb`.

    Args:
        tokenizer: of pictures.
        pictures: two or more (3, H, W) in [0, 1] of one size.
        lookup, share, nearest, seed: as in `perturb`.
        distance: between two sets of pictures (B, 3, H, W) in [0, 1].

    Returns:
        `replaced`, the share of ids that became another one; `psnr`, `ssim` and `distance` to the
        originals; the last three with `_clean` behind them for tokens as they were.

    Raises:
        InputError: as in `perturb`, or the pictures are of several sizes.
    """
    if len({tuple(item.shape) for item in pictures}) != 1:
        raise InputError("robustness needs pictures of one size")
    codes = tokenizer.encode(pictures)
    changed = perturb(codes, lookup, share=share, nearest=nearest, seed=seed)
    moved = torch.cat(changed.ids) != torch.cat(codes.ids)
    report = {"replaced": float(moved.float().mean())}
    for part, name in ((changed, ""), (codes, "_clean")):
        made = tokenizer.decode(part)
        found = _quality(made, pictures)
        found["distance"] = distance(torch.stack(made).cpu(), torch.stack(list(pictures)).cpu())
        report |= {key + name: value for key, value in found.items()}
    return report


def _shares(codes: Codes) -> list[Tensor]:
    ids = torch.cat(codes.ids) if codes.ids else torch.empty(0, len(codes.codebook.sizes))
    return occurrence(ids, codes.codebook)


def _quality(made: Sequence[Tensor], media: Sequence[Tensor]) -> dict[str, float]:
    """Means over items of `psnr`, in dB, and `ssim`."""
    found = []
    for one, two in zip(made, media, strict=True):
        if two.ndim < 3:
            raise InputError("recordings have measures of their own: see measures_audio")
        pair = (
            one.cpu().reshape(-1, *one.shape[-3:]),
            two.cpu().float().reshape(-1, *two.shape[-3:]),
        )
        found.append(torch.stack([psnr(*pair).mean(), ssim(*pair).mean()]))
    mean = torch.stack(found).mean(0)
    return {"psnr": float(mean[0]), "ssim": float(mean[1])}
