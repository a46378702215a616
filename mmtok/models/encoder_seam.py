"""The encoder seam: run the stock vision tower, choose, hand back less of both features and prompt.

Every family whose `forward` takes `mm_encoder_outputs` works like this: the features of the
survivors go in through that argument, the placeholders of the others leave the prompt, and every
token that stays keeps its original position id.
"""

from __future__ import annotations

import inspect
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from mmtok.accounting.scopes import Meter
from mmtok.models.families import Family, Inputs
from mmtok.models.pixels import PIXELS
from mmtok.models.taps import LayerAttention, tap
from mmtok.models.tower_seam import open_tower
from mmtok.models.visual import Encoded, Media
from mmtok.pruning.stages import EncoderStage

TOWER_OPTION = "interpolate_pos_encoding"  # goes through the encoder's **kwargs to the tower


def encode(
    model: Any,
    family: Family,
    inputs: Inputs,
    wants: set[str],
    meter: Meter,
    stage: EncoderStage | None = None,
) -> list[Encoded]:
    """Run the vision tower on whatever pixels the inputs hold.

    Args:
        model: a Hugging Face model with a language head.
        family: its row of the table.
        inputs: keyword arguments of its `forward`, from its own processor.
        wants: as of `describe`.
        meter: told that the stage "encode" runs.
        stage: what to merge inside the tower.

    Raises:
        InputError: merging does not fit these inputs.
    """
    found = []
    for kind, key in PIXELS.items():
        if inputs.get(key) is None:
            continue
        encoder = getattr(model.base_model, f"get_{kind}_features")
        known = {*inspect.signature(encoder).parameters, TOWER_OPTION}
        arguments = {name: value for name, value in inputs.items() if name in known}
        heard: list[LayerAttention] = []
        tower = None if stage is None else open_tower(model, family, arguments, kind, stage, meter)
        with ExitStack() as stack:
            stack.enter_context(meter.stage("encode"))
            if tower is not None:
                stack.enter_context(tower.active())
            if wants & family.facts:
                layers = model.base_model.get_submodule(family.tower)
                stack.enter_context(tap(layers[-1], heard.append))
            output = encoder(**arguments, return_dict=True)
        found.append(Encoded(kind, output, heard[0] if heard else None, tower))
    return found


def hand_back(family: Family, media: Media) -> Any:
    """The encoder's output with the surviving features, in the form `forward` expects."""
    return media.output if media.whole else repack(family, media)


def repack(family: Family, media: Media) -> Any:
    """An output like the encoder's that holds the features of `media`, however many are left."""
    rows = [x[m] for x, m in zip(media.tokens.features, media.tokens.mask, strict=True)]
    output = type(media.output)(**media.output)
    output.pooler_output = rows
    if family.flat or (media.kind == "video" and isinstance(media.output.pooler_output, Tensor)):
        same = len({len(x) for x in rows}) == 1
        output.pooler_output = torch.stack(rows) if same else torch.cat(rows)[None]
    if family.deepstack:
        mask = media.tokens.mask
        output.deepstack_features = [
            [x[m] for x, m in zip(layer, mask, strict=True)] for layer in media.deepstack
        ]
    return output


def kept_places(shape: torch.Size, media: list[Media]) -> tuple[Tensor, Tensor]:
    """Which prompt tokens survive, and which of those are visual: two (B, S) bool tensors."""
    device = media[0].places[0].device if media and media[0].places else torch.device("cpu")
    keep = torch.ones(shape, dtype=torch.bool, device=device)
    visual = torch.zeros_like(keep)
    for part in media:
        for places, kept in zip(part.places, part.kept, strict=True):
            keep.view(-1)[places] = False
            keep.view(-1)[places[kept]] = True
            visual.view(-1)[places[kept]] = True
    return keep, visual


def token_cells(shape: torch.Size, media: list[Media]) -> Tensor:
    """(4, B, S) int64 image or clip of each surviving visual token, and its (t, h, w); else -1."""
    parts = [
        (places[kept], position[mask])
        for part in media
        for places, kept, position, mask in zip(
            part.places, part.kept, part.tokens.position, part.tokens.mask, strict=True
        )
    ]
    device = parts[0][0].device if parts else torch.device("cpu")
    cell = torch.full((4, *shape), -1, dtype=torch.int64, device=device)
    for item, (places, position) in enumerate(parts):
        cell.view(4, -1)[0, places] = item
        cell.view(4, -1)[1:, places] = position.T
    return cell


def token_facts(shape: torch.Size, media: list[Media]) -> Tensor:
    """(2, B, S) fp32 patches in each surviving visual token, 1 at text, and its CLS attention."""
    device = media[0].places[0].device if media else torch.device("cpu")
    facts = torch.ones(shape, device=device), torch.zeros(shape, device=device)
    for part in media:
        known = (part.tokens.size, part.tokens.cls_attention)
        for item, (places, kept) in enumerate(zip(part.places, part.kept, strict=True)):
            for row, values in zip(facts, known, strict=True):
                if values is not None:
                    row.view(-1)[places[kept]] = (
                        values[item, part.tokens.mask[item]].detach().float()
                    )
    return torch.stack(facts)


def compact(keep: Tensor, values: dict[str, tuple[Tensor, float]]) -> dict[str, Tensor]:
    """Take the kept tokens of each row and pad the rows on the left to one length again.

    Args:
        keep: (B, S) bool.
        values: name -> (tensor whose last two axes are (B, S), value to pad with).
    """
    length = int(keep.sum(1).max())
    shift = length - keep.sum(1, keepdim=True)
    target = keep.cumsum(1) - 1 + shift
    row, column = keep.nonzero(as_tuple=True)
    out = {}
    for name, (value, pad) in values.items():
        short = value.new_full((*value.shape[:-1], length), pad)
        short[..., row, target[row, column]] = value[..., row, column]
        out[name] = short
    return out
