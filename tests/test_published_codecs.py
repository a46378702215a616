"""Weights of codecs of sound and clips, in the layouts they are published in."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmtok.errors import InputError
from mmtok.tokenizers import WavTokenizer
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
