"""What a vision tower made of pixels, as visual tokens and the places of their placeholders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mmtok.accounting.scopes import Meter
from mmtok.errors import InputError
from mmtok.models.facts import known_of
from mmtok.models.families import Family, Inputs, Layout
from mmtok.models.pixels import names_of
from mmtok.models.taps import LayerAttention
from mmtok.models.tower_seam import TowerSeam
from mmtok.tokens import Selection, VisualTokens


@dataclass(frozen=True)
class Encoded:
    """What the vision tower made of the pixels of one modality.

    Attributes:
        kind: "image" or "video".
        output: what the encoder returned.
        heard: queries and keys of the tower's last layer, if a method reads what follows from them.
        tower: how patches merged inside the vision tower, if they did.
    """

    kind: str
    output: Any
    heard: LayerAttention | None
    tower: TowerSeam | None


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


def describe(
    model: Any,
    family: Family,
    inputs: Inputs,
    encoded: Sequence[Encoded],
    wants: set[str],
    meter: Meter,
) -> list[Media]:
    """The tower's outputs as visual tokens, with what is known of them.

    Args:
        model: a Hugging Face model with a language head.
        family: its row of the table.
        inputs: of the encoder.
        encoded: what it made of them.
        wants: which of {"cls_attention", "cls_joint", "keys"} some method will read; "draw" where
            one draws by the names of items.
        meter: told that the stage "reduce.score" runs.

    Raises:
        InputError: placeholders in the prompt and features do not match.
    """
    found = []
    for part in encoded:
        media = _media(model, family, inputs, part.kind, part.output, "draw" in wants)
        if part.tower is not None:
            tokens = replace(media.tokens, **part.tower.merged_tokens())
            media = replace(media, tokens=tokens, tower=part.tower)
        if part.heard is not None:
            facts = sorted(wants & family.facts)
            with meter.stage("reduce.score"):
                more = known_of(media, model, family, inputs, facts, part.heard)
                tokens = replace(media.tokens, **more)
                media = replace(media, tokens=tokens, score_flops=part.heard.flops)
        found.append(media)
    return found


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
