"""Several independent questions about the same images in one sequence.

The images are the long part of a prompt, so they are read once: every question follows the same
prefix, sees only that prefix and itself, and counts its positions from the prefix's end. Each
answer is then exactly what it would be if the question were asked alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast
from transformers.models.llama.modeling_llama import LlamaAttention, apply_rotary_pos_emb

from mmtok.training.questions import LETTERS, Question
from mmtok.training.tokens import EOS, IMAGE, PAD, frame_lead
from mmtok.training.tower import GRID, IGNORE

PATCHES = GRID**2


@dataclass(frozen=True)
class Sequences:
    """A batch of prefixes with their questions.

    Attributes:
        ids: (B, L) int64, padded at the end.
        positions: (B, L) int64, restarted after the prefix for every question.
        targets: (B, L) int64, the id that follows at answer positions, -100 elsewhere.
        mask: (B, 1, L, L) bool, true where the row may look at the column.
        blocks: (B, L) int64, 0 in the prefix, 1, 2, ... in the questions, -1 in the padding.
        hints: (B, L) int64, -100 but at the end of each option: is it the right one, 1 or 0.
    """

    ids: Tensor
    positions: Tensor
    targets: Tensor
    mask: Tensor
    blocks: Tensor
    hints: Tensor

    def to(self, device: torch.device | str) -> Sequences:
        """The same on another device."""
        parts = (self.ids, self.positions, self.targets, self.mask, self.blocks, self.hints)
        return Sequences(*(part.to(device) for part in parts))


def prefix_ids(
    tokenizer: PreTrainedTokenizerFast, images: int, patches: int = PATCHES
) -> list[int]:
    """Ids of everything before the question, image placeholders repeated per patch."""
    text = "USER: " + "".join(f"{frame_lead(i, images)}<image>\n" for i in range(images))
    found: list[int] = []
    for token in tokenizer(text).input_ids:
        found += [token] * patches if token == IMAGE else [token]
    return found


def question_ids(tokenizer: PreTrainedTokenizerFast, question: Question) -> tuple[list[int], int]:
    """Ids of question, answer and end of text, and how many of them are answered for."""
    ask = tokenizer(f"{question.text} ASSISTANT:", add_special_tokens=False).input_ids
    answer = [*tokenizer(question.label, add_special_tokens=False).input_ids, EOS]
    return ask + answer, len(answer)


def pack_questions(
    tokenizer: PreTrainedTokenizerFast,
    batch: Sequence[Sequence[Question]],
    images: int,
    patches: int = PATCHES,
) -> Sequences:
    """Lay out one sequence per entry of `batch`, each about `images` images of `patches`."""
    prefix = prefix_ids(tokenizer, images, patches)
    rows = [_layout(tokenizer, prefix, questions) for questions in batch]
    length = max(len(row[0]) for row in rows)
    fill = (PAD, 0, IGNORE, -1, IGNORE)
    parts = [
        torch.tensor([row[part] + [fill[part]] * (length - len(row[part])) for row in rows])
        for part in range(5)
    ]
    ids, positions, targets, blocks, hints = parts
    return Sequences(ids, positions, targets, block_mask(blocks), blocks, hints)


def _layout(
    tokenizer: PreTrainedTokenizerFast, prefix: list[int], questions: Sequence[Question]
) -> tuple[list[int], list[int], list[int], list[int], list[int]]:
    """Ids, positions, targets, blocks and hints of one sequence."""
    ids, positions = list(prefix), list(range(len(prefix)))
    targets, blocks = [IGNORE] * len(prefix), [0] * len(prefix)
    hints = [IGNORE] * len(prefix)
    for number, question in enumerate(questions, start=1):
        text, answered = question_ids(tokenizer, question)
        hints += _hints(tokenizer, question, text, len(text) - answered)
        silent = len(text) - answered - 1
        ids += text
        positions += range(len(prefix), len(prefix) + len(text))
        targets += [IGNORE] * silent + text[silent + 1 :] + [IGNORE]
        blocks += [number] * len(text)
    return ids, positions, targets, blocks, hints


def _hints(
    tokenizer: PreTrainedTokenizerFast, question: Question, text: list[int], asked: int
) -> list[int]:
    """Marks at the ends of the options of a question whose first `asked` ids precede the answer."""
    hints = [IGNORE] * len(text)
    if question.options is None:
        return hints
    dot, line = tokenizer.convert_tokens_to_ids([".", "\n"])
    for letter in LETTERS:
        mark = tokenizer.convert_tokens_to_ids(letter)
        start = next(i for i in range(asked) if text[i] == mark and text[i + 1] == dot)
        hints[text.index(line, start) - 1] = int(letter == question.label)
    return hints


def block_mask(blocks: Tensor) -> Tensor:
    """Mask (B, 1, L, L) from block numbers (B, L): causal, own block and prefix only."""
    rows, columns = blocks[:, :, None], blocks[:, None, :]
    length = blocks.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=blocks.device).tril()
    seen = ((columns == 0) | (columns == rows)) & causal
    return seen[:, None]


def read_through(
    model: LlavaForConditionalGeneration, sequences: Sequences, features: Tensor
) -> list[Tensor]:
    """Run the language model over sequences, layer by layer.

    The model's own forward pass would let every token look at a mask of the whole length; here
    the prefix is causal, which costs half, and only the questions need a mask.

    Args:
        model: the model.
        sequences: B sequences about the same number of images, on the model's device.
        features: (B, images * 196, D) of the vision tower, before the projector.

    Returns:
        hidden states (B, L, D) before the first layer and after each, the last one normed.
    """
    text = model.model.language_model
    embeds = text.embed_tokens(sequences.ids)
    projected = model.model.multi_modal_projector(features.to(embeds.device)).flatten(0, 1)
    spots = (sequences.ids == IMAGE)[..., None].expand_as(embeds)
    hidden = [embeds.masked_scatter(spots, projected.to(embeds.dtype))]
    turns = text.rotary_emb(hidden[0], sequences.positions)
    prefix = int((sequences.blocks[0] == 0).sum())
    barred = torch.where(sequences.mask[:, :, prefix:], 0.0, -1e4)
    for layer in text.layers:
        before = hidden[-1]
        attended = _attend(layer.self_attn, layer.input_layernorm(before), turns, barred)
        between = before + attended
        hidden.append(between + layer.mlp(layer.post_attention_layernorm(between)))
    hidden[-1] = text.norm(hidden[-1])
    return hidden


def _attend(
    attention: LlamaAttention,
    hidden: Tensor,
    turns: tuple[Tensor, Tensor],
    barred: Tensor,
) -> Tensor:
    """Attention of one layer, (B, L, D); `barred` (B, 1, Q, L) is added for the last Q tokens."""
    prefix = hidden.shape[1] - barred.shape[2]
    heads = (*hidden.shape[:2], -1, attention.head_dim)
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    query, key, value = (p(hidden).view(heads).transpose(1, 2) for p in projections)
    query, key = (x.to(value.dtype) for x in apply_rotary_pos_emb(query, key, *turns))
    first = F.scaled_dot_product_attention(
        query[:, :, :prefix], key[:, :, :prefix], value[:, :, :prefix], is_causal=True
    )
    with torch.autocast(hidden.device.type, enabled=False):
        # few rows: on a CPU plain products are twice as fast as the fused kernel
        scores = torch.add(query[:, :, prefix:] * attention.scaling @ key.mT, barred.to(key.dtype))
        rest = scores.softmax(dim=-1) @ value
    joined = torch.cat([first, rest], dim=2).transpose(1, 2).flatten(2)
    found: Tensor = attention.o_proj(joined)
    return found


def answer_scores(
    model: LlavaForConditionalGeneration, sequences: Sequences, features: Tensor
) -> tuple[Tensor, Tensor]:
    """Scores (M, vocabulary) and targets (M,) at the answer positions, in reading order.

    Args:
        model: the model.
        sequences: B sequences about the same number of images.
        features: (B, images * 196, D) of the vision tower, before the projector.
    """
    sequences = sequences.to(model.lm_head.weight.device)
    hidden = read_through(model, sequences, features)[-1]
    answered = sequences.targets != IGNORE
    scores: Tensor = model.lm_head(hidden[answered])
    return scores, sequences.targets[answered]
