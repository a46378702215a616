"""Continuous integrate-and-fire against the integral by hand and the authors' numbers."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mmtok.errors import InputError
from mmtok.tokenizers.cif import CIFPredictor, integrate
from tests.golden import needs_golden, tokenizer_cases


def by_hand(hidden: Tensor, alphas: Tensor) -> list[list[float]]:
    """One item, one channel: pour each frame's weight into tokens of size 1."""
    tokens, room = [0.0], 1.0
    for value, weight in zip(hidden.tolist(), alphas.tolist(), strict=True):
        left = weight
        while left >= room:
            tokens[-1] += room * value
            left -= room
            tokens.append(0.0)
            room = 1.0
        tokens[-1] += left * value
        room -= left
    return [[token] for token in tokens[:-1]]


@pytest.mark.parametrize("scale", [0.05, 0.6, 1.0, 3.7])
def test_the_integral(scale: float) -> None:
    generator = torch.Generator().manual_seed(round(10 * scale))
    hidden = torch.randn(4, 50, 1, generator=generator, dtype=torch.float64)
    alphas = scale * torch.rand(4, 50, generator=generator, dtype=torch.float64)
    alphas[1, 20:] = 0
    vectors, counts, fires = integrate(hidden, alphas)
    for i in range(4):
        want = torch.tensor(by_hand(hidden[i, :, 0], alphas[i]), dtype=torch.float64)
        assert int(counts[i]) == len(want)
        assert torch.allclose(vectors[i, : len(want)], want.view(-1, 1), atol=1e-9)
        assert not vectors[i, len(want) :].any()
    assert (fires[:, :1] == alphas[:, :1]).all()
    if scale <= 1:
        assert (fires >= 1).sum(1).tolist() == counts.tolist()


def test_rows_that_never_fire_and_sums_just_below() -> None:
    hidden = torch.ones(2, 10, 3)
    vectors, counts, _ = integrate(hidden, torch.full((2, 10), 0.01))
    assert vectors.shape == (2, 0, 3)
    assert counts.tolist() == [0, 0]
    tenths = torch.full((1, 30), 1 / 30 * 3)  # adds up to slightly less or more than 3
    vectors, counts, _ = integrate(torch.ones(1, 30, 1), tenths)
    assert counts.tolist() == [3]
    assert torch.allclose(vectors, torch.ones(1, 3, 1), atol=1e-4)
    vectors, counts, _ = integrate(hidden, torch.full((2, 10), 0.5), torch.tensor([2, 4]))
    assert counts.tolist() == [2, 4]
    assert not vectors[0, 2:].any()
    for bad in (torch.full((2, 10), -0.1), torch.full((2, 9), 0.1), torch.full((2, 10), math.nan)):
        with pytest.raises(InputError, match="weights"):
            integrate(hidden, bad)
    with pytest.raises(InputError, match="add up"):
        integrate(hidden, torch.full((2, 10), 1e7))


