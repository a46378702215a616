"""EnCodec's chunks and loudness (arXiv 2210.13438), around the stock encoder and decoder.

The 24 kHz model codes a recording in one piece, as it is. The 48 kHz model cuts it into chunks of a
second that overlap by a hundredth, divides each by its loudness, and fades from one to the next
when decoding. The loudness is a number in float32 and no id of a codebook; here its 32 bits are
spelled in the ids of a token in front of each chunk's (of several, where a token has fewer bits),
so that codes hold all there is and decode to what the stock class gives with its scales.

Shapes: B recordings (C, S), Q codebooks, K tokens.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mmtok.errors import InputError

_BITS, _LOUDEST = 32, 2.0**20


def check(config: Any, source: str) -> None:
    """Refuse a configuration whose chunks are none.

    Raises:
        InputError: chunks without samples, or that overlap altogether.
    """
    if config.chunk_length_s is None:
        return
    overlap = config.overlap
    if config.chunk_length < 1 or not isinstance(overlap, int | float) or not 0 <= overlap < 1:
        raise InputError(
            f"{source}: chunks of {config.chunk_length_s} s that overlap by {overlap}: expected "
            "some samples and an overlap of 0 to 1"
        )


def tokens(config: Any, codebooks: int, samples: int) -> int:
    """K of a recording of so many samples."""
    quiet = _quiet(config, codebooks)
    return sum(quiet - (start - end) // config.hop_length for start, end in _spans(config, samples))


def encode(network: Any, sound: Tensor, codebooks: int) -> Tensor:
    """Ids (B, Q, K) of recordings (B, C, S)."""
    config = network.config
    # The quantiser rounds a bandwidth down to whole codebooks: half of one more is safely within.
    bandwidth = (codebooks + 0.5) * math.log2(config.codebook_size) * config.frame_rate / 1000
    parts = []
    for start, end in _spans(config, sound.shape[-1]):
        piece = sound[..., start:end]
        if config.normalize:
            mono = piece.sum(1, keepdim=True) / piece.shape[1]
            scale = mono.square().mean(-1, keepdim=True).sqrt() + 1e-8
            piece = piece / scale
            parts.append(_spelled(scale[:, 0, 0], config, codebooks))
        parts.append(network.quantizer.encode(network.encoder(piece), bandwidth).transpose(0, 1))
    return torch.cat(parts, dim=2)


def decode(network: Any, ids: Tensor) -> Tensor:
    """Recordings (B, C, S') of ids (B, Q, k), the first ones: as far as those reach."""
    config = network.config
    quiet, whole = _quiet(config, ids.shape[1]), ids.shape[2]
    if config.chunk_length is not None:
        whole = quiet - -config.chunk_length // config.hop_length
    pieces = []
    for part in torch.split(ids, whole, dim=2):
        if part.shape[2] > quiet:
            found = network.quantizer.decode(part[..., quiet:].transpose(0, 1))
            scale = _read(part[..., :quiet], config) if quiet else 1
            pieces.append(network.decoder(found) * scale)
    if not pieces:
        return torch.zeros(len(ids), config.audio_channels, 0, device=ids.device)
    return pieces[0] if len(pieces) == 1 else _joined(pieces, config.chunk_stride)


def _spans(config: Any, samples: int) -> list[tuple[int, int]]:
    """Where each chunk starts and ends."""
    if config.chunk_length is None:
        return [(0, samples)]
    length, stride = config.chunk_length, config.chunk_stride
    return [(start, min(start + length, samples)) for start in range(0, samples, stride)]


def _quiet(config: Any, codebooks: int) -> int:
    """Tokens that spell a chunk's loudness."""
    bits = codebooks * int(math.log2(config.codebook_size))
    return -(-_BITS // bits) if config.normalize else 0


def _shifts(config: Any, digits: int, device: torch.device) -> Tensor:
    """Place of each id's lowest bit in the 32; those behind the last hold nothing."""
    bits = int(math.log2(config.codebook_size))
    return torch.arange(0, bits * digits, bits, device=device).clamp(max=_BITS)


def _spelled(scale: Tensor, config: Any, codebooks: int) -> Tensor:
    """Ids (B, Q, k) that hold the bits of float32 numbers (B,), the lowest first."""
    digits = codebooks * _quiet(config, codebooks)
    value = scale.float().view(torch.int32).long() & (2**_BITS - 1)
    ids: Tensor = (value[:, None] >> _shifts(config, digits, scale.device)) % config.codebook_size
    return ids.view(len(scale), -1, codebooks).transpose(1, 2)


def _read(ids: Tensor, config: Any) -> Tensor:
    """Loudness (B, 1, 1) of ids (B, Q, k); of ids that spell none, a finite number anyway."""
    digits = ids.transpose(1, 2).flatten(1)
    shifts = _shifts(config, digits.shape[1], ids.device)
    value = (digits << shifts).sum(1) & (2**_BITS - 1)
    value = torch.where(value < 2 ** (_BITS - 1), value, value - 2**_BITS)
    scale = torch.nan_to_num(value.int().view(torch.float32), nan=0.0).clamp(0, _LOUDEST)
    return scale[:, None, None]


def _joined(pieces: list[Tensor], stride: int) -> Tensor:
    """Chunks (B, C, s) that start every `stride` samples, faded from one to the next."""
    length = pieces[0].shape[-1]
    ramp = torch.linspace(0, 1, length + 2, device=pieces[0].device)[1:-1]
    weight = 0.5 - (ramp - 0.5).abs()
    # A last chunk may end within the one before it, where the stock class fails.
    total = max(place * stride + piece.shape[-1] for place, piece in enumerate(pieces))
    made = pieces[0].new_zeros(*pieces[0].shape[:-1], total)
    weights = made.new_zeros(total)
    for place, piece in enumerate(pieces):
        here = slice(place * stride, place * stride + piece.shape[-1])
        made[..., here] += weight[: piece.shape[-1]] * piece
        weights[here] += weight[: piece.shape[-1]]
    return made / weights
