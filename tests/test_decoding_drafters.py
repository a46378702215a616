"""What drafters propose: by hand, and against reference vectors where there are any."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from mmtok.decoding import DraftTree, StepResult, generate
from mmtok.decoding.base import Verdict
from mmtok.decoding.drafters.bild import BiLD
from mmtok.decoding.drafters.lookup import Lookup
from mmtok.decoding.drafters.recycling import Recycling
from mmtok.decoding.growth import Beam, Branching, Growth, Heap
from tests.decoders import llama, near, prompts
from tests.golden import GOLDEN, needs_golden
from tests.test_decoding_golden import cases


def test_lookup_takes_the_last_place_or_the_first() -> None:
    ids = [1, 2, 3, 9, 1, 2, 4, 9, 1, 2]
    assert Lookup(tokens=3).copied(ids) == [4, 9, 1]
    assert Lookup(tokens=3, ngram=2, first_match=True).copied(ids) == [3, 9, 1]
    assert Lookup(tokens=3, skip=(9,)).copied(ids) == [4]
    assert Lookup().copied([1, 2, 3]) == []
    assert Lookup().copied([7]) == []


def test_lookup_takes_the_longest_match() -> None:
    ids = [8, 1, 2, 3, 9, 1, 2, 4, 7, 2, 5, 8, 1, 2]
    assert Lookup(tokens=1).copied(ids) == [3]
    assert Lookup(tokens=1, ngram=2).copied(ids) == [4]
    assert Lookup(tokens=1, ngram=1, shortest=1).copied(ids) == [5]
    assert Lookup(shortest=4).copied(ids) == []


def test_lookup_drafts_more_while_it_is_right() -> None:
    text = [*range(60), 0, 1]
    drafter, lengths = Lookup(tokens=9, first=2), []
    drafter.start(llama(), [text], [0])
    for right in (99, 99, 99, 5, 1, 99):
        tree = drafter.propose([text], [True])[0]
        draft = tree.tokens.tolist()[1:]
        lengths.append(len(draft))
        path = list(range(1, len(draft) + 1))[:right]
        emitted = [*draft[:right], 77]
        drafter.observe([StepResult(tree, Verdict(path, 77), torch.zeros(1, 1), emitted, False)])
    assert lengths == [2, 4, 8, 9, 5, 2]
    drafter.start(llama(), [text], [0])
    assert len(drafter.propose([text], [True])[0].tokens) == 1 + 2


def test_recycling_proposes_what_it_saw() -> None:
    drafter = Recycling(successors=2, children=(2, 1))
    assert len(drafter.propose([[5]], [True])[0].tokens) == 1
    logits = torch.tensor([[0.0, 3, 2, 1], [0, 1, 2, 9]])
    tree = DraftTree.line([0, 1])
    drafter.observe([StepResult(tree, Verdict([1], 3), logits, [1, 3], False), None])
    made = drafter.propose([[0], [2]], [True, True])
    assert made[0].tokens.tolist() == [0, 1, 2, 3]
    assert made[0].parent.tolist() == [-1, 0, 0, 1]
    assert made[1].tokens.tolist() == [2]


def test_a_tree_is_cut_at_its_depth_and_behind_an_end() -> None:
    tree = DraftTree(torch.tensor([9, 1, 2, 3, 4, 5]), torch.tensor([-1, 0, 0, 1, 2, 3]), "det")
    assert tree.depth.tolist() == [0, 1, 1, 2, 2, 3]
    assert tree.path_to(5) == [1, 3, 5]
    assert tree.limited(2, frozenset()).tokens.tolist() == [9, 1, 2, 3, 4]
    cut = tree.limited(9, frozenset({1, 9}))
    assert cut.tokens.tolist() == [9, 1, 2, 4]
    assert cut.parent.tolist() == [-1, 0, 0, 2]


def grown(growth: Growth, table: Tensor) -> Growth:
    while growth.wanted:
        growth.feed([table[growth.tokens[node]] for node in growth.wanted])
    return growth


def test_a_sampled_tree_carries_the_rows_it_was_drawn_from() -> None:
    table = torch.rand(5, 5, generator=torch.Generator().manual_seed(0)).double()
    table /= table.sum(1, keepdim=True)
    tree = grown(Branching(3, (2, 1), lambda d, r, v: torch.zeros(v)), table).tree("wor")
    assert tree.depth.tolist() == [0, 1, 1, 2, 2]
    assert tree.q is not None
    for node in range(3):
        assert torch.equal(tree.q[node], table[tree.tokens[node]])
    again = Branching(3, (4,), lambda d, r, v: torch.zeros(v), replace=True)
    assert len(set(grown(again, table).tokens[1:])) == 1  # equal draws stay


@needs_golden
def test_beam_and_heap_reproduce_the_references() -> None:
    for x, y, params in cases("rsd_trees"):
        table, root, gumbel = x["q_table"], int(x["root"]), x["gumbel"]
        beam = Beam(root, params["W"], params["L"], lambda d, r, v, g=gumbel: g[d, r])
        grown(beam, table)
        assert beam.tokens == y["rsds_tokens"].tolist()
        assert beam.parent == y["rsds_parent"].tolist()
        for got, want in ((beam.logp, "rsds_logp"), (beam.score, "rsds_score")):
            torch.testing.assert_close(torch.tensor(got).double(), y[want], rtol=0, atol=1e-6)
        us = iter(x["u"].tolist())
        heap = Heap(root, params["budget"], 99, lambda us=us: next(us))
        grown(heap, table)
        assert heap.tokens == y["dyspec_tokens"].tolist()
        assert heap.parent == y["dyspec_parent"].tolist()


@needs_golden
def test_lookup_reproduces_the_references() -> None:
    for x, y, params in cases("prompt_lookup"):
        ids = x["ids"].tolist()
        drafter = Lookup(tokens=params["num_tokens"], ngram=params["max_ngram"], shortest=1)
        row = [ids[-1], *drafter.copied(ids)]
        left = params["max_length"] - len(ids)
        eos = frozenset({params["eos"]})
        cut = DraftTree.line(row).limited(left - 1, eos).tokens.tolist()[1:]
        want = y["recent_candidate"].tolist()
        # the reference drops the end of sequence itself, here it may still be accepted
        assert cut[: len(want)] == want
        assert set(cut[len(want) :]) <= eos
        # the published rule takes the first match, and drops what follows an end of sequence
        first = Lookup(
            tokens=params["num_tokens"], ngram=params["max_ngram"], shortest=1, first_match=True
        )
        found = first.copied(ids)
        end = found.index(params["eos"]) if params["eos"] in found else len(found)
        assert found[:end] == y["candidate"].tolist()


@needs_golden
def test_recycling_reproduces_a_published_run() -> None:
    trees = json.loads((GOLDEN / "decoding" / "token_recycling_tree.json").read_text())["trees"]
    for x, y, params in cases("token_recycling_run"):
        template = params["template"]
        paths = trees[template]["template"] if isinstance(template, str) else template
        nodes = [(), *map(tuple, paths)]
        parent = [-1, *(nodes.index(path[:-1]) for path in nodes[1:])]
        drafter = Recycling(children=tuple(children(parent)))
        assert drafter.parent == parent
        assert drafter.rank == [-1, *(path[-1] for path in nodes[1:])]
        if isinstance(template, str):
            assert drafter.parent == Recycling().parent
        drafter.table = torch.zeros(60, 8, dtype=torch.int32)
        ids, accepted = [int(x["prompt"][-1])], []
        for step in range(len(y["accepted_per_step"])):
            if step < 3:
                assert drafter.filled(ids[-1]) == y[f"tree_tokens_step{step}"].tolist()
            last = torch.equal(drafter.table.long(), y["matrix"])
            tree = drafter.propose([ids], [True])[0]
            logits = x["logits_table"][tree.tokens]
            path = longest(tree, logits, 0)
            at = path[-1] if path else 0
            ids += [*tree.tokens[path].tolist(), int(logits[at].argmax())]
            accepted.append(1 + len(path))
            drafter.observe([StepResult(tree, Verdict(path, ids[-1]), logits, [], False)])
        assert last
        assert accepted == y["accepted_per_step"].tolist()
        assert ids[:-1] == y["generated"].tolist()  # theirs leaves out the last step's extra token


def longest(tree: DraftTree, logits: Tensor, at: int) -> list[int]:
    """The longest greedy path; a table of zeros makes equal siblings, so there may be several."""
    hits = [c for c in tree.children(at) if tree.tokens[c] == logits[at].argmax()]
    return max(([c, *longest(tree, logits, c)] for c in hits), key=len, default=[])


def children(parent: list[int]) -> list[int]:
    return [parent.count(i) for i in range(max(parent) + 1)]


def table_model(logits: Tensor) -> Any:
    """A Llama whose logits (V, V) depend on the last token alone, up to rounding."""
    base = llama(vocabulary=len(logits))
    width = 4 * -(-len(logits) // 4)
    config = type(base.config)(**{**base.config.to_dict(), "hidden_size": width, "head_dim": 8})
    model = type(base)(config).eval()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(len(logits), width))
        model.lm_head.weight.zero_()
        model.lm_head.weight[:, : len(logits)] = logits.T / width**0.5  # the norm's factor
    return model


class Watched(BiLD):
    """Notes what is there in front of every draft: tokens, rollbacks, and calls of the model."""

    def start(self, *given: Any) -> None:
        self.undone = 0
        self.seen: list[tuple[list[int], int, int, list[int]]] = []
        super().start(*given)

    def propose(self, ids: list[list[int]], active: list[bool]) -> list[DraftTree]:
        before = self.forwards - 1  # the prompt
        trees = super().propose(ids, active)
        self.seen.append((ids[0].copy(), self.undone, before, trees[0].tokens[1:].tolist()))
        return trees

    def observe(self, results: list[StepResult | None]) -> None:
        super().observe(results)
        self.undone += sum(self._undone)


@needs_golden
@pytest.mark.parametrize("case", range(3))
def test_fallback_and_rollback_reproduce_a_published_run(case: int) -> None:
    x, y, params = list(cases("bild_run"))[case]
    small, large = (table_model(x[f"{name}_logits"]) for name in ("small", "large"))
    count = params.get("num_small_iters", 10)
    drafter = Watched(model=small, fallback=params["fallback"], tokens=count)
    generate(
        large,
        {"input_ids": torch.tensor([[1]])},
        drafter=drafter,
        verifier=f"rollback(tau={params['rollback']})",
        do_sample=False,
        max_new_tokens=params["max_length"] + count,
    )
    # theirs ends in the middle of a draft, which the large model does not see any more
    ids, undone, calls, draft = drafter.seen[int(y["n_large"]) - 1]
    left = params["max_length"] - len(ids)
    assert ids + draft[:left] == y["tokens"].tolist()
    assert undone == int(y["n_rollback"])
    assert calls + left == int(y["n_small"])


def test_rollback_keeps_what_greedy_decoding_rejects() -> None:
    runs = [
        generate(
            llama(),
            prompts([9, 4]),
            drafter=BiLD(model=near(noise=0.1), fallback=0.0, tokens=4),
            verifier=verifier,
            do_sample=False,
            max_new_tokens=24,
            measure_tv=True,
        )
        for verifier in ("greedy", "rollback(tau=0)", "rollback(tau=3)")
    ]
    assert torch.equal(runs[0].sequences, runs[1].sequences)
    assert runs[0].stats.mean_tv == runs[1].stats.mean_tv == 0
    assert runs[2].stats.accepted_per_step > runs[0].stats.accepted_per_step
    assert not torch.equal(runs[2].sequences, runs[0].sequences)
    assert (runs[2].stats.mean_tv or 0) > 0
    assert not runs[2].stats.lossless


def test_the_distance_of_rollback_is_the_share_of_judged_tokens_that_are_not_the_argmax() -> None:
    made = generate(
        llama(),
        prompts([9]),
        drafter=BiLD(model=near(noise=0.1), fallback=0.0, tokens=4),
        verifier="rollback(tau=50)",
        do_sample=False,
        max_new_tokens=24,
        measure_tv=True,
    )
    ids, stats = made.sequences, made.stats
    with torch.no_grad():
        best = llama()(ids).logits[0, 8:-1].argmax(-1)
    wrong = int((best != ids[0, 9:]).sum())
    assert sum(stats.tv) == wrong > 1  # what was not judged is the argmax
    assert len(stats.tv) == sum(stats.tried) > stats.row_steps
