"""Drafts from statistics and from other texts: ADED's search, RASD's retrieval, merged trees."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from mmtok.decoding import Drafter, DraftTree, generate
from mmtok.decoding.drafters.aded import ADED, rollout, search
from mmtok.decoding.drafters.draftmodel import DraftModel
from mmtok.decoding.drafters.rasd import RASD, Store
from mmtok.decoding.drafters.rsdc import RSDC
from mmtok.decoding.trie import merged
from mmtok.errors import InputError
from tests.decoders import llama, near, prompts
from tests.test_decoding_greedy import GREEDY

TARGET: Any = None  # neither drafter looks at it


def paths(tree: DraftTree) -> set[tuple[int, ...]]:
    return {tuple(tree.tokens[tree.path_to(n)].tolist()) for n in range(1, len(tree.tokens))}


def one(drafter: Drafter, ids: list[int]) -> DraftTree:
    drafter.start(TARGET, [ids], [0])
    return drafter.propose([ids], [True])[0]


def test_merged_paths_share_their_beginnings() -> None:
    tree = DraftTree(torch.tensor([9, 1, 2, 1]), torch.tensor([-1, 0, 0, 1]), "det")
    got = merged(tree, [[1, 1, 5], [2], [3, 4], [3, 6]], 99)
    assert got.tokens[:4].tolist() == [9, 1, 2, 1]
    assert paths(got) == {(1,), (2,), (1, 1), (1, 1, 5), (3,), (3, 4), (3, 6)}
    assert merged(tree, [[1, 1, 5], [3, 4]], 5).tokens.tolist() == [9, 1, 2, 1, 5, 3]
    assert merged(tree, [[4]], 1).tokens.tolist() == tree.tokens.tolist()


def test_merging_is_the_union_and_never_doubles_a_sibling() -> None:
    rng = random.Random(3)
    for _ in range(30):
        given = [[rng.randrange(3) for _ in range(rng.randrange(1, 5))] for _ in range(6)]
        tree = merged(DraftTree.root(0), given, 999)
        assert paths(tree) == {tuple(p[:n]) for p in given for n in range(1, len(p) + 1)}
        for node in range(len(tree.tokens)):
            below = tree.tokens[tree.children(node)].tolist()
            assert len(set(below)) == len(below)


def table(pairs: dict[tuple[int, int], list[tuple[int, float]]]) -> Any:
    return lambda pair: pairs.get(pair, [])


def test_the_search_visits_where_the_weight_is() -> None:
    next_of = table(
        {
            (0, 1): [(2, 0.7), (3, 0.3)],
            (1, 2): [(4, 0.9), (5, 0.1)],
            (2, 4): [(6, 1.0)],
            (1, 3): [(7, 1.0)],
        }
    )
    root = search((0, 1), next_of, 150, 3, random.Random(0).random)
    visits = {tuple(path): count for count, path in root.paths()}
    assert root.visits == 150
    assert visits[2,] + visits[3,] == 150
    assert visits[2,] > visits[3,] > 0
    assert visits[2, 4] > visits[2, 5]
    assert (2, 4, 6) in visits
    assert max(map(len, visits)) == 3


def test_a_reward_is_one_and_the_weights_along_the_way() -> None:
    next_of = table({(0, 1): [(2, 0.5)], (1, 2): [(3, 0.25)], (2, 3): [(4, 2.0)]})
    root = search((0, 1), next_of, 1, 3, lambda: 0.0)
    assert root.reward == 1 + 0.5 + 0.25 + 2.0
    assert rollout((0, 1), next_of, 2, lambda: 0.999) == 0.75
    assert rollout((5, 5), next_of, 2, lambda: 0.0) == 0


def test_a_visit_is_worth_what_puct_says() -> None:
    next_of = table({(0, 1): [(2, 0.7), (3, 0.3)]})
    root = search((0, 1), next_of, 40, 1, lambda: 0.0)
    n, child = root.visits, (root.below or [])[0]
    want = child.reward / child.visits
    want += (32 + torch.tensor((n + 9) / 8).log()) * 0.7 * n**0.5 / (1 + child.visits)
    assert child.score(n) == pytest.approx(float(want), rel=1e-6)


def test_aded_proposes_what_the_corpus_and_the_row_say() -> None:
    corpus = [[1, 2, 3, 4, 5, 6, 7], [1, 2, 8, 9]]
    drafter = ADED(corpus=corpus)
    tree = one(drafter, [0, 1, 2])
    assert {(3,), (3, 4, 5, 6), (8, 9)} <= paths(tree)
    assert int(tree.depth.max()) == 4
    assert len(one(ADED(), [1, 2, 3, 4]).tokens) == 1
    assert (3, 1, 2, 3) in paths(one(ADED(), [1, 2, 3, 1, 2]))
    assert len(one(ADED(corpus=corpus, nodes=2), [0, 1, 2]).tokens) == 3
    assert len(one(ADED(corpus=[[5, 6, 7]]), [7]).tokens) == 1
    assert (3, 1, 2, 3) not in paths(one(ADED(skip=(3,)), [1, 2, 3, 1, 2]))


def test_what_a_row_repeats_gains_weight_up_to_a_limit() -> None:
    drafter = ADED(corpus=[[1, 2, 3], [1, 2, 4]], gain=0.3, most=0.7)
    ids = [1, 2, 4, 1, 2]
    drafter.start(TARGET, [ids, [1, 2]], [0, 1])
    for want in (0.7, 0.7):
        tree = drafter.propose([ids, [1, 2]], [True, True])
        assert drafter._rows[0].table[1, 2] == pytest.approx({3: 0.5, 4: want})
    assert drafter._rows[1].table == {}
    assert tree[0].tokens[1] == 4
    assert tree[1].tokens[1] == 3


def test_aded_is_the_same_every_time() -> None:
    rng = random.Random(0)
    corpus = [[rng.randrange(6) for _ in range(400)]]
    first, second = (one(ADED(corpus=corpus), [1, 2, 3]) for _ in range(2))
    assert torch.equal(first.tokens, second.tokens)
    assert torch.equal(first.parent, second.parent)
    assert 24 < len(first.tokens) <= 65


def test_the_store_finds_the_longest_and_the_latest() -> None:
    store = Store()
    text = [1, 2, 3, 9, 1, 2, 4, 9, 1, 2]
    for at in range(0, len(text), 3):
        store.extend(text[at : at + 3])
    assert list(store.matches(text, 16)) == [(10, 10), (3, 6), (2, 2)]
    assert store.behind(6, 3) == [4, 9, 1]
    assert list(store.matches(text, 2)) == [(2, 10), (2, 6), (2, 2)]
    ended = Store()
    for part in ([1, 2, -1], [3, 1, -1]):
        ended.extend(part)
    assert ended.behind(1, 5) == [2]
    assert (2, -1) not in ended.ends
    assert (-1, 3) not in ended.ends


class Fixed(Drafter):
    kind = "det"

    def __init__(self, *given: list[int]) -> None:
        self.given = given

    def propose(self, ids: list[list[int]], active: list[bool]) -> list[DraftTree]:
        return [merged(DraftTree.root(row[-1]), self.given, 99) for row in ids]


def test_rasd_prunes_what_it_retrieves_and_merges_it() -> None:
    corpus = [[7, 1, 2, 3, 4, 5], [1, 2, 8, 8], [1, 2, 3, 6]]
    base = Fixed([3, 4, 9], [0])
    got = paths(one(RASD(base=base, corpus=corpus), [7, 1, 2]))
    assert got == {(3,), (3, 4), (3, 4, 9), (0,), (3, 4, 5), (3, 6)}
    whole = paths(one(RASD(base=base, corpus=corpus, prune=False), [7, 1, 2]))
    assert whole == got | {(8,), (8, 8)}
    assert paths(one(RASD(base=Fixed(), corpus=corpus), [7, 1, 2])) == whole - paths(
        one(base, [7, 1, 2])
    ) | {(3,), (3, 4)}
    longest = one(RASD(base=Fixed(), corpus=corpus, paths=1), [7, 1, 2])
    assert longest.tokens.tolist() == [2, 3, 4, 5]
    short = one(RASD(base=Fixed(), corpus=corpus, skip=(4,)), [7, 1, 2])
    assert paths(short) == {(3,), (3, 6), (8,), (8, 8)}
    assert paths(one(RASD(base=Fixed()), [1, 2, 3, 1, 2])) == {(3,), (3, 1), (3, 1, 2)}


def test_retrieval_from_the_row_itself_lets_rasd_accept_more() -> None:
    base, options = "recycling(children=(2,), successors=2)", {**GREEDY, "max_new_tokens": 64}
    alone, fused = (
        generate(llama(), prompts([9, 4]), drafter=drafter, **options)
        for drafter in (base, RASD(base=base))
    )
    assert torch.equal(fused.sequences, alone.sequences)
    assert fused.stats.accepted_per_step > alone.stats.accepted_per_step
    assert fused.stats.row_steps < alone.stats.row_steps


def test_rasd_counts_the_forwards_of_its_base() -> None:
    base = RSDC(model=near(), temperature=0.0)
    got = generate(llama(), prompts([9]), drafter=RASD(base=base), **GREEDY)
    assert got.stats.drafter_forwards == base.forwards > 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RASD(base=DraftModel(model=near())), "use a base of kind 'det'"),
        (lambda: RASD(base="jacobi"), "kind 'jacobi'"),
        (lambda: RASD(base="nothing"), "unknown drafter"),
        (lambda: RASD(longest=1), "longest at 2"),
        (lambda: ADED(depth=0), "start at 1"),
        (lambda: ADED(gain=0.0), "0 < gain"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
