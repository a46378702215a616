"""What a vision tower knows of its patches besides their features, for the tokens made of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d
from torch.nn.utils.rnn import pad_sequence

from mmtok.models.families import Family, Inputs, pack_anyres
from mmtok.models.taps import LayerAttention
from mmtok.pruning.outliers import joint_attention

if TYPE_CHECKING:
    from mmtok.models.visual import Media


def known_of(
    part: Media, model: Any, family: Family, inputs: Inputs, facts: list[str], seen: LayerAttention
) -> dict[str, Any]:
    """What the tower's last layer knows of each patch, for the tokens made of them.

    Args:
        part: the tokens.
        model: the model.
        family: its row of the table.
        inputs: of the encoder.
        facts: names among the attributes of VisualTokens.
        seen: the layer's queries and keys.

    Returns:
        (B, N) or (B, N, Dk) values by name.
    """
    known = {
        "cls_attention": lambda: _cls_attention(seen)[..., None],
        "cls_joint": lambda: _cls_joint(seen)[..., None],
        "keys": lambda: seen.key.transpose(1, 2).flatten(2),
    }
    sequence = [known[fact]() for fact in facts]
    if part.tower is not None:
        sequence = [part.tower.unmerge(x) for x in sequence]
    patches = [x[:, int(family.has_cls) :] for x in sequence]
    rows = pad_sequence(per_token(model, inputs, part, torch.cat(patches, -1)), batch_first=True)
    parts = torch.split(rows, [x.shape[-1] for x in patches], -1)
    values: dict[str, Any] = dict(zip(facts, parts, strict=True))
    for name in {"cls_attention", "cls_joint"} & set(values):
        values[name] = values[name][..., 0]
    return values


def _cls_attention(attention: LayerAttention) -> Tensor:
    """(crops, S) attention of the CLS token, which stands first, to all tokens of the tower."""
    first = torch.zeros(1, dtype=torch.int64, device=attention.query.device)
    crops = range(len(attention.query))
    return torch.cat([attention.rows(crop, first) for crop in crops])


def _cls_joint(attention: LayerAttention) -> Tensor:
    """(crops, S) the same with the heads unsplit."""
    query, key = (x.transpose(1, 2).flatten(2) for x in (attention.query, attention.key))
    attention.flops += 2 * key.numel()
    return joint_attention(query, key, attention.mask)


def per_token(model: Any, inputs: Inputs, part: Media, values: Tensor) -> list[Tensor]:
    """Values (crops, patches, C) of the patches as (n, C) of each item's tokens.

    A token that pools several patches gets their mean, a newline token 0.
    """
    grids = part.tokens.grid.tolist()
    if part.kind == "image" and "image_sizes" in inputs:
        return [x[:, 1:] for x in pack_anyres(model.base_model, inputs, len(grids), values)]
    patches = values.shape[1]
    h, w = grids[0][1:] if grids[0][1] * grids[0][2] == patches else [int(patches**0.5)] * 2
    maps = values.float().transpose(1, 2).reshape(len(values), -1, h, w)
    out = []
    for places, (t, h, w), views in zip(
        part.places, grids, torch.split(maps, [t for t, _, _ in grids]), strict=True
    ):
        pooled = (
            adaptive_avg_pool2d(views, (h, w)).flatten(2).transpose(1, 2).reshape(t * h * w, -1)
        )
        out.append(torch.nn.functional.pad(pooled, (0, 0, 0, len(places) - len(pooled))))
    return out
