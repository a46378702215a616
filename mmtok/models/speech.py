"""How each family writes a prompt, and a tokenizer of single bytes that speaks it offline.

The special tokens sit at the ids the configuration states, so every image and clip becomes exactly
the placeholders the model reads. Text is one token a byte: longer than a trained tokenizer's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerFast

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers


@dataclass(frozen=True, kw_only=True)
class Speech:
    """How a family writes a prompt: its special tokens and the frame around a user's turn.

    Attributes:
        named: tokenizer attribute -> token, such as image_token -> "<image>". Its id is the
            configuration's field of that name + "_id"; where it has none, any free id.
        ids: token -> configuration field that holds its id, where the names differ.
        user, reply: what precedes the user's turn and the model's answer. end: closes a turn.
        image, video: what a template puts where a picture or a clip stands.
    """

    bos: str = "<s>"
    eos: str = "</s>"
    pad: str = "<pad>"
    named: dict[str, str] = field(default_factory=lambda: {"image_token": "<image>"})
    ids: dict[str, str] = field(default_factory=dict)
    other: tuple[str, ...] = ()
    user: str = "<s>USER: "
    reply: str = "ASSISTANT:"
    end: str = " "
    image: str = "<image>\n"
    video: str = "<video>\n"


_VIDEO_TOO = {"image_token": "<image>", "video_token": "<video>"}
_CHATML: dict[str, Any] = {
    "bos": "<|endoftext|>",
    "eos": "<|im_end|>",
    "other": ("<|im_start|>",),
    "user": "<|im_start|>user\n",
    "reply": "<|im_start|>assistant\n",
    "end": "<|im_end|>\n",
}
_LLAVA = Speech()
_QWEN_VL = Speech(
    **_CHATML,
    named={
        "image_token": "<|image_pad|>",
        "video_token": "<|video_pad|>",
        "vision_start_token": "<|vision_start|>",
        "vision_end_token": "<|vision_end|>",
    },
    image="<|vision_start|><|image_pad|><|vision_end|>",
    video="<|vision_start|><|video_pad|><|vision_end|>",
)
_IDEFICS = Speech(
    bos="<|im_start|>",
    eos="<end_of_utterance>",
    named={"image_token": "<image>"},
    other=(
        "<fake_token_around_image>",
        "<global-img>",
        *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)),
    ),
    user="<|im_start|>User:",
    reply="Assistant:",
    end="<end_of_utterance>\n",
    image="<image>",
    video="<video>",
)

SPEECH: dict[str, Speech] = {
    "llava": _LLAVA,
    "llava_next": _LLAVA,
    "llava_next_video": Speech(named=_VIDEO_TOO),
    "llava_onevision": Speech(**_CHATML, named=_VIDEO_TOO),
    "qwen2_vl": _QWEN_VL,
    "qwen2_5_vl": _QWEN_VL,
    "qwen3_vl": _QWEN_VL,
    "internvl": Speech(
        **_CHATML,
        named={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
        ids={"<IMG_CONTEXT>": "image_token_id"},
        image="<IMG_CONTEXT>\n",
    ),
    "smolvlm": _IDEFICS,
    "idefics3": _IDEFICS,
    "gemma3": Speech(
        bos="<bos>",
        eos="<end_of_turn>",
        named={
            "image_token": "<image_soft_token>",
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
        },
        other=("<start_of_turn>",),
        user="<bos><start_of_turn>user\n",
        reply="<start_of_turn>model\n",
        end="<end_of_turn>\n",
        image="<start_of_image>",
    ),
    "paligemma": Speech(bos="<bos>", eos="<eos>", user="", reply="", end="", image="<image>"),
}
"""The prompt of every family whose processor can be built, by `model_type`."""


def byte_tokenizer(speech: Speech, config: Any) -> Any:
    """A tokenizer of single bytes with the special tokens of `speech` at the ids of `config`."""
    text = config.get_text_config()
    fixed = {speech.pad: text.pad_token_id, speech.bos: text.bos_token_id}
    eos = text.eos_token_id
    fixed[speech.eos] = eos[0] if isinstance(eos, list) else eos
    for attribute, token in speech.named.items():
        fixed[token] = getattr(config, speech.ids.get(token, attribute + "_id"), None)
    ids = {token: i for token, i in fixed.items() if i is not None}
    taken = set(ids.values())
    free = (i for i in range(text.vocab_size) if i not in taken)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: next(free) for letter in alphabet} | ids
    special = list(dict.fromkeys([*fixed, *speech.other]))
    vocabulary |= {token: next(free) for token in special if token not in ids}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=speech.pad,
        bos_token=speech.bos,
        eos_token=speech.eos,
        model_specific_special_tokens=speech.named,
        padding_side="left",
    )


def chat_template(speech: Speech) -> str:
    """A Jinja template for messages whose content holds image, video and text items."""
    user, reply, end, image, video = map(
        repr, (speech.user, speech.reply, speech.end, speech.image, speech.video)
    )
    return (
        "{%- for message in messages -%}"
        "{%- if message.role == 'user' -%}{{- " + user + " -}}"
        "{%- elif message.role == 'assistant' -%}{{- " + reply + " -}}{%- endif -%}"
        "{%- for item in message.content -%}"
        "{%- if item.type == 'image' -%}{{- " + image + " -}}"
        "{%- elif item.type == 'video' -%}{{- " + video + " -}}"
        "{%- else -%}{{- item.text -}}{%- endif -%}"
        "{%- endfor -%}{{- " + end + " -}}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- " + reply + " -}}{%- endif -%}"
    )
