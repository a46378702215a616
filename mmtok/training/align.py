"""Between the stages: let each projected patch say, in word embeddings, what it lies on.

The read-outs of stage 1 name a patch's kind, colour, digit and place; the projector is fitted so
that its output is the sum of the embeddings of those words. Language model and pictures so start
out with one vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlavaForConditionalGeneration
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from mmtok.training.garments import KINDS, PLURALS
from mmtok.training.scenes import COLOURS
from mmtok.training.tokens import build_tokenizer
from mmtok.training.tower import DenseHeads

_SIDES = ("left", "right", "top", "bottom")
_RANKS = ("one", "two", "three")


@torch.no_grad()
def spoken(heads: DenseHeads, words: Tensor, hidden: Tensor) -> Tensor:
    """What the read-outs say about each patch, as a sum of word embeddings.

    Args:
        heads: read-outs of stage 1.
        words: (vocabulary, D) embeddings.
        hidden: (B, 1 + N, C) of the tower.

    Returns:
        (B, N, D).
    """
    scores = heads(hidden)
    kind = scores["kind"].softmax(-1)
    digit = scores["digit"].softmax(-1)
    item, printed = 1 - kind[..., -1:], 1 - digit[..., -1:]
    said = kind[..., :-1] @ _embed(words, KINDS)
    said = said + item * scores["colour"].softmax(-1) @ _embed(words, COLOURS)
    said = said + digit[..., :-1] @ _embed(words, tuple("0123456789"))
    said = said + printed * scores["rank"].softmax(-1) @ _embed(words, _RANKS)
    said = said + printed * _embed(words, ("number",))
    said = said + scores["centre"].sigmoid() @ _embed(words, ("items",))
    left, right, top, bottom = _embed(words, _SIDES)
    across, down = scores["place"][..., :1] - 0.5, scores["place"][..., 1:] - 0.5
    said = said + 2 * across * (right - left) + 2 * down * (bottom - top)
    found: Tensor = said
    return found


def _embed(words: Tensor, names: tuple[str, ...]) -> Tensor:
    """Embeddings of words as they stand inside a sentence, (len(names), D)."""
    tokenizer = build_tokenizer()
    spaced = [name if name.isdigit() else f" {name}" for name in names]
    return words[torch.tensor(tokenizer.convert_tokens_to_ids(spaced), device=words.device)]


@torch.no_grad()
def _whiten(projector: LlavaMultiModalProjector, patches: Tensor) -> None:
    """Let the projector start on inputs of mean 0 and deviation 1."""
    first, second = projector.linear_1, projector.linear_2
    first.weight.normal_(std=first.in_features**-0.5).div_(patches.std(dim=0))
    first.bias.copy_(-first.weight @ patches.mean(dim=0))
    second.weight.mul_(0.2)


def align(
    model: LlavaForConditionalGeneration, heads: DenseHeads, hidden: Tensor, steps: int = 300
) -> float:
    """Fit the projector to `spoken`; the answer words start as their in-sentence forms.

    Args:
        model: the model, its projector changed in place.
        heads: read-outs of stage 1.
        hidden: (B, 1 + 196, C) of the tower for some scenes.
        steps: of Adam, on 4,096 patches each.

    Returns:
        the share of the targets' variance left unexplained.
    """
    tokenizer = build_tokenizer()
    table = model.model.language_model.embed_tokens.weight
    with torch.no_grad():
        for name in (*KINDS, *COLOURS, *_SIDES, *_RANKS, "above", "below", "up", "down"):
            bare, spaced = tokenizer.convert_tokens_to_ids([name, f" {name}"])
            table[bare] = table[spaced]
        for one, many in zip(KINDS, PLURALS, strict=True):
            one_id, many_id = tokenizer.convert_tokens_to_ids([f" {one}", f" {many}"])
            table[many_id] = table[one_id]
    targets = spoken(heads, table.detach(), hidden).flatten(0, 1)
    projector = model.model.multi_modal_projector
    return fit_projector(projector, hidden[:, 1:].flatten(0, 1), targets, steps)


def carry_over(model: LlavaForConditionalGeneration, old: Tensor, new: Tensor) -> float:
    """Refit the projector to a tower that was trained on, so that the language model can stay.

    Args:
        model: the model, its projector changed in place.
        old: (B, 1 + 196, C) hidden states of the tower it knows.
        new: the same of the new tower, for the same scenes.

    Returns:
        the share of the variance left unexplained.
    """
    projector = model.model.multi_modal_projector
    with torch.no_grad():
        targets = projector(old[:, 1:].flatten(0, 1))
    return fit_projector(projector, new[:, 1:].flatten(0, 1), targets, steps=600)


def fit_projector(
    projector: LlavaMultiModalProjector, patches: Tensor, targets: Tensor, steps: int
) -> float:
    """Train the projector anew to map (M, C) to (M, D); returns the unexplained variance."""
    _whiten(projector, patches)
    optimiser = torch.optim.Adam(projector.parameters(), lr=3e-3)
    variance = float(targets.var(dim=0).mean())
    left = 1.0
    for step in range(steps):
        picked = torch.randint(len(patches), (4096,))
        loss = F.mse_loss(projector(patches[picked]), targets[picked])
        optimiser.zero_grad()
        (loss / variance).backward()  # type: ignore[no-untyped-call]
        optimiser.param_groups[0]["lr"] = 3e-3 * (1 - step / steps)
        optimiser.step()
        left = float(loss.detach()) / variance
    return left