def test_gradients() -> None:
    """Through the frames and through where they begin and end."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 7, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    alphas = torch.rand(2, 7, generator=generator, dtype=torch.float64).add(0.2)
    alphas.requires_grad_()
    assert torch.autograd.gradcheck(lambda h, a: integrate(h, a)[0], (hidden, alphas))


@pytest.mark.parametrize("depthwise", [False, True])
@torch.no_grad()
def test_padding_is_not_heard(depthwise: bool) -> None:
    """An item in a batch, with rubbish behind its end, gets what it gets alone."""
    torch.manual_seed(1)
    predictor = CIFPredictor(6, depthwise=depthwise, tail=0.45).eval()
    hidden = torch.randn(3, 21, 6)
    lengths = torch.tensor([21, 9, 1])
    got = predictor(hidden, lengths)
    for i, length in enumerate(lengths.tolist()):
        alone = predictor(hidden[i : i + 1, :length], lengths[i : i + 1])
        assert int(alone.counts) == int(got.counts[i])
        n = int(alone.counts)
        assert torch.allclose(got.vectors[i, :n], alone.vectors[0], atol=1e-6)
        assert torch.allclose(got.alphas[i, : length + 1], alone.alphas[0], atol=1e-6)
    counts = torch.tensor([12, 5, 0])
    trained = predictor(hidden, lengths, counts)
    assert torch.equal(trained.counts, counts)
    assert torch.allclose(trained.alphas.sum(1), counts.float(), atol=1e-4)
    assert (trained.vectors[0, 11] != 0).any()  # the last one is there
    for bad in (torch.tensor([0, 1, 2]), torch.tensor([22, 1, 2]), torch.tensor([3])):
        with pytest.raises(InputError, match="lengths"):
            predictor(hidden, bad)
    with pytest.raises(InputError, match="counts"):
        predictor(hidden, lengths, torch.tensor([1, 2]))


@pytest.mark.parametrize("depthwise", [False, True])
def test_published_layout(depthwise: bool, tmp_path: Path) -> None:
    predictor = CIFPredictor(6, kernel=5, depthwise=depthwise)
    state = {f"predictor.{name}": w for name, w in predictor.state_dict().items()}
    other = {"encoder.x": torch.zeros(2), "predictor.cif_output2.weight": torch.zeros(1)}
    torch.save({"state_dict": state | other}, tmp_path / "model.pt")
    loaded = CIFPredictor.load(tmp_path / "model.pt")
    hidden = torch.randn(2, 9, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded.weights(hidden), predictor.weights(hidden))
    assert loaded.tail == 0.45
    torch.save(other, tmp_path / "model.pt")
    with pytest.raises(InputError, match="holds 0 predictors"):
        CIFPredictor.load(tmp_path / "model.pt")
    with pytest.raises(InputError, match="odd"):
        CIFPredictor(6, kernel=4)


@needs_golden
@torch.no_grad()
def test_golden() -> None:
    cases = tokenizer_cases("cif")[1]
    for i, (values, _) in enumerate(cases[:5]):
        vectors, counts, fires = integrate(values["input.hidden"], values["input.alphas"])
        assert torch.equal(counts, values["exact_counts"])
        size = vectors.shape[1]
        assert torch.allclose(vectors, values["exact_frames"][:, :size], atol=2e-5)
        if i < 2:  # where the authors' functions are right
            rows = zip(counts.tolist(), vectors, values["cif_frames"], strict=True)
            assert all(torch.allclose(a[:n], b[:n], atol=2e-5) for n, a, b in rows)
            assert torch.allclose(fires, values["cif_fires"], atol=1e-5)
    values, weights = cases[5]
    hidden, lengths = values["input.hidden"], values["input.lengths"]
    predictor = CIFPredictor(hidden.shape[-1], tail=float(values["input.tail_threshold"]))
    predictor.load_state_dict(weights)
    got = predictor(hidden, lengths)
    assert torch.equal(got.counts.float(), values["token_num"])
    assert torch.allclose(got.alphas[0], values["alphas_with_tail"][0], atol=2e-5)
    assert torch.allclose(got.vectors[0], values["acoustic_embeds"][0], atol=2e-5)
    # What stands behind the end of the second item leaks into its last weight in the authors' code.
    raw = torch.where(torch.arange(20) < lengths[:, None], predictor.weights(hidden), 0.0)
    assert torch.allclose(raw, values["alphas_no_tail"], atol=2e-5)
    assert torch.allclose(got.alphas[1, :12], values["alphas_with_tail"][1, :12], atol=2e-5)
    padded = torch.nn.functional.pad(hidden, (0, 0, 0, 1))
    vectors, _, fires = integrate(padded, values["alphas_with_tail"])
    assert torch.allclose(vectors, values["acoustic_embeds"], atol=2e-5)
    assert torch.allclose(fires, values["fires"], atol=2e-5)
