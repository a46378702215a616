"""Models that write images as codes: Janus, Emu3 and Chameleon of transformers, in one place.

`image_writer` makes of each of them a causal model over image codes: it reads a prompt of text and
then writes nothing but codes of its codebook, which keeps words out of drafts and the vocabulary
as small as the codebook. Drafters, verifiers and guidance need not know.

Janus: a head and embeddings of its own for codes; unconditional prompts are the prompt with all
but its beginning-of-sequence and beginning-of-image tokens replaced by padding that is attended
to. Emu3: codes are words of the text's vocabulary, and every row of the image ends in a newline.
Chameleon: words of the vocabulary as well; transformers, 5.23 and 5.24 alike, forbids them in its
own `generate` and holds no decoder for them, so codes come out and pixels do not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from mmtok.decoding.prompts import Inputs, with_mask
from mmtok.errors import InputError
from mmtok.models.cache_name import cache_name

Processor = Callable[[Tensor, Tensor], Tensor]


class ImageWriter:
    """A causal model of transformers over image codes.

    Args:
        model: the model with its head.
        codes: size of the codebook.
        rows: of the grid of codes.
        columns: of the grid of codes.
        newline: whether a further code ends every row.

    Attributes:
        config: that of the text decoder, with the codes as vocabulary.
    """

    def __init__(
        self, model: Any, *, codes: int, rows: int, columns: int, newline: bool = False
    ) -> None:
        if rows < 1 or columns < 1:
            raise InputError(f"an image has at least one row and column, got {rows} x {columns}")
        self.model, self.codes, self.rows, self.columns = model, codes, rows, columns
        self.newline = codes if newline else None
        self.config = deepcopy(model.config.get_text_config(decoder=True))
        self.config.vocab_size = codes + newline

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["model"], name)

    def __call__(self, **inputs: Any) -> Any:
        """See `forward`."""
        return self.forward(**inputs)

    def forward(
        self,
        *,
        input_ids: Tensor,
        position_ids: Tensor,
        cache: Any,
        logits_to_keep: int = 0,
        **inputs: Any,
    ) -> Any:
        """Read a prompt of text into an empty cache, or codes behind it; logits (B, n, C)."""
        if cache.get_seq_length() == 0:
            inputs["input_ids"] = input_ids
        else:
            inputs["inputs_embeds"] = self.embed(input_ids)
        inputs |= {"position_ids": position_ids, cache_name(self.model.model): cache}
        hidden = self.model.model(**inputs).last_hidden_state
        return SimpleNamespace(logits=self.head(hidden[:, -logits_to_keep:]))

    @property
    def width(self) -> int:
        """Codes per row, the newline included."""
        return self.columns + (self.newline is not None)

    def embed(self, codes: Tensor) -> Tensor:
        """(B, n) codes to (B, n, D)."""
        raise NotImplementedError

    def head(self, hidden: Tensor) -> Tensor:
        """(B, n, D) to logits (B, n, C) over codes, the newline last."""
        raise NotImplementedError

    def negative(self, inputs: Inputs) -> Inputs | None:
        """The family's unconditional prompts; None: the last token of each prompt."""
        return None

    def pixels(self, grid: Tensor) -> Tensor:
        """Codes (B, rows, columns) to pictures, as the family's own decoder gives them."""
        raise NotImplementedError

    def processors(self, prompt: int) -> list[Processor]:
        """Newlines where they belong and nowhere else, behind `prompt` tokens."""
        if self.newline is None:
            return []
        newline, width = self.newline, self.width

        def lines(ids: Tensor, scores: Tensor) -> Tensor:
            ends = (ids.shape[1] - prompt + 1) % width == 0
            banned = torch.arange(scores.shape[1], device=scores.device) == newline
            return scores.masked_fill(~banned if ends else banned, -torch.inf)

        return [lines]

    def grid(self, written: Tensor) -> Tensor:
        """(B, rows * width) as written to (B, rows, columns), without newlines."""
        return written.reshape(len(written), self.rows, self.width)[:, :, : self.columns]


