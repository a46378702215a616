"""The tokenizer of `tiny`: whole words, single digits, nothing learnt."""

from __future__ import annotations

from transformers import PreTrainedTokenizerFast

from mmtok.training.garments import KINDS, PLURALS
from mmtok.training.scenes import COLOURS
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
PAD, BOS, EOS, UNK, IMAGE = range(5)
_PUNCTUATION = "?.,:;!()'\"-/\n "
_WORDS = """
Select the best answer to following multiple choice question based on video image Respond with
only letter of correct option The is USER ASSISTANT Is there in What colour color How many are
number printed Which way does move appears first last at end left right up down above below top
bottom half or yes no items frame picture clip photo Please answer using a single word phrase
Answer and it this that Yes No A B C D an any see can you do I not on one two three four five six
seven eight zero none where Where Are Does kind garment garments item object objects Question
"""

TEMPLATE = """{%- for message in messages -%}
{%- if message['role'] == 'user' -%}{{- '' if loop.first else '\\n' -}}{{- 'USER: ' -}}
{%- elif message['role'] == 'assistant' -%}{{- '' if loop.first else ' ' -}}{{- 'ASSISTANT: ' -}}
{%- endif -%}
{%- if message['content'] is string -%}{{- message['content'] -}}{%- else -%}
{%- set images = message['content'] | selectattr('type', 'equalto', 'image') | list | length -%}
{%- set seen = namespace(n=0) -%}
{%- for part in message['content'] if part['type'] == 'image' -%}
{%- set seen.n = seen.n + 1 -%}
{%- if images > 1 -%}{{- seen.n -}}{%- endif -%}{{- '<image>\\n' -}}
{%- endfor -%}
{%- for part in message['content'] if part['type'] == 'text' -%}{{- part['text'] -}}{%- endfor -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- ' ASSISTANT:' -}}{%- endif -%}"""
"""Chat template: images first, numbered if there are several, then the text. Later
turns of a user begin on a new line: their marker is the token that it is in front of a prompt."""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer: words with or without a leading space, digits, punctuation, else `<unk>`."""
    words = dict.fromkeys([*_WORDS.split(), *KINDS, *PLURALS, *COLOURS])
    entries = [*SPECIAL, *"0123456789", *_PUNCTUATION]
    entries += [lead + word for word in words for lead in ("", " ")]
    vocabulary = {entry: index for index, entry in enumerate(dict.fromkeys(entries))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    pattern = Regex(r" ?[A-Za-z]+|[0-9]|\n| |[^A-Za-z0-9\s]|\s")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(pattern, "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", BOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
        clean_up_tokenization_spaces=False,
        padding_side="left",
        chat_template=TEMPLATE,
    )


def frame_lead(index: int, frames: int) -> str:
    """The text before image `index` of `frames`, as in the chat template."""
    return str(index + 1) if frames > 1 else ""
