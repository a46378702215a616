"""Models that cannot be followed past a place, or not at all, and rows that end before others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from mmtok.decoding import Drafter, DraftTree, Target, generate
from mmtok.decoding.tree import Kind
from mmtok.errors import InputError
from tests.decoders import llama, prompts


def tables() -> dict[str, Any]:
    """Models of 21 learnt places; OPT's table has two rows more."""
    from transformers import GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM

    ends: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    own = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 21}
    size = {"hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 16, "num_attention_heads": 2}
    size |= {"num_hidden_layers": 1, "max_position_embeddings": 21, "do_layer_norm_before": True}
    opt = OPTConfig(vocab_size=24, **size, **ends)
    gpt2 = GPT2Config(vocab_size=24, **own, **ends)
    return {"gpt2": GPT2LMHeadModel(gpt2).eval(), "opt": OPTForCausalLM(opt).eval()}


@pytest.mark.parametrize("name", ["gpt2", "opt"])
def test_a_table_of_positions_is_filled_and_not_run_past(name: str) -> None:
    model, asked = tables()[name], prompts([9, 4])
    usual: dict[str, Any] = {"drafter": "lookup", "do_sample": False, "pad_token_id": 0}
    ours = generate(model, asked, max_new_tokens=13, **usual).sequences
    theirs = model.generate(**asked, max_new_tokens=13, do_sample=False, pad_token_id=0)
    assert torch.equal(ours, theirs)
    with pytest.raises(
        InputError, match="21 positions, prompts of 9 tokens and 14 new ones need 22"
    ):
        generate(model, asked, max_new_tokens=14, **usual)
    longer: dict[str, Any] = {"negative": prompts([12, 10]), "max_new_tokens": 11}
    with pytest.raises(InputError, match="prompts of 12 tokens"):
        generate(model, asked, **longer, **usual, guidance_scale=2.0)
    generate(llama(), prompts([250]), max_new_tokens=13, **usual)  # its positions are computed


def test_a_mask_over_the_slots_of_the_cache_is_refused() -> None:
    from transformers import (
        GPTNeoConfig,
        GPTNeoForCausalLM,
        ImageGPTConfig,
        ImageGPTForCausalImageModeling,
    )

    gpt = ImageGPTConfig(vocab_size=24, n_positions=64, n_embd=16, n_layer=1, n_head=2)
    models: list[Any] = [ImageGPTForCausalImageModeling(gpt)]
    size: dict[str, Any] = {"vocab_size": 24, "hidden_size": 16, "num_layers": 2, "num_heads": 2}
    kinds: list[Any] = [[["global", "local"], 1], [["global"], 2]]
    for kind in kinds:
        config = GPTNeoConfig(**size, attention_types=[kind], window_size=5)
        models.append(GPTNeoForCausalLM(config))
    for model in models:
        with pytest.raises(InputError, match="holds a causal mask over the slots"):
            generate(model.eval(), prompts([5]), drafter="lookup")


def rotary(kind: str) -> Any:
    """A model whose rotary embeddings change behind 16 tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    size = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    size |= {"num_hidden_layers": 2, "max_position_embeddings": 64 if kind == "longrope" else 16}
    rope: dict[str, Any] = {"rope_type": kind, "factor": 4.0, "rope_theta": 10000.0}
    if kind == "longrope":
        rope |= {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
        rope |= {"original_max_position_embeddings": 16}
    ends = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=24, initializer_range=0.3, rope_parameters=rope, **size, **ends)
    return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_rotary_embeddings_that_depend_on_the_length_are_followed_until_they_do(kind: str) -> None:
    model, asked = rotary(kind), prompts([7, 4])
    usual: dict[str, Any] = {"do_sample": False, "pad_token_id": 0}
    ours = generate(model, asked, drafter="recycling", max_new_tokens=10, **usual).sequences
    assert torch.equal(ours, model.generate(**asked, max_new_tokens=10, **usual))
    with pytest.raises(InputError, match=r"stay the same for 16 positions, .* 11 new ones need 17"):
        generate(model, asked, drafter="recycling", max_new_tokens=11, **usual)


class Told(Drafter):
    """Proposes what it was told, for the first row alone, which so ends before the other."""

    kind: Kind = "det"

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens

    def start(self, target: Target, ids: list[list[int]], seeds: Sequence[int]) -> None:
        self.prompt = len(ids[0])

    def propose(self, ids: list[list[int]], active: list[bool]) -> list[DraftTree]:
        rest = self.tokens[len(ids[0]) - self.prompt :]
        return [DraftTree.line([ids[0][-1], *rest]), *(DraftTree.root(i[-1]) for i in ids[1:])]


def test_a_finished_row_stays_where_it_is() -> None:
    """GPT-J computes its table of places, so that nothing else would keep the row inside."""
    from transformers import GPTJConfig, GPTJForCausalLM

    size = {"n_embd": 16, "n_layer": 1, "n_head": 2, "rotary_dim": 4, "n_positions": 15}
    ends = {"bos_token_id": None, "eos_token_id": None}
    model = GPTJForCausalLM(GPTJConfig(vocab_size=24, **size, **ends)).eval()
    asked, usual = prompts([6, 6]), {"max_new_tokens": 10, "do_sample": False, "pad_token_id": 0}
    want = model.generate(**asked, **usual)
    got = generate(model, asked, drafter=Told(want[0, 6:].tolist()), **usual)
    assert torch.equal(got.sequences, want)
