"""README and docs: the snippets run, the links lead somewhere, the tables name what exists."""

from __future__ import annotations

import re
import shutil
from importlib.resources import files
from pathlib import Path

import pytest

from mmtok.models.families import FAMILIES
from mmtok.pruning import registry

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links(page):
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_every_method_and_family_is_listed():
    methods = re.findall(r"^\| `(\w+)`", (ROOT / "docs" / "methods.md").read_text(), re.M)
    assert methods == registry.names()
    rows = re.findall(r"^\| (`.*?) \|", (ROOT / "docs" / "families.md").read_text(), re.M)
    families = {name for row in rows for name in re.findall(r"`(\w+)`", row)} - {"model_type"}
    assert families == set(FAMILIES)
