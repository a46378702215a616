"""Merging as a pure function of tensors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmtok import InputError
from mmtok.pruning import ToMe, VisualTokens
from mmtok.pruning.groups import Groups, merge_down


@given(seed=st.integers(0, 2**16), n=st.integers(2, 40), every=st.integers(2, 5))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_merging_conserves_mass(seed: int, n: int, every: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, n, 5, generator=generator, dtype=torch.float64)
    size = torch.randint(1, 4, (2, n), generator=generator).double()
    size[1, n // 2 + 1 :] = 0  # padding
    free = size > 0
    r = torch.tensor([int(f.sum()) for f in free]) - 1
    r = torch.minimum(r, torch.randint(0, n, (2,), generator=generator))
    label, _ = merge_down(x, size, free, r, every=every)
    groups = Groups(label, size)
    torch.testing.assert_close(groups.size.sum(1), size.sum(1))
    torch.testing.assert_close(
        (groups.mean(x) * groups.size[..., None]).sum(1), (x * size[..., None]).sum(1)
    )
    assert torch.equal((groups.size > 0).sum(1), free.sum(1) - r), "exactly r less"
    for item in range(2):
        first = groups.first[item, : int((groups.size[item] > 0).sum())]
        assert (first[1:] > first[:-1]).all(), "raster order"


@pytest.mark.parametrize("every", [2, 3])
@pytest.mark.parametrize(("value", "r"), [(float("nan"), 2), (1.0, 7)])
def test_rounds_end_where_nothing_can_join(every: int, value: float, r: int) -> None:
    size = torch.ones(1, 6)
    with pytest.raises(InputError, match="no tokens are left that can merge"):
        merge_down(torch.full((1, 6, 4), value), size, size > 0, torch.tensor([r]), every=every)


def test_tome_needs_no_model() -> None:
    x = torch.randn(2, 30, 7, generator=torch.Generator().manual_seed(3))
    selection = ToMe(keep=9).select(VisualTokens(features=x))
    assert [len(i) for i in selection.indices] == [9, 9]
    for before, after, (_, slot, weight) in zip(
        x, selection.apply(x), selection.merge or [], strict=True
    ):
        size = torch.bincount(slot).float()
        torch.testing.assert_close((after * size[:, None]).sum(0), before.sum(0))
        torch.testing.assert_close(weight, 1 / size[slot])


@pytest.mark.parametrize(
    ("inflect", "want"), [(0.0, [25] * 4), (-1, [50, 33, 17, 0]), (1, [0, 17, 33, 50])]
)
def test_the_schedule_bends(inflect: float, want: list[int]) -> None:
    assert ToMe(inflect=inflect).schedule(100, 4) == want
