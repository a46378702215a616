"""Quantisers against vectors made by the authors' code and by vector-quantize-pytorch."""

from __future__ import annotations

import pytest
import torch
from vector_quantize_pytorch import ResidualFSQ

from mmtok.pruning.kmeans import kmeans
from mmtok.tokenizers.measures import nearest_entries
from mmtok.tokenizers.quantizers import FSQ, VQ
from mmtok.tokenizers.quantizers_lfq import GroupedLFQ
from tests.golden import needs_golden, tokenizer_cases

pytestmark = needs_golden


def test_golden_fsq() -> None:
    _, cases = tokenizer_cases("flextok_fsq")
    for values, _ in cases:
        fsq = FSQ(tuple(values["input.levels"].tolist()))
        z = values["input.z"].requires_grad_()
        done = fsq(z)
        assert torch.equal(done.ids[..., 0], values["indices"])
        assert torch.equal(done.vectors, values["codes"])
        assert torch.allclose(fsq.bound(z), values["bounded"], atol=2e-5)
        done.vectors.backward(values["input.grad_out"])
        assert torch.allclose(z.grad, values["grad_z"], atol=2e-5)
        found = fsq.lookup(values["input.indices"][:, None])
        assert torch.equal(found, values["codes_from_indices"])


def test_golden_grouped_lfq() -> None:
    for values, _ in tokenizer_cases("wetok_gq")[1]:
        groups, bits = int(values["input.groups"]), int(values["input.bits_per_group"])
        x = values["input.x"].flatten(2).transpose(1, 2).requires_grad_()
        flat = {k: v.flatten(2).transpose(1, 2) for k, v in values.items() if v.ndim == 4}
        for pooled in (True, False):
            quantizer = GroupedLFQ(groups, bits, entropy=1, commitment=0, pooled=pooled)
            done = quantizer(x)
            assert torch.equal(done.ids, values["indices"])
            assert torch.equal(done.vectors, flat["quantized"])
            assert torch.equal(quantizer.lookup(values["indices"]), flat["decoded_from_indices"])
            parts = done.parts
            assert parts["sample_entropy"] == pytest.approx(
                float(values["per_sample_entropy"]), abs=1e-4
            )
            want = values["codebook_entropy_pooled" if pooled else "codebook_entropy_per_group"]
            assert parts["mean_entropy"] == pytest.approx(float(want.mean()), abs=1e-4)
            assert parts["commitment"] == pytest.approx(float(values["commitment"]), abs=1e-4)
        done = GroupedLFQ(groups, bits, entropy=1, commitment=0)(x)
        assert done.loss.item() == pytest.approx(float(values["entropy_loss"]), abs=1e-4)
        # The softmax of the reference rounds logits of several hundred in float32, which puts its
        # gradient up to 9e-6 off the definition in float64; ours is within 3e-6 of that.
        grad = torch.autograd.grad(done.loss, x)[0]
        assert torch.allclose(grad, flat["grad_entropy"], rtol=1e-3, atol=1e-5)
        grad = torch.autograd.grad(GroupedLFQ(groups, bits, entropy=0, commitment=1)(x).loss, x)[0]
        assert torch.allclose(grad, flat["grad_commitment"], rtol=1e-3, atol=1e-6)


def test_golden_ema() -> None:
    """The running sums step by step, and the gradient."""
    cases = tokenizer_cases("ema_vq_step")[1]
    values = cases[0][0]
    quantizer = VQ(4, 8, kmeans=0, dead_below=0)
    inner = quantizer.layers.layers[0]._codebook
    for name in ("embed", "embed_avg", "cluster_size"):
        getattr(inner, name)[0] = values[f"input.{name}"]
    for step in range(3):
        done = quantizer(values[f"input.x{step}"])
        assert torch.equal(done.ids[..., 0], values[f"codes{step}"])
        for name in ("embed", "embed_avg", "cluster_size"):
            assert torch.allclose(getattr(inner, name)[0], values[f"{name}{step}"], atol=1e-5)
    values = cases[2][0]
    quantizer = VQ(4, 8, kmeans=0, dead_below=0, commitment=1)
    quantizer.layers.layers[0]._codebook.embed[0] = values["input.embed"]
    x = values["input.x"].transpose(1, 2).requires_grad_()
    done = quantizer(x)
    assert torch.equal(done.ids[..., 0], values["codes"])
    assert done.loss.item() == pytest.approx(float(values["commit_loss"]), abs=1e-5)
    (0.5 * done.vectors.sum() + done.loss).backward()
    assert torch.allclose(x.grad.transpose(1, 2), values["grad_x"], atol=1e-5)


