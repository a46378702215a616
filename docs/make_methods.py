"""Writes docs/methods.md from the method files: python docs/make_methods.py."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from mmtok.pruning import registry

PAGE = Path(__file__).with_name("methods.md")
HEAD = """# Methods

Each is written as a spec: `name` or `name(argument=value, ...)`. All take `keep`, a number of
tokens or a share of them. Several apply in the order given; what acts on the
picture comes first: `["outliers(count=10)", "fastervlm(keep=64)"]`. Arguments and their meaning
stand in each method's file in `pruning/`, together with where it deviates from its paper.

| spec | what it does | paper |
| --- | --- | --- |
"""

TAIL = """
## Not built

| method | why |
| --- | --- |
| TopV, arXiv 2503.18278 | its transport cost and the use of the plan are not published in full |
| SparseVLM's second version | it divides by a Gram matrix whose axes we could not settle |
| PruneVid inside the decoder | the rule of its selection could not be established |
| An ink baseline beside `tokencorr` | a patch's pixel variance, which tokens do not carry |
| A question term in `tokencorr` | reviewers asked for one; no formula exists |
| VQToken's choice of K | the released rules always give 12 |
| Focus-DETR, EViTPose, MrT5's gate | trained parts of detectors, pose and byte models |
| SkipDecode | skips layers, not tokens; poor without fine-tuning |
"""


def row(file: Path) -> str:
    """The line of one method: the first sentence of its docstring, and the paper named there."""
    text = " ".join((ast.get_docstring(ast.parse(file.read_text())) or "").split())
    papers = re.findall(r"\d{4}\.\d{5}", text)
    sentence = re.split(r" \([^)]*\d{4}\.\d{5}|\. |\.$", text, maxsplit=1)[0]
    paper = f"[arXiv {papers[0]}](https://arxiv.org/abs/{papers[0]})" if papers else ""
    return f"| `{file.stem}` | {sentence} | {paper} |\n"


def rows() -> list[str]:
    """The lines of all methods in this repository, by name."""
    files = [registry.folder / f"{name}.py" for name in registry.names()]
    return [row(file) for file in files if file.is_file()]


if __name__ == "__main__":
    PAGE.write_text(HEAD + "".join(rows()) + TAIL)
