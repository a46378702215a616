"""Codecs of sound and clips against vectors that the authors' code made with random weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mmtok.tokenizers import cvivit_net, wavtokenizer_net
from mmtok.tokenizers.methods import cvivit, wavtokenizer
from tests.golden import needs_golden, tokenizer_cases

pytestmark = needs_golden


def assert_close(got: Tensor, want: Tensor, atol: float) -> None:
    assert got.shape == want.shape
    assert torch.allclose(got, want, atol=atol, rtol=0), float((got - want).abs().max())


@pytest.mark.parametrize("name", ["wavtokenizer_small_75", "wavtokenizer_small_40"])
@torch.no_grad()
def test_wavtokenizer(name: str) -> None:
    """Sizes follow from the published layout; so do latents, ids, features and samples."""
    said, cases = tokenizer_cases(name)
    state = wavtokenizer.published_names(cases[0][1])
    config = wavtokenizer.inferred({k: tuple(w.shape) for k, w in state.items()}, name)
    assert (config.ratios, config.n_fft) == (tuple(said["ratios"][::-1]), said["n_fft"])
    network = wavtokenizer_net.WavTokenizerNetwork(config).eval()
    network.load_state_dict(state)
    for values, _ in cases:
        latent = network.encoder(values["input.waveform"][:, None])
        assert_close(latent, values["latent"], 3e-4)
        done = network.quantize(latent.transpose(1, 2))
        assert float(values["min_code_gap"]) > 1e-3
        ids = values["codes"][0]
        assert torch.equal(done.ids[..., 0], ids)
        vectors = network.quantize.lookup(ids[..., None])
        assert_close(vectors.transpose(1, 2), values["features"], 1e-5)
        condition = int(values["input.bandwidth_id"])
        assert_close(network.backbone(vectors, condition), values["backbone"], 1e-4)
        sound = values["waveform"]
        assert_close(network.decode(vectors, condition), sound, 1e-4 * float(sound.abs().max()))


@torch.no_grad()
def test_istft_head() -> None:
    for values, weights in tokenizer_cases("istft_head")[1]:
        n_fft, hop = int(values["input.n_fft"]), int(values["input.hop"])
        head = wavtokenizer_net.Head(values["input.hidden"].shape[-1], n_fft, hop)
        head.load_state_dict({k.removeprefix("head."): w for k, w in weights.items()})
        spectrum = torch.view_as_complex(values["input.spec_real_imag"].contiguous())
        assert_close(head.istft(spectrum), values["audio"], 2e-5)
        assert_close(head(values["input.hidden"]), values["head_audio"], 2e-5)


@torch.no_grad()
def test_cvivit() -> None:
    """Step by step, what the authors' modules give at once with the axes put right."""
    said, cases = tokenizer_cases("cvivit")
    state = cvivit.published_names(cases[0][1])
    config = cvivit.inferred({k: tuple(w.shape) for k, w in state.items()}, "cvivit")
    assert (config.patch, config.span) == (said["patch"], said["temporal_patch"])
    network = cvivit_net.CViViTNetwork(config).eval()
    network.load_state_dict(state)
    for values, _ in cases:
        clip, side = values["input.video"].transpose(1, 2), said["image"] // said["patch"]
        memory = network.start(side, side)
        steps = [clip[:, :1], *clip[:, 1:].split(config.span, dim=1)]
        features = torch.stack([network.encode_step(step, memory) for step in steps], dim=1)
        assert_close(features, values["features_causal"], 5e-5)
        assert (features - values["features_reference_code"]).abs().max() > 1  # sees the future
        flat = features.flatten(1, 3)
        sure = (network.vq.project_in(flat).abs() > 1e-4).all(-1)
        assert sure.float().mean() > 0.99
        ids = values["indices"][..., None]
        assert torch.equal(network.vq.ids(flat)[sure], ids[sure])
        vectors = network.vq.lookup(ids)
        assert_close(vectors, values["quantized"], 1e-5)
        memory = network.start(side, side)
        made = [
            network.decode_step(step.unflatten(1, (side, side)), memory)
            for step in vectors.split(side**2, dim=1)
        ]
        assert_close(torch.cat(made, dim=1).transpose(1, 2), values["recon_causal"], 2e-4)
