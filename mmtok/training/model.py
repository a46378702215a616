"""The model `tiny`: stock LLaVA from a trained tower, and its export as a plain folder."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    CLIPImageProcessor,
    CLIPVisionModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from mmtok.training.scenes import CANVAS, PATCH
from mmtok.training.tokens import BOS, EOS, IMAGE, PAD, TEMPLATE, build_tokenizer


def build_model(tower: CLIPVisionModel, seed: int = 0) -> LlavaForConditionalGeneration:
    """LLaVA around a copy of `tower` with a new projector and a new Llama text model.

    Args:
        tower: the vision tower; its last layer is read, its CLS token dropped.
        seed: of the new weights.
    """
    torch.manual_seed(seed)
    text = LlamaConfig(
        vocab_size=-(-len(build_tokenizer()) // 32) * 32,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=4096,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
        tie_word_embeddings=True,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
        initializer_range=0.05,
    )
    config = LlavaConfig(
        vision_config=tower.config,
        text_config=text,
        image_token_index=IMAGE,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=(CANVAS // PATCH) ** 2,
        tie_word_embeddings=True,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    model = LlavaForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(tower.state_dict())
    with torch.no_grad():
        _start_matching(model)
    return model


def _start_matching(model: LlavaForConditionalGeneration) -> None:
    """Let tokens attend to their like, and copy what they attend to (arXiv:2305.09828)."""
    for layer in model.model.language_model.layers:
        attention = layer.self_attn
        attention.q_proj.weight *= 2
        attention.k_proj.weight.copy_(attention.q_proj.weight)
        torch.nn.init.orthogonal_(attention.v_proj.weight)
        attention.o_proj.weight.copy_(attention.v_proj.weight.T * 0.5)


def build_processor() -> LlavaProcessor:
    """Resizes images to 112x112, repeats the image token 196 times, knows the chat template."""
    side = {"height": CANVAS, "width": CANVAS}
    images = CLIPImageProcessor(
        do_resize=True,
        size=side,
        do_center_crop=False,
        crop_size=side,
        do_convert_rgb=True,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=build_tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        chat_template=TEMPLATE,
        image_token="<image>",
        num_additional_image_tokens=1,
    )


def export(model: LlavaForConditionalGeneration, folder: Path) -> None:
    """Write fp16 safetensors, configuration, tokenizer and processor into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: weight.half() for name, weight in model.state_dict().items()}
    config = model.config.__class__.from_dict(model.config.to_dict())
    config.dtype = torch.float16
    model.generation_config.max_new_tokens = 8
    model.generation_config.do_sample = False
    half = LlavaForConditionalGeneration(config).half()
    half.load_state_dict(state)
    half.generation_config = model.generation_config
    half.save_pretrained(folder)
    build_processor().save_pretrained(folder)
