"""Visual autoregressive models: a class in, ids of a picture tokenizer out, pictures from these.

A folder holds a stock causal language model; its config.json says under `visual` what its token
ids mean: which tokenizer decodes the codes, where these begin, and the tokens of the classes and
of no class, which is what guidance leads away from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

from mmtok.errors import InputError
from mmtok.models.causal import load_causal
from mmtok.models.zoo import folder_of
from mmtok.registry import parse_spec, unknown

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mmtok.decoding import Drafter, Generated, Verifier
    from mmtok.tokenizers import Tokenizer

_MOST_PIXELS = 2**12  # of a side


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """What the token ids of a model mean.

    Attributes:
        tokenizer: spec of the tokenizer whose codes they are.
        shape: of a picture, (3, H, W).
        codes: how many codes there are; code c is the token first_code + c.
        classes: their names; class i is the token first_class + i.
        unconditional: the token of no class.
        draft: a smaller model of the same vocabulary, one that ships or a folder, whose relative
            path starts at the folder of this one; "" for none.
    """

    tokenizer: str
    shape: tuple[int, ...]
    codes: int
    first_code: int
    classes: tuple[str, ...]
    first_class: int
    unconditional: int
    draft: str = ""

    @classmethod
    def read(cls, said: Any, source: str) -> Vocabulary:
        """From the entry `visual` of a configuration.

        Raises:
            InputError: it is missing, or not of this form.
        """
        if not isinstance(said, dict) or said.keys() != {field.name for field in fields(cls)}:
            raise InputError(f"{source}: config.json has no entry 'visual' of mmtok's form")
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in said.items()
        }
        whole = [values[k] for k in ("codes", "first_code", "first_class", "unconditional")]
        shape, classes = values["shape"], values["classes"]
        whole += shape if isinstance(shape, tuple) else [None]
        names = [values["tokenizer"], values["draft"]]
        names += classes if isinstance(classes, tuple) and classes else [None]
        fits = all(type(x) is int and 0 <= x < 2**20 for x in whole)
        if not fits or len(shape) != 3 or not all(type(x) is str for x in names):
            raise InputError(f"{source}: the entry 'visual' of config.json cannot be read")
        if shape[0] != 3 or not 1 <= min(shape) <= max(shape) <= _MOST_PIXELS:
            raise InputError(
                f"{source}: shape of 'visual' must be 3, height and width, each up to "
                f"{_MOST_PIXELS}, got {shape}"
            )
        return cls(**values)

    def check(self, tokens: int, source: str) -> None:
        """Hold the ids against the vocabulary of a model.

        Args:
            tokens: the model's.
            source: of the model, for the message.

        Raises:
            InputError: one is not in it, or means two things.
        """
        codes = range(self.first_code, self.first_code + self.codes)
        kinds = range(self.first_class, self.first_class + len(self.classes))
        named = [*kinds, self.unconditional]
        inside = codes.stop <= tokens and max(named) < tokens
        distinct = self.unconditional not in kinds and not any(at in codes for at in named)
        if not (codes and inside and distinct and len({*self.classes}) == len(kinds)):
            raise InputError(
                f"{source}: 'visual' of config.json does not fit the model's {tokens} tokens: "
                f"{len(codes)} codes from {codes.start}, {len(kinds)} classes from {kinds.start} "
                f"and unconditional={self.unconditional} must lie in it and differ"
            )


@dataclass(frozen=True)
class VisualAR:
    """A model, the tokenizer of its codes, and what drafters and verifiers need to know of both."""

    model: Any
    tokenizer: Tokenizer
    vocabulary: Vocabulary
    name: str

    @property
    def tokens(self) -> int:
        """Codes of a picture."""
        rows, columns = self.tokenizer.grid(self.vocabulary.shape)
        return rows * columns

    def prompts(self, kinds: Sequence[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Inputs for one picture of each class named, and the negative ones for guidance.

        Raises:
            InputError: there is no such class.
        """
        import torch

        known = self.vocabulary.classes
        for kind in kinds:
            if kind not in known:
                raise InputError(f"{unknown('class', kind, list(known))}")
        ids = [[self.vocabulary.first_class + known.index(kind)] for kind in kinds]
        prompt = torch.tensor(ids, device=self.model.device)
        other = torch.full_like(prompt, self.vocabulary.unconditional)
        return {"input_ids": prompt}, {"input_ids": other}

    def generate(
        self,
        kinds: Sequence[str],
        drafter: Drafter,
        verifier: Verifier | None = None,
        *,
        guidance: float = 1.0,
        temperature: float = 1.0,
        seed: int = 0,
        **options: Any,
    ) -> Generated:
        """One sequence for each class named, by `mmtok.decoding.generate`.

        Args:
            kinds: names of classes.
            drafter: see `drafter`.
            verifier: see `verifier`; None: the exact one for the drafter, greedy at temperature 0.
            guidance: scale of the distance from no class; 1 for none.
            temperature: 0 decodes greedily.
            seed: row r draws from seed + r.
            options: further ones of `mmtok.decoding.generate`; the total variation of a lossy
                verifier is measured unless they say otherwise.

        Only codes are written, whatever else is in the vocabulary.
        """
        from mmtok.decoding import generate
        from mmtok.decoding.options import for_prompts
        from mmtok.decoding.visual import options as of_codes

        extra = for_prompts(options.pop("logits_processor", None))
        prompts, negative = self.prompts(kinds)
        lossy = verifier is not None and not verifier.lossless
        sampling: dict[str, Any] = {"do_sample": temperature > 0, "measure_tv": lossy}
        if temperature > 0:
            sampling["temperature"] = temperature
        made: Generated = generate(
            self.model,
            prompts,
            drafter=drafter,
            verifier=verifier,
            guidance_scale=guidance,
            negative=lambda _: negative,
            logits_processor=lambda prompt: [*extra(prompt), self._codes_alone],
            seed=seed,
            **(of_codes({**sampling, **options}) | {"max_new_tokens": self.tokens}),
        )
        return made

    def _codes_alone(self, ids: Tensor, scores: Tensor) -> Tensor:
        first = self.vocabulary.first_code
        end = first + self.vocabulary.codes
        only = scores.new_full(scores.shape, -float("inf"))
        only[:, first:end] = scores[:, first:end]
        return only

    def pictures(self, sequences: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) of sequences (B, 1 + tokens) that begin with a class.

        Raises:
            InputError: they are of another length.
        """
        if sequences.ndim != 2 or sequences.shape[1] != 1 + self.tokens:
            raise InputError(
                f"sequences must be (B, {1 + self.tokens}), a class and its codes, "
                f"got {tuple(sequences.shape)}"
            )
        codes = sequences[:, 1:, None] - self.vocabulary.first_code
        with _no_grad():
            return self.tokenizer.decode_batch(codes, self.vocabulary.shape)

    @cached_property
    def codebook(self) -> Tensor:
        """(codes, D) float64, what a code stands for; close codes are alike.

        Raises:
            InputError: the tokenizer has no such vectors.
        """
        entries: Tensor | None = getattr(self.tokenizer, "entries", None)
        if entries is None:
            raise InputError(f"{self.tokenizer.name} has no codebook of vectors: no code is near")
        return entries.double().cpu()

    def drafter(self, spec: str, draft: Any = None) -> Drafter:
        """The drafter of a spec; those that need a model get `draft`, or the one that ships.

        Raises:
            InputError: an unknown name or argument, or no draft model for one that needs it.
        """
        from mmtok.decoding import drafter_registry

        name, arguments = _free(spec, "model")
        if "model" not in {field.name for field in fields(drafter_registry.get(name))}:
            made: Drafter = drafter_registry.make(name, arguments)
            return made
        if draft is None and not self.vocabulary.draft:
            raise InputError(f"{name} needs a draft model and {self.name} has none")
        if draft is None:
            place = folder_of(self.vocabulary.draft, folder_of(self.name))
            draft = load_causal(str(place), self.model.device)
        drafts: Drafter = drafter_registry.make(name, {**arguments, "model": draft})
        return drafts

    def verifier(self, spec: str, near: int = 32) -> Verifier:
        """The verifier of a spec, with the codebook and `near` neighbours of every code if it asks.

        Raises:
            InputError: an unknown name or argument.
        """
        from mmtok.decoding import verifier_registry
        from mmtok.decoding.lossy import neighbours

        name, arguments = _free(spec, "near", "codebook")
        known = {field.name for field in fields(verifier_registry.get(name))}
        more: dict[str, Any] = {"first": self.vocabulary.first_code} if "first" in known else {}
        if "near" in known:
            more["near"] = neighbours(self.codebook, near)
        if "codebook" in known:
            more["codebook"] = self.codebook
        made: Verifier = verifier_registry.make(name, {**more, **arguments})
        return made


def _free(spec: str, *filled: str) -> tuple[str, dict[str, Any]]:
    """A spec's name and arguments, none of them among those that are filled in here."""
    name, arguments = parse_spec(spec)
    for argument in filled:
        if argument in arguments:
            raise InputError(f"{name}: {argument} is filled in, leave it out of the spec")
    return name, arguments


def load_visual_ar(name: str = "tiny-ar", device: torch.device | str = "cpu") -> VisualAR:
    """A visual autoregressive model and its tokenizer: one that ships, or a folder.

    Raises:
        InputError: it cannot be read, or its configuration does not say what its tokens are.
    """
    from mmtok.tokenizers import build

    model = load_causal(name, device)
    vocabulary = Vocabulary.read(getattr(model.config, "visual", None), name)
    vocabulary.check(model.config.vocab_size, name)
    tokenizer = build(vocabulary.tokenizer).to(device)
    if tokenizer.codebook.sizes != (vocabulary.codes,):
        raise InputError(
            f"{name}: {vocabulary.codes} codes, but {vocabulary.tokenizer} has a codebook of "
            f"{' x '.join(map(str, tokenizer.codebook.sizes))}"
        )
    made = VisualAR(model, tokenizer, vocabulary, name)
    places = getattr(model.config, "max_position_embeddings", made.tokens + 1)
    if made.tokens >= places:
        raise InputError(
            f"{name}: a picture of {vocabulary.shape} is {made.tokens} codes behind its class, "
            f"the model has {places} positions"
        )
    return made


def _no_grad() -> Any:
    import torch

    return torch.no_grad()
