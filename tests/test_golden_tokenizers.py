"""Tokenizers against vectors that the authors' code made with small random weights."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from mmtok.tokenizers.methods import titok, wetok
from mmtok.tokenizers.quantizers_lfq import GroupedLFQ
from tests.golden import needs_golden, tokenizer_cases

pytestmark = needs_golden


def assert_close(got: torch.Tensor, want: torch.Tensor, atol: float, rtol: float = 0) -> None:
    assert got.shape == want.shape
    assert torch.allclose(got, want, atol=atol, rtol=rtol), float((got - want).abs().max())


@pytest.mark.parametrize("name", ["titok_plain", "titok_legacy"])
@torch.no_grad()
def test_titok(name: str) -> None:
    config, cases = tokenizer_cases(name)
    size = (config["width"], config["layers"], config["heads"])
    network = titok.TiTokNetwork(
        titok.TiTokConfig(
            encoder=size,
            decoder=size,
            encoder_patch=config["vit_enc_patch_size"],
            decoder_patch=config["vit_dec_patch_size"],
            image_size=config["crop_size"],
            tokens=config["num_latent_tokens"],
            token_size=config["token_size"],
            entries=config["codebook_size"],
            legacy=config["is_legacy"],
        )
    )
    network.load_state_dict(cases[0][1])
    for values, _ in cases:
        latent = network.latent(values["input.image"])
        assert_close(latent, values["latent"][:, :, 0].transpose(1, 2), 1e-4)
        done = network.quantize(latent)
        assert torch.equal(done.ids[..., 0], values["tokens"][:, 0])
        assert_close(done.vectors, values["quantized"][:, :, 0].transpose(1, 2), 1e-4)
        assert done.loss.item() == pytest.approx(float(values["quantizer_loss"]), abs=1e-4)
        ids = values["tokens"].transpose(1, 2)
        decoded = network.decoder(network.quantize.lookup(ids))
        assert_close(decoded, values["decoded_from_tokens"], 2e-3 if config["is_legacy"] else 1e-3)
        assert_close(network.decoder(done.vectors), values["decoded"], 2e-3)


@torch.no_grad()
def test_wetok() -> None:
    config, cases = tokenizer_cases("wetok_autoencoder")
    small = wetok.WeTokConfig(
        width=config["ch"],
        mult=tuple(config["ch_mult"]),
        blocks=config["num_res_blocks"],
        groups=2,
        bits=4,
    )
    weights = cases[0][1]
    wide = {"decoder.conv_in.weight": weights["gan_decoder.conv_in.weight"]}
    plain = {name: w for name, w in weights.items() if not name.startswith("gan_decoder")}
    network = wetok.WeTokNetwork(small)
    network.load_state_dict(plain)
    generative = wetok.WeTokNetwork(dataclasses.replace(small, generative=True))
    generative.load_state_dict(plain | wide)
    quantizer = GroupedLFQ(2, 4).eval()
    for values, _ in cases:
        latent = network.encoder(values["input.image"])
        assert_close(latent, values["latent"], 1e-4)
        done = quantizer(latent.flatten(2).transpose(1, 2))
        sure = (latent.abs() > 1e-3).flatten(2).transpose(1, 2).unflatten(-1, (2, 4)).all(-1)
        assert torch.equal(done.ids[sure], values["indices"][sure])
        codes = values["codes"]
        assert torch.equal(quantizer.lookup(values["indices"]), codes.flatten(2).transpose(1, 2))
        assert_close(network.decoder(codes), values["recon"], 1e-3)
        noisy = generative.decoder(codes, values["input.noise"])
        assert_close(noisy, values["recon_generative"], 1e-3)
