"""Evicting KV entries equals hiding them from decode steps of a full run, for every family."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from mmtok import reduced
from mmtok.models.cache_layer import ShortLayer
from mmtok.models.cache_name import cache_in
from mmtok.pruning import FastV, SentenceKV
from mmtok.pruning.base import Reducer
from mmtok.pruning.cache import CachePolicy
from mmtok.pruning.recall import VisualRecall
from tests.conftest import batch, tiny_model

OPTIONS: dict[str, Any] = {
    "max_new_tokens": 7,
    "do_sample": False,
    "eos_token_id": None,
    "output_logits": True,
    "return_dict_in_generate": True,
}
SPECS: list[Any] = [
    "a2sf(keep=0.3, recent=4)",
    "expectedattention(keep=11, scope='visual')",
    "snapkv(keep=14, window=4)",
    ["evs(keep=0.5)", "fastv(keep=0.5, layer=3)", "a2sf(keep=12, recent=3)"],
]


class Spy(CachePolicy):
    """Notes what each step reads of the prompt, on top of another policy's doing."""

    def __init__(self, policy: CachePolicy, log: list[Any]) -> None:
        self.policy, self.log = policy, log
        self.reads_queries, self.selects = policy.reads_queries, policy.selects
        self.begin, self.count, self.keep = policy.begin, policy.count, policy.keep
        self.token = policy.token

    def step(self, stored: Any) -> Any:
        read = self.policy.step(stored)
        self.log.append((stored.layer, stored.real[:, None] if read is None else read))
        return read


@dataclass(frozen=True, kw_only=True)
class SpiedSentences(SentenceKV):
    keep: int | float = 0.6
    read: int | float = 0.5
    start: int = 1
    recent: int = 2
    window: int = 4
    threshold: int = 1
    log: list[Any] = field(default_factory=list)

    def in_cache(self, layers: int) -> CachePolicy | None:
        policy = super().in_cache(layers)
        return policy and Spy(policy, self.log)


@dataclass(frozen=True, kw_only=True)
class SpiedRecall(Reducer):
    keep: int | float = 0.3
    refresh: float = 0.9
    log: list[Any] = field(default_factory=list)

    def in_cache(self, layers: int) -> CachePolicy | None:
        return Spy(VisualRecall(self.keep_count, layer=1, refresh=self.refresh), self.log)


@dataclass(frozen=True)
class Kept:
    """What one layer's cache held of its prompt: places (B, G, K), real (B, K)."""

    place: torch.Tensor
    real: torch.Tensor
    prompt: int


def short_layers(cache: Any) -> dict[int, Kept]:
    return {
        i: Kept(layer.place, layer.real, layer.gone + layer.place.shape[2])
        for i, layer in enumerate(cache.layers)
        if isinstance(layer, ShortLayer)
    }


