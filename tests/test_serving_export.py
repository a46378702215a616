"""Stored features back in a model, and in the forms that servers take."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmtok import InputError, Pipeline
from mmtok.models.reduction import Reduction
from mmtok.pruning import build
from mmtok.serving.export import check, export, read_hf
from mmtok.serving.features import encode_batch, model_inputs
from mmtok.serving.preprocess import preprocess
from mmtok.serving.replay import prompt_inputs
from mmtok.serving.shards import read_item, read_manifest
from mmtok.serving.sources import list_sources
from mmtok.serving.work import Job
from tests.conftest import picture
from tests.test_serving import SPEC, recipe, tiny
from tests.videos import write


@pytest.mark.parametrize("spec", [SPEC, "random(keep=1.0)"])
def test_stored_features_answer_as_the_pipeline_does(
    case: tuple[str, str], spec: str, tmp_path: Path
) -> None:
    answers_agree(*case, spec, tmp_path)


@pytest.mark.parametrize("family", ["llava", "llava_next", "llava_onevision", "paligemma"])
def test_merged_features_answer_as_the_pipeline_does(family: str, tmp_path: Path) -> None:
    answers_agree(family, "image", "tome(keep=0.6)", tmp_path)


@pytest.mark.parametrize("family", ["llava", "paligemma", "qwen2_vl"])
def test_smaller_pictures_are_told_apart_in_a_batch(family: str) -> None:
    lvlm, spec = tiny(family), "downsample(keep=0.25)"
    reduction, made = Reduction(lvlm.model, build(spec)), recipe(spec)
    both = [picture(1, 90, 90), picture(2, 90, 90), picture(3, 90, 90)]
    runs = [both, *([one] for one in both)]
    together, *alone = (
        encode_batch(lvlm, reduction, run, model_inputs(lvlm, run, made), made) for run in runs
    )
    for ours, (want,) in zip(together, alone, strict=True):
        assert ours.kept_counts == want.kept_counts
        torch.testing.assert_close(ours.features, want.features)


def answers_agree(family: str, kind: str, spec: str, tmp_path: Path) -> None:
    """preprocess, then stock `generate`: token by token the in-process pipeline, in a batch."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(2):
        if kind == "video":
            write(folder / f"{number}.mp4", count=8 + 4 * number)
        else:
            picture(number, 90 + 40 * number, 100).save(folder / f"{number}.png")
    lvlm, out = tiny(family), tmp_path / "out"
    preprocess(list_sources(folder), out, lvlm, build(spec), recipe(spec, frames=4), Job())
    rows = read_manifest(out)
    texts = ["what is it?", "and here, what?"]
    stored = [(row, read_item(out, row)) for row in rows]
    options = {"max_new_tokens": 5, "do_sample": False}
    inputs = prompt_inputs(lvlm, stored, texts)
    assert not any(name.startswith("pixel_values") for name in inputs)
    with torch.inference_mode():
        got = lvlm.model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :]
    pipe = Pipeline(lvlm, spec)
    for row, text, new in zip(rows, texts, got, strict=True):
        file = [str(folder / row["sources"][0])]
        media = {"videos": file, "frames": 4} if kind == "video" else {"images": file}
        want = pipe.generate(text=text, **media, **options)
        assert lvlm.decode(new[None]) == want.texts


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_5_vl", "qwen3_vl", "gemma3"])
def test_an_export_to_hf_answers_as_the_pipeline_does(family: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    picture(5, 90, 70).save(tmp_path / "in" / "a.png")
    lvlm, out = tiny(family), tmp_path / "out"
    preprocess(list_sources(tmp_path / "in"), out, lvlm, build(SPEC), recipe(), Job())
    (uuid,) = export(out, "hf", tmp_path / "hf", lvlm, "what is it?")
    line = json.loads((tmp_path / "hf" / "index.jsonl").read_text())
    assert line["uuid"] == uuid
    options = {"max_new_tokens": 5, "do_sample": False}
    inputs = read_hf(tmp_path / "hf", line)
    with torch.inference_mode():
        got = lvlm.model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :]
    file = str(tmp_path / "in" / "a.png")
    assert lvlm.decode(got) == Pipeline(lvlm, SPEC).generate([file], "what is it?", **options).texts


