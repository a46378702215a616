"""The stock processor of a configuration, built without any download.

Image and video processors take their sizes from the configuration, the tokenizer is the byte
tokenizer of `mmtok.models.speech`. What no configuration holds (pixel limits, normalisation)
is as in the models' published `preprocessor_config.json` files.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers as hf

from mmtok.errors import InputError
from mmtok.models.speech import SPEECH, byte_tokenizer, chat_template

_HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
_TOWERS_WITH_CLS = frozenset({"clip_vision_model", "internvl_vision"})


def _square(config: Any) -> tuple[int, int]:
    """Image and patch size in pixels of a tower that reads squares."""
    vision = config.vision_config
    sizes = (vision.image_size, vision.patch_size)
    image, patch = (x if isinstance(x, int) else x[0] for x in sizes)
    return image, patch


def _clip_sizes(config: Any) -> dict[str, Any]:
    image, _ = _square(config)
    return {"size": {"shortest_edge": image}, "crop_size": {"height": image, "width": image}}


def _box(config: Any) -> dict[str, Any]:
    image, _ = _square(config)
    return {"size": {"height": image, "width": image}}


def _llava_counts(config: Any) -> dict[str, Any]:
    return {
        "patch_size": _square(config)[1],
        "vision_feature_select_strategy": config.vision_feature_select_strategy,
        "num_additional_image_tokens": int(config.vision_config.model_type in _TOWERS_WITH_CLS),
    }


def _llava(config: Any, **common: Any) -> Any:
    images = hf.CLIPImageProcessor(**_clip_sizes(config))
    return hf.LlavaProcessor(image_processor=images, **_llava_counts(config), **common)


def _llava_next(config: Any, **common: Any) -> Any:
    images = hf.LlavaNextImageProcessor(
        image_grid_pinpoints=config.image_grid_pinpoints, **_clip_sizes(config)
    )
    return hf.LlavaNextProcessor(image_processor=images, **_llava_counts(config), **common)


def _llava_next_video(config: Any, **common: Any) -> Any:
    sizes = _clip_sizes(config)
    return hf.LlavaNextVideoProcessor(
        image_processor=hf.LlavaNextImageProcessor(
            image_grid_pinpoints=config.image_grid_pinpoints, **sizes
        ),
        video_processor=hf.LlavaNextVideoVideoProcessor(**sizes),
        **_llava_counts(config),
        **common,
    )


def _llava_onevision(config: Any, **common: Any) -> Any:
    image, patch = _square(config)
    return hf.LlavaOnevisionProcessor(
        image_processor=hf.LlavaOnevisionImageProcessor(
            image_grid_pinpoints=config.image_grid_pinpoints, **_box(config), **_HALF
        ),
        video_processor=hf.LlavaOnevisionVideoProcessor(**_box(config), **_HALF),
        num_image_tokens=(image // patch) ** 2,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        vision_aspect_ratio=config.vision_aspect_ratio,
        **common,
    )


def _qwen_patches(config: Any) -> dict[str, int]:
    vision = config.vision_config
    return {
        "patch_size": vision.patch_size,
        "merge_size": vision.spatial_merge_size,
        "temporal_patch_size": vision.temporal_patch_size,
    }


def _qwen2_vl(name: str) -> Callable[..., Any]:
    def build(config: Any, **common: Any) -> Any:
        patches = _qwen_patches(config)
        size = {"shortest_edge": 3136, "longest_edge": 12845056}
        return getattr(hf, name)(
            image_processor=hf.Qwen2VLImageProcessor(size=size, **patches),
            video_processor=hf.Qwen2VLVideoProcessor(**patches),
            **common,
        )

    return build


def _qwen3_vl(config: Any, **common: Any) -> Any:
    patches = _qwen_patches(config)
    image_size = {"shortest_edge": 65536, "longest_edge": 16777216}
    video_size = {"shortest_edge": 4096, "longest_edge": 25165824}
    return hf.Qwen3VLProcessor(
        image_processor=hf.Qwen2VLImageProcessor(size=image_size, **patches, **_HALF),
        video_processor=hf.Qwen3VLVideoProcessor(size=video_size, **patches, **_HALF),
        **common,
    )


def _internvl(config: Any, **common: Any) -> Any:
    return hf.InternVLProcessor(
        image_processor=hf.GotOcr2ImageProcessor(crop_to_patches=True, **_box(config)),
        video_processor=hf.InternVLVideoProcessor(**_box(config)),
        image_seq_length=config.image_seq_length,
        **common,
    )


def _idefics_sizes(config: Any) -> tuple[dict[str, Any], int]:
    image, patch = _square(config)
    sizes = {"size": {"longest_edge": 4 * image}, "max_image_size": {"longest_edge": image}}
    return sizes, (image // patch // config.scale_factor) ** 2


def _idefics3(config: Any, **common: Any) -> Any:
    sizes, tokens = _idefics_sizes(config)
    images = hf.Idefics3ImageProcessor(**sizes)
    return hf.Idefics3Processor(image_processor=images, image_seq_len=tokens, **common)


def _smolvlm(config: Any, **common: Any) -> Any:
    sizes, tokens = _idefics_sizes(config)
    return hf.SmolVLMProcessor(
        image_processor=hf.SmolVLMImageProcessor(**sizes),
        video_processor=hf.SmolVLMVideoProcessor(**sizes),
        image_seq_len=tokens,
        **common,
    )


def _gemma3(config: Any, **common: Any) -> Any:
    images = hf.Gemma3ImageProcessor(**_box(config))
    return hf.Gemma3Processor(
        image_processor=images, image_seq_length=config.mm_tokens_per_image, **common
    )


def _paligemma(config: Any, **common: Any) -> Any:
    image, patch = _square(config)
    images = hf.SiglipImageProcessor(**_box(config), image_seq_length=(image // patch) ** 2)
    return hf.PaliGemmaProcessor(image_processor=images, **common)


_BUILDERS: dict[str, Callable[..., Any]] = {
    "llava": _llava,
    "llava_next": _llava_next,
    "llava_next_video": _llava_next_video,
    "llava_onevision": _llava_onevision,
    "qwen2_vl": _qwen2_vl("Qwen2VLProcessor"),
    "qwen2_5_vl": _qwen2_vl("Qwen2_5_VLProcessor"),
    "qwen3_vl": _qwen3_vl,
    "internvl": _internvl,
    "smolvlm": _smolvlm,
    "idefics3": _idefics3,
    "gemma3": _gemma3,
    "paligemma": _paligemma,
}


def build_processor(config: Any) -> Any:
    """The stock processor of the configuration's family, with a byte tokenizer.

    Args:
        config: a `PreTrainedConfig` of a family in `SPEECH`.

    Returns:
        the family's `ProcessorMixin`; its text pads on the left.

    Raises:
        InputError: no processor can be built for the family.
    """
    family = config.model_type
    if family not in _BUILDERS:
        raise InputError(
            f"no processor can be built offline for family {family!r}; "
            f"known: {', '.join(_BUILDERS)}; load its weights and processor from a folder instead"
        )
    speech = SPEECH[family]
    return _BUILDERS[family](
        config,
        tokenizer=byte_tokenizer(speech, config),
        chat_template=chat_template(speech),
    )
