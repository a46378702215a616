"""Scores against a re-computation that shares no code, and what must not break them."""

from __future__ import annotations

import random

import numpy as np
import pytest

from mmtok.errors import InputError
from mmtok.eval import build, paired, score
from mmtok.eval.bootstrap import interval, weights
from mmtok.eval.methods.videomme import prompt
from mmtok.eval.scoring import shared_questions

SPLITS = ("random", "popular", "adversarial")


def yes_no_rows(seed, n=60, media=10, answers=("yes", "no", "Yes.", "dunno", None)):
    draw = random.Random(seed)
    rows = []
    for split in SPLITS:
        for i in range(n):
            row = {"split": split, "question_id": str(i), "medium": f"m{i % media}"}
            row |= {
                "answer_kind": "yesno",
                "text": "Is there a dog?",
                "label": ["yes", "no"][i % 2],
            }
            said = draw.choice(answers)
            rows.append(row | ({"error": "broken"} if said is None else {"answer": said}))
    draw.shuffle(rows)
    return rows


def pope_by_hand(rows):
    """POPE's scores with plain counters; an answer that is neither yes nor no is wrong."""
    tp = fp = fn = right = yes = 0
    for row in rows:
        said = row.get("answer", "").lower().strip(".")
        truth = row["label"]
        yes += said == "yes"
        right += said == truth
        tp += said == truth == "yes"
        fp += said == "yes" and truth == "no"
        fn += said != "yes" and truth == "yes"
    precision = tp / (tp + fp) if tp + fp else 0.0
    recall = tp / (tp + fn)
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    n = len(rows)
    return dict(accuracy=right / n, precision=precision, recall=recall, f1=f1, yes_ratio=yes / n)


@pytest.mark.parametrize("seed", range(5))
def test_pope_equals_a_recomputation(seed):
    rows = yes_no_rows(seed)
    table = {line["split"]: line for line in score(build("pope"), rows, draws=50)}
    hand = {split: pope_by_hand([r for r in rows if r["split"] == split]) for split in SPLITS}
    for split in SPLITS:
        assert {k: table[split][k] for k in hand[split]} == pytest.approx(hand[split])
        some = [r for r in rows if r["split"] == split]
        assert table[split]["unreadable"] == sum(r.get("answer") == "dunno" for r in some)
        assert table[split]["differ"] == table[split]["unreadable"]
        assert table[split]["failed"] == sum("error" in r for r in some)
    pooled, mean = pope_by_hand(rows), table["mean"]
    assert {k: table["pooled"][k] for k in pooled} == pytest.approx(pooled)
    for name in pooled:
        assert mean[name] == pytest.approx(np.mean([hand[s][name] for s in SPLITS]))
        low, high = mean[f"{name}_ci"]
        assert low <= mean[name] <= high


def test_a_model_that_never_or_always_says_yes_is_scored():
    always, never = (yes_no_rows(0, answers=(word,)) for word in ("yes", "no"))
    for line in score(build("pope"), always, draws=0):
        assert (line["accuracy"], line["recall"], line["yes_ratio"]) == (0.5, 1.0, 1.0)
        assert line["f1"] == pytest.approx(2 / 3)
    for line in score(build("pope"), never, draws=0):
        assert (line["precision"], line["recall"], line["f1"]) == (0.0, 0.0, 0.0)
        assert (line["accuracy"], line["yes_ratio"]) == (0.5, 0.0)


def test_the_parser_matters_and_each_is_shown():
    rows = yes_no_rows(0, answers=("NO",))
    official = score(build("pope"), rows, parser="official", draws=0)[0]
    robust = score(build("pope"), rows, draws=0)[0]
    assert (official["yes_ratio"], robust["yes_ratio"]) == (1.0, 0.0)
    assert robust["by_parser"] == {"robust": 0.5, "strict": 0.5, "official": 0.5}
    assert robust["differ"] == robust["n"] == 60
    empty = yes_no_rows(0, answers=("",))
    assert score(build("pope"), empty, parser="official", draws=0)[0]["unreadable"] == 60


def test_doubled_and_missing_predictions_are_refused():
    rows = yes_no_rows(0)
    with pytest.raises(InputError, match="twice"):
        score(build("pope"), [*rows, rows[0]])
    with pytest.raises(InputError, match="no predictions"):
        score(build("pope"), [])
    with pytest.raises(InputError, match="same questions"):
        paired(build("pope"), rows, rows[1:])


def test_the_bootstrap_draws_whole_media():
    drawn = weights(4, 300, seed=1)
    assert drawn.shape == (301, 4)
    assert (drawn.sum(1) == 4).all()
    assert np.array_equal(drawn, weights(4, 300, seed=1))
    # Ten copies of one question a medium say no more than one: the interval must not shrink.
    rows = [
        {
            "split": "s",
            "question_id": f"{m}-{c}",
            "medium": str(m),
            "answer_kind": "yesno",
            "label": "yes",
            "answer": "yes" if m % 2 else "no",
            "text": "",
        }
        for m in range(20)
        for c in range(10)
    ]
    once = [row for row in rows if row["question_id"].endswith("-0")]
    many, few = (score(build("pope"), r, draws=400)[0]["accuracy_ci"] for r in (rows, once))
    assert many == pytest.approx(few)
    assert interval(np.array([np.nan, 1.0])) is None


