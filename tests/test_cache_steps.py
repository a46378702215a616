"""Policies that choose in every decode step, against slow ones; reference vectors of all rules."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mmtok.pruning import A2SF, ExpectedAttention, Knorm, SentenceKV, SnapKV
from mmtok.pruning.cache import CacheReducer, Prompt, Stored, votes
from mmtok.pruning.methods.expectedattention import turned
from mmtok.pruning.methods.sentencekv import (
    by_sentence,
    punctuation_ids,
    sentence_means,
    sentence_numbers,
)
from mmtok.pruning.recall import VisualRecall
from tests.conftest import tiny_model
from tests.test_cache_methods import entries
from tests.test_golden import GOLDEN, cases

golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="no folder of reference vectors")
GROUPS, PER_GROUP, SIZE, PROMPT = 2, 2, 8, 30


class Run:
    """One layer of a batch of one prompt that decodes; every head holds its own entries."""

    def __init__(self, policy: Any, stored: int, seed: int = 0) -> None:
        self.g = torch.Generator().manual_seed(seed)
        ids = torch.randint(10, (1, PROMPT), generator=self.g)
        cell = torch.full((4, 1, PROMPT), -1)
        cell[:, :, 5:16], cell[1, :, 9:16], cell[:, :, 20:24] = 0, 1, 2  # a clip, and an image
        valid = torch.ones(1, PROMPT, dtype=torch.bool)
        self.prompt = Prompt(ids=ids, valid=valid, visual=cell[0] >= 0, cell=cell)
        choice = [torch.randperm(PROMPT, generator=self.g)[:stored] for _ in range(GROUPS)]
        self.slot = torch.stack(choice).sort(dim=1).values[None]
        self.keys = torch.randn(1, GROUPS, stored, SIZE, generator=self.g)
        self.queries: list[torch.Tensor] = []
        self.ids: list[int] = []
        self.policy = policy
        policy.begin(self.prompt)

    def step(self, layer: int = 0) -> torch.Tensor | None:
        query = torch.randn(1, GROUPS, PER_GROUP, SIZE, generator=self.g)
        new = torch.randn(1, GROUPS, 1, SIZE, generator=self.g)
        self.queries.append(query)
        self.ids.append(int(torch.randint(10, (), generator=self.g)))
        self.keys = torch.cat([self.keys, new], dim=2)
        self.policy.token(torch.tensor([[self.ids[-1]]]))
        return self.policy.step(self.stored(layer))

    def stored(self, layer: int) -> Stored:
        real = torch.ones(1, self.keys.shape[2], dtype=torch.bool)
        return Stored(
            layer=layer,
            query=self.queries[-1],
            keys=self.keys,
            slot=self.slot,
            real=real,
            scale=SIZE**-0.5,
        )


def naive_sentences(run: Run, rule: SentenceKV, head: int) -> set[int]:
    """What the newest token of one head reads, by lists of sentences."""
    sentence, number = [], 0
    for i in range(PROMPT):
        unit, before = (run.prompt.cell[:2, 0, j].tolist() for j in (i, i - 1))
        mark = i and before[0] < 0 and int(run.prompt.ids[0, i - 1]) in rule.punctuation
        number += bool(i and (unit != before or mark))
        sentence.append(number)
    own = [sentence[s] for s in run.slot[0, head].tolist()]
    current, since = number + 1, 0
    for step, token in enumerate(run.ids):
        own.append(current)
        if token in rule.punctuation and step < len(run.ids) - 1:
            current, since = current + 1, step + 1
    total = len(own)
    if len(run.ids) - since <= rule.threshold:
        return set(range(total))
    always = {i for i in range(total) if i < rule.start or i >= total - rule.recent}
    if rule.scope == "visual":
        stored = run.slot.shape[2]
        always = {i for i in range(stored) if not run.prompt.visual[0, run.slot[0, head, i]]}
        always |= set(range(stored, total))
    always |= {i for i in range(total) if own[i] == current}
    keys = run.keys[0, head].double()
    asked = torch.stack(run.queries[since:])[:, 0, head].double().mean((0, 1))
    closed = sorted({s for s in own if s != current})
    places = {s: [i for i in range(total) if own[i] == s] for s in closed}
    like = {s: float(keys[places[s]].mean(0) @ asked) for s in closed}
    never = always | ({rule.start} if rule.compat == "repo" else set())
    ranked = sorted(closed, key=lambda s: -like[s])
    rivals = [i for s in ranked for i in places[s] if i not in never]
    stored = run.slot.shape[2]
    if rule.scope == "visual":
        stored -= sum(i < stored for i in always)
    return always | set(rivals[: rule.read_count(stored)])


@pytest.mark.parametrize(
    ("scope", "compat"), [("all", "paper"), ("all", "repo"), ("visual", "paper")]
)
def test_sentences_are_read_as_the_rule_says(scope: Any, compat: Any) -> None:
    rule = SentenceKV(
        keep=0.6,
        read=7,
        start=2,
        recent=3,
        threshold=1,
        punctuation=(0, 1),
        scope=scope,
        compat=compat,
    )
    for seed in range(3):
        stored = PROMPT if scope == "visual" else 18  # all its text is stored
        run = Run(rule.in_cache(4), stored, seed)
        partial = 0
        for _ in range(14):
            read = run.step()
            for head in range(GROUPS):
                want = naive_sentences(run, rule, head)
                total = run.keys.shape[2]
                seen = torch.ones(total) if read is None else read[0, head]
                assert set(seen.nonzero()[:, 0].tolist()) == want
                partial += len(want) < total
        assert partial > 5


def test_recall_reads_what_the_newest_token_looks_at() -> None:
    for refresh, seed in ((1.0, 0), (-1.0, 1), (0.7, 2)):
        run = Run(VisualRecall(lambda n: n // 4, layer=1, refresh=refresh), PROMPT, seed)
        run.slot = torch.arange(PROMPT).expand(1, GROUPS, -1)
        shown, last = None, None
        visual = run.prompt.visual[0]
        for _ in range(8):
            assert run.step(layer=0) is None
            assert run.policy.step(run.stored(1)) is None
            keys = run.keys[0].double()
            scores = run.queries[-1][0].double() @ keys.transpose(1, 2) * SIZE**-0.5
            seen = scores.softmax(-1).mean((0, 1))[:PROMPT] * visual
            if last is None or float(seen @ last / seen.norm() / last.norm()) < refresh:
                shown = set(seen.topk(int(visual.sum()) // 4).indices.tolist())
            last = seen
            read = run.policy.step(run.stored(2))
            want = {i for i in range(keys.shape[1]) if i >= PROMPT or not visual[i] or i in shown}
            assert set(read[0, 0].nonzero()[:, 0].tolist()) == want


def test_punctuation_ends_sentences() -> None:
    _, processor = tiny_model("llava")
    ids = punctuation_ids(processor.tokenizer)
    texts = {processor.tokenizer.decode([i]) for i in ids}
    assert {".", "!", "?", "\n"} <= texts
    assert not any(c.isalnum() for text in texts for c in text)


@golden
def test_a2sf() -> None:
    for params, t in cases("a2sf"):
        for row in range(len(t["input.key"])):
            e = entries(t["input.query"][row], t["input.key"][row])
            reducer = A2SF(keep=params["budget"], factor=params["factor"], recent=params["recent"])
            none = torch.zeros(len(e), dtype=torch.bool)
            score = reducer.score(e, len(e) // 2, none) if len(e) <= 128 else None
            if score is not None:
                torch.testing.assert_close(score, t["output.scores"][row], rtol=1e-4, atol=1e-6)
            if "output.indices" in t:
                assert torch.equal(reducer.in_cache(1).keep(e), t["output.indices"][row])
            else:
                assert reducer.cache_count(0, len(e), 0) == len(e)


def kvpress(params: dict[str, Any], t: dict[str, torch.Tensor], row: int) -> Any:
    cos, sin = t["input.cos"][row], t["input.sin"][row]
    query = t["input.hidden"][row] @ t["input.q_proj"].T
    query = query.view(len(query), params["q_heads"], -1).transpose(0, 1)
    return entries(
        turned(query, cos, sin),
        t["input.keys"][row],
        t["input.values"][row],
        rotary=(cos, sin),
    )


@golden
def test_knorm_snapkv_expected_attention() -> None:
    for params, t in cases("kvpress_scores"):
        count = t["output.knorm_kept"].shape[-1]
        rules: dict[str, CacheReducer] = {
            "knorm": Knorm(keep=count),
            "snapkv": SnapKV(keep=count, window=params["window"], kernel=params["kernel"]),
            "expected": ExpectedAttention(
                keep=count,
                sinks=params["n_sink"],
                ahead=params["n_future"],
                epsilon=params["eps"],
            ),
        }
        for name, rule in rules.items():
            for row in range(len(t["input.keys"])):
                e = kvpress(params, t, row)
                score = rule.score(e, count, torch.zeros(len(e), dtype=torch.bool))
                free = torch.isfinite(score)
                want = t[f"output.{name}_scores"][row]
                torch.testing.assert_close(score[free], want[free], rtol=1e-4, atol=1e-6)
                kept = t[f"output.{name}_kept"][row].sort(dim=-1).values
                assert torch.equal(rule.in_cache(1).keep(e), kept)


@golden
def test_sentencekv_stores() -> None:
    for params, t in cases("sentencekv_means"):
        e = entries(t["input.query"][0], t["input.key"][0])
        window, how = params["window"], params["pooling"].removesuffix("pool")
        pooled = votes(e, window, params["kernel"], how) * window
        torch.testing.assert_close(pooled, t["output.pooled_scores"][0], rtol=1e-4, atol=1e-6)
        rule = SentenceKV(
            keep=params["semantic_budget"], window=window, kernel=params["kernel"], pooling=how
        )
        kept, want = rule.in_cache(1).keep(e), t["output.kept_positions"][0]
        if how == "max":  # tied scores: the sets may differ, their sums may not
            inside = [k[k < pooled.shape[1]] for k in (*kept, *want)]
            sums = [p[i].sum() for p, i in zip([*pooled, *pooled], inside, strict=True)]
            torch.testing.assert_close(sums[: len(sums) // 2], sums[len(sums) // 2 :])
            kept = want
        assert torch.equal(kept, want)
        ids = torch.zeros(1, len(e), dtype=torch.int64)
        ids[0, t["input.punctuation_positions"]] = 1
        number = sentence_numbers(ids, torch.full((2, *ids.shape), -1), torch.tensor([1]))
        sentence = number[:, None].expand(-1, len(e.keys), -1).gather(2, kept[None])
        keys = e.keys[None].gather(2, kept[None, ..., None].expand(-1, -1, -1, e.keys.shape[-1]))
        real = torch.ones(1, 1, kept.shape[1], dtype=torch.bool)
        means = sentence_means(keys, sentence, real, params["num_sentences"])
        torch.testing.assert_close(means[0], t["output.sentence_means"], rtol=1e-5, atol=1e-6)


@golden
def test_sentencekv_reads() -> None:
    """In the odd cases the bound includes the entry at index `start`."""
    for params, t in cases("sentencekv_select"):
        rule = SentenceKV(
            start=params["start"],
            recent=params["recent"],
            compat="paper" if params.get("inclusive") else "repo",
        )
        lists, lengths = t["input.sentence_token_cache_indices"], t["input.sentence_lengths"]
        heads, length = len(lists), params["kv_len"]
        sentence = torch.zeros(heads, length, dtype=torch.int64)
        listed = torch.zeros(heads, length, dtype=torch.bool)
        for head in range(heads):
            for number, row in enumerate(lists[head]):
                index = row[: lengths[head, number]]
                sentence[head, index[index >= 0]] = number
                listed[head, index[index >= 0]] = True
        free = listed & rule.competes(torch.arange(length), length)
        alike = (t["input.sentence_means"] * t["input.query_mean"][:, None]).sum(-1)
        order = by_sentence(alike, sentence, free)[:, : params["needed"]]
        got = order.masked_fill(~free.gather(1, order), -1)
        assert torch.equal(got, t["output.selected"])
