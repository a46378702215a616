"""The vision tower: a CLIP tower that starts out local, and its dense per-patch supervision.

A transformer trained from nothing on little data first has to find out that pixels have
neighbours. Here it starts with that knowledge: a part of each token holds sinusoids of its row and
column, and the query and key weights of the first layers are set so that each head looks at one
neighbouring patch (after "Structured Initialization for Attention in Vision Transformers",
arXiv:2404.01139). Everything stays trainable and the module stays a stock `CLIPVisionModel`.

Each patch then learns to name what it lies on; the heads for that are thrown away afterwards.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModel

from mmtok.training.garments import KINDS
from mmtok.training.scenes import CANVAS, COLOURS, PATCH, Scene

GRID = CANVAS // PATCH
IGNORE = -100
# For each layer the (right, down) neighbour that each of the four heads starts out looking at.
_LOOK = (
    ((1, 0), (-1, 0), (0, 1), (0, -1)),
    ((1, 1), (-1, -1), (1, -1), (-1, 1)),
    ((1, 0), (-1, 0), (0, 1), (0, -1)),
    ((2, 0), (-2, 0), (0, 2), (0, -2)),
)
_PLACE = 32  # channels of a token that start out holding its place


def build_tower(width: int = 128, layers: int = 6, seed: int = 0) -> CLIPVisionModel:
    """A stock CLIP tower of 4 heads for 112-pixel images, with a local start.

    Args:
        width: channels of a token, a multiple of 32.
        layers: transformer layers.
        seed: of the random part of the weights.
    """
    torch.manual_seed(seed)
    config = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        image_size=CANVAS,
        patch_size=PATCH,
        hidden_act="gelu",
        projection_dim=width,
    )
    tower = CLIPVisionModel(config)
    with torch.no_grad():
        _start_local(tower, width)
    return tower


def _start_local(tower: CLIPVisionModel, width: int) -> None:
    """Write places into the position embedding and neighbour offsets into queries and keys."""
    rates = math.pi * (torch.arange(8) + 0.5) / 9
    steps = torch.arange(GRID)[:, None] * rates
    line = torch.stack([steps.cos(), steps.sin()], dim=-1).flatten(1)  # (GRID, 16)
    rows, columns = torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="ij")
    places = torch.cat([line[columns.flatten()], line[rows.flatten()]], dim=1)
    embeddings = tower.embeddings
    embeddings.position_embedding.weight.zero_()
    embeddings.position_embedding.weight[1:, :_PLACE] = places
    weight = embeddings.patch_embedding.weight
    nn.init.normal_(weight, std=1.4 / math.sqrt(weight[0].numel()))
    weight[:_PLACE] = 0
    head = width // 4
    for layer, looks in zip(tower.encoder.layers, _LOOK, strict=False):
        attention = layer.self_attn
        for index, look in enumerate(looks):
            rows_of_head = slice(index * head, (index + 1) * head)
            for part, turn in ((attention.q_proj, look), (attention.k_proj, (0, 0))):
                part.weight[rows_of_head] *= 0.1
                block = 2.3 * _turn(turn, rates)
                part.weight[rows_of_head][:_PLACE, :_PLACE] += block


def _turn(look: tuple[int, int], rates: Tensor) -> Tensor:
    """(32, 32) rotation that moves a place by `look` patches."""
    blocks = []
    for step in look:
        for rate in rates.tolist():
            c, s = math.cos(rate * step), math.sin(rate * step)
            blocks.append(torch.tensor([[c, -s], [s, c]]))
    turned: Tensor = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]
    return turned


def run_tower(tower: CLIPVisionModel, pixels: Tensor, corner: tuple[int, int] = (0, 0)) -> Tensor:
    """Last hidden state for a whole canvas or a smaller window of one.

    Args:
        tower: the vision tower.
        pixels: (B, 3, S, S), S a multiple of 8 and at most 112.
        corner: row and column of the window's first patch, for its position embeddings.

    Returns:
        (B, 1 + (S / 8) ** 2, D), the CLS token first.
    """
    embeddings = tower.embeddings
    tokens = embeddings.patch_embedding(pixels)
    side = tokens.shape[-1]
    places = embeddings.position_embedding.weight
    window = places[1:].view(GRID, GRID, -1)[corner[0] :, corner[1] :][:side, :side]
    tokens = tokens.flatten(2).transpose(1, 2) + window.reshape(1, side * side, -1)
    first = (embeddings.class_embedding + places[0]).expand(len(pixels), 1, -1)
    hidden = tower.pre_layrnorm(torch.cat([first, tokens], dim=1))
    last: Tensor = tower.encoder(inputs_embeds=hidden).last_hidden_state
    return last


def to_pixels(images: NDArray[np.uint8]) -> Tensor:
    """(B, S, S, 3) uint8 to the tower's input, (B, 3, S, S) in [-1, 1]."""
    return torch.tensor(images).permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous()


