"""Properties of every registered reducer as a pure function of tensors (no model)."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmtok import InputError
from mmtok.pruning import Query, ToDRE, VisualTokens, build, registry
from mmtok.pruning.greedy import greedy_diverse
from mmtok.registry import parse_spec
from tests.matrix import BUDGETED, REDUCERS, SELECTORS, SPECS


def tokens(seed: int, counts: list[int], width: int = 12) -> VisualTokens:
    generator = torch.Generator().manual_seed(seed)
    n = max(counts)
    mask = torch.arange(n)[None] < torch.tensor(counts)[:, None]
    x = torch.randn(len(counts), n, width, generator=generator)
    attention = torch.rand(len(counts), n, generator=generator)
    place = torch.arange(n).expand(len(counts), n)
    return VisualTokens(
        features=x.masked_fill(~mask[..., None], torch.nan),
        mask=mask,
        position=torch.stack([place // 6, place // 3 % 2, place % 3], dim=-1),
        cls_attention=attention.masked_fill(~mask, torch.nan),
        keys=torch.randn(len(counts), n, 6, generator=generator),
        item_ids=tuple(f"item{i}" for i in range(len(counts))),
    )


def one(batch: VisualTokens, item: int) -> VisualTokens:
    n = int(batch.counts[item])
    assert batch.cls_attention is not None
    assert batch.keys is not None
    return VisualTokens(
        features=batch.features[item : item + 1, :n],
        position=batch.position[item : item + 1, :n],
        cls_attention=batch.cls_attention[item : item + 1, :n],
        keys=batch.keys[item : item + 1, :n],
        item_ids=(batch.item_ids[item],),
    )


def text(batch: VisualTokens, item: int | None = None) -> Query:
    """A text of its own length for each item, or for one of them."""
    b, _, width = batch.features.shape
    rows = range(b) if item is None else [item]
    mask = torch.arange(b + 2) < torch.tensor([row + 2 for row in rows])[:, None]
    x = torch.stack([torch.arange((b + 2) * width).add(row).sin() for row in rows])
    x = x.view(len(rows), b + 2, width).masked_fill(~mask[..., None], torch.nan)
    return Query(embeddings=x, mask=mask)


def plain(x: torch.Tensor) -> VisualTokens:
    """Tokens of which all is known, and all of it equally."""
    return VisualTokens(features=x, cls_attention=torch.zeros(x.shape[:2]), keys=x)


def test_every_registered_reducer_has_a_row() -> None:
    assert set(registry.names()) == set(REDUCERS)


@pytest.mark.parametrize("spec", SELECTORS)
@given(
    seed=st.integers(0, 2**16),
    counts=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    keep=st.one_of(st.floats(0.01, 1.0), st.integers(1, 40)),
)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_selection_properties(spec: str, seed: int, counts: list[int], keep: float) -> None:
    reducer = build(spec.format(keep=keep))[0]
    batch = tokens(seed, counts)
    chosen = reducer.select(batch, text(batch)).indices
    again = reducer.select(batch, text(batch)).indices
    for item, index in enumerate(chosen):
        n = counts[item]
        want = math.floor(keep * n + 0.5) if isinstance(keep, float) else keep
        k = min(max(want, 1), n)
        if reducer.budget == "threshold" and k < n:
            assert 1 <= len(index) <= k, "the cap of a method that decides by content"
        else:
            assert len(index) == k, "exact budget"
        assert index.dtype == torch.int64
        assert (index[1:] > index[:-1]).all(), "sorted and unique"
        assert index.max() < n, "padding is never chosen"
        assert torch.equal(index, again[item]), "deterministic"
        alone = reducer.select(one(batch, item), text(batch, item))
        assert torch.equal(index, alone.indices[0]), "batch == alone"


@pytest.mark.parametrize("spec", SELECTORS)
def test_odd_features(spec: str) -> None:
    reducer = build(spec.format(keep=4))[0]
    for x in (torch.zeros(1, 9, 5), torch.ones(1, 9, 5), torch.zeros(1, 9, 5).half()):
        got = reducer.select(plain(x), text(plain(x)))
        assert len(got.indices[0]) == 4 or (reducer.budget == "threshold" and len(got.indices[0]))
        assert got.apply(x)[0].isfinite().all()
    same = plain(torch.randn(1, 3, 5).repeat(1, 4, 1))
    kept = reducer.select(same, text(same)).indices[0]
    assert len(kept.unique()) == len(kept)
    assert len(kept) == 4 or reducer.budget == "threshold"
    lone = plain(torch.randn(1, 1, 5))
    single = reducer.select(lone, text(lone))
    assert single.indices[0].tolist() == [0]
    with pytest.raises(InputError, match="NaN"):
        VisualTokens(features=torch.full((1, 3, 2), torch.nan))


@pytest.mark.parametrize("spec", BUDGETED)
@pytest.mark.parametrize("keep", [0, -1, 0.0, 1.5, True, "'a'", float("1e400")])
def test_wrong_budgets_are_refused(spec: str, keep: object) -> None:
    with pytest.raises(InputError, match="keep must be"):
        build(spec.format(keep=str(keep).replace("inf", "1e400")))


@pytest.mark.parametrize("spec", SPECS)
def test_the_canonical_spec_builds_the_same_object(spec: str) -> None:
    reducer = build(spec.format(keep=0.3))[0]
    assert build(reducer.spec) == [reducer]


def test_two_readings_of_a_spec_share_nothing() -> None:
    first, second = (parse_spec("pyramiddrop(layers=[2, 4])")[1] for _ in range(2))
    first["layers"].append(6)
    assert second == {"layers": [2, 4]} == parse_spec("pyramiddrop(layers=[2, 4])")[1]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("todr(keep=3)", "did you mean 'todre'"),
        ("todre(kep=3)", "did you mean 'keep'\\? known: keep, rule"),
        ("todre(needs=1)", "unknown argument of todre 'needs'"),
        ("todre(0.1)", "cannot read spec"),
        ("todre(keep=0.1", "cannot read spec"),
        ("todre(keep=open('x'))", "cannot read spec"),
        ("__import__('os').system('x')", "cannot read spec"),
        ("todre(**{'keep': 1})", "cannot read spec"),
        ("todre(keep=1)(2)", "cannot read spec"),
        ("", "cannot read spec"),
        ("(" * 900, "cannot read spec"),
        ("todre(keep=" + "1" * 2000 + ")", "longer than 1000"),
        ("todre(rule='best')", "rule must be"),
        ("todre(tau=2)", "tau must be"),
        ("random(seed='x')", "seed must be"),
        ("vispruner(important=2)", "important must be"),
        ("holov(chunks=0)", "chunks must be"),
        ("holov(alpha=-1)", "alpha must be"),
        ("visionzip(contextual=1.0)", "contextual must be"),
        ("visionzip(compat='x')", "compat must be"),
        ("coveragemax(text_temperature=0)", "text_temperature must be"),
        ("coveragemax(alpha='x')", "alpha must be"),
        ("fastv(layer=0)", "layer must be"),
        ("sparsevlm(recycle=1)", "recycle must be"),
        ("dart(text_pivots=-1)", "text_pivots must be"),
        ("framefusion(cost=0)", "cost must be"),
        ("framefusion(similarity='x')", "similarity must be"),
        ("corematching(rho=1)", "rho must be"),
        ("cdpruner(theta=1)", "theta must be"),
        ("cdpruner(compat='x')", "compat must be"),
        ("prumerge(plus=1)", "plus must be"),
        ("prumerge(neighbours=-1)", "neighbours must be"),
        ("prumerge(compat='x')", "compat must be"),
        ("quota(compress='x')", "compress must be"),
        ("quota(scorer='clip')", "scorer must be"),
        ("quota(scorer=[0.1, 1e999])", "scorer must be"),
        ("quota(scorer=[])", "scores must be"),
        ("tokencorr(adaptive=1)", "adaptive must be"),
        ("tokencorr(repeats=2)", "repeats must be"),
    ],
)
def test_bad_specs_say_what_is_wrong(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(spec)


def slow_greedy(x: torch.Tensor, k: int, first: int, rule: str) -> list[int]:
    """Independent reference: all pairwise cosine distances in fp64, from the definition."""
    x = x.double()
    chosen = [first]
    while len(chosen) < k:
        best, best_score = -1, -math.inf
        for i in range(len(x)):
            if i in chosen:
                continue
            far = [1 - float(torch.cosine_similarity(x[i], x[j], dim=0)) for j in chosen]
            score = min(far) if rule == "kcenter" else sum(far)
            if score > best_score + 1e-12:
                best, best_score = i, score
        chosen.append(best)
    return chosen


@pytest.mark.parametrize("rule", ["kcenter", "maxsum"])
@pytest.mark.parametrize("seed", range(5))
def test_greedy_equals_brute_force(rule: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(40, 7, generator=generator)
    first = seed * 3
    assert greedy_diverse(x, 15, first, rule).tolist() == slow_greedy(x, 15, first, rule)


@pytest.mark.parametrize("rule", ["kcenter", "maxsum"])
def test_greedy_without_the_gram_matrix_is_the_same(
    rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(50, 9, generator=torch.Generator().manual_seed(1)).double()
    want = greedy_diverse(x, 20, 4, rule)
    monkeypatch.setattr("mmtok.pruning.greedy.GRAM_LIMIT", 10)
    assert torch.equal(greedy_diverse(x, 20, 4, rule), want)


def test_kcenter_reaches_every_cluster_and_maxsum_does_not() -> None:
    """The reason for our default: 20 tight clusters, 20 tokens."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(20, 16, generator=generator) * torch.linspace(3, 0.3, 16)
    label = torch.arange(600) % 20
    x = centres[label] + 0.02 * torch.randn(600, 16, generator=generator)
    reached = {
        rule: len(label[greedy_diverse(x, 20, 0, rule)].unique()) for rule in ("kcenter", "maxsum")
    }
    assert reached["kcenter"] == 20
    assert reached["maxsum"] < 15


