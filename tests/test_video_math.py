"""What the video methods share: k-means, density peaks, segments; and VQToken's attention."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from mmtok import InputError
from mmtok.accounting.flops import count_flops
from mmtok.pruning import VisualTokens, VQToken
from mmtok.pruning.dpc import density_flops, density_peaks
from mmtok.pruning.kmeans import kmeans, spread_start
from mmtok.pruning.methods.vqtoken import centres
from mmtok.pruning.segments import at_cuts, most_still, of_clusters
from mmtok.pruning.vqattention import VQAttention, load_vq_attention
from mmtok.pruning.work import Work
from tests.slow_video import joined, slow_peaks, video

SEEDS = range(4)


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("scale", [1e-3, 1, 1e3])
def test_density_peaks(seed: int, scale: float) -> None:
    x = drawn(seed, 40, 6) * scale
    peaks, label = density_peaks(x, 9, 5)
    assert peaks.tolist() == slow_peaks(x.double().tolist(), 9, 5)
    assert label.tolist() == joined(x.tolist(), peaks.tolist())


def test_density_peaks_without_the_square_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    x, work = drawn(1, 50, 6).double(), Work()
    want = density_peaks(x, 12, 5, work)
    assert work.flops == density_flops(50, 6) == 2 * 50 * 50 * 6
    monkeypatch.setattr("mmtok.pruning.greedy.GRAM_LIMIT", 10)
    monkeypatch.setattr("mmtok.pruning.dpc.BLOCK", 16)
    work = Work()
    got = density_peaks(x, 12, 5, work)
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[1], want[1])
    assert work.flops == density_flops(50, 6) == 6 * 50 * 50 * 6


def test_equal_rows_are_centres_in_their_order() -> None:
    peaks, label = density_peaks(torch.ones(6, 3), 4, 2)
    assert peaks.tolist() == [0, 1, 2, 3]
    assert label.tolist() == [0, 1, 2, 3, 0, 0]


def test_an_empty_cluster_gets_the_row_farthest_from_its_own_centroid() -> None:
    x = torch.tensor([[1, 0.0], [1, 0.1], [1, 0.9], [1, 0.2]])
    start = torch.tensor([[1, 0.0], [-1, 0], [-1, 0]])
    once = kmeans(x, start, iterations=1)
    assert once.labels.tolist() == [0, 0, 1, 2]
    kept = kmeans(x, start, iterations=9, refill=False)
    assert kept.sizes.tolist() == [4, 0, 0]
    assert torch.equal(kept.centroids[1:], start[1:]), "an empty cluster keeps its centroid"
    same = kmeans(torch.ones(5, 3), torch.ones(4, 3))
    assert same.sizes.min() == 1
    zero = kmeans(torch.zeros(5, 3), torch.zeros(2, 3))
    assert zero.sizes.tolist() == [4, 1]


def test_kmeans_refuses_what_cannot_be() -> None:
    with pytest.raises(InputError, match="cannot fill 4 clusters with 3 rows"):
        kmeans(torch.ones(3, 2), torch.ones(4, 2))
    with pytest.raises(InputError, match="at least one iteration"):
        kmeans(torch.ones(3, 2), torch.ones(2, 2), iterations=0)


def test_kmeans_starts_from_different_rows_even_among_doubles() -> None:
    x = torch.eye(4).repeat(3, 1)
    start = spread_start(x, 4, torch.Generator().manual_seed(0), Work())
    assert torch.equal(start.sum(0), torch.ones(4)), "doubles are as good as never drawn"
    spread_start(x, 12, torch.Generator().manual_seed(0), Work())


@pytest.mark.parametrize("seed", SEEDS)
def test_kmeans_work_is_what_torch_counts(seed: int) -> None:
    x, work = drawn(seed, 60, 7), Work()
    with count_flops() as counted:
        start = spread_start(x, 6, torch.Generator().manual_seed(seed), work)
        kmeans(x, start, work=work)
    assert work.flops == counted.total > 0


def test_cuts_are_the_least_alike_pairs_and_all_below_the_threshold() -> None:
    alike = torch.tensor([0.99, 0.5, 0.98, 0.95, 0.97])
    assert at_cuts(alike, 1, 0.0) == [range(6)]
    assert at_cuts(alike, 3, 0.0) == [range(2), range(2, 4), range(4, 6)]
    assert at_cuts(alike, 1, 0.96) == [range(2), range(2, 4), range(4, 6)]
    assert at_cuts(alike, 9, 0.0) == [range(i, i + 1) for i in range(6)]
    assert at_cuts(alike[:0], 8, 0.9) == [range(1)]


@pytest.mark.parametrize(
    ("labels", "edges"),
    [
        ("a", [0, 1]),
        ("aaa", [0, 3]),
        ("aabb", [0, 2, 4]),
        ("aacbb", [0, 3, 5]),  # c is one frame: to the left of equals
        ("aacbbb", [0, 2, 6]),  # ... or to the longer
        ("abaabb", [0, 4, 6]),  # the first a and b are shorter runs of clusters that have longer
        ("caabbc", [0, 3, 6]),
        ("abab", [0, 4]),
    ],
)
def test_segments_of_clusters(labels: str, edges: list[int]) -> None:
    want = [range(a, b) for a, b in itertools.pairwise(edges)]
    assert of_clusters([ord(label) for label in labels]) == want


@pytest.mark.parametrize("seed", range(12))
def test_windows_save_as_many_tokens_as_any(seed: int) -> None:
    t = 1 + seed % 7
    still = torch.rand(t - 1, 5, generator=torch.Generator().manual_seed(seed)) > 0.3

    def saved(windows: list[range]) -> int:
        return sum(
            int(still[w.start : w.stop - 1].all(0).sum()) * (len(w) - 1)
            for w in windows
            if len(w) > 1
        )

    ways = []
    for inner in itertools.product([False, True], repeat=t - 1):
        edges = [0, *(f + 1 for f, cut in enumerate(inner) if cut), t]
        ways.append([range(a, b) for a, b in itertools.pairwise(edges)])
    windows = most_still(still)
    assert [f for window in windows for f in window] == list(range(t))
    assert saved(windows) == max(saved(way) for way in ways)


def test_windows_have_a_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmtok.pruning.segments.LONGEST", 3)
    assert max(map(len, most_still(torch.ones(7, 2, dtype=torch.bool)))) == 3


def test_clusters_that_meet_take_places_side_by_side() -> None:
    position = torch.tensor([[t, 0, w] for t in range(3) for w in range(4)])
    labels = torch.tensor([0, 1, 2, 3] * 3)
    assert centres(position, labels, 4).tolist() == [4, 5, 6, 7]
    opposite = torch.tensor([0, 1, 1, 0] * 3)  # both have their centre in the middle
    assert centres(position, opposite, 2).tolist() == [5, 6]
    every = torch.arange(12)
    assert centres(position, every, 12).tolist() == list(range(12))


class TestTrained:
    """VQToken with an attention layer."""

    @pytest.fixture
    def weights(self, tmp_path: Path) -> str:
        torch.manual_seed(0)
        module = VQAttention(12, 8, hidden=16, heads=2)
        named = {f"model.vq.{name}": value for name, value in module.state_dict().items()}
        torch.save(named | {"model.other": torch.ones(2)}, tmp_path / "vq.pt")
        return str(tmp_path / "vq.pt")

    @pytest.mark.parametrize("compat", ["paper", "repo"])
    @pytest.mark.parametrize("k", [4, 30])
    def test_gives_as_many_tokens_as_asked(self, weights: str, k: int, compat: str) -> None:
        tokens = video(0, t=4)
        reducer = VQToken(keep=k, mode="trained", weights=weights, heads=2, compat=compat)  # type: ignore[arg-type]
        with count_flops() as counted:
            chosen = reducer.select(tokens)
        assert chosen.made is not None
        assert chosen.made[0].shape == (k, 8)
        assert chosen.flops == counted.total
        assert counted.total <= reducer.select_flops(48, 8)

    def test_does_not_care_how_clusters_are_numbered(self, weights: str) -> None:
        module = load_vq_attention(weights, 2)
        codebook, where, order = drawn(0, 5, 8), drawn(1, 5, 12), torch.tensor([3, 1, 4, 0, 2])
        got = module(codebook[order], where[order])
        torch.testing.assert_close(got, module(codebook, where)[order], rtol=1e-5, atol=1e-6)

    def test_refuses_what_does_not_fit(self, weights: str, tmp_path: Path) -> None:
        def run(tokens: VisualTokens, **more: object) -> None:
            VQToken(mode="trained", weights=weights, **{"keep": 4, "heads": 2} | more).select(
                tokens
            )  # type: ignore[arg-type]

        with pytest.raises(InputError, match="frames of 12 tokens of width 8"):
            run(video(0, w=5))
        with pytest.raises(InputError, match="6 frames give 6 tokens"):
            run(video(0), compat="repo")
        with pytest.raises(InputError, match="heads must divide"):
            run(video(0), heads=3)
        with pytest.raises(InputError, match="cannot read weights"):
            load_vq_attention(str(tmp_path / "none.safetensors"))
        (tmp_path / "bad.pt").write_bytes(b"no weights")
        with pytest.raises(InputError, match="cannot read weights"):
            load_vq_attention(str(tmp_path / "bad.pt"))
        torch.save({"x": torch.ones(1)}, tmp_path / "other.pt")
        with pytest.raises(InputError, match="holds no VQ attention"):
            load_vq_attention(str(tmp_path / "other.pt"))
