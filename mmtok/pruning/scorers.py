"""How much each frame of a clip helps to answer a question: scores for `quota(scorer=[...])`.

A vision-language model is asked about every frame, or CLIP compares frames with the question. Both
cost a forward per frame, which they report to a meter as stage "reduce.score":

    timer = StageTimer(lvlm.device)
    scores = yes_scores(lvlm, clip.frames, question, meter=timer)
    Pipeline(lvlm, QuoTA(keep=0.25, scorer=scores)).run(inputs, timer=timer)

`decouple` has the model name what to look for first (arXiv 2503.08689 asks in the same order); what
it says is read as JSON and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch

from mmtok.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

    from mmtok.accounting.scopes import Meter
    from mmtok.models.lvlm import LVLM

YES = ("yes", "Yes", "YES")
NO = ("no", "No", "NO")
MOST_OBJECTS, LONGEST_OBJECT = 16, 60
LIST_PROMPT = (
    "List the objects that must be seen to answer this question, as a JSON list of strings and "
    "nothing else. Question: {question}"
)
FRAME_PROMPT = (
    "Does this picture help to answer the question: {question}{objects} Answer yes or no."
)


def decouple(lvlm: LVLM, question: str, *, max_new_tokens: int = 64) -> list[str]:
    """The objects that the model says one must look for; none where it gives no readable list."""
    inputs = lvlm.inputs(text=LIST_PROMPT.format(question=question))
    with torch.inference_mode():
        made = lvlm.model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    return read_objects(lvlm.decode(made[:, inputs["input_ids"].shape[1] :])[0])


def read_objects(answer: str) -> list[str]:
    """The strings of the JSON list in a model's answer: at most 16 of at most 60 characters.

    Anything else, such as a list of other things or no list at all, is read as an empty list.
    """
    start, end = answer.find("["), answer.rfind("]")
    try:
        found = json.loads(answer[start : end + 1]) if 0 <= start < end else []
    except (json.JSONDecodeError, RecursionError):
        return []
    if not all(isinstance(name, str) for name in found):
        return []
    names = [" ".join(name.split()) for name in found]
    kept = [name for name in names if 0 < len(name) <= LONGEST_OBJECT and name.isprintable()]
    return list(dict.fromkeys(kept))[:MOST_OBJECTS]


def yes_scores(
    lvlm: LVLM,
    frames: Sequence[Image],
    question: str,
    *,
    objects: Sequence[str] = (),
    batch: int = 8,
    meter: Meter | None = None,
) -> list[float]:
    """Ask a model of every frame whether it helps: the probability of yes against no.

    Args:
        lvlm: the model that answers, the one that is made cheaper or another.
        frames: PIL frames, one per score.
        question: what the clip is asked.
        objects: what to look for, from `decouple`.
        batch: frames per forward.
        meter: told that the stage "reduce.score" runs.

    Raises:
        InputError: the vocabulary has no token for yes or for no.
    """
    named = f" Look for: {', '.join(objects)}." if objects else ""
    text = FRAME_PROMPT.format(question=question, objects=named)
    yes, no = (_token_ids(lvlm, words) for words in (YES, NO))
    scores: list[float] = []
    with torch.inference_mode(), meter.stage("reduce.score") if meter else nullcontext():
        for start in range(0, len(frames), batch):
            prompts = [([frame], None, text) for frame in frames[start : start + batch]]
            inputs = lvlm.inputs_batch(prompts)
            logits = lvlm.model(**inputs, logits_to_keep=1).logits[:, -1].float()
            gap = logits[:, yes].logsumexp(1) - logits[:, no].logsumexp(1)
            scores += gap.sigmoid().tolist()
    return scores


def _token_ids(lvlm: LVLM, words: Sequence[str]) -> list[int]:
    """Ids of the words that are one token, with and without a leading space."""
    tokenizer = lvlm.processor.tokenizer
    spelled = [text for word in words for text in (word, f" {word}")]
    ids = [tokenizer.encode(text, add_special_tokens=False) for text in spelled]
    unknown = tokenizer.unk_token_id
    found = sorted({i[0] for i in ids if len(i) == 1 and i[0] != unknown})
    if not found:
        raise InputError(f"{lvlm.name} has no token for {words[0]!r}: give the scores yourself")
    return found


def clip_scores(
    model: Any,
    preprocess: Any,
    tokenizer: Any,
    frames: Sequence[Image],
    question: str,
    *,
    device: torch.device | str = "cpu",
    meter: Meter | None = None,
) -> list[float]:
    """Cosine of every frame to the question by a CLIP model, brought to [0, 1] over the frames.

    Args:
        model: from `open_clip.create_model_and_transforms`, or anything with `encode_image` and
            `encode_text`.
        preprocess: PIL image -> (C, H, W).
        tokenizer: list of strings -> (1, T) ids.
        frames: PIL frames, one per score.
        question: what the clip is asked.
        device: where the model is.
        meter: told that the stage "reduce.score" runs.
    """
    with torch.inference_mode(), meter.stage("reduce.score") if meter else nullcontext():
        pixels = torch.stack([preprocess(frame) for frame in frames]).to(device)
        words = tokenizer([question]).to(device)
        seen = torch.nn.functional.normalize(model.encode_image(pixels).float(), dim=-1)
        asked = torch.nn.functional.normalize(model.encode_text(words).float(), dim=-1)
        cosine = (seen @ asked.T).squeeze(1)
    low, high = cosine.min(), cosine.max()
    if high <= low:
        return [1.0] * len(frames)
    rescaled: list[float] = ((cosine - low) / (high - low)).tolist()
    return rescaled