class DenseHeads(nn.Module):
    """Linear read-outs of the tower's last hidden state, used in training only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.kind = nn.Linear(width, len(KINDS) + 1)
        self.colour = nn.Linear(width, len(COLOURS))
        self.centre = nn.Linear(width, 1)
        self.digit = nn.Linear(width, 11)
        self.rank = nn.Linear(width, 3)
        self.place = nn.Linear(width, 2)
        self.seen = nn.Linear(width, len(KINDS))

    def forward(self, hidden: Tensor) -> dict[str, Tensor]:
        """Scores per patch (B, N, classes); `seen` is per image, from the CLS token."""
        hidden = self.norm(hidden)
        patches = hidden[:, 1:]
        names = ("kind", "colour", "centre", "digit", "rank", "place")
        scores = {name: getattr(self, name)(patches) for name in names}
        scores["seen"] = self.seen(hidden[:, 0])
        return scores


def patch_labels(scene: Scene, owner: NDArray[np.int8]) -> dict[str, NDArray[Any]]:
    """What each patch lies on, from the scene and the map of its items.

    Returns:
        kind, colour, digit and rank (N,) int64 with -100 where the answer is unclear or void;
        centre (N,) float32, each item's one shared by the patches around its centre; seen (7,)
        float32. N is the number of patches.
    """
    side = scene.size // PATCH
    blocks = owner.reshape(side, PATCH, side, PATCH).transpose(0, 2, 1, 3).reshape(side**2, -1)
    kind = np.full(side**2, len(KINDS))
    colour = np.full(side**2, IGNORE)
    centre = np.zeros(side**2, np.float32)
    seen = np.zeros(len(KINDS), np.float32)
    kind[(blocks > 0).mean(axis=1) > 0.05] = IGNORE
    for index, item in enumerate(scene.items):
        covered = (blocks == index + 1).mean(axis=1) >= 0.3
        kind[covered], colour[covered] = item.kind, item.colour
        _splat(centre.reshape(side, side), item.x, item.y)
        seen[item.kind] = 1
    digit, rank = _digit_labels(scene, side)
    return {
        "kind": kind,
        "colour": colour,
        "centre": centre,
        "digit": digit,
        "rank": rank,
        "seen": seen,
    }


def _splat(grid: NDArray[np.float32], x: float, y: float) -> None:
    """Share one item between the up to four patches around its centre, so that patches add up."""
    across, down = (np.clip(v / PATCH - 0.5, 0, len(grid) - 1 - 1e-6) for v in (x, y))
    column, row = int(across), int(down)
    right, low = float(across) - column, float(down) - row
    grid[row : row + 2, column : column + 2] += np.outer((1 - low, low), (1 - right, right))


def _digit_labels(scene: Scene, side: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Digit (10: none) and its place in the number, for every patch."""
    digit = np.full((side, side), 10)
    rank = np.full((side, side), IGNORE)
    if scene.number is None:
        return digit.ravel(), rank.ravel()
    middle = (np.arange(side) + 0.5) * PATCH
    reach = scene.number.half_height
    for place, (x, y) in enumerate(scene.number.centres()):
        dx, dy = np.abs(middle - x)[None, :], np.abs(middle - y)[:, None]
        digit[(dx <= 7) & (dy <= reach) & (digit == 10)] = IGNORE
        spot = (dx <= 4) & (dy <= 6)
        digit[spot], rank[spot] = int(scene.number.digits[place]), place
    return digit.ravel(), rank.ravel()


def dense_loss(
    scores: dict[str, Tensor], labels: dict[str, Tensor], corner: tuple[int, int]
) -> Tensor:
    """Sum of the read-outs' losses over a batch; labels as of `patch_labels`, batched."""
    loss = _classes(scores["kind"], labels["kind"], rare=len(KINDS), share=0.4)
    loss = loss + 0.5 * _classes(scores["colour"], labels["colour"])
    loss = loss + _classes(scores["digit"], labels["digit"], rare=10, share=0.05)
    loss = loss + 0.3 * _classes(scores["rank"], labels["rank"])
    centre = scores["centre"].squeeze(-1)
    shared = labels["centre"].clamp(max=1)
    loss = loss + 6 * F.binary_cross_entropy_with_logits(centre, shared)
    loss = loss + 0.2 * F.binary_cross_entropy_with_logits(scores["seen"], labels["seen"])
    side = math.isqrt(centre.shape[1])
    spots = torch.arange(side, device=centre.device, dtype=centre.dtype)
    across = (spots + corner[1]).repeat(side) / GRID
    down = (spots + corner[0]).repeat_interleave(side) / GRID
    place = torch.stack([across, down], dim=-1).expand_as(scores["place"])
    return loss + F.mse_loss(scores["place"], place)


def _classes(scores: Tensor, labels: Tensor, rare: int | None = None, share: float = 1) -> Tensor:
    """Cross-entropy over labelled patches; class `rare` (the background) weighs `share`."""
    weight = scores.new_ones(scores.shape[-1])
    if rare is not None:
        weight[rare] = share
    flat = labels.flatten()
    losses = F.cross_entropy(scores.flatten(0, 1), flat, weight, reduction="sum")
    return losses / (weight[flat.clamp(min=0)] * (flat != IGNORE)).sum().clamp(min=1)
