"""Plans: reference numbers, and token counts that equal those of the real processors."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from mmtok import InputError, plan
from mmtok.accounting.flops import count_flops
from mmtok.accounting.planned import planned
from mmtok.accounting.shapes import anyres_tiles, media_shapes
from mmtok.models.dummy import FAMILIES, tiny_config
from mmtok.models.load import load_config, shipped_names
from mmtok.models.lvlm import LVLM
from mmtok.models.processors import build_processor
from mmtok.pruning import build
from mmtok.pruning.base import Reducer
from mmtok.tokens import Query, Selection, VisualTokens
from tests.conftest import picture, tiny_model

GOLDEN = json.loads((Path(__file__).parent / "data/accounting/golden.json").read_text())


@dataclass(frozen=True, kw_only=True)
class Keep(Reducer):
    """Keeps a share after the encoder and drops everything from a decoder layer on."""

    layer: int = 10**6

    def after_encoder(self, tokens: VisualTokens, query: Query | None) -> Selection:
        raise AssertionError("a plan runs nothing")

    def decoder_schedule(self, layers: int, visual: int) -> list[int]:
        return [visual if layer < self.layer else 0 for layer in range(layers)]


@dataclass(frozen=True, kw_only=True)
class Half(Reducer):
    """Gives the encoder half as many rows and columns."""

    def before_encoder(self, model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        raise AssertionError("a plan runs nothing")

    def encoder_grid(self, t: int, h: int, w: int) -> tuple[int, int]:
        return h // 2, w // 2


@dataclass(frozen=True, kw_only=True)
class Darker(Reducer):
    """Changes the pictures without a word about their size."""

    def before_encoder(self, model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        raise AssertionError("a plan runs nothing")


@pytest.mark.parametrize("row", GOLDEN["llava_1_5_7b"])
def test_llava_reference(row: dict[str, int]) -> None:
    reduce, text = Keep(keep=row["visual_tokens_kept"]), row["text_tokens"]
    whole = plan("llava-1.5-7b", reduce=reduce, text_tokens=text, logits="all").reduced
    last = plan("LLaVA-1.5-7B", reduce=reduce, text_tokens=text).reduced
    assert whole.ledger.total.flops_analytic == row["total"]
    assert last.ledger.total.flops_analytic == row["total_last_logit_only"]
    assert last.kv_bytes == row["kv_cache_bytes_fp16"]
    assert last.visual_tokens == row["visual_tokens_kept"]


@pytest.mark.parametrize("row", GOLDEN["qwen2_5_vl"]["qwen2_5_vl_3b_like"]["prefill"])
def test_qwen_reference(row: dict[str, Any]) -> None:
    side = row["grid_thw"][1] * 14
    made = plan(
        "qwen2.5-vl-3b",
        reduce=Keep(keep=row["visual_tokens_kept"]),
        text_tokens=row["text_tokens"],
        image_size=(side, side),
        logits="all",
    )
    assert made.baseline.visual_tokens == row["visual_tokens"]
    assert made.reduced.ledger.total.flops_analytic == row["total"]
    assert made.reduced.kv_bytes == row["kv_cache_bytes_fp16"]


def test_contract_and_stages() -> None:
    made = plan("llava-1.5-7b", reduce="todre(keep=0.1)", new_tokens=3)
    data = json.loads(made.to_json())
    for side in ("baseline", "reduced"):
        assert set(data[side]) >= {"stages", "prefill_flops", "kv_bytes", "visual_tokens"}
    assert [s["stage"] for s in data["baseline"]["stages"]] == ["encode", "prefill", "decode"]
    encode, select, prefill, decode = data["reduced"]["stages"]
    assert (select["tokens_in"], select["tokens_out"]) == (576, 58)
    assert select["flops_analytic"] == build("todre(keep=0.1)")[0].select_flops(576, 4096) > 0
    assert prefill["flops_analytic"] == data["reduced"]["prefill_flops"]
    assert prefill["kv_bytes"] == data["reduced"]["kv_bytes"] == (58 + 64) * 524288
    assert decode["kv_bytes"] == (58 + 64 + 2) * 524288  # the last token is never read
    config = load_config("llava-1.5-7b").text_config
    weights = config.num_hidden_layers * (4 * 4096**2 + 3 * 4096 * 11008) + 4096 * 32064
    attention = 4 * 32 * 4096 * (123 + 124)
    assert decode["flops_analytic"] == 2 * 2 * weights + attention
    assert encode["flops_analytic"] == data["baseline"]["stages"][0]["flops_analytic"]
    assert "reduce.select" in made.table()


def test_without_a_reducer_both_sides_agree() -> None:
    made = plan("smolvlm-256m", images=2)
    assert made.baseline == made.reduced


def test_tokens_that_leave_inside_the_decoder() -> None:
    made = plan("llava-1.5-7b", reduce=[Keep(keep=100), Keep(keep=0.5, layer=2)])
    assert made.reduced.visual_tokens == 50
    assert made.reduced.kv_bytes == 524288 // 32 * (2 * (50 + 64) + 30 * 64)


def test_budget_is_per_item() -> None:
    made = plan("llava-1.5-7b", reduce=Keep(keep=10), images=3)
    assert (made.baseline.visual_tokens, made.reduced.visual_tokens) == (3 * 576, 30)


@pytest.mark.parametrize("family", ["llava", "paligemma"])
def test_smaller_pictures_cost_what_the_tower_spends_on_them(family: str) -> None:
    model, _ = tiny_model(family)
    made = plan(model.config, reduce=Half(), images=2)
    side, patch = (getattr(model.config.vision_config, f"{x}_size") for x in ("image", "patch"))
    small = torch.rand(2, 3, *(side // patch // 2 * patch,) * 2)
    with torch.inference_mode(), count_flops() as count:
        output = model.base_model.get_image_features(small, interpolate_pos_encoding=True)
    assert made.reduced.ledger.stages[0].flops_analytic == count.total
    assert made.reduced.visual_tokens == sum(len(x) for x in output.pooler_output)


def test_smaller_grids() -> None:
    whole, half = (plan("qwen3-vl-4b", image_size=(s, s), frames=4) for s in (512, 256))
    reduced = plan("qwen3-vl-4b", image_size=(512, 512), frames=4, reduce=Half()).reduced
    assert reduced.prefill_flops == half.baseline.prefill_flops < whole.baseline.prefill_flops
    encode = reduced.ledger.stages[0]
    assert encode.flops_analytic == half.baseline.ledger.stages[0].flops_analytic


def test_pictures_that_cannot_be_made_smaller() -> None:
    with pytest.raises(InputError, match="tiles of one size"):
        plan("internvl3-8b", reduce=Half())
    with pytest.raises(InputError, match="cannot be planned"):
        plan("llava-1.5-7b", reduce=Darker())


class OnCpu(LVLM):
    """Makes inputs for a model that does not exist."""

    device = torch.device("cpu")
    dtype = torch.float32


def assert_as_processed(
    config: Any, size: tuple[int, int], images: int, frames: int | None
) -> None:
    """The planned tokens and crops are those of the processor's own placeholders and tensors."""
    lvlm = OnCpu(model=None, processor=build_processor(config), name="", config=config)
    pictures = [picture(i, size[1], size[0]) for i in range(frames or images)]
    inputs = lvlm.inputs(pictures, "what?") if frames is None else lvlm.inputs(videos=[pictures])
    count = {"images": images} if frames is None else {"frames": frames}
    media = planned(config, size=size, **count)
    tokens = [config.image_token_id, getattr(config, "video_token_id", None)]
    placeholders = sum(int((inputs["input_ids"] == t).sum()) for t in tokens if t is not None)
    assert sum(media.items) == placeholders
    seen = media_shapes(config, inputs)
    assert media.shapes.grids == seen.grids
    assert media.shapes.crops + media.shapes.frames == seen.crops + seen.frames


