"""Every drafter on several architectures, greedy, token by token as plain decoding.

Guided and not, one row and a ragged batch; ends of sequence inside a draft, lengths that cut one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch

from mmtok.decoding import drafter_registry, generate
from mmtok.decoding.drafters.aded import ADED
from mmtok.decoding.drafters.bild import BiLD
from mmtok.decoding.drafters.draftmodel import DraftModel
from mmtok.decoding.drafters.dyspec import DySpec
from mmtok.decoding.drafters.rasd import RASD
from mmtok.decoding.drafters.rsdc import RSDC
from mmtok.decoding.drafters.rsds import RSDS
from mmtok.decoding.drafters.s2d import S2D
from mmtok.decoding.drafters.spectr import SpecTr
from mmtok.errors import InputError
from tests.decoders import VOCABULARY, fading, plain, prompts, row

NEW = 12
LENGTHS = [9, 4, 6]
SIZES = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_attention_heads": 4}
ROPE = {
    **SIZES,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}


def qwen2() -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    return Qwen2ForCausalLM(Qwen2Config(**ROPE))


def gemma() -> Any:
    """Tied weights, one key for all heads, and embeddings that are scaled."""
    from transformers import GemmaConfig, GemmaForCausalLM

    return GemmaForCausalLM(GemmaConfig(**ROPE | {"num_key_value_heads": 1}, head_dim=8))


def neox() -> Any:
    """Positions in a part of each head, attention and network side by side."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    own = {"intermediate_size": 48, "num_hidden_layers": 2, "max_position_embeddings": 64}
    return GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES, **own, initializer_range=0.3))


def gpt2() -> Any:
    """Places that are learnt, and not one more than the longest row needs."""
    from transformers import GPT2Config, GPT2LMHeadModel

    own = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": LENGTHS[0] + NEW}
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCABULARY, **own, n_inner=48, initializer_range=0.3)
    )


def llama() -> Any:
    return copy.deepcopy(fading())


MODELS = {"llama": llama, "qwen2": qwen2, "gemma": gemma, "neox": neox, "gpt2": gpt2}
NO_EXITS = ("neox", "gpt2")  # without layers and norm under a head


@cache
def target(name: str) -> Any:
    torch.manual_seed(0)
    made = MODELS[name]().eval().requires_grad_(False)
    made.generation_config.eos_token_id = None
    return made


@cache
def similar(name: str, noise: float = 0.03) -> Any:
    """A draft model that mostly agrees with the target."""
    model, generator = copy.deepcopy(target(name)), torch.Generator().manual_seed(1)
    for weight in model.parameters():
        weight += noise * torch.randn(weight.shape, generator=generator)
    return model


@cache
def wanted(name: str, scale: float) -> list[list[int]]:
    inputs = prompts(LENGTHS)
    ids = [row(inputs, r)["input_ids"][0].tolist() for r in range(len(LENGTHS))]
    return [plain(target(name), one, NEW, scale=scale) for one in ids]


DRAFTERS: dict[str, Callable[[str], Any]] = {
    "lookup": lambda name: "lookup(ngram=1)",
    "recycling": lambda name: "recycling",
    "aded": lambda name: ADED(corpus=wanted(name, 1.0)),
    "rasd": lambda name: RASD(base=RSDC(model=similar(name), temperature=0.0)),
    "earlyexit": lambda name: "earlyexit(exit=1)",
    "dynamicexit": lambda name: "dynamicexit(prior=0.9)",
    "draftmodel": lambda name: DraftModel(model=similar(name)),
    "bild": lambda name: BiLD(model=similar(name), fallback=0.3),
    "s2d": lambda name: S2D(
        model=similar("llama" if name in NO_EXITS else name), exits=(1,), threshold=0.6
    ),
    "rsdc": lambda name: RSDC(model=similar(name)),
    "rsds": lambda name: RSDS(model=similar(name)),
    "dyspec": lambda name: DySpec(model=similar(name)),
    "spectr": lambda name: SpecTr(model=similar(name)),
    "jacobi": lambda name: "jacobi(window=4)",
}
EXITS = ("earlyexit", "dynamicexit")
PAIRS = [(m, d) for m in MODELS for d in DRAFTERS if m not in NO_EXITS or d not in EXITS]


def ours(name: str, drafter: str, rows: int, **options: Any) -> Any:
    inputs = prompts(LENGTHS)
    some = {key: value[:rows] for key, value in inputs.items()}
    known = {"do_sample": False, "max_new_tokens": NEW, "pad_token_id": 0} | options
    made = generate(target(name), some, drafter=DRAFTERS[drafter](name), **known)
    return made.sequences[:, LENGTHS[0] :].tolist(), made.stats


@pytest.mark.parametrize(("name", "drafter"), PAIRS)
def test_tokens_are_those_of_plain_decoding(name: str, drafter: str) -> None:
    hits = 0
    for scale in (1.0, 2.0):
        for rows in (1, len(LENGTHS)):
            got, stats = ours(name, drafter, rows, guidance_scale=scale)
            assert got == wanted(name, scale)[:rows], (scale, rows)
            hits += sum(stats.hits)
    assert hits > 0


@pytest.mark.parametrize(("name", "drafter"), PAIRS)
def test_ends_and_lengths_inside_a_draft(name: str, drafter: str) -> None:
    want = wanted(name, 2.0)
    eos = want[0][6]
    for new in (3, NEW):
        got, _ = ours(name, drafter, 3, guidance_scale=2.0, eos_token_id=eos, max_new_tokens=new)
        for tokens, full in zip(got, want, strict=True):
            end = min(full.index(eos) + 1 if eos in full else NEW, new)
            assert tokens[:end] == full[:end]
            assert set(tokens[end:]) <= {0}


def test_every_registered_drafter_is_here() -> None:
    assert sorted(DRAFTERS) == drafter_registry.names()


def test_windows_that_slide_are_refused() -> None:
    from transformers import MistralConfig, MistralForCausalLM

    model = MistralForCausalLM(MistralConfig(**ROPE, sliding_window=8)).eval()
    for drafter in ("lookup", "earlyexit"):
        with pytest.raises(InputError, match="full attention in every layer"):
            generate(model, prompts([5]), drafter=drafter, do_sample=False, max_new_tokens=4)