def test_exports_for_servers_hold_what_they_take_or_say_why_not(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    picture(5, 90, 70).save(tmp_path / "in" / "a.png")
    made: dict[str, dict[str, torch.Tensor]] = {}
    for family, spec in (("llava", SPEC), ("qwen2_5_vl", SPEC), ("qwen3_vl", "random(keep=1.0)")):
        lvlm, out = tiny(family), tmp_path / family
        preprocess(list_sources(tmp_path / "in"), out, lvlm, build(spec), recipe(spec), Job())
        for target in ("vllm", "sglang", "lmdeploy"):
            to = tmp_path / f"{family}-{target}"
            if family == "qwen2_5_vl" or (family, target) == ("qwen3_vl", "lmdeploy"):
                with pytest.raises(InputError, match="M-RoPE"):
                    export(out, target, to, lvlm, "what?")
                assert not to.exists()
                continue
            export(out, target, to, lvlm, "what?")
            made[to.name] = load_file(next(to.glob("*.safetensors")))
    kept = made["llava-vllm"]["image"].shape[1]
    assert made["llava-sglang"]["feature"].shape[0] == kept
    image = tiny("llava").config.image_token_id
    assert int((made["llava-sglang"]["input_ids"] == image).sum()) == kept
    (start, end) = made["llava-lmdeploy"]["input_embedding_ranges"][0].tolist()
    assert end - start == kept
    assert (made["llava-lmdeploy"]["input_ids"][0, start:end] == image).all()
    whole = made["qwen3_vl-vllm"]
    t, h, w = whole["image_grid_thw"][0].tolist()
    merge = tiny("qwen3_vl").config.vision_config.spatial_merge_size
    assert len(whole["image_embeds"]) == t * h * w // merge**2
    assert whole["image_embeds"].shape[1] > tiny("qwen3_vl").config.text_config.hidden_size
    with pytest.raises(InputError, match="did you mean 'vllm'"):
        export(tmp_path / "llava", "vlm", tmp_path / "x", tiny("llava"))


@pytest.mark.parametrize("family", ["llava", "llava_next", "internvl"])
def test_a_prompt_of_embeddings_is_the_prompt(family: str, tmp_path: Path) -> None:
    """Logits equal those of the same tokens through `mm_encoder_outputs`, numbered anew."""
    (tmp_path / "in").mkdir()
    picture(5, 90, 70).save(tmp_path / "in" / "a.png")
    lvlm, out, to = tiny(family), tmp_path / "out", tmp_path / "to"
    preprocess(list_sources(tmp_path / "in"), out, lvlm, build(SPEC), recipe(), Job())
    export(out, "vllm-prompt", to, lvlm, "what is it?")
    (row,) = read_manifest(out)
    embeds = load_file(next(to.glob("*.safetensors")))["prompt_embeds"]
    inputs = prompt_inputs(lvlm, [(row, read_item(out, row))], "what is it?")
    inputs.pop("position_ids")
    with torch.inference_mode():
        want, got = lvlm.model(**inputs).logits, lvlm.model(inputs_embeds=embeds[None]).logits
    assert torch.allclose(got, want, atol=1e-4, rtol=1e-4)


def test_an_encoder_cache_holds_whole_items_alone(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    picture(5, 90, 70).save(tmp_path / "in" / "a.png")
    lvlm = tiny("llava")
    for keep in (1.0, 0.5):
        spec, out, to = f"random(keep={keep})", tmp_path / f"{keep}", tmp_path / f"to-{keep}"
        preprocess(list_sources(tmp_path / "in"), out, lvlm, build(spec), recipe(spec), Job())
        if keep < 1:
            with pytest.raises(InputError, match="lays out placeholders"):
                export(out, "vllm-cache", to, lvlm)
            continue
        (uuid,) = export(out, "vllm-cache", to, lvlm)
        (row,) = read_manifest(out)
        cached = load_file(to / uuid / "encoder_cache.safetensors")["ec_cache"]
        assert torch.equal(cached, read_item(out, row)["features"])
    with pytest.raises(InputError, match="M-RoPE"):
        check("vllm-prompt", "qwen2_vl", row)
