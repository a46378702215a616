"""Checkpoints: what is none is refused in one line, and data are told apart."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mmtok.errors import InputError
from mmtok.training import checkpoint


def test_what_is_no_checkpoint_is_refused_in_one_line(tmp_path: Path) -> None:
    path, made_with = tmp_path / "a.pt", {"steps": 3}
    assert checkpoint.load(path, made_with) is None
    checkpoint.save(path, {"step": 2}, made_with)
    whole = path.read_bytes()
    found = checkpoint.load(path, made_with)
    assert found is not None
    assert found["step"] == 2
    for data in (whole[:-1], whole[: len(whole) // 2], b"", b"\x80", b"no checkpoint"):
        path.write_bytes(data)
        with pytest.raises(InputError, match=r"a\.pt: ") as caught:
            checkpoint.load(path, made_with)
        assert "\n" not in str(caught.value)
    for other in ([1], {"step": 2}):
        torch.save(other, path)
        with pytest.raises(InputError, match="no whole checkpoint"):
            checkpoint.load(path, made_with)
    with pytest.raises(InputError, match="is a directory"):
        checkpoint.load(tmp_path, made_with)


def test_data_are_told_apart() -> None:
    data = torch.arange(12, dtype=torch.uint8).view(3, 4)
    others = (data.view(4, 3), data.flip(0), data[:2], data.T)
    assert len({checkpoint.digest(x) for x in (data, *others)}) == 5
    assert checkpoint.digest(data) == checkpoint.digest(data.clone())
    assert checkpoint.digest(data, others[1]) != checkpoint.digest(others[1], data)
    assert checkpoint.digest(torch.tensor(1.0).bfloat16()) != checkpoint.digest(torch.zeros(()))
