"""Weights of codecs of sound and clips, in the layouts they are published in."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmtok.errors import InputError
from mmtok.tokenizers import HFAudio, WavTokenizer
from mmtok.tokenizers.wavtokenizer_net import WavTokenizerConfig, WavTokenizerNetwork

SOUNDS = [torch.rand(1, 2500 + i, generator=torch.Generator().manual_seed(i)) - 0.5 for i in (0, 1)]
WAV = "feature_extractor.encodec."


def as_released(state: dict[str, Tensor], new: bool) -> dict[str, Tensor]:
    """WavTokenizer's names: weight norms in two parts, modules nested as in the authors' code."""
    found: dict[str, Tensor] = {}
    parts = ("parametrizations.weight.original0", "parametrizations.weight.original1")
    for name, weight in state.items():
        if name.startswith("quantize."):
            part = name.rpartition(".")[2].replace("initted", "inited")
            value = weight.float().view(1) if part == "inited" else weight[0]
            found[f"{WAV}quantizer.vq.layers.0._codebook.{part}"] = value
        elif not name.startswith("encoder.") or "lstm" in name:
            found[name.replace("encoder.", f"{WAV}encoder.model.")] = weight
        else:
            long = re.sub(
                r"^encoder\.(.+)\.(weight|bias)$", WAV + r"encoder.model.\1.conv.conv.", name
            )
            if name.endswith("bias"):
                found[long + "bias"] = weight
                continue
            names = parts if new else ("weight_g", "weight_v")
            found[long + names[0]] = weight.norm(dim=(1, 2), keepdim=True)
            found[long + names[1]] = 3 * weight  # the length of a direction does not matter
    return found


@pytest.mark.parametrize("new", [False, True])
def test_wavtokenizer(new: bool, tmp_path: Path) -> None:
    """A pickle with discriminators and an unused decoder; no configuration beside it."""
    config = WavTokenizerConfig(filters=2, ratios=(3, 4), latent=8, entries=32, hidden=40, n_fft=36)
    torch.manual_seed(0)
    network: Any = WavTokenizerNetwork(config).eval()
    book = network.quantize.layers.layers[0]._codebook.embed[0]
    with torch.no_grad():  # entries that sounds come near to, or all ids are the same
        book.copy_(network.encoder(SOUNDS[0][None])[0, :, :32].T)
    state = as_released(network.state_dict(), new)
    other = {f"{WAV}decoder.model.0.conv.conv.bias": torch.zeros(3)}
    other |= {"multiperioddisc.x": torch.zeros(1), "feature_extractor.mel.window": torch.zeros(1)}
    file = tmp_path / "WavTokenizer_small_320_24k_4096.ckpt"
    torch.save({"state_dict": state | other, "epoch": 2, "optimizer_states": []}, file)
    (tmp_path / "wavtokenizer.yaml").write_text("model:\n  class_path: os.system\n")
    loaded = WavTokenizer(weights=str(tmp_path))
    assert loaded.config == config
    codes = loaded.encode(SOUNDS)
    with torch.no_grad():
        want = [network.quantize(network.encoder(x[None]).transpose(1, 2)).ids[0] for x in SOUNDS]
        made = network.decode(network.quantize.lookup(codes.ids[1][None]))
    assert all(torch.equal(a, b) for a, b in zip(codes.ids, want, strict=True))
    assert len(codes.ids[0].unique()) > 20
    got = loaded.decode(codes)
    assert [x.shape for x in got] == [x.shape for x in SOUNDS]
    assert torch.allclose(got[1], made.clamp(-1, 1)[:, :2501], atol=1e-4)
    assert WavTokenizer(weights=str(file)).tokenizer_hash == loaded.tokenizer_hash
    own = WavTokenizer(seed=3)
    own.save(tmp_path / "own")
    assert WavTokenizer(weights=str(tmp_path / "own")).tokenizer_hash == own.tokenizer_hash
    del state["backbone.embed.weight"]
    torch.save({"state_dict": state}, file)
    with pytest.raises(InputError, match="no weights of WavTokenizer"):
        WavTokenizer(weights=str(file)).encode(SOUNDS)


@torch.no_grad()
def test_wavtokenizer_hears_no_padding() -> None:
    """Items of a ragged batch give the ids and the samples they give alone, to the last bit."""
    tokenizer = WavTokenizer()
    items = [torch.rand(1, n, generator=torch.Generator().manual_seed(n)) for n in (700, 3201, 320)]
    codes = tokenizer.encode(items, batch_size=8)
    assert codes.counts == [3, 11, 1]
    for place, item in enumerate(items):
        alone = tokenizer.encode([item])
        assert torch.equal(alone.ids[0], codes.ids[place])
        got = tokenizer.decode(codes, batch_size=8)[place]
        assert got.shape == item.shape
        assert torch.equal(got, tokenizer.decode(alone)[0])
    with pytest.raises(InputError, match="takes mono"):
        tokenizer.encode([torch.zeros(3, 40)])


def own_ids(stock: Any, sound: Tensor, codebooks: int) -> Tensor:
    """What the stock class gives for one recording (1, S) of whole hops, as (K, Q)."""
    if stock.config.model_type == "dac":
        return stock.encode(sound[None], codebooks).audio_codes[0].T
    if stock.config.model_type == "mimi":
        return stock.encode(sound[None], num_quantizers=codebooks).audio_codes[0].T
    widths = dict(zip((2, 5), stock.config.target_bandwidths, strict=True))
    return stock.encode(sound[None], bandwidth=widths[codebooks]).audio_codes[0, 0].T


@pytest.mark.parametrize(("family", "some"), [("dac", 2), ("encodec", 2), ("mimi", 3)])
@torch.no_grad()
def test_hf_audio(family: str, some: int, tmp_path: Path) -> None:
    """Ids and samples are the stock class's of each recording alone, from the stock layout."""
    stock = HFAudio(family=family, seed=4).network
    if family == "encodec":  # entries that sounds come near to, or all ids are the same
        latents = stock.encoder(SOUNDS[0][None, :, :512])[0].T
        stock.quantizer.layers[0].codebook.embed.copy_(latents)
    stock.save_pretrained(tmp_path)
    sounds = [SOUNDS[0][:, :160], SOUNDS[1][:, :400]]
    loaded = HFAudio(family=family, weights=str(tmp_path))
    most = len(loaded.codebook.sizes)
    few = HFAudio(family=family, weights=str(tmp_path), codebooks=some)
    for tokenizer, codebooks in ((loaded, most), (few, some)):
        codes = tokenizer.encode(sounds, batch_size=8)
        for ids, sound in zip(codes.ids, sounds, strict=True):
            assert torch.equal(ids, own_ids(stock, sound, codebooks))
            assert len(ids.unique()) > 5
    ids = codes.ids[0].T[None]
    made = stock.decode(ids[None], [None]) if family == "encodec" else stock.decode(audio_codes=ids)
    got = few.decode(codes)[0]
    want = made.audio_values.reshape(1, -1).clamp(-1, 1)[:, :160]
    assert torch.allclose(got[:, : want.shape[1]], want, atol=1e-6)
    assert got.shape == (1, 160)
    assert loaded.tokenizer_hash != few.tokenizer_hash
    one = HFAudio(family=family, weights=str(tmp_path), codebooks=1)
    assert torch.equal(one.encode(sounds).ids[1], codes.ids[1][:, :1])
    assert one.decode(one.encode(sounds))[1].shape == sounds[1].shape
    assert "weights" not in few.spec
    with pytest.raises(InputError, match="codebooks must be"):
        HFAudio(family=family, codebooks=99).encode(sounds)
    other = "mimi" if family == "dac" else "dac"
    with pytest.raises(InputError, match=f"expected {other}"):
        HFAudio(family=other, weights=str(tmp_path)).encode(sounds)
    state = load_file(tmp_path / "model.safetensors")
    for name in [name for name in state if name.endswith("conv1.weight") or "layers.0." in name]:
        del state[name]
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="weights missing or of wrong shape"):
        HFAudio(family=family, weights=str(tmp_path)).encode(sounds)
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 40)
    with pytest.raises(InputError, match="cannot be loaded"):
        HFAudio(family=family, weights=str(tmp_path)).encode(sounds)