def test_paired_differences_are_tighter_than_their_parts():
    base = yes_no_rows(0, answers=("yes", "no"))
    better = [row | {"answer": row["label"]} if i % 10 == 0 else row for i, row in enumerate(base)]
    table = {line["split"]: line for line in paired(build("pope"), better, base, draws=300)}
    one, two = (score(build("pope"), r, draws=300) for r in (better, base))
    pooled = [next(x for x in t if x["split"] == "pooled") for t in (one, two)]
    difference = table["pooled"]["accuracy"]
    assert difference == pytest.approx(pooled[0]["accuracy"] - pooled[1]["accuracy"])
    width = lambda ci: ci[1] - ci[0]  # noqa: E731
    assert width(table["pooled"]["accuracy_ci"]) < width(pooled[0]["accuracy_ci"])
    assert table["pooled"]["accuracy_ci"][0] > 0
    same = paired(build("pope"), base, base, draws=100)
    assert all(line["f1_ci"] == (0.0, 0.0) for line in same)
    left, right = shared_questions(base[:50], base[20:])
    assert len(left) == len(right) == 30


def test_mme_sums_pairs():
    labels = [("yes", "no")] * 4
    said = [("yes", "no"), ("yes", "yes"), ("no", "yes"), ("Yes.", "NO")]
    rows = [
        {
            "split": split,
            "question_id": f"{i}#{q}",
            "medium": f"{split}/{i}",
            "label": labels[i][q],
            "answer_kind": "yesno",
            "answer": said[i][q],
            "text": "",
        }
        for split in ("existence", "count", "text_translation")
        for i in range(4)
        for q in range(2)
    ]
    task = build("mme")
    table = {line["split"]: line for line in score(task, rows, draws=0)}
    assert table["count"]["accuracy"] == 5 / 8
    assert table["count"]["accuracy_plus"] == 2 / 4
    assert table["count"]["score"] == pytest.approx(112.5)
    assert table["perception"]["score"] == pytest.approx(225)
    assert table["cognition"]["score"] == pytest.approx(112.5)
    odd = rows[:-1]
    table = {line["split"]: line for line in score(task, odd, draws=0)}
    assert table["text_translation"]["accuracy_plus"] == 1 / 3
    notes = " ".join(task.notes(odd))
    assert "1 pictures without exactly two questions: text_translation/3" in notes
    assert "perception is a sum over 2 of 10 subtasks" in notes
    official = score(task, [rows[0] | {"answer": "Notebook"}], parser="official", draws=0)[0]
    assert official["accuracy"] == 0.0


def test_video_mme_official_drops_what_it_cannot_read():
    answers = ["A", "B", "it is a", ""]
    rows = [
        {
            "split": "short",
            "question_id": str(i),
            "medium": "v",
            "label": "A",
            "text": "",
            "answer_kind": "choice",
            "options": ["w", "x", "y", "z"],
            "answer": text,
            "meta": {"domain": "Sports"},
        }
        for i, text in enumerate(answers)
    ]
    robust, official = (
        {line["split"]: line for line in score(build("videomme"), rows, parser=p, draws=0)}
        for p in ("robust", "official")
    )
    assert official["short"]["accuracy"] == 1 / 2
    assert official["short"]["unreadable"] == 2
    assert robust["short"]["accuracy"] == 1 / 4
    assert robust["domain: Sports"]["n"] == 4
    assert "(A, B, C, D, E, F, G, or H)" in prompt("q", list("12345678"))


def test_chair_counts_mentions():
    captions = {
        "a": ("A dog and a dog lie on a couch beside a cat.", ["dog", "couch"]),
        "b": ("A hot dog on a plate.", ["hot dog"]),
        "c": ("Nothing to see", ["car"]),
        "d": ("An orange cat. A toilet seat is up. A bus sto", ["cat", "toilet"]),
    }
    rows = [
        {
            "split": "captions",
            "question_id": k,
            "medium": k,
            "label": objects,
            "text": "",
            "answer_kind": "caption",
            "answer": text,
        }
        for k, (text, objects) in captions.items()
    ]
    (line,) = score(build("chair"), rows, draws=0)
    assert line["chair_s"] == 2 / 4  # the cat of a, the bus of d
    assert line["chair_i"] == pytest.approx(2 / 8)
    assert line["recall"] == pytest.approx(5 / 6)
    assert line["mentions"] == 8 / 4
    (cut,) = score(build("chair(cut_sentence=True)"), rows, draws=0)
    assert cut["chair_s"] == 1 / 4
    assert cut["words"] < line["words"]
    assert "2 of 4 captions end in an unfinished sentence" in build("chair").notes(rows)[0]
    (silent,) = score(build("chair"), [rows[0] | {"answer": "Hm."}], draws=0)
    assert (silent["chair_i"], silent["chair_s"]) == (0.0, 0.0)
