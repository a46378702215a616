"""Options of `GenerationConfig` mean what they mean to stock `generate`, or are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GenerationConfig
from transformers.generation.logits_process import UnbatchedClassifierFreeGuidanceLogitsProcessor

from mmtok.decoding import Drafter, DraftTree, Target, generate
from mmtok.decoding.drafters.draftmodel import DraftModel
from mmtok.decoding.verifiers.rollback import Rollback
from mmtok.errors import InputError
from tests.decoders import llama, near, plain, prompts, row

GREEDY: dict[str, Any] = {"do_sample": False}


def stock(inputs: Any, **options: Any) -> torch.Tensor:
    return llama().generate(**inputs, **({"pad_token_id": 0} | options))


def ours(inputs: Any, **options: Any) -> torch.Tensor:
    known = {"pad_token_id": 0, "drafter": DraftModel(model=near())} | options
    return generate(llama(), inputs, **known).sequences


EOS = plain(llama(), prompts([9])["input_ids"][0].tolist(), 8)[3]


@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": 12, "eos_token_id": EOS},
        {"max_new_tokens": 12, "eos_token_id": EOS, "min_new_tokens": 6},
        {"max_length": 24, "eos_token_id": EOS, "min_length": 18},
        {"max_length": 15, "forced_eos_token_id": 7},
        {"max_new_tokens": 9, "eos_token_id": [EOS, 3], "pad_token_id": None},
        {"eos_token_id": EOS, "exponential_decay_length_penalty": (2, 1.3)},
        {"max_new_tokens": 9, "suppress_tokens": [EOS], "begin_suppress_tokens": [1, 2]},
        {"max_new_tokens": 9, "encoder_repetition_penalty": 1.4, "repetition_penalty": 0.8},
        {"max_new_tokens": 9, "bad_words_ids": [[EOS]], "renormalize_logits": True},
        {},
    ],
    ids=lambda options: "-".join(options) or "default length",
)
def test_options_mean_what_they_mean_to_stock(options: dict[str, Any]) -> None:
    inputs = prompts([9])
    assert torch.equal(ours(inputs, **GREEDY, **options), stock(inputs, **GREEDY, **options))


def test_the_default_length_counts_new_tokens() -> None:
    inputs = prompts([30])
    assert ours(inputs, **GREEDY).shape[1] == 50
    config = GenerationConfig(max_length=33, do_sample=False)
    assert ours(inputs, generation_config=config).shape[1] == 33


def test_penalties_see_guided_scores_as_stock_guidance_makes_them() -> None:
    inputs, negative = prompts([9]), prompts([4], seed=100)
    options = {**GREEDY, "max_new_tokens": 20, "guidance_scale": 2.0, "repetition_penalty": 1.5}
    want = stock(inputs, negative_prompt_ids=negative["input_ids"], **options)
    assert torch.equal(ours(inputs, negative=negative, **options), want)


class Letters:
    """As much of a tokenizer as stop strings ask for."""

    def get_vocab(self) -> dict[str, int]:
        return {chr(97 + i): i for i in range(24)}

    def _convert_id_to_token(self, token: int) -> str:
        return chr(97 + token)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return "".join(tokens)

    def __call__(self, text: str, **_: Any) -> Any:
        return {"input_ids": [ord(c) - 97 for c in text]}


def test_stop_strings_and_a_time_limit_end_rows() -> None:
    inputs = prompts([9])
    want = plain(llama(), inputs["input_ids"][0].tolist(), 12)
    text = "".join(chr(97 + t) for t in want[4:6])
    cut = next(i for i in range(11) if want[i : i + 2] == want[4:6]) + 2
    got = ours(inputs, stop_strings=text, tokenizer=Letters(), max_new_tokens=12, **GREEDY)
    assert got[0, 9:].tolist() == want[:cut]
    assert ours(inputs, max_time=0.0, max_new_tokens=12, **GREEDY).shape[1] == 10
    with pytest.raises(InputError, match="need the model's tokenizer"):
        ours(inputs, stop_strings=text, **GREEDY)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_return_sequences": 2, "do_sample": True}, "=2 .*: use 1 and repeat the prompts"),
        ({"num_return_sequences": "x"}, "'str' and 'int'"),
        ({"num_beams": 3}, "num_beams=3"),
        ({"num_beams": 0}, "num_beams=0"),
        ({"generation_config": GenerationConfig(num_beams=2)}, "num_beams=2"),
        ({"eos_token_id": "x"}, "ids of special tokens"),
        ({"return_dict_in_generate": True}, "return_dict_in_generate=True"),
        ({"output_scores": True}, "output_scores=True"),
        ({"prompt_lookup_num_tokens": 3}, "prompt_lookup_num_tokens=3"),
        ({"penalty_alpha": 0.6}, "penalty_alpha"),
        ({"prefill_chunk_size": 4}, "prefill_chunk_size"),
        ({"cache_implementation": "static"}, "'static'"),
        ({"cache_implementation": "quantized"}, "'quantized'"),
        ({"use_cache": False}, "use_cache=False"),
        ({"do_sample": True, "temperature": 0.0}, "temperature"),
        ({"max_length": 4}, "behind prompts of 5 tokens"),
        ({"logits_processor": [lambda ids, z: z - torch.inf], "do_sample": True}, "not finite"),
    ],
)
def test_what_a_loop_of_drafts_cannot_follow_is_refused(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        ours(prompts([5]), **({"do_sample": False} | options))
    assert "\n" not in str(caught.value)


def test_repeated_prompts_are_several_sequences() -> None:
    """Instead of num_return_sequences: a row draws what it draws alone."""
    options: dict[str, Any] = {"do_sample": True, "max_new_tokens": 8, "temperature": 2.0}
    one = prompts([5])
    several = {name: value.repeat_interleave(3, dim=0) for name, value in one.items()}
    together = ours(several, **options)
    assert torch.equal(together, torch.cat([ours(one, seed=r, **options) for r in range(3)]))
    assert len(together.unique(dim=0)) == 3


def test_processors_with_a_memory_are_refused() -> None:
    guided = UnbatchedClassifierFreeGuidanceLogitsProcessor(2.0, llama())
    with pytest.raises(InputError, match="remembers its calls"):
        ours(prompts([5]), logits_processor=[guided])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"past_key_values": object()}, "past_key_values"),
        ({"cache": object()}, "cache"),
        ({"inputs_embeds": torch.zeros(1, 5, 32)}, "inputs_embeds"),
        ({"input_ids": None}, "need input_ids"),
        ({"input_ids": torch.zeros(1, 0, dtype=torch.long)}, "at least one token"),
        ({"attention_mask": torch.ones(1, 1, 5, 5)}, "attention mask"),
    ],
)
def test_inputs_the_loop_makes_itself_are_refused(change: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ours(prompts([5]) | change)


def test_models_that_cannot_score_a_tree_are_refused() -> None:
    from transformers import (
        BloomConfig,
        BloomForCausalLM,
        MambaConfig,
        MambaForCausalLM,
        T5Config,
        T5ForConditionalGeneration,
    )

    small: dict[str, Any] = {"vocab_size": 24, "hidden_size": 16, "num_hidden_layers": 1}
    bloom = BloomForCausalLM(BloomConfig(vocab_size=24, hidden_size=16, n_layer=1, n_head=2))
    mamba = MambaForCausalLM(MambaConfig(**small))
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=24, d_model=16, d_ff=16, num_layers=1))
    flex = llama(attention="flex_attention")
    for model, message in (
        (bloom, "takes position_ids"),
        (mamba, "takes position_ids"),
        (t5, "decoder-only"),
        (flex, "attention that takes a mask"),
    ):
        with pytest.raises(InputError, match=message):
            Target(model)
    Target(torch.compile(llama()))  # what is inside counts


@torch.no_grad()
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_positions_of_ones_own_are_kept(scale: float) -> None:
    """As of prompts from which tokens were dropped: the places of the others stay."""
    inputs = prompts([7, 4])
    places = torch.tensor([[0, 3, 4, 9, 10, 11, 20], [0, 0, 0, 2, 5, 6, 30]])
    got = generate(
        llama(),
        inputs | {"position_ids": places},
        drafter=DraftModel(model=near()),
        guidance_scale=scale,
        max_new_tokens=10,
        **GREEDY,
    ).sequences[:, 7:]
    for r, kept in enumerate((slice(0, 7), slice(3, 7))):
        ids, at = inputs["input_ids"][r, kept][None], places[r, kept][None]
        for token in got[r]:
            z = llama()(ids, position_ids=at).logits[0, -1]
            if scale != 1:
                start = 6 - kept.start
                u = llama()(ids[:, start:], position_ids=at[:, start:] - at[:, start]).logits[0, -1]
                z = u + scale * (z - u)
            assert z.argmax() == token
            ids, at = torch.cat([ids, token[None, None]], 1), torch.cat([at, at[:, -1:] + 1], 1)


def test_rollback_relaxes_greedy_decoding_by_its_tolerance() -> None:
    inputs, drafter = prompts([9, 4]), DraftModel(model=near(noise=0.2), temperature=0.0)
    options: dict[str, Any] = {"drafter": drafter, "max_new_tokens": 24, "measure_tv": True}
    runs = {
        tau: generate(llama(), inputs, verifier=Rollback(tau=tau), **options)
        for tau in (0.0, 3.0, 50.0)
    }
    want = [plain(llama(), row(inputs, r)["input_ids"][0].tolist(), 24) for r in range(2)]
    assert runs[0.0].sequences[:, 9:].tolist() == want
    assert runs[0.0].stats.mean_tv == 0
    rates = [run.stats.accepted_per_step for run in runs.values()]
    assert rates[0] < rates[1] < rates[2]
    assert runs[50.0].stats.hits == runs[50.0].stats.tried
    assert runs[3.0].stats.mean_tv > 0


class Odd(Drafter):
    """Announces one kind and proposes another, or another row's token."""

    kind = "det"

    def __init__(self, root: int | None) -> None:
        self.root = root

    def propose(self, ids: list[list[int]], active: list[bool]) -> list[DraftTree]:
        if self.root is not None:
            return [DraftTree.root(self.root) for _ in ids]
        tokens, q = torch.tensor([ids[0][-1], 1]), torch.full((2, 24), 1 / 24).double()
        return [DraftTree(tokens, torch.tensor([-1, 0]), "chain", q)]


@pytest.mark.parametrize(("root", "message"), [(None, "and proposed 'chain'"), (99, "root")])
def test_a_drafter_that_breaks_its_word_is_refused(root: int | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ours(prompts([5]), drafter=Odd(root), **GREEDY)


def test_a_table_of_another_vocabulary_is_forgotten() -> None:
    from mmtok.decoding.drafters.recycling import Recycling

    drafter = Recycling()
    for vocabulary in (24, 12, 24):
        inputs = prompts([5], vocabulary=vocabulary)
        model = llama(vocabulary=vocabulary)
        got = generate(model, inputs, drafter=drafter, max_new_tokens=12, **GREEDY)
        want = plain(model, inputs["input_ids"][0].tolist(), 12)
        assert got.sequences[0, 5:].tolist() == want
