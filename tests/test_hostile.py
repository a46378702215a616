"""Options and tensors at the edge of what is allowed: they work, or one line says why not."""

from __future__ import annotations

from dataclasses import fields, replace
from math import inf, nan

import pytest
import torch

from mmtok import InputError, Pipeline, reduced
from mmtok.models.lvlm import LVLM
from mmtok.pruning import DAMRO, CDPruner, PruMerge, Query, VisualTokens, build, registry
from mmtok.pruning.determinant import greedy_determinant
from tests.conftest import batch, tiny_model
from tests.test_methods import make


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("coveragemax(alpha=1e999)", "coveragemax: alpha must be a finite number, got inf"),
        ("coveragemax(text_temperature=1e-300)", "text_temperature must be"),
        ("coveragemax(image_temperature=0)", "image_temperature must be"),
        ("holov(alpha=1e999)", "alpha must be"),
        ("holov(alpha=True)", "alpha must be"),
        ("expectedattention(epsilon='x')", "epsilon must be"),
        ("expectedattention(epsilon=-1)", "epsilon must be"),
        ("sentencekv(punctuation=13)", "punctuation must be"),
        ("sentencekv(punctuation='.')", "punctuation must be"),
        ("tome(proportional='no')", "proportional must be True or False"),
        ("tome(inflect=2)", "inflect must be a finite number >= -1 and <= 1"),
        ("mustdrop(trim_early='x')", "trim_early must be True or False"),
        ("mustdrop(theta='x')", "theta must be"),
        ("damro(per_head=1)", "per_head must be True or False"),
        ("a2sf(factor=True)", "a2sf: factor must be a finite number, got True"),
        ("vqtoken(iterations=True)", "iterations must be an int, got True"),
        ("fastvid(segments=0)", "segments must be an int >= 1, got 0"),
        ("cdpruner(theta=1)", "theta must be a finite number or None >= 0 and < 1, got 1"),
        ("damro(beta=0)", "beta must be a finite number > 0 and <= 1"),
    ],
)
def test_options_that_cannot_work_are_refused(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(spec)


VALUES = (True, 1, 0.5, nan, inf, "x", None, [2], ["x"], {}, b"x")
KINDS: dict[str, tuple[type, ...]] = {
    "bool": (bool,),
    "int": (int,),
    "float": (int, float),
    "str": (str,),
    "None": (type(None),),
    "Literal": (str,),
    "tuple": (list,),
    "Sequence": (list,),
}


@pytest.mark.parametrize("name", registry.names())
def test_options_of_another_type_are_refused(name: str) -> None:
    kind = registry.get(name)
    for field in fields(kind):
        allowed = {t for word, types in KINDS.items() if word in str(field.type) for t in types}
        for value in VALUES:
            if type(value) in allowed and value == value and value != inf:
                continue
            with pytest.raises(InputError, match=f"{name}: {field.name} must be"):
                kind(**{field.name: value})


@pytest.mark.parametrize("name", ["dart", "dycoke", "fastv", "corematching", "pyramiddrop"])
def test_layers_beyond_the_decoder_are_refused_when_the_pipeline_is_built(name: str) -> None:
    model, processor = tiny_model("llava")
    layer = "layers=(99,)" if name == "pyramiddrop" else "layer=99"
    more = ", read=0.5" if name == "dycoke" else ""
    lvlm = LVLM(model=model, processor=processor, name="llava", config=model.config)
    with pytest.raises(InputError, match="layer"):
        Pipeline(lvlm, f"{name}(keep=0.5, {layer}{more})")


@pytest.mark.parametrize("name", ["alpha", "text_temperature", "image_temperature"])
def test_nan_is_no_number(name: str) -> None:
    reducer = build("coveragemax")[0]
    with pytest.raises(InputError, match=f"{name} must be"):
        replace(reducer, **{name: nan})


def test_cdpruner_survives_a_theta_close_to_one() -> None:
    tokens = make(0, 40)
    asked = Query(embeddings=make(1, 5).features, mask=torch.ones(1, 5, dtype=torch.bool))
    x, text = tokens.features[0], asked.embeddings[0]
    for theta in (0.995, 0.9999):
        relevance = CDPruner(theta=theta).relevance(text, x)
        assert bool(torch.isfinite(relevance).all())
        kept = CDPruner(keep=6, theta=theta).select(tokens, asked).indices[0]
        assert len(kept) == 6
        assert int(CDPruner().relevance(text, x).argmax()) in kept.tolist()
    whole = (CDPruner().relevance(text, x) * 0.9 / (2 - 2 * 0.9)).exp()
    ours = CDPruner(theta=0.9).relevance(text, x)
    assert torch.equal(greedy_determinant(x, ours, 7), greedy_determinant(x, whole, 7))


@pytest.mark.parametrize("value", [nan, inf])
def test_cdpruner_refuses_a_query_that_is_no_number(value: float) -> None:
    text = make(1, 5).features.clone()
    text[0, 2, 3] = value
    asked = Query(embeddings=text, mask=torch.ones(1, 5, dtype=torch.bool))
    with pytest.raises(InputError, match="query's embeddings hold NaN"):
        CDPruner(keep=6).select(make(0, 40), asked)


@pytest.mark.parametrize("compat", ["paper", "repo"])
def test_prumerge_without_neighbours_keeps_tokens_as_they_are(compat: str) -> None:
    x = torch.randn(1, 12, 4, generator=torch.Generator().manual_seed(0))
    seen = torch.arange(12.0)[None]
    tokens = VisualTokens(features=x, cls_attention=seen, keys=x)
    got = PruMerge(keep=4, neighbours=0, compat=compat).select(tokens)  # type: ignore[arg-type]
    assert got.indices[0].tolist() == [8, 9, 10, 11]
    features = got.apply(x)[0]
    torch.testing.assert_close(features[1:], x[0, 9:])
    rest = (x[0, :9] * seen[0, :9, None]).sum(0) / (36 if compat == "paper" else 1)
    torch.testing.assert_close(features[0], rest)


@pytest.mark.parametrize("name", ["features", "cls_attention", "cls_joint", "keys"])
@pytest.mark.parametrize("value", [nan, inf])
def test_tokens_that_are_no_numbers_are_refused(name: str, value: float) -> None:
    facts = {
        "features": torch.zeros(2, 5, 3),
        "cls_attention": torch.zeros(2, 5),
        "cls_joint": torch.zeros(2, 5),
        "keys": torch.zeros(2, 5, 2),
    }
    mask = torch.arange(5).expand(2, 5) < 4
    facts[name][1, 4] = value
    VisualTokens(**facts, mask=mask)  # padding may hold anything
    facts[name][1, 3] = value
    with pytest.raises(InputError, match=f"{name} hold NaN or infinite"):
        VisualTokens(**facts, mask=mask)


def test_outliers_of_a_tower_that_merges_are_different_groups() -> None:
    seen = torch.tensor([[0.9, 0.1, 0.9, 0.3, 0.9, 0.2]])
    group = torch.tensor([[0, 1, 0, 3, 0, 3]])
    tokens = VisualTokens(features=torch.randn(1, 6, 2), cls_attention=seen, group=group)
    assert DAMRO(outliers=2, per_head=True).negative(tokens).indices[0].tolist() == [0, 3]
    model, _ = tiny_model("llava")
    with reduced(model, ["tome(keep=3)", "damro(outliers=5)"]) as reduction:
        model.generate(**batch("llava", "image", (0,)), max_new_tokens=2)
    assert reduction.contrast is not None
    features = reduction.contrast.prompt["mm_encoder_outputs"]["image"].pooler_output[0]
    assert len(features) == len(features.unique(dim=0)) == 3