def test_todre_starts_where_cls_looks_and_in_the_overview() -> None:
    x = torch.randn(1, 20, 6, generator=torch.Generator().manual_seed(0))
    attention = torch.zeros(1, 20)
    attention[0, 17], attention[0, 3] = 0.9, 0.5
    only = ToDRE(keep=1)
    seen = VisualTokens(features=x, cls_attention=attention)
    assert only.select(seen).indices[0].tolist() == [17]
    overview = torch.arange(20)[None] < 10
    anyres = VisualTokens(features=x, cls_attention=attention, overview=overview)
    assert only.select(anyres).indices[0].tolist() == [3]


def test_random_depends_on_the_item_and_the_seed_only() -> None:
    x = torch.randn(1, 50, 3)
    a, b = (
        build("random(keep=10)")[0].select(VisualTokens(features=x, item_ids=(name,))).indices[0]
        for name in ("image0", "image1")
    )
    assert not torch.equal(a, b)
    other = build("random(keep=10, seed=1)")[0]
    c = other.select(VisualTokens(features=x, item_ids=("image0",))).indices[0]
    assert not torch.equal(a, c)


def test_listing_imports_neither_torch_nor_a_method() -> None:
    code = (
        "import sys; from mmtok.registry import Registry; from pathlib import Path;"
        "r = Registry(kind='reducer', folder=Path('pruning'), package='mmtok.pruning.methods',"
        " base='Reducer', group='mmtok.reducers'); print(r.names());"
        "assert 'torch' not in sys.modules"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "todre" in out.stdout


@pytest.mark.parametrize(
    ("spec", "where"),
    [
        ("fastv(keep=2)", "inside the decoder"),
        ("corematching(keep=2)", "inside the decoder and in the decoder's feed-forward networks"),
        ("snapkv(keep=200)", "in the KV cache"),
        ("downsample(keep=0.5)", "on the pixels"),
        ("damro", "on the logits"),
    ],
)
def test_select_of_methods_that_act_elsewhere_is_refused(spec: str, where: str) -> None:
    tokens = VisualTokens(features=torch.randn(1, 30, 16), cls_attention=torch.rand(1, 30))
    with pytest.raises(InputError, match=f"it acts {where}: "):
        build(spec)[0].select(tokens)
