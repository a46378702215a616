"""Let the language model start out able to count.

Attention takes averages: a head that looks at the right patches alone forgets how many there were,
and a model trained from nothing takes long to find the head that looks at all patches alike and
reads how much of each kind's centre there is in the average. Here the last head of the first layer
starts out as that head; what it reads is fitted by ridge regression. It stays trainable.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from mmtok.training.garments import KINDS
from mmtok.training.scenes import Scene


@torch.no_grad()
def start_counting(
    model: LlavaForConditionalGeneration,
    features: Tensor,
    scenes: Sequence[Scene],
    head: int = -1,
    step: float = 0.1,
) -> float:
    """Turn one head of the first layer into one that counts every kind, and all items.

    Args:
        model: the model, one head of its first layer changed in place.
        features: (B, N, C) of the tower for the scenes, before the projector.
        scenes: B scenes, several hundred.
        head: which head.
        step: how far one item more moves the tokens that count.

    Returns:
        the share of the variance of the counts left unexplained.
    """
    layer = model.model.language_model.layers[0]
    attention, width = layer.self_attn, layer.self_attn.head_dim
    projected = model.model.multi_modal_projector(features)
    averages = layer.input_layernorm(projected).mean(dim=1).double()
    counts = [[*(scene.count(k) for k in range(len(KINDS))), len(scene.items)] for scene in scenes]
    truth = torch.tensor(counts).to(averages)
    inputs, targets = averages - averages.mean(0), truth - truth.mean(0)
    scale = 1e-4 * inputs.square().mean() * len(scenes)
    gram = inputs.mT @ inputs + scale * torch.eye(inputs.shape[1]).to(inputs)
    weights = torch.linalg.solve(gram, inputs.mT @ targets)
    left = (inputs @ weights - targets).var(0).sum() / targets.var(0).sum()
    start = (head % (attention.q_proj.out_features // width)) * width
    rows = slice(start, start + width)
    attention.q_proj.weight[rows].normal_(std=0.003)
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