@torch.no_grad()
def test_hf_audio_hears_no_padding() -> None:
    """Padding to the longest changes ids of the stock DAC; here it never happens."""
    tokenizer = HFAudio(family="dac", seed=1)
    short, long = SOUNDS[0][:, :200], SOUNDS[1][:, :1000]
    padded = torch.nn.functional.pad(short, (0, 800))
    stock = tokenizer.network.encode(torch.stack([padded, long])).audio_codes[0, :, :20].T
    ids = tokenizer.encode([short, long], batch_size=2).ids[0]
    assert torch.equal(ids, tokenizer.encode([short]).ids[0])
    assert not torch.equal(ids, stock)


def test_hf_audio_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no configuration"):
        HFAudio(family="mimi", weights=str(tmp_path / "nothing")).encode(SOUNDS)
    with pytest.raises(InputError, match="family must be"):
        HFAudio(family="snac")


@torch.no_grad()
def test_hf_audio_reads_old_weight_norms(tmp_path: Path) -> None:
    made = HFAudio(family="encodec", seed=6)
    made.network.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    for new, old in (("original0", "weight_g"), ("original1", "weight_v")):
        long = f"parametrizations.weight.{new}"
        state = {name.replace(long, old): weight for name, weight in state.items()}
    assert any(name.endswith("weight_g") for name in state)
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    loaded = HFAudio(family="encodec", weights=str(tmp_path))
    assert loaded.tokenizer_hash == made.tokenizer_hash