def test_golden_library() -> None:
    """FSQ, residual and cosine VQ; LFQ with the bits of an id the other way round."""
    cases = tokenizer_cases("vector_quantize_pytorch")[1]
    values = cases[0][0]
    done = FSQ(tuple(values["input.levels"].tolist()))(values["input.z"])
    assert torch.equal(done.ids[..., 0], values["indices"].long())
    assert torch.allclose(done.vectors, values["codes"], atol=1e-5)
    values = cases[1][0]
    done = GroupedLFQ(3, 4)(values["input.x"].flatten(2).transpose(1, 2))
    bits = values["indices"].flatten(1, 2)[..., None] >> torch.arange(3, -1, -1) & 1
    assert torch.equal((bits * 2 ** torch.arange(4)).sum(-1), done.ids)
    assert done.parts["sample_entropy"] == pytest.approx(
        float(values["per_sample_entropy"]), abs=1e-4
    )
    values, weights = cases[2]
    quantizer = VQ(8, 32, depth=3).eval()
    quantizer.layers.load_state_dict(weights)
    done = quantizer(values["input.x"])
    assert torch.equal(done.ids, values["indices"])
    assert torch.allclose(done.vectors, values["quantized"], atol=1e-5)
    assert torch.allclose(quantizer.lookup(done.ids), values["from_indices"], atol=1e-5)
    coarse = quantizer.lookup(done.ids[..., :1])
    assert torch.allclose(coarse, values["from_first_level_only"], atol=1e-5)
    values, weights = cases[3]
    quantizer = VQ(8, 32, cosine=True, kmeans=0).eval()
    quantizer.layers.layers[0]._codebook.embed.copy_(weights["_codebook.embed"])
    done = quantizer(values["input.x"])
    assert torch.equal(done.ids[..., 0], values["indices"])
    assert torch.allclose(done.vectors, values["quantized"], atol=1e-5)
    # Residual FSQ clamps where FSQ has a tanh; nothing here uses it, the library's is there.
    values, weights = cases[4]
    library = ResidualFSQ(dim=4, levels=[8, 5, 5, 5], num_quantizers=2).eval()
    assert torch.equal(library.scales, weights["scales"])
    vectors, ids = library(values["input.z"])
    assert torch.equal(ids.long(), values["indices"].long())
    assert torch.allclose(vectors, values["quantized"], atol=1e-5)


def test_golden_restart() -> None:
    """The reference restarts dead entries without effect: ours do, and the others are the same."""
    values = tokenizer_cases("ema_vq_step")[1][1][0]
    threshold = float(values["input.threshold"])
    quantizer = VQ(4, 8, kmeans=0, dead_below=threshold)
    inner = quantizer.layers.layers[0]._codebook
    for name in ("embed", "embed_avg", "cluster_size"):
        getattr(inner, name)[0] = values[f"input.{name}"]
    x = values["input.x0"]
    assert torch.equal(quantizer(x).ids[..., 0], values["codes0"])
    dead = values["cluster_size0"] < threshold
    assert 0 < int(dead.sum()) < 8
    for name in ("embed", "embed_avg", "cluster_size"):
        got, want = getattr(inner, name)[0], values[f"{name}0"]
        assert torch.allclose(got[~dead], want[~dead], atol=1e-5)
    entries = inner.embed[0, dead]
    assert bool((entries[:, None] == x[0]).all(-1).any(1).all())  # each a vector of the batch
    assert torch.allclose(inner.embed_avg[0, dead], threshold * entries)
    assert torch.equal(inner.cluster_size[0, dead], torch.full((int(dead.sum()),), threshold))
    assert (values["embed0"][dead] - entries).norm(dim=1).min() > 1  # theirs stayed where they were
    quantizer(values["input.x1"])
    assert bool((inner.cluster_size[0] >= threshold).all())
    assert bool((values["cluster_size1"][dead] < threshold).all())


def test_golden_shared_residual() -> None:
    """DualToken's residual quantiser, one codebook at all depths; its last row pads."""
    values, weights = tokenizer_cases("dualtoken_rq")[1][2]
    book = weights["codebooks.0.weight"][:-1]
    quantizer = VQ(8, len(book), depth=4, kmeans=0, commitment=1).eval()
    for layer in quantizer.layers.layers:
        layer._codebook.embed[0] = book
    x = values["input.x"].flatten(1, 2)
    done = quantizer(x)
    assert torch.equal(done.ids, values["codes"].flatten(1, 2))
    assert torch.allclose(done.vectors, values["quantized"].flatten(1, 2), atol=2e-5)
    for depth in range(4):
        want = values["embedded_per_depth"][..., : depth + 1, :].sum(-2).flatten(1, 2)
        assert torch.allclose(quantizer.lookup(done.ids[..., : depth + 1]), want, atol=2e-5)
    parts = [
        (x - quantizer.lookup(done.ids[..., : depth + 1])).square().mean() for depth in range(4)
    ]
    assert torch.stack(parts).mean().item() == pytest.approx(
        float(values["commitment_loss"]), abs=2e-5
    )


def test_golden_perturbation() -> None:
    """RobusTok: with its draws, from its latents, in the first images."""
    for values, weights in tokenizer_cases("robustok_perturbation")[1]:
        z, want = values["input.z"], values["perturbed"]
        table = weights["embedding.weight"]
        vectors = z.movedim(1, -1).flatten(0, 2)
        if bool(values["input.l2_norm"]):
            vectors, table = (torch.nn.functional.normalize(x, dim=-1) for x in (vectors, table))
        rank = values["input.rank"] * (values["input.u"] <= values["input.alpha"])
        first = int(len(z) * float(values["input.beta"]))
        ids = nearest_entries(vectors[: len(rank)], table, rank)
        side = z.shape[-1]
        made = table[ids].reshape(-1, side, side, z.shape[1]).movedim(-1, 1)
        assert torch.allclose(made[:first], want[:first], atol=1e-5)
        assert torch.equal(want[first:], values["input.z_q"][first:])


def test_golden_kmeans() -> None:
    """VQToken's clusters from a given start, and both kinds of means of their members."""
    for values, _ in tokenizer_cases("vqtoken_kmeans")[1][:2]:
        x, start = values["input.tokens"].flatten(0, 1), values["input.init_centroids"]
        made = kmeans(x, start, refill=False)
        assert torch.equal(made.labels, values["labels"].flatten())
        assert torch.allclose(made.centroids, values["centroids"], atol=1e-5)
        for rows, name in (
            (x, "means_raw"),
            (torch.nn.functional.normalize(x, dim=1), "means_normalised"),
        ):
            sums = torch.zeros_like(start).index_add_(0, made.labels, rows)
            assert torch.allclose(sums / made.sizes.clamp(min=1)[:, None], values[name], atol=1e-5)
