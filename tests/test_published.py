"""Weights in the layouts they are published in: found, read without running anything, checked."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mmtok.errors import InputError
from mmtok.tokenizers import HFVQ, FlexTok, TiTok, Tokenizer, WeTok
from mmtok.tokenizers.flextok_net import FlexTokConfig
from mmtok.tokenizers.methods import flextok, titok, wetok
from mmtok.tokenizers.network import read_weights

PICTURES = [
    torch.rand(3, 40, 29, generator=torch.Generator().manual_seed(i)) ** (0.1 + 5 * i)
    for i in range(2)
]
TITOK = {
    "model": {
        "vq_model": {
            "vit_enc_model_size": "small",
            "vit_dec_model_size": "small",
            "vit_enc_patch_size": 16,
            "vit_dec_patch_size": 16,
            "num_latent_tokens": 4,
            "token_size": 12,
            "codebook_size": 64,
            "is_legacy": False,
            "use_l2_norm": True,
        }
    },
    "dataset": {"preprocessing": {"crop_size": 32}},
}


def randomised(state: dict[str, Tensor]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {k: 0.2 * torch.randn(w.shape, generator=generator) for k, w in sorted(state.items())}


def assert_same_codes(loaded: Tokenizer, network: Any) -> None:
    """The loader's network computes what the one that was saved computes."""
    got = loaded.network.state_dict()  # type: ignore[attr-defined]
    want = network.state_dict()
    assert got.keys() == want.keys()
    assert all(torch.equal(got[name], want[name]) for name in want)
    codes = loaded.encode(PICTURES)
    assert len({tuple(ids.view(-1).tolist()) for ids in codes.ids}) == len(PICTURES)
    assert [tuple(item.shape) for item in loaded.decode(codes)] == [(3, 40, 29)] * 2


