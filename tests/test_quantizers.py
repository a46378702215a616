"""Quantisers: reference vectors, slow references, gradients, and that codebooks stay alive."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from mmtok.errors import InputError
from mmtok.tokenizers.quantizers import FSQ, VQ, NormalizedVQ, Quantizer, usage
from mmtok.tokenizers.quantizers_lfq import GroupedLFQ


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


QUANTIZERS = {
    "fsq": lambda: FSQ((8, 5, 3, 2)),
    "vq": lambda: VQ(4, 16),
    "cosine": lambda: VQ(4, 16, cosine=True),
    "rvq": lambda: VQ(4, 16, depth=3),
    "normalized": lambda: NormalizedVQ(4, 16),
    "lfq": lambda: GroupedLFQ(1, 4),
    "grouped-lfq": lambda: GroupedLFQ(2, 2),
}


@pytest.mark.parametrize("name", QUANTIZERS)
def test_ids_and_vectors_belong_together(name: str) -> None:
    """Ids are inside the codebook, look up to the vectors, and do not depend on batch-mates."""
    torch.manual_seed(0)
    quantizer: Quantizer = QUANTIZERS[name]()
    quantizer(noise(2, 200, 4, seed=1))  # the first training batch places the entries
    quantizer.eval()
    x = noise(3, 50, 4)
    done = quantizer(x)
    assert done.vectors.shape == x.shape
    sizes = torch.tensor(quantizer.codebook.sizes)
    assert done.ids.shape == (3, 50, len(sizes))
    assert done.ids.dtype == torch.int64
    assert bool(((done.ids >= 0) & (done.ids < sizes)).all())
    assert torch.allclose(quantizer.lookup(done.ids), done.vectors, atol=1e-6)
    alone = torch.cat([quantizer(row[None]).ids for row in x])
    assert torch.equal(alone, done.ids)


@pytest.mark.parametrize("name", ["fsq", "lfq", "grouped-lfq"])
def test_every_id_comes_back_from_its_vector(name: str) -> None:
    quantizer = QUANTIZERS[name]().eval()
    sizes = quantizer.codebook.sizes
    ids = torch.tensor(list(itertools.product(*(range(size) for size in sizes))))[None]
    vectors = quantizer.lookup(ids)
    if name == "fsq":  # the bound of an even number of levels is not symmetric: undo it
        half = (quantizer.levels - 1) * (1 + 1e-3) / 2
        offset = torch.where(quantizer.levels % 2 == 0, 0.5, 0.0)
        level = vectors * (quantizer.levels // 2)
        vectors = torch.atanh((level + offset) / half) - torch.atanh(offset / half)
    assert torch.equal(quantizer(vectors).ids, ids)


def test_a_codebook_of_many_levels_is_exact() -> None:
    """Past 2^24 entries, where sums in float32 are not."""
    quantizer = FSQ((8,) * 12)
    ids = torch.randint(0, 8**12, (1, 100_000, 1), generator=torch.Generator().manual_seed(0))
    level = quantizer.lookup(ids) * 4
    half, offset = 7 * (1 + 1e-3) / 2, torch.tensor(0.5)
    z = torch.atanh((level + offset) / half) - torch.atanh(offset / half)
    assert torch.equal(quantizer(z).ids, ids)


@pytest.mark.parametrize("bits", [1, 2, 5])
@pytest.mark.parametrize("pooled", [True, False])
def test_entropies_equal_the_softmax_over_all_sign_vectors(bits: int, pooled: bool) -> None:
    """Values and gradients against the definition, in float64."""
    groups, t = 3, 0.7
    quantizer = GroupedLFQ(groups, bits, temperature=t, pooled=pooled)
    x = noise(2, 7, groups * bits).requires_grad_()
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=bits))).double()
    p = (2 * x.double().reshape(-1, groups, bits) @ signs.T / t).softmax(-1)
    sample = -(p * p.log()).sum(-1).mean()
    mean = p.mean((0, 1))[None] if pooled else p.mean(0)
    spread = -(mean * (mean + 1e-5).log()).sum(-1).mean()
    want = torch.autograd.grad(sample - spread, x)[0]
    got = quantizer.entropies(x)
    assert torch.allclose(torch.stack(got).double(), torch.stack([sample, spread]), atol=1e-5)
    assert torch.allclose(torch.autograd.grad(got[0] - got[1], x)[0], want, atol=1e-6)


def test_the_entropy_of_18_bits_fits_into_memory() -> None:
    """The table of all tokens and all entries would take 17 GB."""
    x = noise(1, 16_384, 18).requires_grad_()
    done = GroupedLFQ(1, 18)(x)
    done.loss.backward()
    assert x.grad is not None
    assert bool(torch.isfinite(x.grad).all())
    assert done.parts["mean_entropy"] > 0.5 * math.log(16_384)


def test_groups_keep_less_than_a_twentieth_for_the_gradient() -> None:
    """Of what the probabilities of 256 tokens at 18 bits take; benchmarks measure the peak."""
    kept = 0

    def count(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        GroupedLFQ(2, 9)(noise(1, 256, 18).requires_grad_()).loss.backward()
    assert 0 < 20 * kept < 4 * 256 * 2**18


@pytest.mark.parametrize("name", QUANTIZERS)
def test_gradients_pass_straight_through(name: str) -> None:
    torch.manual_seed(0)
    quantizer: Quantizer = QUANTIZERS[name]()
    quantizer(noise(2, 200, 4, seed=1))
    x, weight = noise(1, 30, 4).requires_grad_(), noise(1, 30, 4, seed=2)
    (quantizer(x).vectors * weight).sum().backward()
    want = weight
    if name == "fsq":
        half = (quantizer.levels - 1) * (1 + 1e-3) / 2
        offset = torch.where(quantizer.levels % 2 == 0, 0.5, 0.0)
        slope = (1 - torch.tanh(x + torch.atanh(offset / half)) ** 2) * half
        want = weight * slope / (quantizer.levels // 2)
    if name in ("normalized", "cosine"):  # through the normalisation of the input
        z = x.detach().requires_grad_()
        want = torch.autograd.grad((F.normalize(z, dim=-1) * weight).sum(), z)[0]
    assert x.grad is not None
    assert torch.allclose(x.grad, want, atol=1e-5)


def test_dead_entries_come_back() -> None:
    """Half of the entries start where no data are: revival finds the other half's data again."""
    found = {}
    for dead_below in (0, 2):
        torch.manual_seed(0)
        quantizer = VQ(2, 32, kmeans=0, decay=0.8, dead_below=dead_below)
        with torch.no_grad():
            inner = quantizer.layers.layers[0]._codebook
            inner.embed[:, :16] = 100
            inner.embed_avg.copy_(inner.embed)
        for step in range(60):
            quantizer(noise(1, 512, 2, seed=step))
        ids = quantizer.eval()(noise(1, 2048, 2, seed=99)).ids
        found[dead_below] = usage(ids, quantizer.codebook)["used"]
    assert found[0] <= 0.5
    assert found[2] > 0.95


