"""Reference vectors of DyCoke and VQToken; skipped where MMTOK_GOLDEN names no folder of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mmtok.models.families import cells
from mmtok.pruning import DyCoke, VisualTokens, VQToken
from mmtok.pruning.kmeans import kmeans
from mmtok.pruning.vqattention import load_vq_attention
from tests.test_golden import GOLDEN, cases

pytestmark = pytest.mark.skipif(not GOLDEN.is_dir(), reason="no folder of reference vectors")


def test_dycoke() -> None:
    for params, tensors in cases("dycoke"):
        t, p = params["frames"], params["tokens_per_frame"]
        want = tensors["output.source_index"].sort().values
        x = tensors["input.features"].view(1, t * p, -1)
        tokens = VisualTokens(features=x, position=cells(t, 1, p)[None])
        got = DyCoke(keep=len(want), compat="repo").select(tokens).indices[0]
        assert torch.equal(got, want)


def test_kmeans_and_codebook(monkeypatch: pytest.MonkeyPatch) -> None:
    for params, tensors in cases("vqtoken_kmeans")[:3]:
        start, labels = tensors["input.initial_centroids"], tensors["output.labels"]
        t, p = labels.shape
        x = tensors["input.tokens"].view(t * p, -1)
        made = kmeans(x, start, iterations=params["max_iteration"], refill=False)
        assert torch.equal(made.labels, labels.flatten())
        assert torch.equal(made.sizes, tensors["output.cluster_sizes"])
        exact = {"rtol": 1e-10, "atol": 1e-12} if x.dtype == torch.float64 else {}
        torch.testing.assert_close(made.centroids, tensors["output.centroids"], **exact)

        monkeypatch.setattr(
            "mmtok.pruning.methods.vqtoken.spread_start", lambda *_, start=start: start
        )
        tokens = VisualTokens(features=x[None], position=cells(t, 1, p)[None])
        chosen = VQToken(keep=params["K"], normalised=True).select(tokens)
        assert chosen.merge is not None
        source, slot, _ = chosen.merge[0]
        cluster = torch.empty_like(chosen.indices[0])
        cluster[slot] = labels.flatten()[source]
        want = tensors["output.codebook"][cluster].to(x.dtype)
        torch.testing.assert_close(chosen.apply(x[None])[0], want, rtol=1e-5, atol=1e-6)


def test_attention_as_released(tmp_path: Path) -> None:
    for params, tensors in cases("vqtoken_kmeans")[3:]:
        path = tmp_path / "vq.safetensors"
        prefix = "input.w."
        weights = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        save_file(weights, path)
        module = load_vq_attention(str(path), params["heads"])
        got = module.attend_frames(tensors["input.codebook"], tensors["input.id_map"].long())
        torch.testing.assert_close(got, tensors["output.tokens"], rtol=1e-4, atol=1e-5)