def small_titok(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setitem(titok._SIZES, "small", (32, 1, 2))
    network = titok.TiTokNetwork(titok.published_config(TITOK, "here"))
    network.load_state_dict(randomised(network.state_dict()))
    other = {"pixel_decoder.conv_in.weight": torch.zeros(1), "pixel_quantize.x": torch.zeros(1)}
    save_file(network.state_dict() | other, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(TITOK))
    return network


def test_titok(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = small_titok(tmp_path, monkeypatch)
    assert_same_codes(TiTok(weights=str(tmp_path)), network)
    vq = TITOK["model"]["vq_model"]
    for name, value, why in [
        ("num_latent_tokens", 5, "5 weights of wrong shape|weights of wrong shape"),
        ("num_latent_tokens", "4", "num_latent_tokens is '4', expected int"),
        ("num_latent_tokens", True, "expected int"),
        ("codebook_size", -1, "codebook_size is -1"),
        ("vit_enc_model_size", "huge", "expected each one of small, base, large"),
        ("vit_enc_patch_size", 5, "do not divide"),
    ]:
        monkeypatch.setitem(vq, name, value)
        (tmp_path / "config.json").write_text(json.dumps(TITOK))
        with pytest.raises(InputError, match=why):
            TiTok(weights=str(tmp_path)).encode(PICTURES)
        monkeypatch.undo()
        monkeypatch.setitem(titok._SIZES, "small", (32, 1, 2))
    legacy = {**TITOK, "model": {"vq_model": {**vq, "is_legacy": True}}}
    network = titok.TiTokNetwork(titok.published_config(legacy, "here"))
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(legacy))
    old = TiTok(weights=str(tmp_path))
    codes = old.encode(PICTURES)
    assert old.proxy_logits(torch.stack(codes.ids)).shape == (2, 1024, 2, 2)
    with pytest.raises(InputError, match="no pixels"):
        old.decode(codes)
    config = dataclasses.replace(titok.published_config(legacy, "here"), pixels=(32, 64, 16))
    network = titok.TiTokNetwork(config)
    network.load_state_dict(randomised(network.state_dict()))
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    whole = TiTok(weights=str(tmp_path))
    assert whole.config == config
    assert_same_codes(whole, network)
    whole.save(tmp_path / "own")
    assert TiTok(weights=str(tmp_path / "own")).tokenizer_hash == whole.tokenizer_hash


@pytest.mark.parametrize("averaged", [True, False])
def test_wetok(averaged: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pickle with optimiser, losses and averaged weights whose names have lost their dots."""
    small = wetok.WeTokConfig()
    monkeypatch.setitem(wetok._RATIOS, 48, small)
    network = wetok.WeTokNetwork(small)
    good = randomised(network.state_dict())
    network.load_state_dict(good)
    state = dict(good)
    if averaged:
        state = {name: torch.zeros_like(weight) for name, weight in good.items()}
        state |= {f"model_ema.{name.replace('.', '')}": weight for name, weight in good.items()}
        state |= {"model_ema.decay": torch.tensor(0.999), "model_ema.num_updates": torch.tensor(7)}
    state["loss.discriminator.main.0.weight"] = torch.zeros(3)
    torch.save({"state_dict": state, "epoch": 3, "optimizer_states": []}, tmp_path / "WeTok.ckpt")
    assert_same_codes(WeTok(weights=str(tmp_path), ratio=48), network)
    with pytest.raises(InputError, match="say which model"):
        WeTok(weights=str(tmp_path)).encode(PICTURES)
    with pytest.raises(InputError, match="ratio must be one of"):
        WeTok(ratio=7)
    with pytest.raises(InputError, match=r"1 weights of wrong shape: decoder\.conv_in\.weight"):
        WeTok(weights=str(tmp_path), ratio=48, generative=True).encode(PICTURES)


def small_flextok(vae: bool) -> tuple[FlexTokConfig, Any]:
    config = FlexTokConfig(
        width=64,
        depth=3,
        decoder_width=128,
        decoder_depth=1,
        head_dim=64,
        registers=8,
        channels=4 if vae else 3,
        side=8,
        patch=2,
        vae_channels=(32, 64) if vae else (),
        vae_quant=vae,
        scaling=0.5 if vae else 1.0,
    )
    network = flextok.FlexTokNetwork(config)
    return config, network


@pytest.mark.parametrize("vae", [True, False])
def test_flextok(vae: bool, tmp_path: Path) -> None:
    """Every size follows from the shapes; the latent's scale from the configuration."""
    config, network = small_flextok(vae)
    network.load_state_dict(randomised(network.state_dict()))
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    said = {"vae": {"scaling_factor": 0.5, "_target_": "os.system"}}
    (tmp_path / "config.json").write_text(json.dumps(said))
    loaded = FlexTok(weights=str(tmp_path), steps=2)
    assert loaded.config == config
    assert_same_codes(loaded, network)
    if vae:
        (tmp_path / "config.json").unlink()
        with pytest.raises(InputError, match=r"pass scaling="):
            FlexTok(weights=str(tmp_path)).encode(PICTURES)
        assert FlexTok(weights=str(tmp_path), scaling=0.5).config == config
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="no weights of FlexTok"):
        FlexTok(weights=str(tmp_path)).encode(PICTURES)


@pytest.mark.parametrize("kind", [FlexTok, TiTok, WeTok])
def test_own_layout(kind: type[Any], tmp_path: Path) -> None:
    """What `save` writes comes back with the same hash; settings that lie are refused."""
    made = kind(seed=3)
    made.save(tmp_path)
    loaded = kind(weights=str(tmp_path))
    assert loaded.tokenizer_hash == made.tokenizer_hash != kind(seed=4).tokenizer_hash
    assert "weights" not in loaded.spec
    codes = made.encode(PICTURES)
    for a, b in zip(codes.ids, loaded.encode(PICTURES).ids, strict=True):
        assert torch.equal(a, b)
    with pytest.raises(InputError, match="were made by"):
        kind(seed=4).decode(codes)
    for change, why in [
        ({"nothing": 1}, "unknown settings nothing"),
        ({"width": "x"}, r"config\.json: "),
    ]:
        said = json.loads((tmp_path / "config.json").read_text())["mmtok"] | change
        (tmp_path / "config.json").write_text(json.dumps({"mmtok": said}))
        with pytest.raises(InputError, match=why):
            kind(weights=str(tmp_path)).encode(PICTURES)


@pytest.mark.parametrize("family", ["chameleon", "emu3", "janus"])
@pytest.mark.parametrize("whole", [True, False])
@torch.no_grad()
def test_hf_vq(family: str, whole: bool, tmp_path: Path) -> None:
    """From a whole model in two files, and by itself; ids and pixels are the stock network's."""
    stock = HFVQ(family=family, seed=5).network
    if whole:
        state = {f"model.vqmodel.{name}": w.clone() for name, w in stock.state_dict().items()}
        first = dict(list(state.items())[:7])
        rest = {name: w for name, w in state.items() if name not in first}
        save_file(first | {"model.layers.0.x": torch.zeros(2)}, tmp_path / "a-1-of-2.safetensors")
        save_file(rest, tmp_path / "a-2-of-2.safetensors")
        said = {"model_type": family, "vq_config": stock.config.to_dict()}
        (tmp_path / "config.json").write_text(json.dumps(said))
    else:
        stock.save_pretrained(tmp_path)
    scale = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(scale))
    loaded = HFVQ(family=family, weights=str(tmp_path))
    picture = PICTURES[0][:, :8, :8]
    codes = loaded.encode([picture])
    ids = codes.ids[0][:, 0]
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in scale.values())
    pixels = ((picture - mean) / std)[None]
    if family == "janus":
        latent = stock.quant_conv(stock.encoder(pixels))[0].flatten(1).T
        book = torch.nn.functional.normalize(stock.quantize.embedding.weight, dim=1)
        latent = torch.nn.functional.normalize(latent, dim=1)
        assert torch.equal(ids, torch.cdist(latent, book).argmin(1))
        made = stock.decode(ids[None])[0]
    elif family == "emu3":
        want = stock.encode(pixels, image_sizes=torch.tensor([[8, 8]])).image_tokens[0]
        assert torch.equal(ids.view(4, 4), want)
        made = stock.decode(ids.view(1, 4, 4))[0]
    else:
        assert torch.equal(ids, stock.encode(pixels).image_tokens)
        with pytest.raises(InputError, match="no decoder"):
            loaded.decode(codes)
        return
    assert torch.allclose(loaded.decode(codes)[0], (made * std + mean).clamp(0, 1), atol=1e-5)
    other = "emu3" if family == "janus" else "janus"
    with pytest.raises(InputError, match=f"expected {other}"):
        HFVQ(family=other, weights=str(tmp_path)).encode([picture])


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path("bomb").touch, ())


def test_weights_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"x": Bomb()}}, tmp_path / "bomb.ckpt")
    torch.save([1, 2], tmp_path / "list.ckpt")
    (tmp_path / "damaged.safetensors").write_bytes(b"\xff" * 50)
    (tmp_path / "damaged.pt").write_bytes(b"\x80\x04.")
    for name in ("bomb.ckpt", "list.ckpt", "damaged.safetensors", "damaged.pt"):
        with pytest.raises(InputError, match=name) as caught:
            read_weights(tmp_path / name)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "bomb").exists()
    (tmp_path / "empty").mkdir()
    for weights in ("empty", "missing.safetensors", "./a/b/c"):
        with pytest.raises(InputError):
            TiTok(weights=weights).encode(PICTURES)