class _Janus(ImageWriter):
    def __init__(self, model: Any, rows: int | None, columns: int | None) -> None:
        total = model.model.vision_model.config.num_image_tokens
        side = _side(total, rows, columns)
        super().__init__(model, codes=codebook(model), rows=side, columns=side)

    def embed(self, codes: Tensor) -> Tensor:
        embedded: Tensor = self.model.prepare_embeddings_for_image_generation(codes)
        return embedded

    def head(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.model.model.generation_head(hidden)
        return logits

    def negative(self, inputs: Inputs) -> Inputs | None:
        config = self.model.generation_config
        first = config.bos_token_id
        image = (getattr(config, "generation_kwargs", None) or {}).get("boi_token_id")
        if None in (first, image, config.pad_token_id):
            return None
        full = with_mask(inputs)
        ids = full["input_ids"]
        kept = (ids == first) | (ids == image)
        return {
            "input_ids": ids.where(kept, config.pad_token_id),
            "attention_mask": full["attention_mask"],
        }

    def pixels(self, grid: Tensor) -> Tensor:
        decoded: Tensor = self.model.decode_image_tokens(grid.flatten(1))
        return decoded


class _Words(ImageWriter):
    """Codes are words of the text's vocabulary, `words[code]`."""

    def __init__(self, model: Any, words: list[int], **shape: Any) -> None:
        super().__init__(model, codes=codebook(model), **shape)
        self.words = torch.tensor(words, device=model.device)
        self._rows = model.lm_head.weight.detach()[self.words]  # once, not in every forward

    def embed(self, codes: Tensor) -> Tensor:
        embedded: Tensor = self.model.get_input_embeddings()(self.words[codes])
        return embedded

    def head(self, hidden: Tensor) -> Tensor:
        return linear(hidden, self._rows)


class _Emu3(_Words):
    def __init__(self, model: Any, rows: int | None, columns: int | None) -> None:
        if rows is None or columns is None:
            raise InputError(
                "Emu3 writes images of any size: pass rows= and columns=, the image_sizes that its "
                "processor returned, and leave image_sizes out of the inputs"
            )
        words = [*_words(model), model.model.vocabulary_mapping.eol_token_id]
        super().__init__(model, words, rows=rows, columns=columns, newline=True)

    def pixels(self, grid: Tensor) -> Tensor:
        decoded: Tensor = self.model.model.vqmodel.decode(grid)
        return decoded


class _Chameleon(_Words):
    def __init__(self, model: Any, rows: int | None, columns: int | None) -> None:
        vq = model.config.vq_config
        side = vq.resolution // 2 ** (len(vq.channel_multiplier) - 1)
        side = _side(side * side, rows, columns)
        super().__init__(model, _words(model), rows=side, columns=side)

    def pixels(self, grid: Tensor) -> Tensor:
        raise InputError(
            "Chameleon in transformers has no image decoder: decode the codes with its authors' VQ"
        )


_WRITERS = {"janus": _Janus, "emu3": _Emu3, "chameleon": _Chameleon}


def image_writer(model: Any, *, rows: int | None = None, columns: int | None = None) -> ImageWriter:
    """The model as a causal model over image codes.

    Args:
        model: JanusForConditionalGeneration, Emu3ForConditionalGeneration or
            ChameleonForConditionalGeneration.
        rows: of the grid of codes; needed for Emu3, the others have one size.
        columns: the same.

    Raises:
        InputError: another model, or a size it does not write.
    """
    if isinstance(model, ImageWriter):
        return model
    made = _WRITERS.get(model.config.model_type)
    if made is None:
        raise InputError(
            f"{type(model).__name__} is not known to write images: one of "
            f"{', '.join(sorted(_WRITERS))} does"
        )
    return made(model, rows, columns)


def codebook(model: Any) -> int:
    """Entries of the image tokenizer's codebook."""
    config = model.config.vq_config
    return int(getattr(config, "num_embeddings", None) or config.codebook_size)


def _words(model: Any) -> list[int]:
    """The word of every code."""
    known: dict[int, int] = model.model.vocabulary_mapping.img2bpe
    missing = [code for code in range(codebook(model)) if code not in known]
    if missing:
        raise InputError(f"the model's vocabulary_map names no word for image code {missing[0]}")
    return [known[code] for code in range(codebook(model))]


def _side(total: int, rows: int | None, columns: int | None) -> int:
    side = math.isqrt(total)
    if rows not in (None, side) or columns not in (None, side) or side * side != total:
        raise InputError(f"this model writes {total} codes, {side} x {side}, not {rows}x{columns}")
    return side


def options(given: dict[str, Any]) -> dict[str, Any]:
    """Generation options of an image: what names words of the text or ends it is not for codes."""
    words: Sequence[str] = (
        *("eos_token_id", "forced_bos_token_id", "forced_eos_token_id", "bad_words_ids"),
        *("suppress_tokens", "begin_suppress_tokens", "sequence_bias", "stop_strings"),
        *("min_length", "min_new_tokens", "max_length", "max_new_tokens", "max_time"),
    )
    asked = [*words, "stopping_criteria"]
    if odd := [name for name in asked if given.get(name) is not None]:
        raise InputError(f"an image has no use for {', '.join(odd)}: leave it out")
    return {**dict.fromkeys(words), "pad_token_id": 0, **given}
