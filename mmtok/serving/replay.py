"""From stored features back to a prompt that a stock model takes: no pixels, no vision tower.

The processor is given a blank picture of the stored size, so the prompt gets the placeholders and
positions of the real one; the features of the survivors go in through `mm_encoder_outputs`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers.utils import ModelOutput

from mmtok.errors import InputError
from mmtok.io.video import Clip
from mmtok.models.encoder_seam import repack
from mmtok.models.families import family_of
from mmtok.models.reduced import generate_positions
from mmtok.models.reduction import Reduction
from mmtok.models.visual import Media
from mmtok.serving.rows import Row
from mmtok.tokens import VisualTokens

if TYPE_CHECKING:
    from mmtok.models.lvlm import LVLM, Prompt


@dataclass
class StoredOutput(ModelOutput):  # type: ignore[misc]
    """Stands where the encoder's output would."""

    pooler_output: Any = None
    deepstack_features: Any = None


def prompt_inputs(
    lvlm: LVLM, items: Sequence[tuple[Row, dict[str, Tensor]]], text: str | Sequence[str]
) -> dict[str, Any]:
    """Keyword arguments of `generate` for one question about each of several stored items.

    Args:
        lvlm: the model that the recipe names.
        items: rows and tensors, from `read_manifest` and `read_item`; images or clips, not both.
        text: the question, or one for each item.

    Raises:
        InputError: kinds are mixed, or the model's prompt has another number of tokens.
    """
    kinds = {row["kind"] for row, _ in items}
    if len(kinds) != 1:
        raise InputError(f"expected items of one kind in a batch, got {sorted(kinds) or 'none'}")
    texts = [text] * len(items) if isinstance(text, str) else list(text)
    rows = [row for row, _ in items]
    inputs = lvlm.inputs_batch([_blank(row, t) for row, t in zip(rows, texts, strict=True)])
    reduction = Reduction(lvlm.model, [])
    reduction.inputs = inputs
    reduction.media = [_media(lvlm, inputs, kinds.pop(), items)]
    return reduction.assemble(lambda given: generate_positions(lvlm.model, given))


def _blank(row: Row, text: str) -> Prompt:
    """A prompt about an empty picture, or empty frames, of the stored size."""
    picture = Image.new("RGB", tuple(row["size"]))
    if row["clip"] is None:
        return [picture], None, text
    return None, [Clip(frames=[picture] * len(row["clip"]["indices"]), **row["clip"])], text


def _media(
    lvlm: LVLM, inputs: dict[str, Any], kind: str, items: Sequence[tuple[Row, dict[str, Tensor]]]
) -> Media:
    """The items' entries as the encoder seam holds them."""
    token = getattr(lvlm.config, f"{kind}_token_id")
    places = (inputs["input_ids"] == token).flatten().nonzero().squeeze(1)
    counts = [n for row, _ in items for n in row["counts"]]
    if sum(counts) != len(places):
        raise InputError(
            f"the prompt has {len(places)} {kind} tokens, the stored items {sum(counts)}: "
            "expected the model they were made with"
        )
    left = [k for row, _ in items for k in row["kept_counts"]]

    def entries(name: str) -> list[Tensor]:
        joined = torch.cat([tensors[name] for _, tensors in items]).to(lvlm.device)
        return list(torch.split(joined, left))

    starts = [s for row, _ in items for s in torch.tensor([0, *row["counts"]]).cumsum(0)[:-1]]
    features = [x.to(lvlm.dtype) for x in entries("features")]
    deep = sum(name.startswith("deepstack") for name in items[0][1])
    media = Media(
        kind=kind,
        output=StoredOutput(pooler_output=features[0] if items[0][0]["stacked"] else features),
        tokens=VisualTokens(
            features=pad_sequence(features, batch_first=True),
            mask=pad_sequence([x.new_ones(len(x), dtype=torch.bool) for x in features], True),
            position=pad_sequence(entries("position"), batch_first=True),
            grid=torch.tensor([g for row, _ in items for g in row["grids"]], device=lvlm.device),
        ),
        places=list(torch.split(places, counts)),
        kept=[kept - s.to(kept) for kept, s in zip(entries("kept"), starts, strict=True)],
        deepstack=[
            pad_sequence([x.to(lvlm.dtype) for x in entries(f"deepstack.{i}")], batch_first=True)
            for i in range(deep)
        ],
    )
    return replace(media, output=repack(family_of(lvlm.model), media))
