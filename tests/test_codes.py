"""Codes say at once what cannot be."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mmtok.codes import Codebook, Codes
from mmtok.errors import InputError


def test_codes_refuse_ids_outside_the_codebook() -> None:
    book = Codebook(kind="vq", sizes=(4,))
    good: dict[str, Any] = {
        "ids": [torch.tensor([[0], [3]])],
        "codebook": book,
        "tokenizer": "x",
        "tokenizer_hash": "0",
        "shapes": [(1, 5)],
        "grids": [(2,)],
    }
    assert Codes(**good).trim(1).counts == [1]
    bad: list[dict[str, Any]] = [
        {"ids": [torch.tensor([[4]])]},
        {"ids": [torch.tensor([[-1]])]},
        {"ids": [torch.tensor([0])]},
        {"ids": [torch.tensor([[0.0]])]},
        {"ids": [torch.zeros(3, 1, dtype=torch.int64)]},
        {"shapes": []},
        {"positions": [torch.tensor([1, 0])]},
        {"positions": [torch.tensor([0, 2])]},
        {"meta": {"x": float("nan")}},
        {"meta": {"x": torch.zeros(1)}},
    ]
    for change in bad:
        with pytest.raises(InputError):
            Codes(**good | change)
    with pytest.raises(InputError, match="at least 1 token"):
        Codes(**good).trim(0)
