"""The layout: three method folders without __init__.py, linked into the package and shipped.

With an __init__.py, the top-level folder `tokenizers` would shadow Hugging Face's package of that
name whenever the repository's root is on `sys.path`.
"""

import ast
import json
import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FAMILIES = ("pruning", "tokenizers", "eval")
LONGEST_FILE, LONGEST_FUNCTION = 300, 45
SOURCES = sorted(
    path
    for folder in ("mmtok", *FAMILIES)
    for path in (ROOT / folder).rglob("*.py")
    if "methods" not in path.relative_to(ROOT).parts
)


def python(code, cwd):
    """What a fresh interpreter, started in `cwd`, prints as JSON."""
    command = [sys.executable, "-c", f"import json\n{code}"]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("family", FAMILIES)
def test_method_folders_are_no_packages_of_their_own(family):
    assert not (ROOT / family / "__init__.py").exists()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_package_links_to_the_method_folder(family):
    link = ROOT / "mmtok" / family / "methods"
    assert link.is_symlink(), f"{link} is a plain file: see CONTRIBUTING.md on links"
    assert not os.path.isabs(os.readlink(link))
    assert link.resolve() == (ROOT / family).resolve()


def test_the_root_does_not_shadow_hugging_face():
    code = "import tokenizers as t; t.Tokenizer; print(json.dumps(t.__file__))"
    assert ROOT / "tokenizers" not in Path(python(code, ROOT)).parents


@pytest.mark.parametrize("family", FAMILIES)
def test_facades_import_from_anywhere(family, tmp_path):
    code = f"import mmtok.{family} as family; print(json.dumps(family.__name__))"
    assert python(code, tmp_path) == f"mmtok.{family}"


def test_importing_mmtok_is_light(tmp_path):
    heavy = ["torch", "transformers", "torchvision", "timm", "open_clip", "av", "decord", "numpy"]
    code = f"import sys, mmtok; print(json.dumps([m for m in {heavy} if m in sys.modules]))"
    assert python(code, tmp_path) == []


def test_every_exported_name_is_there(tmp_path):
    code = "import mmtok; [getattr(mmtok, n) for n in mmtok.__all__]; print(json.dumps('all'))"
    assert python(code, tmp_path) == "all"


def shipped_files():
    """What belongs into the wheel: modules and data, through the links."""
    for folder, folders, names in os.walk(ROOT / "mmtok", followlinks=True):
        folders[:] = [name for name in folders if name != "__pycache__"]
        for name in names:
            path = Path(folder, name).relative_to(ROOT)
            kept = path.suffix in (".py", ".css", ".js") or name == "py.typed"
            if kept or "data" in path.parts[:-1]:
                yield path.as_posix()


def setuptools_version():
    try:
        return int(version("setuptools").split(".")[0])
    except PackageNotFoundError:
        return 0


@pytest.mark.skipif(
    setuptools_version() < 77, reason="building a wheel needs setuptools >= 77: pip install it"
)
def test_the_wheel_holds_every_method_and_all_data(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("mmtok", *FAMILIES):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source / name)
    build = "from setuptools.build_meta import build_wheel; import sys; build_wheel(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", build, str(tmp_path)],
        cwd=source,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    assert sorted(set(shipped_files()) - packed) == []
    outside = [name for name in packed if not name.startswith(("mmtok/", "mmtok-"))]
    assert outside == []


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def lines_of(function):
    """Lines of signature and code; a docstring may be as long as it needs to be."""
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function) is not None:
        lines -= function.body[0].end_lineno - function.body[0].lineno + 1
    return lines


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_files_and_functions_are_short(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LONGEST_FILE
    functions = [
        node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert {f.name: lines_of(f) for f in functions if lines_of(f) > LONGEST_FUNCTION} == {}


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_everything_public_has_a_docstring(path):
    module = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(module)
    missing = []
    for outer in [module, *(node for node in module.body if isinstance(node, ast.ClassDef))]:
        if isinstance(outer, ast.ClassDef) and outer.name.startswith("_"):
            continue
        for node in outer.body:
            named = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            if named and not node.name.startswith("_") and not ast.get_docstring(node):
                missing.append(node.name)
    assert missing == []
