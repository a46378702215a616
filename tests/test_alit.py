"""ALIT: rounds until the picture is good enough, each picture by itself, the same every time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmtok.errors import InputError
from mmtok.tokenizers import ALIT, KARL
from mmtok.tokenizers.methods.alit import ALITConfig

NOISE = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))


def easy(tokenizer: ALIT) -> Tensor:
    """What the model makes of noise: a random model makes much the same of anything."""
    return tokenizer.decode(tokenizer.encode([NOISE]))[0]


def by_hand(tokenizer: ALIT, picture: Tensor, error: float) -> tuple[Tensor, list[int]]:
    """Ids, and how many patches each round read: masks in place of removal, one head at a time."""
    network, state = tokenizer.network, tokenizer.network.encoder
    x = picture[None]
    patches = F.normalize(
        state.patch_embed(2 * x - 1).flatten(2).transpose(1, 2)
        + state.encoder_positional_embedding,
        dim=-1,
    )
    latents, open_ = patches[:, :0], torch.ones(16, dtype=torch.bool)
    read = []
    for place in range(4):
        read.append(int(open_.sum()))
        new = state.latent_tokens + state.round_embedding.weight[place]
        row = state.encoder_ln_pre(torch.cat([patches, latents, new[None]], dim=1))
        seen = torch.cat([open_, torch.ones(4 * (place + 1), dtype=torch.bool)])
        for block in state.transformer:
            row = row + masked(block.attn, block.ln_1(row), seen)
            row = row + block.mlp(block.ln_2(row))
        latents = row[:, 16:]
        patches = torch.where(open_[:, None], F.normalize(row[:, :16], dim=-1), patches)
        vectors = F.normalize(state.pre_quantizer_mlp(state.encoder_ln_post(latents)), dim=-1)
        book = F.normalize(network.quantize.embedding.weight, dim=-1)
        ids = (vectors @ book.T).argmax(-1)
        made = network.decoder(book[ids], torch.arange(ids.shape[1])[None]).clamp(0, 1)
        far = (2 * made - 1 - (2 * x - 1)).abs()[0].mean(0)
        if far.mean() < error:
            break
        open_ = torch.stack([p.mean() for r in far.split(8) for p in r.split(8, dim=1)]) >= error
    return ids[0], read


def masked(attention: Any, x: Tensor, seen: Tensor) -> Tensor:
    heads, width = attention.heads, x.shape[-1]
    q, k, v = F.linear(x, attention.in_proj_weight, attention.in_proj_bias).chunk(3, dim=-1)
    mixed = []
    for part in range(heads):
        here = slice(part * width // heads, (part + 1) * width // heads)
        score = q[..., here] @ k[..., here].transpose(1, 2) / (width // heads) ** 0.5
        mixed.append(score.masked_fill(~seen, -torch.inf).softmax(-1) @ v[..., here])
    return attention.out_proj(torch.cat(mixed, dim=-1))


@torch.no_grad()
def test_rounds_by_hand() -> None:
    """Pictures that stop early, late and never; done patches leave, and nothing else changes."""
    tokenizer = ALIT(error=0.05)
    simple = easy(tokenizer)
    half = simple.clone()
    half[:, :, 16:] = NOISE[:, :, 16:]
    corner = simple.clone()
    corner[:, :8, :8] = NOISE[:, :8, :8]
    pictures = [simple, half, NOISE, corner]
    codes = tokenizer.encode(pictures, batch_size=4)
    fewer = False
    for picture, ids in zip(pictures, codes.ids, strict=True):
        want, read = by_hand(tokenizer, picture, 0.05)
        assert torch.equal(ids[:, 0], want)
        fewer |= len(set(read)) > 1
    assert fewer
    assert codes.counts[0] == 4
    assert codes.counts[1] == codes.counts[2] == 16
    assert all(
        torch.equal(a, b) for a, b in zip(codes.ids, tokenizer.encode(pictures).ids, strict=True)
    )
    assert ALIT(error=0).encode([simple]).counts == [16]


def test_settings_and_weights(tmp_path: Path) -> None:
    assert ALIT(error=0.1).tokenizer_hash != ALIT(error=0.2).tokenizer_hash
    for bad in (-1, 3, "low", True, float("nan")):
        with pytest.raises(InputError, match=r"error must be (0 to 2|a finite number)"):
            ALIT(error=bad)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="do not divide 10 tokens"):
        ALITConfig(tokens=10)
    made = ALIT(seed=2)
    made.save(tmp_path)
    assert ALIT(weights=str(tmp_path)).tokenizer_hash == made.tokenizer_hash
    with pytest.raises(InputError, match="unknown settings rounds"):
        KARL(weights=str(tmp_path)).encode([NOISE])
    (tmp_path / "config.json").write_text(json.dumps({"model": "alit_small"}))
    with pytest.raises(InputError, match="mmtok's weights alone"):
        ALIT(weights=str(tmp_path)).encode([NOISE])
    with pytest.raises(InputError, match="takes RGB"):
        made.grid((1, 8, 8))
