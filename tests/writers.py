"""Tiny random models that write images, prompts for them, and slow ways to write the same."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

CODES = 24
TEXT = {
    "vocab_size": 40,
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
VQ = {
    "embed_dim": 4,
    "latent_channels": 4,
    "base_channels": 32,
    "channel_multiplier": [1, 1],
    "num_res_blocks": 1,
}
BEGIN, NEWLINE, GRID = 5, 6, (3, 4)


@cache
def janus(seed: int = 0) -> Any:
    from transformers import JanusConfig, JanusForConditionalGeneration

    vision = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 4,
        "projection_dim": 32,
        "num_image_tokens": 16,
    }
    heads = {"num_patches": 4, "projection_dim": 32, "image_token_embed_dim": 32}
    vq = {**VQ, **heads, "num_embeddings": CODES, "num_hidden_layers": 1, "hidden_size": 32}
    torch.manual_seed(seed)
    made = JanusForConditionalGeneration(
        JanusConfig(text_config=TEXT, vision_config=vision, vq_config=vq, image_token_id=39)
    )
    made.generation_config.generation_kwargs = {"boi_token_id": BEGIN}
    return spread(made)


@cache
def emu3(seed: int = 0) -> Any:
    from transformers import Emu3Config, Emu3ForConditionalGeneration

    vq = {**VQ, "codebook_size": CODES, "attn_resolutions": [], "hidden_size": 32}
    names = {f"<|visual token {i:06d}|>": 10 + i for i in range(CODES)}
    names |= {"<image>": 39, "<|extra_200|>": NEWLINE}
    torch.manual_seed(seed)
    made = Emu3ForConditionalGeneration(
        Emu3Config(
            text_config=TEXT, vq_config={**vq, "num_attention_heads": 1}, vocabulary_map=names
        )
    )
    return spread(made)


@cache
def chameleon(seed: int = 0) -> Any:
    from transformers import ChameleonConfig, ChameleonForConditionalGeneration

    letters = [f"IMGIMG{chr(65 + i // 10)}{chr(65 + i % 10)}Z" for i in range(CODES)]
    names = {"<image>": 39} | {name: 10 + i for i, name in enumerate(letters)}
    vq = {**VQ, "num_embeddings": CODES, "resolution": 8}
    torch.manual_seed(seed)
    made = ChameleonForConditionalGeneration(
        ChameleonConfig(**TEXT, vq_config=vq, vocabulary_map=names)
    )
    return spread(made)


def spread(model: Any) -> Any:
    """Weights wide enough apart that greedy codes differ."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1 and "generation" in name:
                weight.mul_(3)
    return model.eval().requires_grad_(False)


MODELS = {"janus": janus, "emu3": emu3, "chameleon": chameleon}


def image_prompts(rows: tuple[int, ...] = (0, 1)) -> dict[str, Tensor]:
    """Prompts of different length, padded on the left, that end where an image begins."""
    whole = [[1, 7, 8, 9, 36, BEGIN], [1, 35, 34, BEGIN]]
    chosen = [whole[r] for r in rows]
    width = max(map(len, chosen))
    ids = torch.tensor([[0] * (width - len(c)) + c for c in chosen])
    mask = torch.tensor([[0] * (width - len(c)) + [1] * len(c) for c in chosen])
    return {"input_ids": ids, "attention_mask": mask}


def stock_codes(name: str, row: int, scale: float) -> list[int]:
    """Greedy codes of one prompt by the model's own `generate`, newlines included.

    Chameleon's forbids image tokens, and Janus's fails without guidance: there it is plain forwards
    of decoder and head.
    """
    model, inputs = MODELS[name](), image_prompts((row,))
    options: dict[str, Any] = {"do_sample": False, "guidance_scale": scale}
    if name == "janus" and scale == 1:
        return _plain_janus(model, inputs["input_ids"])
    if name == "janus":
        written = model.generate(**inputs, generation_mode="image", max_length=40, **options)
        return written[0].tolist()
    if name == "chameleon":
        return _plain_chameleon(model, inputs["input_ids"], scale)
    rows, columns = GRID

    def allowed(_: int, ids: Tensor) -> list[int]:
        at = len(ids) - inputs["input_ids"].shape[1] + 1
        return [NEWLINE] if at % (columns + 1) == 0 else list(range(10, 10 + CODES))

    length = rows * (columns + 1)
    written = model.generate(
        **inputs, max_new_tokens=length, prefix_allowed_tokens_fn=allowed, **options
    )
    words = written[0, -length:].tolist()
    return [CODES if word == NEWLINE else word - 10 for word in words]


def _plain_janus(model: Any, ids: Tensor) -> list[int]:
    out: list[int] = []
    for _ in range(16):
        read = [model.get_input_embeddings()(ids)]
        if out:
            read.append(model.prepare_embeddings_for_image_generation(torch.tensor([out])))
        hidden = model.model.language_model(inputs_embeds=torch.cat(read, 1)).last_hidden_state
        out.append(int(model.model.generation_head(hidden)[0, -1].argmax()))
    return out


def _plain_chameleon(model: Any, ids: Tensor, scale: float) -> list[int]:
    out: list[int] = []
    for _ in range(16):
        new = torch.tensor([[10 + code for code in out]], dtype=torch.long)
        z, u = (
            model.lm_head(model.model(torch.cat([start, new], 1)).last_hidden_state)[0, -1]
            for start in (ids, ids[:, -1:])
        )
        out.append(int((u + scale * (z - u))[10 : 10 + CODES].argmax()))
    return out
