"""Tiny random models of every supported family: real architectures, a few thousand weights.

`tiny_config` keeps what makes a family special (AnyRes tiles, M-RoPE, deepstack features, sliding
windows, one KV head) and shrinks the rest, so that a test of a family runs in milliseconds. The
processor that belongs to a configuration is built by `mmtok.models.processors.build_processor`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mmtok.errors import InputError
from mmtok.registry import unknown

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Config = dict[str, Any]

_VOCABULARY = 320
_IMAGE, _VIDEO, _VISION_START, _VISION_END = 259, 260, 261, 262  # 0-2: pad, bos, eos; 3-258: bytes
_TILES = [[56, 112], [112, 56], [112, 112]]


def _text(model_type: str, *, kv_heads: int = 2, **extra: Any) -> Config:
    return {
        "model_type": model_type,
        "vocab_size": _VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": kv_heads,
        "head_dim": 16,
        "max_position_embeddings": 4096,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **extra,
    }


def _vision(model_type: str, image_size: int, patch_size: int, **extra: Any) -> Config:
    return {
        "model_type": model_type,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": image_size,
        "patch_size": patch_size,
        **extra,
    }


def _mrope(*section: int, **extra: Any) -> Config:
    parameters = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": list(section)}
    return {"rope_parameters": parameters | extra}


def _qwen_vision(model_type: str, **extra: Any) -> Config:
    return {
        "model_type": model_type,
        "depth": 2,
        "num_heads": 2,
        "in_channels": 3,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        **extra,
    }


_CLIP = _vision("clip_vision_model", 56, 14, projection_dim=32)
_LLAVA = {"image_token_index": _IMAGE, "text_config": _text("llama", kv_heads=4)}
_QWEN_TOKENS = {
    "image_token_id": _IMAGE,
    "video_token_id": _VIDEO,
    "vision_start_token_id": _VISION_START,
    "vision_end_token_id": _VISION_END,
}

_TINY: dict[str, Config] = {
    "llava": _LLAVA | {"vision_config": _CLIP | {"image_size": 84}, "image_seq_length": 36},
    "llava_next": _LLAVA
    | {"vision_config": _CLIP, "image_seq_length": 16, "image_grid_pinpoints": _TILES},
    "llava_next_video": _LLAVA
    | {
        "vision_config": _CLIP,
        "video_token_index": _VIDEO,
        "image_seq_length": 16,
        "video_seq_length": 4,
        "image_grid_pinpoints": _TILES,
    },
    "llava_onevision": {
        "image_token_index": _IMAGE,
        "video_token_index": _VIDEO,
        "image_grid_pinpoints": [[56, 56], *_TILES],
        "text_config": _text("qwen2"),
        "vision_config": _vision("siglip_vision_model", 56, 14, vision_use_head=False),
    },
    "qwen2_vl": _QWEN_TOKENS
    | {
        "text_config": _text("qwen2_vl_text", **_mrope(2, 3, 3)),
        "vision_config": _qwen_vision("qwen2_vl_vision", embed_dim=32, hidden_size=64),
    },
    "qwen2_5_vl": _QWEN_TOKENS
    | {
        "text_config": _text("qwen2_5_vl_text", **_mrope(2, 3, 3)),
        "vision_config": _qwen_vision(
            "qwen2_5_vl_vision",
            hidden_size=32,
            intermediate_size=64,
            out_hidden_size=64,
            window_size=56,
            fullatt_block_indexes=[1],
            tokens_per_second=2,
        ),
    },
    "qwen3_vl": _QWEN_TOKENS
    | {
        "text_config": _text("qwen3_vl_text", **_mrope(4, 2, 2, mrope_interleaved=True)),
        "vision_config": _qwen_vision(
            "qwen3_vl_vision",
            depth=3,
            patch_size=16,
            hidden_size=32,
            intermediate_size=64,
            out_hidden_size=64,
            num_position_embeddings=64,
            deepstack_visual_indexes=[0, 1],
        ),
    },
    "internvl": {
        "image_token_id": _IMAGE,
        "image_seq_length": 16,
        "tie_word_embeddings": False,
        "text_config": _text("qwen2"),
        "vision_config": _vision("internvl_vision", 56, 7, attention_bias=True),
    },
    "smolvlm": {
        "image_token_id": _IMAGE,
        "scale_factor": 2,
        "text_config": _text("llama"),
        "vision_config": _vision("smolvlm_vision", 64, 8),
    },
    "idefics3": {
        "image_token_id": _IMAGE,
        "scale_factor": 2,
        "text_config": _text("llama"),
        "vision_config": _vision("idefics3_vision", 64, 8),
    },
    "gemma3": {
        "image_token_index": _IMAGE,
        "boi_token_index": _VISION_START,
        "eoi_token_index": _VISION_END,
        "mm_tokens_per_image": 16,
        "text_config": _text(
            "gemma3_text",
            sliding_window=256,
            query_pre_attn_scalar=16,
            layer_types=["sliding_attention"] * 3 + ["full_attention"],
        ),
        "vision_config": _vision("siglip_vision_model", 56, 7, vision_use_head=False),
    },
    "paligemma": {
        "image_token_index": _IMAGE,
        "hidden_size": 64,
        "projection_dim": 64,
        "vocab_size": _VOCABULARY,
        "text_config": _text("gemma", kv_heads=1),
        "vision_config": _vision("siglip_vision_model", 56, 14, vision_use_head=False),
    },
}

FAMILIES = tuple(_TINY)
"""The `model_type` of every family that has a tiny configuration."""


def tiny_config(family: str) -> PreTrainedConfig:
    """A configuration of `family` with 4 decoder layers of width 64 and >= 16 tokens an image.

    Args:
        family: a `model_type`, one of `FAMILIES`.

    Raises:
        InputError: the family has no tiny configuration.
    """
    from transformers import AutoConfig

    if family not in _TINY:
        raise InputError(unknown("family", family, list(FAMILIES)))
    return AutoConfig.for_model(family, **_TINY[family])
