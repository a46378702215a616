"""Each rule for KV entries against a slow one written out in fp64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from mmtok import InputError
from mmtok.models.taps import LayerAttention
from mmtok.pruning import A2SF, ExpectedAttention, Knorm, SnapKV, build
from mmtok.pruning.cache import Entries
from mmtok.pruning.methods.expectedattention import turned
from tests.test_golden import GOLDEN

golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="no folder of reference vectors")


def entries(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor | None = None,
    visual: torch.Tensor | None = None,
    rotary: Any = None,
    scale: float | None = None,
) -> Entries:
    """One prompt: (H, n, h) queries, (G, n, h) keys and values, causal."""
    n, size = query.shape[1:]
    seen = LayerAttention(
        query=query[None],
        key=keys.repeat_interleave(len(query) // len(keys), 0)[None],
        mask=None,
        causal=True,
        scale=scale or size**-0.5,
    )
    return Entries(
        layer=0,
        item=0,
        keys=keys,
        values=keys if values is None else values,
        visual=torch.ones(n, dtype=torch.bool) if visual is None else visual,
        place=torch.arange(n),
        attention=seen,
        rotary=rotary,
        ahead=lambda steps: rope(torch.arange(1, steps + 1), size),
    )


def rope(position: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    angle = position[:, None] / 10000 ** (torch.arange(0, size, 2) / size)
    return torch.cat([angle, angle], -1).cos(), torch.cat([angle, angle], -1).sin()


def random_entries(n: int = 40, heads: int = 4, groups: int = 2, size: int = 8) -> Entries:
    g = torch.Generator().manual_seed(n)
    q, k, v = (torch.randn(c, n, size, generator=g) for c in (heads, groups, groups))
    visual = torch.rand(n, generator=g) < 0.7
    rotary = rope(torch.arange(n) + 5, size)
    return entries(turned(q, *rotary), turned(k, *rotary), v, visual, rotary)


def attention(e: Entries) -> torch.Tensor:
    """(H, n, n) in fp64."""
    query = e.attention.query[0].double()
    keys = e.attention.key[0].double()
    scores = query @ keys.transpose(1, 2) * e.scale
    n = scores.shape[-1]
    return scores.masked_fill(~torch.ones(n, n).tril().bool(), -torch.inf).softmax(-1)


def naive_a2sf(e: Entries, factor: float) -> torch.Tensor:
    rows, n = attention(e), len(e)
    score = torch.zeros(len(e.keys), n, dtype=torch.float64)
    for head in range(len(rows)):
        for q in range(n):
            score[head * len(e.keys) // len(rows)] += factor ** (n - 1 - q) * rows[head, q]
    return score


def smooth(row: torch.Tensor, kernel: int) -> torch.Tensor:
    half, n = kernel // 2, len(row)
    return torch.stack(
        [row[max(i - half, 0) : min(i + half + 1, n)].sum() / kernel for i in range(n)]
    )


def naive_snapkv(e: Entries, window: int, kernel: int) -> torch.Tensor:
    rows, n = attention(e), len(e)
    score = torch.full((len(e.keys), n), torch.inf, dtype=torch.float64)
    per = len(rows) // len(e.keys)
    for g in range(len(e.keys)):
        heads = [
            smooth(rows[h, n - window :, : n - window].mean(0), kernel)
            for h in range(g * per, (g + 1) * per)
        ]
        score[g, : n - window] = torch.stack(heads).mean(0)
    return score


def naive_expected(e: Entries, sinks: int, ahead: int) -> torch.Tensor:
    """With rotation matrices written out."""
    n, size = len(e), e.keys.shape[-1]
    half = size // 2

    def matrix(position: int) -> torch.Tensor:
        out = torch.zeros(size, size, dtype=torch.float64)
        for i in range(half):
            angle = position / 10000 ** (2 * i / size)
            out[i, i] = out[i + half, i + half] = math.cos(angle)
            out[i, i + half], out[i + half, i] = -math.sin(angle), math.sin(angle)
        return out

    query = e.attention.query[0].double()
    back = torch.stack([matrix(5 + i).T for i in range(n)])
    query = torch.einsum("nij,hnj->hni", back, query)[:, sinks:]
    turn = torch.stack([matrix(5 + n - 1 + j) for j in range(1, ahead + 1)]).mean(0)
    score = torch.full((len(e.keys), n), torch.inf, dtype=torch.float64)
    for g, keys in enumerate(e.keys[:, sinks:].double()):
        weights = []
        for head in range(2 * g, 2 * g + 2):
            mean = turn @ query[head].mean(0)
            spread = turn @ torch.cov(query[head].T, correction=0) @ turn.T
            logits = keys @ mean / size**0.5 + (keys @ spread * keys).sum(1) / (2 * size)
            weights.append(logits.softmax(0))
        score[g, sinks:] = torch.stack(weights).mean(0) * e.values[g, sinks:].double().norm(dim=1)
    return score


RULES = [
    (A2SF(keep=12, recent=3, factor=0.9), lambda e: naive_a2sf(e, 0.9)),
    (A2SF(keep=0.2, recent=0, factor=1), lambda e: naive_a2sf(e, 1.0)),
    (SnapKV(keep=10, window=4, kernel=3), lambda e: naive_snapkv(e, 4, 3)),
    (Knorm(keep=0.4), lambda e: -e.keys.double().norm(dim=-1)),
    (ExpectedAttention(keep=15, sinks=3, ahead=20), lambda e: naive_expected(e, 3, 20)),
]


@pytest.mark.parametrize("scope", ["all", "visual"])
@pytest.mark.parametrize(("reducer", "score"), RULES, ids=lambda x: getattr(x, "spec", ""))
def test_the_choice_is_that_of_the_rule(reducer: Any, score: Any, scope: str) -> None:
    reducer = type(reducer)(**vars(reducer) | {"scope": scope})
    for n in (9, 40, 64):
        e = random_entries(n)
        k = reducer.cache_count(0, n, int(e.visual.sum()))
        if k >= n:
            continue
        rank = score(e)
        if scope == "all":
            first, last = reducer.protected()
            rank[:, n - min(last, k) :] = torch.inf
            rank[:, : min(first, k - min(last, k))] = torch.inf
        else:
            rank[:, ~e.visual] = torch.inf
        want = rank.sort(dim=1, descending=True, stable=True).indices[:, :k].sort(dim=1).values
        assert torch.equal(reducer.in_cache(4).keep(e), want)


@pytest.mark.parametrize(("factor", "share"), [(0.9, 0.5), (0.98, 1.01)])
def test_a2sf_reads_only_the_rows_its_choice_depends_on(factor: float, share: float) -> None:
    e = random_entries(700)
    got = A2SF(keep=50, recent=8, factor=factor).in_cache(4).keep(e)
    rank = naive_a2sf(e, factor)
    rank[:, -8:] = torch.inf
    want = rank.topk(50).indices.sort(dim=1).values
    assert torch.equal(got, want)
    assert 0 < e.flops < share * 2 * 4 * 700 * 700 * 8


def test_rows_obey_the_mask() -> None:
    """The layer's own mask where it has one, bool or additive; else causal."""
    e = random_entries(20)
    causal = torch.ones(20, 20).tril().bool()
    seen = e.attention
    rows = [e.rows(torch.arange(20))]
    for mask in (causal, torch.zeros(20, 20).masked_fill(~causal, -1e30)):
        e.attention = LayerAttention(**vars(seen) | {"mask": mask[None, None], "causal": False})
        rows.append(e.rows(torch.arange(20)))
    assert torch.equal(rows[0], rows[1])
    torch.testing.assert_close(rows[0], rows[2])
    torch.testing.assert_close(
        rows[0].double(), attention(random_entries(20)), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("a2sf(keep=8)", "recent = 16 entries are always kept, more than keep=8"),
        ("a2sf(factor=1.5)", "factor must be a finite number > 0 and <= 1"),
        ("a2sf(scope='text')", "scope must be 'all' or 'visual'"),
        ("snapkv(keep=0.5, kernel=4)", "kernel must be a positive odd int"),
        ("snapkv(keep=0.5, window=0)", "window must be an int >= 1"),
        ("expectedattention(sinks=-1)", "sinks must be an int >= 0"),
        ("sentencekv(read=0)", "read must be a number of entries"),
        ("sentencekv(pooling='sum')", "pooling must be 'avg' or 'max'"),
        ("sentencekv(compat='code')", "compat must be 'paper' or 'repo'"),
        ("sentencekv(punctuation=('.',))", "punctuation must be a list, each an int"),
    ],
)
def test_wrong_arguments_are_refused(spec: str, why: str) -> None:
    with pytest.raises(InputError, match=why):
        build(spec)