SIZES = [(100, 150), (333, 100), (56, 56), (41, 230)]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_of_one_image(family: str, size: tuple[int, int]) -> None:
    assert_as_processed(tiny_config(family), size, 1, None)


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_of_several_images(family: str) -> None:
    assert_as_processed(tiny_config(family), (90, 120), 3, None)


@pytest.mark.parametrize("frames", [2, 5])
@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_of_a_clip(family: str, frames: int) -> None:
    assert_as_processed(tiny_config(family), (90, 120), 1, frames)


@pytest.mark.parametrize("name", shipped_names())
def test_tokens_of_shipped_models(name: str) -> None:
    assert_as_processed(load_config(name), (480, 640), 1, None)


def test_tokens_of_a_large_image_that_onevision_scales_down() -> None:
    assert_as_processed(load_config("llava-onevision-0.5b"), (1500, 1490), 1, None)


def test_the_smallest_tiling_that_keeps_every_pixel_wins() -> None:
    pinpoints = [[672, 672], [336, 672], [672, 336]]
    assert anyres_tiles((300, 300), pinpoints, 336) == (1, 2)
    assert anyres_tiles((600, 300), pinpoints, 336) == (2, 1)
    assert anyres_tiles((600, 600), pinpoints, 336) == (2, 2)


def test_bad_input() -> None:
    with pytest.raises(InputError, match=r"did you mean 'llava-1\.5-7b'"):
        plan("llava-1.5-7bb")
    with pytest.raises(InputError, match="positive sizes"):
        plan("llava-1.5-7b", image_size=(0, 5))
    with pytest.raises(InputError, match="aspect ratios up to 200"):
        plan("qwen2.5-vl-3b", image_size=(10, 5000))
    with pytest.raises(InputError, match="new_tokens >= 1"):
        plan("llava-1.5-7b", new_tokens=0)


def test_a_users_own_config(tmp_path: Path) -> None:
    config = load_config("llava-onevision-0.5b")
    config.save_pretrained(tmp_path)
    sizes = {"reduce": "stride(keep=0.1)", "image_size": (300, 200)}
    named = plan("llava-onevision-0.5b", **sizes)
    assert plan(str(tmp_path), **sizes).reduced == named.reduced
    assert plan(tmp_path / "config.json", **sizes).baseline == named.baseline


def test_planning_makes_no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a plan builds no module and no parameter")

    monkeypatch.setattr(torch.nn.Module, "__init__", forbidden)
    monkeypatch.setattr(torch.nn.Parameter, "__new__", forbidden)
    assert plan("qwen2.5-vl-7b", reduce="todre(keep=0.1)").reduced.prefill_flops > 0
    with pytest.raises(AssertionError):
        torch.nn.Linear(2, 2)
