"""C-ViViT: not the last bit of a token depends on what comes after it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmtok.errors import InputError
from mmtok.tokenizers import CViViT
from mmtok.tokenizers.cvivit_net import CViViTConfig, CViViTNetwork


def clip(frames: int, height: int = 16, width: int = 24) -> Tensor:
    return torch.rand(frames, 3, height, width, generator=torch.Generator().manual_seed(frames))


def features(network: Any, frames: Tensor) -> Tensor:
    memory = network.start(frames.shape[2] // 8, frames.shape[3] // 8)
    steps = [frames[:1], *(frames[i : i + 2] for i in range(1, len(frames), 2))]
    return torch.stack([network.encode_step(step[None], memory)[0] for step in steps])


@torch.no_grad()
def test_later_frames_change_nothing() -> None:
    """Features and ids of a beginning differ by exactly 0, whatever follows or does not."""
    tokenizer, whole = CViViT(), clip(21)
    want, ids = features(tokenizer.network, whole), tokenizer.encode([whole]).ids[0]
    places = 6
    for seen in (1, 3, 9, 19):
        steps = (seen + 1) // 2
        for later in (torch.zeros_like(whole[seen:]), whole[seen:].flip(0) * 9, whole[:0]):
            got = torch.cat([whole[:seen], later])
            assert torch.equal(features(tokenizer.network, got)[:steps], want[:steps])
            start = tokenizer.encode([got]).ids[0][: steps * places]
            assert torch.equal(start, ids[: steps * places])
    changed = whole.clone()
    changed[4] += 0.5
    apart = (features(tokenizer.network, changed) - want).abs().amax((1, 2, 3))
    assert (apart[:2] == 0).all()
    assert (apart[2:] > 0).all()  # every later step still remembers it


def test_streams_of_any_chunks_and_pictures() -> None:
    """Chunks of no frames too; a picture is a clip of one frame; odd ends are filled up."""
    tokenizer, whole = CViViT(seed=2), clip(8, 20, 9)
    want = tokenizer.encode([whole])
    assert want.grids == [(5, 3, 2)]
    for sizes in ([1] * 8, [2, 0, 5, 1], [7, 1], [8]):
        stream = tokenizer.encoder_state()
        parts = [stream.push(chunk) for chunk in whole.split(sizes)]
        assert torch.equal(torch.cat([*parts, stream.finish()]), want.ids[0])
        assert stream.finish().shape == (0, 1)
    held = torch.cat([whole, whole[-1:]])
    assert torch.equal(tokenizer.encode([held]).ids[0], want.ids[0])
    first = tokenizer.encode([whole[0]])
    assert torch.equal(first.ids[0], want.ids[0][:6])
    assert torch.equal(tokenizer.decode(first)[0], tokenizer.decode(want)[0][0])


def test_a_beginning_of_the_tokens_gives_the_beginning_of_the_clip() -> None:
    tokenizer, whole = CViViT(), clip(9)
    codes = tokenizer.encode([whole])
    full = tokenizer.decode(codes)[0]
    short = tokenizer.decode(codes.trim(3 * 6))[0]
    assert torch.equal(short[:5], full[:5])
    assert torch.equal(short[5:], full[4:5].expand(4, -1, -1, -1))


@pytest.mark.parametrize("suffix", ["ckpt", "pt"])
def test_weights_of_the_known_layout(suffix: str, tmp_path: Path) -> None:
    """Losses' networks and parts without a use are dropped; sizes follow from the shapes."""
    config = CViViTConfig(width=16, heads=2, head_dim=4, patch=4, span=3, spatial=2, bits=10)
    torch.manual_seed(0)
    network = CViViTNetwork(config).eval()
    state = dict(network.state_dict())
    other = {"vgg.features.0.bias": 3, "discr.x": 1, "vq.mask": 10}
    other |= {
        f"enc_spatial_transformer.layers.0.1.{x}": 4 for x in ("context_norm.beta", "null_kv")
    }
    file = tmp_path / f"cvivit.{suffix}"
    torch.save(state | {name: torch.zeros(n) for name, n in other.items()}, file)
    loaded = CViViT(weights=str(file))
    assert loaded.config == config
    got = loaded.network.state_dict()
    assert got.keys() == state.keys()
    assert all(torch.equal(got[name], state[name]) for name in state)
    codes = loaded.encode([clip(5)])
    assert codes.grids == [(3, 4, 6)]
    assert len(codes.ids[0].unique()) > 10
    loaded.save(tmp_path / "own")
    assert CViViT(weights=str(tmp_path / "own")).tokenizer_hash == loaded.tokenizer_hash
    del state["vq.project_in.weight"]
    torch.save(state, file)
    with pytest.raises(InputError, match=r"no weights of C-ViViT"):
        CViViT(weights=str(file)).encode([clip(1)])
    with pytest.raises(InputError, match="power of two"):
        CViViTConfig(heads=6)


def test_frames_whose_attention_takes_gigabytes_are_refused() -> None:
    tokenizer = CViViT()
    assert tokenizer.grid((3, 3, 512, 1024)) == (2, 64, 128)
    for shape in ((3, 512, 1025), (3, 3, 520, 1024)):
        with pytest.raises(InputError, match=r"are 8[0-9]* tokens, expected at most 8192"):
            tokenizer.grid(shape)
