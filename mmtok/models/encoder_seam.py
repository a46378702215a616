"""The encoder seam: run the stock vision tower, choose, hand back less of both features and prompt.

Every family whose `forward` takes `mm_encoder_outputs` works like this: the features of the
survivors go in through that argument, the placeholders of the others leave the prompt, and every
token that stays keeps its original position id.
"""

from __future__ import annotations

import inspect
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mmtok.accounting.scopes import Meter
from mmtok.errors import InputError
from mmtok.models.facts import known_of
from mmtok.models.families import Family, Inputs, Layout
from mmtok.models.pixels import PIXELS, names_of
from mmtok.models.taps import LayerAttention, tap
from mmtok.models.tower_seam import TowerSeam, open_tower
from mmtok.pruning.stages import EncoderStage
from mmtok.tokens import Selection, VisualTokens

TOWER_OPTION = "interpolate_pos_encoding"  # goes through the encoder's **kwargs to the tower


@dataclass(frozen=True)
class Media:
    """The visual tokens of one modality, and where their placeholders are.

    Attributes:
        kind: "image" or "video".
        output: what the encoder returned.
        tokens: one item per image or clip.
        places: per item, (n,) int64 places of its placeholders in the flattened (B*S) prompt.
        kept: per item, which of the original tokens are still here.
        deepstack: (items, N, D) features for each of the first decoder layers.
        score_flops: floating point operations spent on scores so far.
        tower: how patches merged inside the vision tower, if they did.
    """

    kind: str
    output: Any
    tokens: VisualTokens
    places: list[Tensor]
    kept: list[Tensor]
    deepstack: list[Tensor]
    score_flops: int = 0
    tower: TowerSeam | None = None

    def reduce(self, selection: Selection) -> Media:
        """What is left after a selection among the current tokens."""
        tokens = self.tokens.gather(selection.indices)
        rows = selection.made or selection.apply(self.tokens.features)
        features = pad_sequence(rows, batch_first=True)
        deep = [pad_sequence(selection.apply(x), batch_first=True) for x in self.deepstack]
        kept = [k[i] for k, i in zip(self.kept, selection.indices, strict=True)]
        return replace(self, tokens=replace(tokens, features=features), kept=kept, deepstack=deep)

    @property
    def whole(self) -> bool:
        """Whether nothing has been dropped."""
        return all(len(k) == len(p) for k, p in zip(self.kept, self.places, strict=True))


def encode(
    model: Any,
    family: Family,
    inputs: Inputs,
    wants: set[str],
    meter: Meter,
    stage: EncoderStage | None = None,
) -> list[Media]:
    """Run the vision tower on whatever pixels the inputs hold.

    Args:
        model: a Hugging Face model with a language head.
        family: its row of the table.
        inputs: keyword arguments of its `forward`, from its own processor.
        wants: which of {"cls_attention", "cls_joint", "keys"} some method will read; "draw" where
            one draws by the names of items.
        meter: told that the stage "encode" runs.
        stage: what to merge inside the tower.

    Raises:
        InputError: merging does not fit these inputs, or placeholders in the prompt and features
            do not match.
    """
    media = []
    for kind, key in PIXELS.items():
        if inputs.get(key) is None:
            continue
        encoder = getattr(model.base_model, f"get_{kind}_features")
        known = {*inspect.signature(encoder).parameters, TOWER_OPTION}
        arguments = {name: value for name, value in inputs.items() if name in known}
        heard: list[LayerAttention] = []
        facts = sorted(wants & family.facts)
        tower = None if stage is None else open_tower(model, family, arguments, kind, stage, meter)
        with ExitStack() as stack:
            stack.enter_context(meter.stage("encode"))
            if tower is not None:
                stack.enter_context(tower.active())
            if facts:
                layers = model.base_model.get_submodule(family.tower)
                stack.enter_context(tap(layers[-1], heard.append))
            output = encoder(**arguments, return_dict=True)
        part = _media(model, family, inputs, kind, output, "draw" in wants)
        if tower is not None:
            tokens = replace(part.tokens, **tower.merged_tokens())
            part = replace(part, tokens=tokens, tower=tower)
        if facts:
            with meter.stage("reduce.score"):
                more = known_of(part, model, family, inputs, facts, heard[0])
                tokens = replace(part.tokens, **more)
                part = replace(part, tokens=tokens, score_flops=heard[0].flops)
        media.append(part)
    return media


def _media(model: Any, family: Family, inputs: Inputs, kind: str, output: Any, draw: bool) -> Media:
    token_id = getattr(model.config, f"{kind}_token_id")
    placeholder = inputs["input_ids"] == token_id
    features = _items(model, family, list(output.pooler_output), placeholder)
    counts = [len(x) for x in features]
    if sum(counts) != int(placeholder.sum()):
        raise InputError(
            f"the prompt has {int(placeholder.sum())} {kind} placeholders for {sum(counts)} "
            f"{kind} tokens: make the inputs with the model's own processor"
        )
    places = torch.split(placeholder.flatten().nonzero().squeeze(1), counts)
    layout = family.video if kind == "video" else family.image
    if layout is None:
        raise InputError(f"{model.config.model_type} reads clips as images: pass pixel_values")
    layouts = layout(model.base_model, inputs, counts)
    tokens = VisualTokens(
        features=pad_sequence(features, batch_first=True),
        mask=pad_sequence([torch.ones(n, dtype=torch.bool) for n in counts], batch_first=True).to(
            placeholder.device
        ),
        position=pad_sequence([x.position for x in layouts], batch_first=True).to(
            placeholder.device
        ),
        grid=torch.tensor([x.grid for x in layouts], device=placeholder.device),
        overview=_overview(layouts, counts, placeholder.device),
        item_ids=names_of(kind, family, places, inputs, layouts, draw),
    )
    return Media(
        kind=kind,
        output=output,
        tokens=tokens,
        places=list(places),
        kept=[torch.arange(n, device=placeholder.device) for n in counts],
        deepstack=[
            pad_sequence(list(layer), batch_first=True) for layer in output.deepstack_features
        ]
        if family.deepstack
        else [],
    )


def _items(model: Any, family: Family, entries: list[Tensor], placeholder: Tensor) -> list[Tensor]:
    """Group or split the encoder's entries so that each is one item of the budget."""
    if family.items == "tile":
        vision = model.config.vision_config
        side = vision.image_size // vision.patch_size // model.config.scale_factor
        tiles = [tile for entry in entries for tile in torch.split(entry, side * side)]
        return [tile for tile in tiles if len(tile)]  # a prompt without images has an empty entry
    if family.items == "run":
        edges = torch.nn.functional.pad(placeholder.int(), (1, 1)).diff(dim=1)
        runs = ((edges < 0).nonzero()[:, 1] - (edges > 0).nonzero()[:, 1]).tolist()
        flat = torch.cat(entries)
        return list(torch.split(flat, runs)) if sum(runs) == len(flat) else [flat]
    return entries


def _overview(layouts: list[Layout], counts: list[int], device: torch.device) -> Tensor | None:
    if not any(x.overview for x in layouts):
        return None
    rows = [torch.arange(n) < x.overview for x, n in zip(layouts, counts, strict=True)]
    return pad_sequence(rows, batch_first=True).to(device)


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