def test_kmeans_start_beats_a_random_one() -> None:
    centres = 10 * noise(16, 8)
    x = (centres[torch.arange(512) % 16] + 0.01 * noise(512, 8, seed=1))[None]
    distance = {}
    for kmeans in (0, 20):
        torch.manual_seed(0)
        quantizer = VQ(8, 64, kmeans=kmeans, dead_below=0)
        quantizer(x)
        distance[kmeans] = F.mse_loss(quantizer.eval()(x).vectors, x).item()
    assert distance[20] < 0.01 * distance[0]


def test_a_residual_codebook_refines_level_by_level() -> None:
    torch.manual_seed(0)
    quantizer = VQ(4, 32, depth=4)
    x = noise(1, 1000, 4)
    for _ in range(5):
        quantizer(x)
    ids = quantizer.eval()(x).ids
    errors = [F.mse_loss(quantizer.lookup(ids[..., :q]), x).item() for q in range(1, 5)]
    assert errors == sorted(errors, reverse=True)
    assert errors[3] < 0.1 * errors[0]


def test_usage_counts_entries_and_entropy() -> None:
    book = FSQ((4, 4)).codebook
    assert usage(torch.arange(16)[:, None], book) == {"used": 1.0, "perplexity": 16.0, "bits": 4.0}
    assert usage(torch.zeros(9, 1, dtype=torch.int64), book)["perplexity"] == 1.0
    with pytest.raises(InputError, match="no entries yet"):
        VQ(4, 8).eval()(noise(1, 20, 4))
    with pytest.raises(InputError, match="no ids"):
        usage(torch.empty(0, 1), book)
    with pytest.raises(InputError, match="expected 1 to 24 bits"):
        GroupedLFQ(1, 30)
    with pytest.raises(InputError, match="2 to 2"):
        FSQ((8, 1))
