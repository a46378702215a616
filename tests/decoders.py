"""Tiny random language models for tests of decoding, and a slow decoder to compare with."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch
from torch import Tensor

VOCABULARY = 24


@cache
def llama(
    seed: int = 0, *, vocabulary: int = VOCABULARY, attention: str = "sdpa", layers: int = 2
) -> Any:
    """A random Llama whose outputs repeat themselves now and then, as text does."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.3,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
        attn_implementation=attention,
    )
    return LlamaForCausalLM(config).eval()


def prompts(lengths: list[int], seed: int = 0, vocabulary: int = VOCABULARY) -> dict[str, Tensor]:
    """A batch of random prompts, padded on the left."""
    generator = torch.Generator().manual_seed(seed)
    width = max(lengths)
    ids = torch.randint(vocabulary, (len(lengths), width), generator=generator)
    mask = torch.arange(width) >= width - torch.tensor(lengths)[:, None]
    return {"input_ids": ids * mask, "attention_mask": mask.long()}


def row(inputs: dict[str, Tensor], at: int) -> dict[str, Tensor]:
    """One row without its padding."""
    real = inputs["attention_mask"][at].bool()
    return {key: value[at, real][None] for key, value in inputs.items()}


@torch.no_grad()
def plain(
    model: Any,
    ids: list[int],
    new: int,
    *,
    scale: float = 1.0,
    negative: list[int] | None = None,
    eos: int | None = None,
) -> list[int]:
    """Greedy tokens of one row, without cache, padding or drafts."""
    out: list[int] = []
    for _ in range(new):
        z = model(torch.tensor([ids + out])).logits[0, -1]
        if scale != 1:
            other = [ids[-1]] if negative is None else negative
            u = model(torch.tensor([other + out])).logits[0, -1]
            z = u + scale * (z - u)
        out.append(int(z.argmax()))
        if out[-1] == eos:
            break
    return out


@cache
def emu3() -> Any:
    """A random Emu3, which writes image tokens of its codebook into the text's vocabulary."""
    from transformers import Emu3Config, Emu3ForConditionalGeneration

    text = {
        "vocab_size": 60,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.3,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    codes = {
        "codebook_size": 32,
        "embed_dim": 4,
        "latent_channels": 4,
        "base_channels": 32,
        "channel_multiplier": [1, 1],
        "num_res_blocks": 1,
        "attn_resolutions": [],
        "hidden_size": 32,
        "num_attention_heads": 1,
    }
    names = {f"<|visual token {i:06d}|>": 20 + i for i in range(32)}
    names |= {"<image>": 59, "<|extra_200|>": 5}
    torch.manual_seed(0)
    config = Emu3Config(text_config=text, vq_config=codes, vocabulary_map=names)
    return Emu3ForConditionalGeneration(config).eval()


@cache
def near(seed: int = 0, *, vocabulary: int = VOCABULARY, noise: float = 0.05) -> Any:
    """A draft model that mostly agrees with `llama`."""
    model = copy.deepcopy(llama(seed, vocabulary=vocabulary))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight += noise * torch.randn(weight.shape, generator=generator)
    return model


@cache
def fading(
    seed: int = 0, *, vocabulary: int = VOCABULARY, attention: str = "sdpa", noise: float = 0.0
) -> Any:
    """A Llama of four layers of which the last three say little, so that early exits agree.

    With `noise`, a draft model that mostly agrees with it.
    """
    model = copy.deepcopy(llama(seed, vocabulary=vocabulary, attention=attention, layers=4))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in model.model.layers[1:]:
            layer.self_attn.o_proj.weight *= 0.3
            layer.mlp.down_proj.weight *= 0.3
        for weight in model.parameters() if noise else ():
            weight += noise * torch.randn(weight.shape, generator=generator)
    return model
