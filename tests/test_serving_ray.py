"""The Ray engine on a cluster of two nodes on this machine."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmtok import InputError
from mmtok.cli.app import main
from tests.conftest import picture

ROOT = Path(__file__).parent.parent
SPEC = ["--reduce", "stride(keep=0.1)", "--shard-size", "4", "--batch", "2", "--json"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'mmtok[ray]'")
    from ray.cluster_utils import Cluster

    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(ROOT)  # workers import this tree
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    nodes.add_node(num_cpus=1)
    ray.init(address=nodes.address, log_to_driver=False, logging_level="ERROR")
    try:
        assert sum(node["Alive"] for node in ray.nodes()) == 2
        yield
    finally:
        ray.shutdown()
        nodes.shutdown()
        if before is None:
            os.environ.pop("PYTHONPATH")
        else:
            os.environ["PYTHONPATH"] = before


def last(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    found: dict[str, object] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


@pytest.mark.ray
def test_ray_writes_what_threads_write_and_resumes(
    cluster: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)  # workers are elsewhere: relative paths have to work
    folder, plain, on_ray = Path("in"), Path("plain"), Path("ray")
    folder.mkdir()
    for number in range(11):
        picture(number, 64, 48).save(folder / f"{number}.png")
    (folder / "bad.png").write_bytes(b"\x89PNG nothing")
    assert main(["preprocess", str(folder), "--out", str(plain), *SPEC]) == 3
    want = last(capsys)
    command = ["preprocess", str(folder), "--out", str(on_ray), *SPEC]
    command += ["--engine", "ray", "--dtype", "float32"]
    assert main(command) == 3
    got = last(capsys)
    names = ("done", "skipped", "failed", "shards", "content_hash")
    assert [got[name] for name in names] == [want[name] for name in names]
    for path in (plain / "shards").glob("*.safetensors"):
        assert path.read_bytes() == (on_ray / "shards" / path.name).read_bytes()
    sorted((on_ray / "shards").glob("*.jsonl"))[0].unlink()  # as if killed before it was done
    (on_ray / "manifest.jsonl").unlink()
    assert main(command) == 3
    again = last(capsys)
    assert (again["shards"], again["content_hash"]) == (1, want["content_hash"])
    failing = ["preprocess", str(folder), "--out", str(tmp_path / "x"), *SPEC, *command[-4:]]
    assert main([*failing, "--on-error", "fail"]) == 2
    assert "bad.png" in capsys.readouterr().err.splitlines()[-1]


def test_without_ray_one_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mmtok.serving.ray_engine import connect

    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(InputError, match=r"pip install 'mmtok\[ray\]'"):
        connect()
