"""Between the stages: let each projected patch say, in word embeddings, what it lies on.

The read-outs of stage 1 name a patch's kind, colour and digit; the projector is fitted so that its
output is the sum of the embeddings of those words, of the plural at an item's centre (a plural asks
for a number), and of the place, from left to right and from top to bottom. Language model and
pictures so start out with one vocabulary.
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
from mmtok.training.tower import GRID, DenseHeads

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
    centre = scores["centre"].sigmoid()
    said = said + centre * (kind[..., :-1] @ _embed(words, PLURALS) + _embed(words, ("items",)))
    left, right, top, bottom = _embed(words, _SIDES)
    line = torch.linspace(-1, 1, GRID, device=words.device)[:, None]
    said = said + (line * (right - left)).repeat(GRID, 1)
    said = said + (line * (bottom - top)).repeat_interleave(GRID, dim=0)
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
    targets = spoken(heads, table.detach(), hidden).flatten(0, 1)
    projector = model.model.multi_modal_projector
    return fit_projector(projector, hidden[:, 1:].flatten(0, 1), targets, steps)


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
