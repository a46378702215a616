"""Show the language model how to count, once it knows the kinds.

Attention takes averages: a head that looks at the right patches alone forgets how many there were,
and a model trained from nothing stays for long with the commonest answer. So in the midst of its
training two parts of the first layer are set by ridge regression, and trained on from there:

- one head looks at all tokens alike, and reads in their average how much there is of each kind's
  centre (the tower's patches say so, see `tower.patch_labels`);
- for each kind one unit of the MLP multiplies "this token names the kind" (gate) with "so many of
  the kind were read" (up), and adds the product along one direction.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlavaForConditionalGeneration

from mmtok.training.garments import KINDS, PLURALS
from mmtok.training.questions import Question
from mmtok.training.scenes import Scene
from mmtok.training.sequences import Sequences, answer_scores, pack_questions, read_through
from mmtok.training.tokens import build_tokenizer

_SUBJECTS = (*PLURALS, "items")


def _counts(scenes: Sequence[Scene]) -> Tensor:
    """How many there are of each kind, and of all, (B, 8)."""
    rows = [[*(scene.count(k) for k in range(len(KINDS))), len(scene.items)] for scene in scenes]
    return torch.tensor(rows, dtype=torch.float64)


def _ridge(inputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Weights (D, K) from inputs (M, D) to targets (M, K) in float64."""
    weighed = inputs if weights is None else inputs * weights[:, None]
    gram = weighed.mT @ inputs
    gram = gram + 1e-3 * gram.diagonal().mean() * torch.eye(len(gram)).to(gram)
    solved: Tensor = torch.linalg.solve(gram, weighed.mT @ targets)
    return solved


@torch.no_grad()
def least_needed_head(
    model: LlavaForConditionalGeneration, sequences: Sequences, features: Tensor
) -> int:
    """The head of the first layer without which the answers' loss is lowest."""
    columns = model.model.language_model.layers[0].self_attn.o_proj.weight
    width = model.model.language_model.layers[0].self_attn.head_dim
    losses = []
    for start in range(0, columns.shape[1], width):
        kept = columns[:, start : start + width].clone()
        columns[:, start : start + width] = 0
        scores, targets = answer_scores(model, sequences, features)
        losses.append(float(F.cross_entropy(scores, targets)))
        columns[:, start : start + width] = kept
    return min(range(len(losses)), key=losses.__getitem__)


