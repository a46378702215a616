"""A smaller picture through the pixels equals a smaller picture through the processor."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmtok import InputError, reduced
from mmtok.pruning.methods.downsample import _resize_patches, fit
from tests.conftest import batch, tiny_model


@given(h=st.integers(1, 60), w=st.integers(1, 60), share=st.floats(0.001, 1.0))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_fit_is_within_the_budget_and_keeps_the_shape(h: int, w: int, share: float) -> None:
    k = max(int(share * h * w), 1)
    rows, columns = fit(h, w, k)
    assert 1 <= rows <= h
    assert 1 <= columns <= w
    assert rows * columns <= k
    if k == h * w:
        assert (rows, columns) == (h, w)


def waves(side: int) -> Image.Image:
    y, x = np.mgrid[0:side, 0:side] / side
    planes = [np.sin(6 * x + 2 * y), np.cos(5 * y), x - y]
    return Image.fromarray((127 + 100 * np.stack(planes, -1)).astype(np.uint8))


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_resized_patches_are_those_of_the_resized_picture(family: str) -> None:
    model, processor = tiny_model(family)
    unit = model.config.vision_config.patch_size * model.config.vision_config.spatial_merge_size
    big = waves(8 * unit)
    small = big.resize((4 * unit, 4 * unit), Image.Resampling.BILINEAR)
    patches = [
        processor.image_processor([image], return_tensors="pt", do_resize=False)
        for image in (big, small)
    ]
    grids = [tuple(p["image_grid_thw"][0].tolist()) for p in patches]
    got = _resize_patches(model, patches[0]["pixel_values"], grids[0], list(grids[1]))
    want = patches[1]["pixel_values"]
    assert got.shape == want.shape
    assert (got - want).abs().mean() < 0.02
    assert (got - want.roll(1, 0)).abs().mean() > 0.05, "canary: the order of patches matters"
    same = _resize_patches(model, patches[0]["pixel_values"], grids[0], list(grids[0]))
    torch.testing.assert_close(same, patches[0]["pixel_values"])


def test_the_answer_is_that_of_the_small_picture() -> None:
    model, _ = tiny_model("llava")
    with reduced(model, "downsample(keep=0.25)") as reduction:
        out = model.generate(**batch("llava", "image"), max_new_tokens=3, do_sample=False)
    assert {kept for _, _, kept in reduction.tokens} == {9}
    length = batch("llava", "image")["input_ids"].shape[1]
    assert torch.equal(out[:, :length], batch("llava", "image")["input_ids"])


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_positions_of_the_whole_prompt_are_refused(family: str) -> None:
    """Unless no picture shrinks."""
    model, _ = tiny_model(family)
    inputs = batch(family, "image")
    inputs["position_ids"] = torch.arange(inputs["input_ids"].shape[1])[None]
    want = model(**inputs).logits
    with reduced(model, "downsample(keep=0.5)"), pytest.raises(InputError, match="leave them out"):
        model(**inputs)
    with reduced(model, "downsample(keep=1.0)"):
        assert torch.equal(model(**inputs).logits, want)
