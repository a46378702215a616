"""The model of lmms-eval, against stand-ins for the parts of lmms-eval 0.7 that it touches."""

from __future__ import annotations

import importlib
import json
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from PIL import Image

import mmtok
from mmtok.errors import InputError

ROOT = Path(__file__).parents[1]
PACK = ROOT / "eval" / "data" / "scenes"
NAMES = (
    *("lmms_eval", "lmms_eval.api", "lmms_eval.api.instance", "lmms_eval.api.model"),
    *("lmms_eval.models", "lmms_eval.models.registry_v2", "lmms_eval.models.model_utils"),
    "lmms_eval.models.model_utils.gen_metrics",
)


@dataclass
class TokenCounts:
    input_tokens: int | None = None
    output_tokens: int | None = None
    reasoning_tokens: int | None = None


@dataclass
class GenerationResult:
    text: str
    token_counts: Any = None


@dataclass(frozen=True)
class ModelManifest:
    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None
    aliases: tuple[str, ...] = ()


class Lmms:
    is_simple = True

    def __init__(self):
        self.task_dict: dict[str, Any] = {}
        self.cache_hook = SimpleNamespace(add_partial=lambda *_: None)


@pytest.fixture
def logged(monkeypatch):
    """What was handed to `log_metrics`, with the stand-ins in place."""
    found: list[dict[str, Any]] = []
    modules = {name: ModuleType(name) for name in NAMES}
    modules["lmms_eval.api.instance"].__dict__.update(
        GenerationResult=GenerationResult, TokenCounts=TokenCounts
    )
    modules["lmms_eval.api.model"].__dict__["lmms"] = Lmms
    modules["lmms_eval.models.registry_v2"].__dict__["ModelManifest"] = ModelManifest
    gen_metrics = modules["lmms_eval.models.model_utils.gen_metrics"]
    gen_metrics.__dict__["log_metrics"] = lambda **numbers: found.append(numbers)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "mmtok.integrations.lmms_eval", raising=False)
    yield found
    sys.modules.pop("mmtok.integrations.lmms_eval", None)


def test_the_entry_point_leads_to_the_class(logged):
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    module, _, name = points["lmms_eval.models"]["mmtok"].partition(":")
    manifest = getattr(importlib.import_module(module), name)()
    assert manifest.model_id == "mmtok"
    path, _, cls = manifest.chat_class_path.rpartition(".")
    loaded = getattr(importlib.import_module(path), cls)
    assert issubclass(loaded, Lmms)
    assert loaded.is_simple is False


def docs(count=5):
    rows = [json.loads(x) for x in (PACK / "questions.jsonl").read_text().splitlines()]
    return [row for row in rows if "image" in row][:count]


def messages(doc):
    picture = Image.open(PACK / doc["image"])
    content = [{"type": "image", "url": picture}, {"type": "text", "text": doc["text"]}]
    return [{"role": "user", "content": content}]


def requests(documents, to_messages=messages, **options):
    options = {"max_new_tokens": 6, "temperature": 0, "do_sample": False} | options
    return [
        SimpleNamespace(args=("ctx", to_messages, options, i, "mine", "test"))
        for i in range(len(documents))
    ]


def model(documents, **arguments):
    from mmtok.integrations.lmms_eval import MmtokLM

    made = MmtokLM(device="cpu", **arguments)
    made.task_dict = {"mine": {"test": documents}}
    return made


def test_batches_answer_as_the_pipeline_does(logged):
    documents = docs()
    made = model(documents, reduce='"todre(keep=0.1)"', batch_size="2")
    some = requests(documents)
    some[1].args[2]["max_new_tokens"] = 5  # other options, so another batch
    some[1].args = (*some[1].args[:2], {"max_new_tokens": 5}, *some[1].args[3:])
    given = made.generate_until(some)
    pipe = mmtok.Pipeline(mmtok.load("tiny", device="cpu"), "todre(keep=0.1)")
    for doc, found in zip(documents, given, strict=True):
        alone = pipe.generate([PACK / doc["image"]], doc["text"], max_new_tokens=5)
        assert found.text == alone.text
        prompt = int(alone.inputs["attention_mask"].sum())
        assert found.token_counts.input_tokens == prompt - 196 + 20
        assert found.token_counts.output_tokens > 0
    (numbers,) = logged
    assert numbers["total_gen_tokens"] == sum(g.token_counts.output_tokens for g in given)
    extra = numbers["additional_metrics"]
    assert (extra["total_requests"], extra["visual_tokens"]) == (5, 196)
    assert extra["visual_tokens_kept"] == 20
    assert {"encode_flops", "prefill_flops", "prefill_ms", "decode_ms", "peak_mib"} <= set(extra)
    assert all(isinstance(value, int | float) for value in extra.values())


def test_videos_until_and_chains(logged):
    rows = [json.loads(x) for x in (PACK / "questions.jsonl").read_text().splitlines()]
    documents = [row for row in rows if "video" in row][:1]

    def clip(doc):
        content = [{"type": "video", "url": str(PACK / doc["video"])}]
        return [{"role": "user", "content": [*content, {"type": "text", "text": doc["text"]}]}]

    made = model(documents, reduce="todre(keep=0.5) + stride(keep=0.5)", frames=4)
    assert [r.name for r in made.pipe.reducers] == ["todre", "stride"]
    (whole,) = made.generate_until(requests(documents, clip))
    assert logged[0]["additional_metrics"]["visual_tokens"] == 4 * 196
    (cut,) = made.generate_until(requests(documents, clip, until=[whole.text[1:]]))
    assert cut.text == whole.text[:1]
    assert made.generate_until([]) == []


def test_what_it_cannot_do_is_said(logged):
    from mmtok.integrations.lmms_eval import read_messages

    made = model(docs(1), dummy=False)
    with pytest.raises(NotImplementedError, match="generate_until"):
        made.loglikelihood([])
    with pytest.raises(NotImplementedError, match="single-turn"):
        made.generate_until_multi_round([])
    with pytest.raises(InputError, match="asks for sampling"):
        made.generate_until(requests(docs(1), do_sample=True, temperature=0.7))
    with pytest.raises(InputError, match="batch_size"):
        model(docs(1), batch_size="auto")
    text, image = {"type": "text", "text": "a"}, {"type": "image", "url": None}
    for turns, said in (
        ([{"role": "user", "content": [text, image]}], "image behind text"),
        ([{"role": "user", "content": [{"type": "audio", "url": 1}]}], "got 'audio'"),
        ([{"role": "system", "content": []}, {"role": "user", "content": []}], "system, user"),
    ):
        with pytest.raises(InputError, match=said):
            read_messages(turns, "mine, document 0")


def test_a_failure_is_not_an_empty_answer(logged, tmp_path):
    made = model([{"image": "nowhere.jpg", "text": "?"}])

    def broken(doc):
        return [{"role": "user", "content": [{"type": "image", "url": str(tmp_path / "x.jpg")}]}]

    with pytest.raises(InputError, match=r"x\.jpg"):
        made.generate_until(requests([0], broken))
    assert logged == []


def test_without_lmms_eval_it_says_what_is_missing(monkeypatch):
    monkeypatch.delitem(sys.modules, "mmtok.integrations.lmms_eval", raising=False)
    monkeypatch.setitem(sys.modules, "lmms_eval", None)
    with pytest.raises(ImportError, match="pip install lmms-eval"):
        importlib.import_module("mmtok.integrations.lmms_eval")
