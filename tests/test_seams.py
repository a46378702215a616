"""Dropping in front of the decoder is masking, keeping all changes nothing: for every family."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from mmtok import InputError, reduced
from mmtok.models.families import family_of
from mmtok.models.reduction import Reduction
from mmtok.pruning import build
from mmtok.pruning.base import Reducer, keep_all
from tests.conftest import batch, tiny_model

GREEDY = {"max_new_tokens": 5, "do_sample": False}


def stock_positions(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    return model._prepare_position_ids_for_generation(inputs["input_ids"], dict(inputs))


def dropped_mask(reduction: Reduction, inputs: dict[str, Any]) -> torch.Tensor:
    """(B, S) attention mask of the full prompt without the tokens a reduction dropped."""
    mask = inputs["attention_mask"].clone()
    for part in reduction.media:
        for places, kept in zip(part.places, part.kept, strict=True):
            gone = torch.ones(len(places), dtype=torch.bool)
            gone[kept] = False
            mask.view(-1)[places[gone]] = 0
    return mask


def test_keep_all_is_bit_identical(case: tuple[str, str]) -> None:
    model, _ = tiny_model(case[0])
    inputs = batch(*case)
    want_tokens, want = model.generate(**inputs, **GREEDY), model(**inputs).logits
    with reduced(model, "todre(keep=1.0, tau=0)"):
        assert torch.equal(model.generate(**batch(*case), **GREEDY), want_tokens)
        assert torch.equal(model(**batch(*case)).logits, want)


def test_tokens_that_nobody_read_are_the_same_afterwards(case: tuple[str, str]) -> None:
    """`keep=1.0` describes the tower's output when asked; `keep` in tokens while it runs."""
    model, _ = tiny_model(case[0])
    beams = {} if family_of(model).flat else {"num_beams": 2}
    with reduced(model, "random(keep=1.0)") as late:
        model.generate(**batch(*case), **GREEDY, num_beams=2)  # repeats features in place
    with reduced(model, "random(keep=1000)") as early:
        model.generate(**batch(*case), **GREEDY, **beams)
    assert late.prompt_length == early.prompt_length
    for ours, other in zip(late.media, early.media, strict=True):
        assert ours.whole
        assert other.whole
        assert torch.equal(ours.tokens.features, other.tokens.features)
        assert torch.equal(ours.tokens.position, other.tokens.position)
        for place, want in zip(ours.places, other.places, strict=True):
            assert torch.equal(place, want)


def test_dropping_equals_masking(case: tuple[str, str]) -> None:
    model, _ = tiny_model(case[0])
    inputs = batch(*case)
    positions = stock_positions(model, inputs)
    with reduced(model, "random(keep=0.4)") as reduction:
        got = model.generate(**inputs, **GREEDY, output_logits=True, return_dict_in_generate=True)
    mask = dropped_mask(reduction, inputs)
    assert mask.sum() < inputs["attention_mask"].sum()
    want = model.generate(
        **(batch(*case) | {"attention_mask": mask, "position_ids": positions}),
        **GREEDY,
        output_logits=True,
        return_dict_in_generate=True,
    )
    assert torch.equal(got.sequences, want.sequences)
    for a, b in zip(got.logits, want.logits, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_these_models_notice_a_dropped_token(case: tuple[str, str]) -> None:
    """Canary: were the random models blind to the image, the tests here could not fail."""
    model, _ = tiny_model(case[0])
    last = {}
    for spec in ("random(keep=0.4)", "random(keep=0.4, seed=1)"):
        with reduced(model, spec):
            last[spec] = model(**batch(*case, rows=(0,))).logits[0, -1]
    one, two = last.values()
    assert (one - two).abs().max() > 1e-3


def test_forward_gives_the_logits_of_kept_positions(case: tuple[str, str]) -> None:
    model, _ = tiny_model(case[0])
    inputs = batch(*case, rows=(0,))
    positions = stock_positions(model, inputs)
    with reduced(model, "stride(keep=0.3)") as reduction:
        got = model(**inputs).logits
    mask = dropped_mask(reduction, inputs)
    want = model(**(batch(*case, rows=(0,)) | {"attention_mask": mask, "position_ids": positions}))
    torch.testing.assert_close(got[0], want.logits[0][mask[0].bool()], rtol=1e-5, atol=1e-5)


def test_a_batch_equals_its_prompts_one_by_one(case: tuple[str, str]) -> None:
    model, _ = tiny_model(case[0])
    for spec in ("todre(keep=0.3, tau=0)", "random(keep=0.3)"):
        with reduced(model, spec) as reduction:
            model.generate(**batch(*case), **GREEDY)
            together = [k for part in reduction.media for k in part.kept]
            alone = []
            for row in (0, 1):
                model.generate(**batch(*case, rows=(row,)), **GREEDY)
                alone += [k for part in reduction.media for k in part.kept]
        assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))


