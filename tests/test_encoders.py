"""Encoders of timm and open_clip: patch tokens, keys, and the CLS row against an eager softmax."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from mmtok import InputError, load_encoder
from mmtok.models.encoders import Encoder

VIT = "timm:vit_tiny_patch16_224"
SMALL = {"img_size": 64, "depth": 2}
CLIP_TOWER = {"image_size": 64, "layers": 2, "width": 64, "patch_size": 16, "head_width": 32}
TIMM = [
    ("vit_tiny_patch16_224", True),
    ("deit_tiny_distilled_patch16_224", True),
    ("vit_small_patch14_reg4_dinov2", True),
    ("vit_medium_patch16_reg4_gap_256", False),
    ("eva02_tiny_patch14_224", True),
    ("vit_small_patch16_dinov3", True),
    ("vit_base_patch16_siglip_224", False),
    ("beit_base_patch16_224", True),
]


def small(name: str) -> Encoder:
    size = 56 if "patch14" in name else 64
    return load_encoder(f"timm:{name}", img_size=size, depth=2)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    """A small CLIP, registered with open_clip by its own means."""
    import json

    import open_clip

    config = {
        "embed_dim": 32,
        "vision_cfg": CLIP_TOWER,
        "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1},
    }
    path = tmp_path_factory.mktemp("clip") / "ViT-small-test.json"
    path.write_text(json.dumps(config))
    open_clip.add_model_config(path)
    return load_encoder("open_clip:ViT-small-test")


def pixels(encoder: Encoder, batch: int = 2) -> torch.Tensor:
    height, width = encoder.image_size or (64, 64)
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def eager_rows(encoder: Encoder, x: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """(B, H, S, S) attention of the last layer by the library's own unfused code."""
    layer, seen = encoder.attention, []
    monkeypatch.setattr(layer, "fused_attn", False)
    hook = layer.attn_drop.register_forward_hook(lambda m, a, out: seen.append(out))
    encoder.patches(x)
    hook.remove()
    monkeypatch.undo()
    return seen[0]


@pytest.mark.parametrize(("name", "has_cls"), TIMM)
def test_timm_tokens_and_cls_row(name: str, has_cls: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = small(name)
    x = pixels(encoder)
    out = encoder(x)
    rows, columns = (n // p for n, p in zip(x.shape[-2:], encoder.patch_size, strict=True))
    whole = encoder.model.forward_features(x)
    torch.testing.assert_close(out.features, whole[:, -rows * columns :])
    assert whole.shape[1] == encoder.prefix + rows * columns
    assert out.grid.tolist() == [[1, rows, columns]] * 2
    assert out.position[0, columns + 1].tolist() == [0, 1, 1]
    assert out.keys.shape[:2] == out.features.shape[:2]
    if not has_cls:
        assert out.cls_attention is None
        return
    expected = eager_rows(encoder, x, monkeypatch)[:, :, 0].mean(1)[:, encoder.prefix :]
    torch.testing.assert_close(out.cls_attention, expected, atol=1e-6, rtol=1e-4)


def test_keys_are_the_last_layers_keys() -> None:
    encoder = small("vit_tiny_patch16_224")
    seen: list[torch.Tensor] = []
    hook = encoder.attention.qkv.register_forward_hook(lambda m, a, out: seen.append(out))
    out = encoder(pixels(encoder))
    hook.remove()
    _, key, _ = seen[0].chunk(3, dim=-1)
    torch.testing.assert_close(out.keys, key[:, 1:])


def test_open_clip_tokens_keys_and_cls_row(clip: Encoder) -> None:
    x = pixels(clip)
    out = clip(x)
    assert out.features.shape == (2, 16, 64)
    assert out.grid.tolist() == [[1, 4, 4]] * 2
    layer, seen = clip.attention, []
    hook = layer.register_forward_pre_hook(lambda m, a: seen.append(a[0]))
    whole = clip.model.transformer(clip.model._embeds(x))
    hook.remove()
    torch.testing.assert_close(out.features, clip.model.ln_post(whole)[:, 1:])
    _, weights = layer(seen[0], seen[0], seen[0], need_weights=True, average_attn_weights=True)
    torch.testing.assert_close(out.cls_attention, weights[:, 0, 1:], atol=1e-6, rtol=1e-4)
    key = nn.functional.linear(seen[0], layer.in_proj_weight[64:128], layer.in_proj_bias[64:128])
    torch.testing.assert_close(out.keys, key[:, 1:])


def test_images_in_any_form() -> None:
    encoder = small("vit_tiny_patch16_224")
    noise = np.random.default_rng(0).integers(0, 255, (50, 80), dtype=np.uint8)
    gray = Image.fromarray(noise)
    one, two = encoder(gray), encoder([gray, gray.convert("RGB")])
    assert len(one.features) == 1
    torch.testing.assert_close(two.features[:1], one.features)
    torch.testing.assert_close(two.features[1], two.features[0])


def test_a_batch_is_its_items() -> None:
    encoder = small("vit_tiny_patch16_224")
    x = pixels(encoder, 3)
    batch = encoder(x)
    for i in range(3):
        single = encoder(x[i : i + 1])
        torch.testing.assert_close(batch.cls_attention[i : i + 1], single.cls_attention)
        torch.testing.assert_close(batch.features[i : i + 1], single.features)


def test_nothing_stays_behind_and_weights_follow_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = load_encoder(VIT, seed=3, **SMALL)
    x = pixels(encoder)
    plain = encoder.model.forward_features(x)
    seeded = load_encoder(VIT, seed=3, **SMALL)
    torch.testing.assert_close(seeded.model.forward_features(x), plain)
    assert not torch.allclose(load_encoder(VIT, seed=4, **SMALL)(x).features, plain[:, 1:])

    def fail(*args: object) -> None:
        raise RuntimeError("stop")

    monkeypatch.setattr(encoder.attention.proj, "forward", fail)
    with pytest.raises(RuntimeError, match="stop"):
        encoder(x)
    monkeypatch.undo()
    assert not encoder.attention._forward_hooks
    assert not encoder.attention._forward_pre_hooks
    torch.testing.assert_close(encoder.model.forward_features(x), plain)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("vit_base", "timm:<model>"),
        ("timm:", "timm:<model>"),
        ("timm:vit_tiny_patch16_225", "did you mean 'vit_tiny_patch16_224'"),
        ("timm:resnet10t", "not a plain vision transformer"),
        ("open_clip:ViT-B-33", "did you mean 'ViT-B-32'"),
    ],
)
def test_bad_names(name: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        load_encoder(name)


def test_bad_pixels() -> None:
    encoder = small("vit_tiny_patch16_224")
    with pytest.raises(InputError, match=r"\(B, 3, H, W\)"):
        encoder(torch.zeros(3, 64, 64))
    with pytest.raises(InputError, match=r"\(64, 64\) pixels"):
        encoder(torch.zeros(1, 3, 32, 32))
    with pytest.raises(InputError, match="no images"):
        encoder([])