@contextmanager
def hidden(model: Any, layers: dict[int, Kept], log: Any = ()) -> Iterator[None]:
    """Reference: nothing leaves the caches, but decode steps see the kept entries only.

    log: (layer, read (B, G, K + generated)) of each step in order, where steps read part of it.
    """
    log = list(log)

    def hide(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        number = module.self_attn.layer_idx
        past, kept = cache_in(kwargs).get_seq_length(number), layers[number]
        if past == 0:
            return None
        new = (args[0] if args else kwargs["hidden_states"]).shape[1]
        seen = torch.zeros(*kept.place.shape[:2], past + new, dtype=torch.bool)
        seen[..., kept.prompt :] = True
        read = torch.ones(*kept.place.shape[:2], kept.place.shape[2] + past + new - kept.prompt)
        if log:
            layer, step = log.pop(0)
            assert layer == number
            read = step.expand_as(read)
            seen[..., kept.prompt :] = read[..., kept.place.shape[2] :]
        for row, head in itertools.product(*map(range, kept.place.shape[:2])):
            use = kept.real[row] & read[row, head, : kept.place.shape[2]].bool()
            seen[row, head, kept.place[row, head][use]] = True
        per_group = module.self_attn.config.num_attention_heads // seen.shape[1]
        mask = seen[:, :, None].repeat_interleave(per_group, dim=1)
        causal = torch.ones(new, past + new, dtype=torch.bool).tril(past)
        return args, kwargs | {"attention_mask": mask & causal}

    with ExitStack() as stack:
        for block in model.get_decoder().layers:
            if block.self_attn.layer_idx in layers:
                hook = block.register_forward_pre_hook(hide, with_kwargs=True)
                stack.callback(hook.remove)
        yield


def agree(got: Any, want: Any) -> None:
    assert torch.equal(got.sequences, want.sequences)
    for a, b in zip(got.logits, want.logits, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_evicting_equals_hiding(case: tuple[str, str], spec: Any) -> None:
    model, _ = tiny_model(case[0])
    if case[0] == "qwen3_vl" and isinstance(spec, list):
        spec = [spec[0], spec[2]]  # no dropping in its first layers; see the tests of the seams
    before = spec[:-1] if isinstance(spec, list) else []
    with reduced(model, spec):
        got = model.generate(**batch(*case), **OPTIONS)
    kept = short_layers(cache_in(got))
    assert kept
    with reduced(model, before), hidden(model, kept):
        want = model.generate(**batch(*case), **OPTIONS)
    agree(got, want)
    for i, layer in kept.items():
        place, real = layer.place, layer.real
        held, full = cache_in(got).layers[i], cache_in(want).layers[i]
        assert held.keys.shape[2] == place.shape[2] + len(got.logits) - 1 < full.keys.shape[2]
        assert held.get_seq_length() == full.get_seq_length()
        ascending = (place.diff(dim=2) > 0) | ~real[:, None, 1:] | ~real[:, None, :-1]
        assert ascending.all()


@pytest.mark.parametrize("kind", ["sentences", "visual sentences", "recall", "stale recall"])
def test_reading_part_equals_hiding_the_rest(case: tuple[str, str], kind: str) -> None:
    model, _ = tiny_model(case[0])
    spec: Any = {
        "sentences": SpiedSentences(punctuation=tuple(range(3, 320, 3))),
        "visual sentences": SpiedSentences(scope="visual"),
        "recall": SpiedRecall(refresh=1.0),
        "stale recall": SpiedRecall(refresh=-1.0),
    }[kind]
    with reduced(model, spec):
        got = model.generate(**batch(*case), **OPTIONS)
    kept = short_layers(cache_in(got))
    assert any(not read.all() for _, read in spec.log[len(kept) :]) or (
        case[0] == "gemma3" and "recall" in kind
    ), "some step must hide something"
    with hidden(model, kept, spec.log):
        want = model.generate(**batch(*case), **OPTIONS)
    agree(got, want)


@pytest.mark.parametrize(
    "spec", [SPECS[0], SPECS[2], SpiedSentences(punctuation=tuple(range(3, 320, 3)))], ids=str
)
def test_a_batch_equals_its_prompts_one_by_one(case: tuple[str, str], spec: Any) -> None:
    model, _ = tiny_model(case[0])
    with reduced(model, spec):
        both = model.generate(**batch(*case), **OPTIONS)
        for row in (0, 1):
            alone = model.generate(**batch(*case, rows=(row,)), **OPTIONS)
            pad = both.sequences.shape[1] - alone.sequences.shape[1]
            assert torch.equal(both.sequences[row, pad:], alone.sequences[0])
            for i, one in short_layers(cache_in(alone)).items():
                many = cache_in(both).layers[i]
                shift = many.gone + many.place.shape[2] - one.prompt
                assert torch.equal(many.place[row][:, many.real[row]], one.place[0] + shift)


@dataclass(frozen=True, kw_only=True)
class Leaving(FastV):
    """What leaves inside the decoder leaves the earlier caches as well, all but the first."""

    keep: int | float = 0.4
    layer: int = 3

    def leave_early(self, layers: int) -> int | None:
        return 1


def test_leaving_early_equals_hiding(case: tuple[str, str]) -> None:
    model, _ = tiny_model(case[0])
    with reduced(model, Leaving()):
        got = model.generate(**batch(*case), **OPTIONS)
    kept, last = short_layers(cache_in(got)), cache_in(got).layers[-1]
    count = last.keys.shape[2] - len(got.logits) + 1
    sliding = case[0] == "gemma3"
    assert list(kept) == ([] if sliding else [1, 2])
    assert all(layer.place.shape[2] == count for layer in kept.values())
    with reduced(model, "fastv(keep=0.4, layer=3)"), hidden(model, kept):
        want = model.generate(**batch(*case), **OPTIONS)
    agree(got, want)
