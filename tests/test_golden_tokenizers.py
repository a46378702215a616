"""Tokenizers against vectors that the authors' code made with small random weights."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from mmtok.tokenizers import flextok_net, flow
from mmtok.tokenizers.flextok_net import time_embedding
from mmtok.tokenizers.methods import titok, wetok
from mmtok.tokenizers.quantizers import FSQ
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
            patch=config["vit_enc_patch_size"],
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


def flextok_network(config: dict[str, Any]) -> flextok_net.FlexTokConfig:
    return flextok_net.FlexTokConfig(
        levels=tuple(config["levels"]),
        width=64,
        depth=config["depth"],
        decoder_width=64,
        decoder_depth=config["depth"],
        head_dim=config["head_dim"],
        registers=config["n_registers"],
        channels=config["latent_channels"],
        side=config["grid"] * config["patch"],
        patch=config["patch"],
    )


@torch.no_grad()
def test_flextok_encoder() -> None:
    config, cases = tokenizer_cases("flextok_encoder")
    network = flextok_net.Encoder(flextok_network(config))
    own = network.module_dict["enc_posemb_module"].posembs.clone()
    assert_close(own, cases[0][0]["posemb"], 1e-5)
    network.load_state_dict({k.removeprefix("encoder."): w for k, w in cases[0][1].items()})
    fsq = FSQ(tuple(config["levels"]))
    for values, _ in cases:
        latent = network(values["input.vae_latents"])
        assert_close(latent, values["latents"], 2e-5)
        bounded = fsq.bound(values["latents"])
        sure = ((bounded - bounded.floor() - 0.5).abs() > 1e-4).all(-1)
        done = fsq(latent)
        assert torch.equal(done.ids[sure][:, 0], values["tokens"][sure])
        assert_close(done.vectors[sure], values["quants"][sure], 1e-5)


@torch.no_grad()
def test_flextok_decoder() -> None:
    config, cases = tokenizer_cases("flextok_decoder")
    network = flextok_net.Decoder(flextok_network(config))
    network.load_state_dict({k.removeprefix("decoder."): w for k, w in cases[0][1].items()})
    fsq = FSQ(tuple(config["levels"]))
    values = cases[0][0]
    assert_close(time_embedding(values["input.t"]), values["timestep_embedding"], 1e-4)
    for (values, _), how in zip(cases, config["runs"], strict=True):
        vectors, noise = fsq.lookup(values["input.token_ids"][..., None]), values["input.noise"]
        with_tokens = network.condition(vectors, values["input.keep_k"])
        without = network.condition(vectors, torch.zeros_like(values["input.keep_k"]))
        t = torch.full((len(noise),), 0.7)
        assert_close(network(noise, t, with_tokens), values["velocity_t0.7"], 5e-5)
        assert_close(network(noise, t, without), values["velocity_uncond_t0.7"], 5e-5)
        latents = flow.sample(
            noise,
            lambda x, t, c=with_tokens: network(x, t, c),
            lambda x, t, c=without: network(x, t, c),
            steps=int(values["input.steps"]),
            scale=float(values["input.guidance_scale"]),
            projected=bool(values["input.norm_guidance"]),
        )
        assert how["steps"] == int(values["input.steps"])
        assert_close(latents, values["latents"], 2e-4, rtol=1e-4)


def test_flextok_flow() -> None:
    config, cases = tokenizer_cases("flextok_flow_utils")
    values = cases[0][0]  # one straight line per picture: any steps along it end at the picture
    velocity = values["velocity_target"]
    for steps in (1, 3):
        made = flow.sample(
            values["input.noise"], lambda x, t: velocity, lambda x, t: x, steps=steps
        )
        assert_close(made, values["input.clean"], 1e-5)
    back = 1 - values["input.sigma"].view(-1, 1, 1, 1)
    assert_close(values["input.noise"] - back * velocity, values["noised"], 1e-5)
    guide = flow.Projected(config["scale"])
    values = cases[1][0]
    for step in range(3):
        pair = (values["input.cond"][step : step + 1], values["input.uncond"][step : step + 1])
        assert_close(guide(*pair), values["guided_sequence"][step : step + 1], 1e-5)
    values = cases[2][0]
    assert_close(flextok_net.sincos(4, 4, 16)[None], values["posemb_4x4"], 1e-5)
    # Of a grid that is not square the reference swaps rows and columns; ours does not.
    assert (flextok_net.sincos(2, 3, 16)[None] - values["posemb_2x3"]).abs().max() > 1
