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
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from mmtok.training.garments import KINDS, PLURALS
from mmtok.training.questions import LETTERS, Question
from mmtok.training.tokens import EOS, IMAGE, PAD, frame_lead
from mmtok.training.tower import GRID, IGNORE

PATCHES = GRID**2
_NAMES = (*KINDS, *PLURALS, "number", "items", "first", "last", "end", "half")


@dataclass(frozen=True)
class Sequences:
    """A batch of prefixes with their questions.

    Attributes:
        ids: (B, L) int64, padded at the end.
        positions: (B, L) int64, restarted after the prefix for every question.
        targets: (B, L) int64, the id that follows at answer positions, -100 elsewhere.
        mask: (B, 1, L, L) bool, true where the row may look at the column.
        blocks: (B, L) int64, 0 in the prefix, 1, 2, ... in the questions, -1 in the padding.
        hints: (B, L) int64, -100 but where a question names what it is about (the answer's first
            id) and at the end of each option (is it the right one, yes or no).
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
    """Targets inside a question whose first `asked` ids come before the answer."""
    hints = [IGNORE] * len(text)
    if question.options is None:
        names = set(tokenizer.convert_tokens_to_ids([f" {name}" for name in _NAMES]))
        return [text[asked] if i < asked and text[i] in names else IGNORE for i in range(len(text))]
    dot, line = tokenizer.convert_tokens_to_ids([".", "\n"])
    for letter in LETTERS:
        mark = tokenizer.convert_tokens_to_ids(letter)
        start = next(i for i in range(asked) if text[i] == mark and text[i + 1] == dot)
        truth = "yes" if letter == question.label else "no"
        hints[text.index(line, start) - 1] = tokenizer.convert_tokens_to_ids(truth)
    return hints


def block_mask(blocks: Tensor) -> Tensor:
    """Mask (B, 1, L, L) from block numbers (B, L): causal, own block and prefix only."""
    rows, columns = blocks[:, :, None], blocks[:, None, :]
    length = blocks.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=blocks.device).tril()
    seen = ((columns == 0) | (columns == rows)) & causal
    return seen[:, None]


def answer_scores(
    model: LlavaForConditionalGeneration,
    sequences: Sequences,
    features: Tensor,
    hints: bool = False,
) -> tuple[Tensor, Tensor]:
    """Scores and targets at the answer positions, or at the hints.

    Args:
        model: the model.
        sequences: B sequences about the same number of images.
        features: (B, images * 196, D) of the vision tower, before the projector.
        hints: append the scores and targets of the hints.

    Returns:
        (M, vocabulary) scores and (M,) targets, in reading order.
    """
    inner = model.model
    sequences = sequences.to(model.lm_head.weight.device)
    embeds = inner.language_model.embed_tokens(sequences.ids)
    projected = inner.multi_modal_projector(features.to(embeds.device)).flatten(0, 1)
    spots = (sequences.ids == IMAGE)[..., None].expand_as(embeds)
    embeds = embeds.masked_scatter(spots, projected.to(embeds.dtype))
    hidden = inner.language_model(
        inputs_embeds=embeds,
        attention_mask=sequences.mask,
        position_ids=sequences.positions,
        use_cache=False,
    ).last_hidden_state
    answered = sequences.targets != IGNORE
    read, targets = hidden[answered], sequences.targets[answered]
    if hints:
        hinted = sequences.hints != IGNORE
        read = torch.cat([read, hidden[hinted]])
        targets = torch.cat([targets, sequences.hints[hinted]])
    scores: Tensor = model.lm_head(read)
    return scores, targets