@torch.no_grad()
def start_reading(
    model: LlavaForConditionalGeneration,
    features: Tensor,
    scenes: Sequence[Scene],
    head: int = -1,
    step: float = 4,
) -> float:
    """Turn one head of the first layer into one that reads how many of each kind there are.

    Args:
        model: the model, one head of its first layer changed in place.
        features: (B, N, C) of the tower for the scenes, before the projector.
        scenes: B scenes, several hundred.
        head: which head.
        step: how far one item more moves the tokens.

    Returns:
        the share of the variance of the counts left unexplained.
    """
    layer = model.model.language_model.layers[0]
    attention, width = layer.self_attn, layer.self_attn.head_dim
    averages = layer.input_layernorm(model.model.multi_modal_projector(features)).mean(dim=1)
    inputs, targets = averages.double(), _counts(scenes).to(averages.device)
    inputs, targets = inputs - inputs.mean(0), targets - targets.mean(0)
    weights = _ridge(inputs, targets)
    left = (inputs @ weights - targets).var(0).sum() / targets.var(0).sum()
    start = (head % (attention.q_proj.out_features // width)) * width
    rows = slice(start, start + width)
    attention.q_proj.weight[rows].normal_(std=0.003)  # looks everywhere, but can learn
    attention.k_proj.weight[rows].normal_(std=0.05)
    attention.v_proj.weight[rows].normal_(std=0.05)
    columns = attention.o_proj.weight[:, rows]
    columns.zero_()
    read = weights.mT.float()
    size = read.norm(dim=1, keepdim=True)
    attention.v_proj.weight[start : start + len(read)] = read / size * 4
    spread = torch.nn.init.orthogonal_(torch.empty(len(columns), len(read), device=size.device))
    columns[:, : len(read)] = spread * (size.mT / 4 * step)
    return float(left)


@torch.no_grad()
def start_naming(
    model: LlavaForConditionalGeneration,
    features: Tensor,
    scenes: Sequence[Scene],
    step: float = 12,
) -> float:
    """Give the first layer's MLP one unit per kind, and one for all items, that pick out a count.

    Args:
        model: the model, eight units of its first layer changed in place, the least used.
        features: (B, N, C) of the tower for the scenes, before the projector.
        scenes: B scenes, several hundred.
        step: how far one item more moves the token that names the kind.

    Returns:
        the correlation of what the units say with the true counts.
    """
    tokens, named, counts = _naming_tokens(model, features, scenes)
    subject = named >= 0
    truth = F.one_hot(named.clamp(min=0), len(_SUBJECTS)).double() * subject[:, None] * 2 - 1
    gates, ups = [], []
    for k in range(len(_SUBJECTS)):
        own = named == k
        gates.append(_ridge(tokens, truth[:, k : k + 1], torch.where(own, 6.0, 1.0).double()))
        weight = torch.where(own, 1.0, 0.05).double()[subject]
        ups.append(_ridge(tokens[subject], counts[subject, k : k + 1], weight))
    gate, up = 6 * torch.cat(gates, dim=1), torch.cat(ups, dim=1)
    mlp = model.model.language_model.layers[0].mlp
    plain = tokens.float()
    used = (F.silu(mlp.gate_proj(plain)) * mlp.up_proj(plain)).abs().mean(dim=0)
    units = (used * mlp.down_proj.weight.norm(dim=0)).argsort()[: len(_SUBJECTS)]
    way = F.normalize(torch.randn(len(mlp.down_proj.weight), 1, device=used.device), dim=0)
    mlp.gate_proj.weight[units] = gate.mT.float()
    mlp.up_proj.weight[units] = up.mT.float()
    mlp.down_proj.weight[:, units] = (way * step / 6).expand(-1, len(_SUBJECTS))
    said = (F.silu(tokens @ gate) * (tokens @ up)).sum(dim=1)[subject]
    asked = counts[subject].gather(1, named[subject, None])[:, 0]
    return float(torch.corrcoef(torch.stack([said, asked]))[0, 1])


def _naming_tokens(
    model: LlavaForConditionalGeneration, features: Tensor, scenes: Sequence[Scene]
) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs of the first layer's MLP in questions about every kind.

    Returns:
        inputs (M, D) float64; which kind the token names (M,), 7 for items, -1 for nothing;
        the counts (M, 8) of its scene.
    """
    tokenizer = build_tokenizer()
    texts = [f"How many {name} are in the image?" for name in _SUBJECTS]
    texts += [f"Is there a {kind} in the image?" for kind in KINDS]
    questions = [Question("count", text, "no") for text in texts]
    subjects = torch.full((len(tokenizer),), -1)
    for names in (_SUBJECTS, KINDS):
        for row, name in enumerate(names):
            subjects[tokenizer.convert_tokens_to_ids(f" {name}")] = row
    seen: list[Tensor] = []
    norm = model.model.language_model.layers[0].post_attention_layernorm
    handle = norm.register_forward_hook(lambda module, args, out: seen.append(out))
    inputs, named, counts = [], [], []
    try:
        for part in range(0, len(scenes), 16):
            some = scenes[part : part + 16]
            sequences = pack_questions(tokenizer, [questions] * len(some), 1, features.shape[1])
            sequences = sequences.to(features.device)
            read_through(model, sequences, features[part : part + 16])
            rows = subjects.to(features.device)[sequences.ids].masked_fill(
                sequences.blocks <= 0, -1
            )
            chosen = (rows >= 0) | (torch.rand(rows.shape, device=rows.device) < 0.05)
            inputs.append(seen.pop()[chosen].double())
            named.append(rows[chosen])
            counts.append(_counts(some).to(rows.device)[chosen.nonzero()[:, 0]])
    finally:
        handle.remove()
    return torch.cat(inputs), torch.cat(named), torch.cat(counts)
