"""What selection rules share: greedy choice, coverage, thinning, sharing out a budget."""

from __future__ import annotations

import pytest
import torch

from mmtok.pruning.coverage import greedy_coverage
from mmtok.pruning.greedy import greedy_diverse
from mmtok.pruning.methods.vispruner import thin
from mmtok.pruning.rank import apportion
from mmtok.pruning.work import Work


def test_isolated_start_without_the_gram_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(48, 7, generator=torch.Generator().manual_seed(1)).double()
    want = greedy_diverse(x, 20, None)
    monkeypatch.setattr("mmtok.pruning.greedy.GRAM_LIMIT", 10)
    assert torch.equal(greedy_diverse(x, 20, None), want)


@pytest.mark.parametrize("listed", [1, 5, 20])
def test_thinning_with_short_lists_of_neighbours(
    listed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no listed neighbour is left on the other side, all of them are looked at."""
    x = torch.randn(70, 7, generator=torch.Generator().manual_seed(1)).double()
    monkeypatch.setattr("mmtok.pruning.methods.vispruner.LISTED", 99)
    want = thin(x, 10, Work())
    monkeypatch.setattr("mmtok.pruning.methods.vispruner.LISTED", listed)
    assert torch.equal(thin(x, 10, Work()), want)


def test_lazy_coverage_equals_recomputing_all_gains(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    cover = torch.randint(0, 4, (60, 25), generator=generator).float()  # many ties
    covered, want = torch.zeros(25), []
    for _ in range(40):
        gain = (cover - covered).clamp_min(0).sum(1)
        gain[want] = -1
        want.append(int(gain.argmax()))
        covered = torch.maximum(covered, cover[want[-1]])
    for block in (1, 7, 64):
        monkeypatch.setattr("mmtok.pruning.coverage.BLOCK", block)
        assert greedy_coverage(cover, 40).tolist() == want


@pytest.mark.parametrize("leftover", ["remainder", "weight"])
def test_apportioning_is_exact(leftover: str) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        n = int(torch.randint(1, 8, (), generator=generator))
        caps = torch.randint(0, 9, (n,), generator=generator).tolist()
        weights = (torch.rand(n, generator=generator) ** 6).tolist()
        weights[0] = 0.0
        for total in range(sum(caps) + 1):
            got = apportion(weights, caps, total, leftover)  # type: ignore[arg-type]
            assert sum(got) == total
            assert all(0 <= g <= cap for g, cap in zip(got, caps, strict=True))


def test_apportioning_by_hand() -> None:
    assert apportion([5, 3, 2], [9, 9, 9], 7) == [4, 2, 1]  # 3.5, 2.1, 1.4
    assert apportion([5, 3, 2], [9, 9, 9], 8) == [4, 2, 2]  # 4.0, 2.4, 1.6
    assert apportion([5, 3, 2], [9, 9, 9], 8, "weight") == [5, 2, 1]
    assert apportion([5, 3, 2], [2, 9, 9], 7) == [2, 3, 2]  # 5 left, shared 3 : 2
    assert apportion([0, 0], [3, 3], 3) == [2, 1]