def test_sequences_begin_with_the_users_prompt(case: tuple[str, str]) -> None:
    model, _ = tiny_model(case[0])
    inputs = batch(*case)
    length = inputs["input_ids"].shape[1]
    with reduced(model, "stride(keep=2)") as reduction:
        out = model.generate(**inputs, max_length=length + 3, do_sample=False)
        assert reduction.prompt_length < length
    assert torch.equal(out[:, :length], inputs["input_ids"])
    assert out.shape[1] <= length + 3


def test_positions_and_grid_fit_the_tokens(case: tuple[str, str]) -> None:
    model, _ = tiny_model(case[0])
    with reduced(model, "todre(keep=1.0, tau=0)") as reduction:
        model.generate(**batch(*case), **GREEDY)
    tokens = reduction.visual_tokens[0]
    for position, mask, grid in zip(tokens.position, tokens.mask, tokens.grid, strict=True):
        cells = position[mask]
        assert len(cells.unique(dim=0)) == len(cells)
        assert (cells >= 0).all()
        assert (cells <= grid).all(), "a newline token may stand one column right of its row"
        assert (cells[:, :2] < grid[:2]).all()


@dataclass(frozen=True, kw_only=True)
class Curious(Reducer):
    """Keep all, but ask for everything known of a patch."""

    wants = frozenset({"cls_attention", "keys"})

    keep: int | float = 10**6

    def after_encoder(self, tokens: Any, query: Any) -> Any:
        return keep_all(tokens)


def test_facts_of_patches_reach_their_tokens(case: tuple[str, str]) -> None:
    """Against the tower run by itself with eager attention, where tokens are patches."""
    model, _ = tiny_model(case[0])
    family = family_of(model)
    with reduced(model, Curious()) as reduction:
        model.generate(**batch(*case), **GREEDY)
    tokens = reduction.visual_tokens[0]
    assert (tokens.cls_attention is not None) == family.has_cls
    assert (tokens.keys is not None) == family.has_keys
    if tokens.keys is not None:
        assert tokens.keys.shape[:2] == tokens.mask.shape
    if tokens.cls_attention is None:
        return
    assert (tokens.cls_attention >= 0).all()
    if case != ("llava", "image"):
        assert tokens.cls_attention.max() > 0
        return
    model.set_attn_implementation({"vision_config": "eager"})
    tower = model.base_model.vision_tower
    seen = tower(batch(*case)["pixel_values"], output_attentions=True).attentions[-1]
    model.set_attn_implementation({"vision_config": "sdpa"})
    torch.testing.assert_close(tokens.cls_attention, seen.mean(1)[:, 0, 1:], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "llava_onevision"])
def test_beams_and_copies(family: str) -> None:
    model, _ = tiny_model(family)
    with reduced(model, "stride(keep=4)"):
        out = model.generate(
            **batch(family, "image"), num_beams=2, num_return_sequences=2, **GREEDY
        )
    assert len(out) == 4


def test_a_model_is_reduced_once_at_a_time() -> None:
    model, _ = tiny_model("llava")
    with reduced(model, "stride(keep=3)") as outer:
        with (
            pytest.raises(InputError, match="inside reduced"),
            reduced(model, "stride(keep=2)"),
        ):
            pass
        model.generate(**batch("llava", "image"), **GREEDY)
        assert {kept for _, _, kept in outer.tokens} == {3}


def test_unknown_family_names_what_is_missing() -> None:
    class Config:
        model_type = "llava_nxt"

    class Model:
        config = Config()

    with pytest.raises(InputError, match=r"did you mean 'llava_next'.*families\.py"):
        Reduction(Model(), build("random(keep=3)"))


def test_generate_without_a_cache_is_refused_where_tokens_left() -> None:
    """Without cache and mask, transformers takes gaps in position ids for packed sequences."""
    model, _ = tiny_model("llava")
    inputs = batch("llava", "image", rows=(0,))
    with reduced(model, "stride(keep=0.3)"):
        with pytest.raises(InputError, match="needs use_cache=True"):
            model.generate(**inputs, **GREEDY, use_cache=False)
        config = copy.deepcopy(model.generation_config)
        config.use_cache = False
        with pytest.raises(InputError, match="needs use_cache=True"):
            model.generate(**inputs, generation_config=config)
    want = model.generate(**inputs, **GREEDY, use_cache=False)
    with reduced(model, "stride(keep=1.0)"):
        assert torch.equal(model.generate(**inputs, **GREEDY, use_cache=False), want)
