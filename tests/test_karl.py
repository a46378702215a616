"""KARL: dropped tokens are taken out, and what is kept decodes at its own place."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mmtok.errors import InputError
from mmtok.io.mmt import read_codes, write_codes
from mmtok.tokenizers import KARL
from mmtok.tokenizers.methods import karl
from mmtok.tokenizers.quantizers import NormalizedVQ
from mmtok.tokenizers.vit import Block
from tests.golden import needs_golden, tokenizer_cases

PICTURES = [torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(i)) for i in (0, 1, 2)]


def picky() -> KARL:
    """Keeps some tokens, others of each picture, and not the first ones."""
    tokenizer = KARL(threshold=0.5, seed=1)
    with torch.no_grad():
        last = tokenizer.network.encoder.halting.halting_mlp[2]
        last.weight.mul_(5)
        last.bias.zero_()
    return tokenizer


@torch.no_grad()
def test_what_is_kept_is_what_the_network_asks_for() -> None:
    tokenizer = picky()
    codes = tokenizer.encode(PICTURES, batch_size=3)
    assert codes.positions is not None
    bins = torch.full((3,), karl.BINS.index(0.05))
    _, logits = tokenizer.network.encoder(torch.stack(PICTURES), bins)
    for row, places, count in zip(logits, codes.positions, codes.counts, strict=True):
        assert torch.equal(places, (row.sigmoid() <= 0.5).nonzero()[:, 0])
        assert 0 < count < 16
        assert not torch.equal(places, torch.arange(count))
    assert len({tuple(places.tolist()) for places in codes.positions}) > 1
    surer = dataclasses.replace(tokenizer, threshold=0.9)
    surer.__dict__["network"] = tokenizer.network
    more = surer.encode(PICTURES).counts
    assert all(a >= b for a, b in zip(more, codes.counts, strict=True))
    assert sum(more) > sum(codes.counts)
    nothing = dataclasses.replace(tokenizer, threshold=0)
    nothing.__dict__["network"] = tokenizer.network
    assert nothing.encode(PICTURES).counts == [1, 1, 1]
    assert len({surer.tokenizer_hash, nothing.tokenizer_hash, tokenizer.tokenizer_hash}) == 3


@torch.no_grad()
def test_places_decide_the_picture(tmp_path: Path) -> None:
    """In batches, through a file, and trimmed; the same ids elsewhere are another picture."""
    tokenizer = picky()
    codes = tokenizer.encode(PICTURES)
    made = tokenizer.decode(codes)
    twice = tokenizer.encode([p for p in PICTURES for _ in range(2)])
    for place, got in enumerate(tokenizer.decode(twice, batch_size=8)):
        assert torch.allclose(got, made[place // 2], atol=1e-5)
    write_codes(codes, tmp_path / "codes.mmt")
    for got, want in zip(tokenizer.decode(read_codes(tmp_path / "codes.mmt")), made, strict=True):
        assert torch.equal(got, want)
    assert codes.positions is not None
    short = tokenizer.trim(codes, 2)
    assert short.positions is not None
    assert torch.equal(short.positions[0], codes.positions[0][:2])
    elsewhere = dataclasses.replace(codes, positions=[torch.arange(n) for n in codes.counts])
    assert (tokenizer.decode(elsewhere)[0] - made[0]).abs().max() > 1e-4
    unsaid = tokenizer.decode(dataclasses.replace(codes, positions=None))
    assert torch.equal(unsaid[0], tokenizer.decode(elsewhere)[0])


def test_settings_and_weights(tmp_path: Path) -> None:
    """The error asked for is one of the bins; weights of others are not guessed at."""
    assert KARL(error=0.051).tokenizer_hash == KARL(error=0.06).tokenizer_hash
    assert KARL(error=0.05).tokenizer_hash != KARL(error=0.06).tokenizer_hash
    for bad in ({"error": -1}, {"error": "low"}, {"threshold": 1.5}, {"threshold": True}):
        with pytest.raises(InputError, match=r"must be (0 to 1|a finite number)"):
            KARL(**bad)  # type: ignore[arg-type]
    made = KARL(seed=2)
    made.save(tmp_path)
    assert KARL(weights=str(tmp_path)).tokenizer_hash == made.tokenizer_hash
    (tmp_path / "config.json").write_text(json.dumps({"model": "karl_small"}))
    with pytest.raises(InputError, match="mmtok's weights alone"):
        KARL(weights=str(tmp_path)).encode(PICTURES)
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"mmtok": {"patch": 7}}))
    with pytest.raises(InputError, match="do not divide"):
        KARL(weights=str(tmp_path)).encode(PICTURES)


def close(got: Tensor, want: Tensor) -> bool:
    return got.shape == want.shape and torch.allclose(got, want, atol=1e-5, rtol=0)


@needs_golden
@torch.no_grad()
def test_golden() -> None:
    said, cases = tokenizer_cases("karl_vq_halting")
    values, weights = cases[0]
    vq = NormalizedVQ(said["token_dim"], said["codebook"])
    vq.load_state_dict({"embedding.weight": weights["quantize.embedding.weight"]})
    with torch.enable_grad():
        z = values["input.z"].clone().requires_grad_()
        done = vq(z)
        done.loss.backward()
    assert torch.equal(done.ids[..., 0], values["indices"])
    assert close(done.vectors, values["quantized"])
    assert z.grad is not None
    assert close(z.grad, values["grad_z"])
    assert float(done.loss) == pytest.approx(float(values["quantizer_loss"]), abs=1e-5)
    assert not close(vq.lookup(done.ids), values["raw_codebook_rows"])  # ours have length 1
    values, weights = cases[1]
    halting = karl.Halting(values["input.latents"].shape[-1])
    halting.load_state_dict(weights)
    logits = halting(values["input.latents"])
    assert close(logits[..., None], values["halt_logits"])
    dropped = karl.halted(logits, said["halting_threshold"])
    assert torch.equal(dropped, values["halted"])
    before = int(values["input.num_img_tokens_plus_condition"]) - 1
    keep = torch.nn.functional.pad(~dropped, (before, 0), value=True)
    mask = ~(keep[:, :, None] & keep[:, None]) & ~torch.eye(keep.shape[1], dtype=torch.bool)
    assert torch.equal(mask, values["decoder_attn_mask"])
    values, weights = cases[2]
    block = Block(values["input.x"].shape[-1], said["heads"])
    block.load_state_dict(weights)
    open_to_others = (~values["input.attn_mask"]).sum(-1) > 1
    for x, kept, right, leaking in zip(
        *(values["input.x"], open_to_others, values["correct"], values["official_batched"]),
        strict=True,
    ):
        got = block(x[kept][None])[0]  # taking tokens out is what masking them comes to
        assert close(got, right[kept])
        assert kept.all() or not close(got, leaking[kept])
    values, _ = cases[3]
    assert close(torch.tensor(karl.BINS), values["input.bins"])
    assert torch.equal(karl.error_bin(values["input.l1_error"]), values["bin"])
