"""The engine: trees against single paths, batches against rows, statistics, and what it refuses."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch

from mmtok.cli.listing import inventory
from mmtok.decoding import DraftTree, Target, generate, verifier_registry
from mmtok.decoding.base import check_pair
from mmtok.decoding.drafters.aded import ADED
from mmtok.decoding.drafters.bild import BiLD
from mmtok.decoding.drafters.draftmodel import DraftModel
from mmtok.decoding.drafters.earlyexit import EarlyExit
from mmtok.decoding.drafters.jacobi import Jacobi
from mmtok.decoding.drafters.lookup import Lookup
from mmtok.decoding.drafters.rasd import RASD
from mmtok.decoding.drafters.rsdc import RSDC
from mmtok.decoding.drafters.s2d import S2D
from mmtok.decoding.drafters.spectr import SpecTr
from mmtok.decoding.lossy import neighbours
from mmtok.decoding.verifiers.gsd import GSD
from mmtok.decoding.verifiers.lantern import Lantern
from mmtok.errors import InputError
from tests.conftest import tiny_model
from tests.decoders import VOCABULARY, llama, near, prompts, row

TREE = DraftTree(torch.tensor([3, 5, 7, 1, 9, 2]), torch.tensor([-1, 0, 0, 1, 2, 4]), "det")
SAMPLED: dict[str, Any] = {"do_sample": True, "max_new_tokens": 20, "temperature": 0.8}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("scale", [1.0, 2.0])
@torch.no_grad()
def test_a_tree_scores_like_its_paths_before_and_after_compaction(
    attention: str, scale: float
) -> None:
    model, inputs = llama(attention=attention), prompts([9, 4])
    target = Target(model, guidance_scale=scale)
    target.prefill(inputs)
    ids = [row(inputs, r)["input_ids"][0].tolist() for r in range(2)]
    starts = [[i[-1]] for i in ids]
    for kept in ([[0, 2, 4], [0]], [[0, 1], [0, 2, 4, 5]]):
        logits = target.score([TREE, TREE])
        for r in range(2):
            for node in range(len(TREE.tokens)):
                path = TREE.tokens[[0, *TREE.path_to(node)]].tolist()
                want = model(torch.tensor([ids[r] + path])).logits[0, -1]
                if scale != 1:
                    other = model(torch.tensor([starts[r] + path])).logits[0, -1]
                    want, other = want.log_softmax(-1), other.log_softmax(-1)
                    want = other + scale * (want - other)
                torch.testing.assert_close(logits[r, node], want, rtol=0, atol=1e-4)
            new = TREE.tokens[kept[r]].tolist()
            ids[r], starts[r] = ids[r] + new, starts[r] + new
        target.commit(kept)


def test_the_cache_gives_its_holes_back() -> None:
    target = Target(llama())
    target.prefill(prompts([6, 6]))
    for step in range(8):
        target.score([TREE, TREE])
        target.commit([[0, 1], [0, 2, 4, 5]] if step % 2 else [[0, 2, 4, 5], [0, 1]])
    assert target.length.tolist() == [30, 30]
    held = target.cache.valid.shape[1]
    assert held <= 30 / 0.75
    assert all(layer.keys.shape[2] == held for layer in target.cache.stock.layers)


@pytest.mark.parametrize(
    "drafter",
    [
        lambda: "recycling",
        lambda: DraftModel(model=near()),
        lambda: RSDC(model=near()),
        lambda: Jacobi(window=4),
        lambda: BiLD(model=near(), fallback=0.2),
        lambda: S2D(model=near(), exits=(1,), threshold=0.3),
        lambda: EarlyExit(temperature=1.0),
        lambda: ADED(gain=1.0),
        lambda: RASD(base="lookup"),
    ],
    ids=["recycling", "draftmodel", "rsdc", "jacobi", "bild", "s2d", "earlyexit", "aded", "rasd"],
)
def test_a_row_draws_the_same_in_every_batch(drafter: Any) -> None:
    inputs = prompts([9, 4, 6])
    options = {**SAMPLED, "guidance_scale": 1.5}
    whole = generate(llama(), inputs, drafter=drafter(), seed=[5, 6, 7], **options)
    tails = set()
    for r in range(3):
        alone = generate(llama(), row(inputs, r), drafter=drafter(), seed=5 + r, **options)
        length = alone.sequences.shape[1] - 20
        got = whole.sequences[r, 9:].tolist()
        if not isinstance(drafter(), str):  # the table of recycling is shared by the batch
            assert got == alone.sequences[0, length:].tolist()
        tails.add(tuple(got))
    assert len(tails) == 3


def test_statistics_add_up() -> None:
    got = generate(
        llama(),
        prompts([9, 4]),
        drafter=DraftModel(model=near()),
        do_sample=False,
        max_new_tokens=24,
    )
    stats = got.stats
    assert all(h <= t for h, t in zip(stats.hits, stats.tried, strict=True))
    assert sum(stats.hits) + stats.row_steps == 2 * 23  # the prefill emits one token per row
    assert stats.tried[0] <= stats.row_steps
    assert stats.accepted_per_step == sum(stats.hits) / stats.row_steps
    assert set(stats.ms) == {"prefill", "draft", "score", "verify", "compact"}
    assert stats.drafter_forwards > stats.target_forwards
    assert stats.mean_tv is None


@pytest.mark.parametrize("name", ["exact", "lantern", "gsd", "typical"])
def test_lossy_verifiers_accept_more_and_say_how_far_they_are(name: str) -> None:
    codebook = torch.randn(VOCABULARY, 3, generator=torch.Generator().manual_seed(0))
    made: dict[str, Any] = {
        "exact": "chain",
        "lantern": Lantern(near=neighbours(codebook, 8), delta=0.4),
        "gsd": GSD(),
        "typical": "typical",
    }
    drafter, runs = DraftModel(model=llama(3)), {}
    for verifier in {name, "exact"}:
        got = generate(
            llama(),
            prompts([9, 4]),
            drafter=drafter,
            verifier=made[verifier],
            measure_tv=True,
            **SAMPLED,
        )
        runs[verifier] = got.stats
    tv = runs[name].mean_tv
    assert tv is not None
    if name == "exact":
        assert runs[name].lossless
        assert tv < 1e-12
    else:
        assert not runs[name].lossless
        assert tv > 0.01
    if name in ("lantern", "gsd"):
        assert runs[name].accepted_per_step > runs["exact"].accepted_per_step


@pytest.mark.parametrize(
    ("drafter", "rule"),
    [
        ("lookup", "chain"),
        ("lookup", "recursive"),
        ("lookup", "kseq"),
        ("rsdc", "chain"),
        ("rsdc", "kseq"),
        ("spectr", "recursive"),
        ("spectr", "chain"),
        ("jacobi", "kseq"),
        ("rsdc", "gsd"),
    ],
)
def test_a_rule_that_would_be_wrong_is_refused(drafter: str, rule: str) -> None:
    model = llama()
    made = {
        "lookup": Lookup(),
        "rsdc": RSDC(model=model),
        "spectr": SpecTr(model=model),
        "jacobi": Jacobi(),
    }
    with pytest.raises(InputError, match="is wrong for drafts of kind"):
        check_pair(made[drafter], verifier_registry.build(rule))
    for always in ("greedy", "deterministic"):
        check_pair(made[drafter], verifier_registry.build(always))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 2}, "num_beams=2"),
        ({"colour": "red"}, "colour"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"do_sample": True, "verifier": "greedy"}, "decodes greedily"),
        ({"do_sample": False, "verifier": "typical"}, "relaxes sampling"),
        ({"seed": [1, 2, 3]}, "2 rows need as many seeds"),
        ({"verifier": "exact"}, "unknown verifier"),
        ({"drafter": "lookup(tokens=0)"}, "start at 1"),
        ({"guidance_scale": 2.0, "negative": prompts([3])}, "as many negative prompts"),
        ({"drafter": DraftModel(model=llama(vocabulary=4))}, "has 4 tokens"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(options: dict[str, Any], message: str) -> None:
    known = {"drafter": "lookup", "do_sample": False, "max_new_tokens": 4} | options
    with pytest.raises(InputError, match=message) as caught:
        generate(llama(), prompts([5, 3]), **known)
    assert "\n" not in str(caught.value)


def test_models_that_cannot_roll_back_and_wrong_padding_are_refused() -> None:
    inputs = prompts([5, 3])
    right = {key: value.flip(1) for key, value in inputs.items()}
    with pytest.raises(InputError, match="padded on the left"):
        generate(llama(), right, drafter="lookup", max_new_tokens=2)
    model, _ = tiny_model("gemma3")
    with pytest.raises(InputError, match="SlidingWindow"):
        generate(model, inputs, drafter="lookup", max_new_tokens=2)


def test_a_streamer_and_a_stopping_criterion_see_every_token() -> None:
    class Collect:
        seen: ClassVar[list[int]] = []
        ended = False

        def put(self, tokens: torch.Tensor) -> None:
            self.seen.extend(tokens.flatten().tolist())

        def end(self) -> None:
            self.ended = True

    inputs, streamer = prompts([9]), Collect()
    got = generate(
        llama(),
        inputs,
        drafter=DraftModel(model=llama(), temperature=0.0),
        do_sample=False,
        max_new_tokens=30,
        stopping_criteria=[lambda ids, scores: ids.shape[1] >= 9 + 8],
        streamer=streamer,
    )
    assert got.sequences.shape[1] == 9 + 8
    assert streamer.seen == got.sequences[0].tolist()
    assert streamer.ended
    assert sum(got.stats.hits) <= 7  # drafts behind the stop do not count


def test_methods_are_listed() -> None:
    found = inventory()
    fixed = {"lookup", "recycling", "draftmodel", "rsdc", "rsds", "dyspec", "spectr", "jacobi"}
    fixed |= {"aded", "rasd", "earlyexit", "dynamicexit", "s2d", "bild"}
    assert fixed <= set(found["drafters"])
    assert {"greedy", "chain", "recursive", "kseq", "deterministic", "lantern", "gsd"} <= set(
        found["verifiers"]
    )
