"""What holds for every video method: stills, odd clips, holes, mass, order, and stated work."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmtok import InputError
from mmtok.accounting.flops import count_flops
from mmtok.eval.density import token_density
from mmtok.pruning import DyCoke, FastVID, HoliTom, PruneVid, Reducer, VisualTokens, VQToken, build
from tests.matrix import REDUCERS
from tests.slow_video import mix, video

NAMES = ("dycoke", "fastvid", "holitom", "prunevid", "vqtoken")
SPECS = [spec for name in NAMES for spec in REDUCERS[name][0]] + [
    "dycoke(keep={keep}, compat='repo')",
    "fastvid(keep={keep}, segments=1, threshold=-1, share=0)",
]
MEANS = ("dycoke(keep={keep}, merge=True)", "prunevid(keep={keep})", "vqtoken(keep={keep})")


@pytest.mark.parametrize("spec", SPECS)
@given(
    seed=st.integers(0, 2**16),
    t=st.integers(1, 9),
    still=st.sampled_from([0.0, 0.5, 1.0]),
    holes=st.floats(0, 0.6),
    keep=st.floats(0.02, 1.0),
)
@settings(max_examples=30, deadline=None, derandomize=True)
def test_any_clip(spec: str, seed: int, t: int, still: float, holes: float, keep: float) -> None:
    """Exact budgets, convex mixtures, and work as counted, also behind another reducer."""
    whole = video(seed, t, still=still)
    n = whole.features.shape[1]
    there = torch.rand(n, generator=torch.Generator().manual_seed(seed)) >= holes
    there[0] = True
    tokens = replace(whole, mask=there[None])
    reducer = build(spec.format(keep=keep))[0]
    with count_flops() as counted:
        chosen = reducer.select(tokens)
    count, index = int(there.sum()), chosen.indices[0]
    assert len(index) == reducer.keep_count(count)
    assert (index[1:] > index[:-1]).all()
    assert there[index].all()
    most = reducer.select_flops(count, whole.features.shape[2])
    spent = most if chosen.flops is None else chosen.flops
    assert counted.total == spent <= most
    if chosen.merge is not None and "normalised" not in spec:
        for place, sources in mix(chosen).items():
            assert place in sources or spec.startswith("vqtoken")
            assert sum(sources.values()) == pytest.approx(1, rel=1e-5)
            assert min(sources.values()) > 0


@pytest.mark.parametrize("spec", MEANS)
@pytest.mark.parametrize("t", [1, 2, 3, 8])
@pytest.mark.parametrize("keep", [0.2, 0.7])
def test_means_conserve_mass(spec: str, t: int, keep: float) -> None:
    """Each token counts once: sizes add up to N, and size times token to the sum of the input."""
    tokens = video(3, t)
    chosen = build(spec.format(keep=keep))[0].select(tokens)
    assert chosen.merge is not None
    source, slot, _ = chosen.merge[0]
    assert source.sort().values.tolist() == list(range(12 * t))
    size = torch.bincount(slot)
    total = (size[:, None] * chosen.apply(tokens.features)[0]).sum(0)
    torch.testing.assert_close(total, tokens.features[0].sum(0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", [PruneVid, HoliTom])
def test_a_clip_that_stands_still_becomes_its_first_frame(method: type) -> None:
    frame = video(0, t=1).features
    tokens = VisualTokens(features=frame.repeat(1, 6, 1), position=video(0, t=6).position)
    chosen = method(keep=12).select(tokens)
    assert chosen.indices[0].tolist() == list(range(12))
    torch.testing.assert_close(chosen.apply(tokens.features)[0], frame[0])


def test_only_the_stillest_cells_merge_when_the_budget_is_large() -> None:
    tokens = video(0, t=8, still=1)
    whole = PruneVid(keep=90).select(tokens)
    assert len(whole.indices[0]) == 90
    merged = [sources for sources in mix(whole).values() if len(sources) > 1]
    assert {len(sources) for sources in merged} == {4}, "one cell of a scene of four frames each"
    assert len(merged) == 2


def test_a_still_is_used_as_one_frame() -> None:
    """Also an AnyRes image: its two views are no frames."""
    still = video(0, t=1, cls=True)
    assert still.cls_attention is not None
    assert DyCoke(keep=4).select(still).indices[0].tolist() == [1, 4, 7, 10]
    seen = still.cls_attention[0].topk(5).indices.sort().values
    assert torch.equal(HoliTom(keep=5).select(still).indices[0], seen)
    for method in (DyCoke, FastVID, HoliTom, PruneVid):
        clip = video(1, t=2)
        views = replace(clip, overview=torch.arange(24)[None] < 12)
        flat = torch.zeros_like(clip.position)
        flat[..., 2] = torch.arange(24)
        as_one = replace(clip, position=flat)
        a, b = method(keep=7).select(views), method(keep=7).select(as_one)
        assert torch.equal(a.indices[0], b.indices[0])
        assert torch.equal(a.apply(clip.features)[0], b.apply(clip.features)[0])


@pytest.mark.parametrize(
    "reducer",
    [
        DyCoke(keep=0.5),
        FastVID(keep=0.5, segments=2, threshold=-1),
        PruneVid(keep=0.5),
        HoliTom(keep=0.5),
    ],
)
def test_time_is_read_from_positions(reducer: Reducer) -> None:
    """Tokens stored in any order give the same clip, and frames in another order another one."""
    clip = video(2, t=8)
    order = torch.randperm(96, generator=torch.Generator().manual_seed(0))
    mixed = replace(clip, features=clip.features[:, order], position=clip.position[:, order])
    kept = reducer.select(clip).indices[0]
    assert torch.equal(order[reducer.select(mixed).indices[0]].sort().values, kept)
    back = clip.position.clone()
    back[..., 0] = (3 * back[..., 0] + 1) % 8
    assert not torch.equal(reducer.select(replace(clip, position=back)).indices[0], kept)


def test_dycoke_never_looks_ahead() -> None:
    a, b = video(0, t=8), video(1, t=8)
    later = torch.arange(96)[None, :, None] >= 48
    other = replace(a, features=torch.where(later, b.features, a.features))
    first = [DyCoke().select(x).indices[0] for x in (a, other)]
    assert torch.equal(first[0][first[0] < 48], first[1][first[1] < 48])
    assert not torch.equal(first[0], first[1])


def test_codes_stand_where_their_clusters_are() -> None:
    """Two scenes, two codes: the first in the first half, the second in the second."""
    tokens = video(0, t=8, still=1)
    scene = torch.arange(96) >= 48
    x = torch.where(scene[:, None], torch.eye(8)[0], torch.eye(8)[1])[None]
    chosen = VQToken(keep=2).select(replace(tokens, features=x * 3))
    first, second = chosen.indices[0].tolist()
    assert first < 48 <= second
    assert torch.equal(chosen.apply(x * 3)[0], 3 * torch.eye(8)[[1, 0]])


def test_fastvid_gives_what_anchors_cannot_take_to_the_other_frames() -> None:
    salient, context = FastVID(every=4).split([12] * 6, [10] * 6)
    assert context == [0, 6, 0, 0, 0, 6]
    assert sum(salient) + sum(context) == 60
    assert [s + c for s, c in zip(salient, context, strict=True)] == [9, 12, 9, 9, 9, 12]


def test_token_density() -> None:
    assert token_density(0.57, 32) == pytest.approx(0.57 / 32)
    with pytest.raises(InputError, match="tokens must be"):
        token_density(0.5, 0)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("dycoke(merge=1)", "merge must be"),
        ("dycoke(compat='x')", "compat must be"),
        ("fastvid(segments=0)", "segments must be"),
        ("fastvid(context=2)", "context must be"),
        ("holitom(threshold='x')", "threshold must be"),
        ("holitom(later=0)", "later must be"),
        ("prunevid(segments=0)", "segments must be"),
        ("prunevid(threshold=2)", "threshold must be"),
        ("vqtoken(mode='x')", "mode must be"),
        ("vqtoken(iterations=0)", "iterations must be"),
        ("vqtoken(mode='trained')", "weights='file' goes with"),
        ("vqtoken(weights='file')", "weights='file' goes with"),
    ],
)
def test_bad_options(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(spec)
