"""README and docs: the snippets run, the links lead somewhere, the tables name what exists."""

from __future__ import annotations

import re
import shutil
from importlib.resources import files
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from mmtok.models.families import FAMILIES
from mmtok.tokenizers import registry

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CARDS = sorted((ROOT / "mmtok" / "models" / "data").glob("*/MODEL_CARD.md"))
LINKED = [*PAGES, *sorted((ROOT / "docs" / "results").glob("*.md")), *CARDS]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_snippets(page, tmp_path, monkeypatch):
    photo = files("mmtok.eval.methods") / "data" / "scenes" / "images" / "0000.jpg"
    shutil.copy(str(photo), tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    for snippet in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        exec(compile(snippet, str(page), "exec"), names)
    if page.stem == "README":
        assert len(names["kept"][0]) == 64
        assert names["sequences"].shape[1] > names["inputs"]["input_ids"].shape[1]
        assert names["out"].ledger.meta["visual_tokens"]["out"] == 20


@pytest.mark.parametrize("page", LINKED, ids=lambda page: f"{page.parent.name}-{page.stem}")
def test_links(page):
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_the_table_of_methods_says_what_the_files_say():
    spec = spec_from_file_location("make_methods", ROOT / "docs" / "make_methods.py")
    maker = module_from_spec(spec)
    spec.loader.exec_module(maker)
    shown = re.findall(r"^\| `.*\n", maker.PAGE.read_text(), re.M)
    assert len(shown) >= 4
    assert set(shown) <= set(maker.rows()), "run: python docs/make_methods.py"


def test_every_family_is_listed():
    rows = re.findall(r"^\| (`.*?) \|", (ROOT / "docs" / "families.md").read_text(), re.M)
    families = {name for row in rows for name in re.findall(r"`(\w+)`", row)} - {"model_type"}
    assert families == set(FAMILIES)


def test_the_table_of_tokenizers_says_what_the_classes_say():
    rows = re.findall(
        r"^\| `(\w+)` \| (.*) \|$", (ROOT / "docs" / "tokenizers.md").read_text(), re.M
    )
    assert {name for name, _ in rows} == set(registry.names())
    for name, cells in rows:
        kind = registry.get(name).taxonomy
        streams = "yes" if kind.streamable else "no"
        want = [kind.coder, kind.quantiser, kind.training, streams, kind.domain]
        assert cells.split(" | ") == want, name
