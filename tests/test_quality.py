"""Picture quality against scikit-image, and against formulas worked out otherwise."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mmtok.errors import InputError
from mmtok.eval.quality import WEIGHTS, fid, frechet_distance, lpips, psnr, ssim


def pictures(shape=(3, 3, 31, 40), seed=0):
    draw = torch.Generator().manual_seed(seed)
    reference = torch.rand(shape, generator=draw)
    made = (reference + 0.2 * torch.randn(shape, generator=draw)).clamp(0, 1)
    return made, reference


@pytest.mark.parametrize("kind", ["float", "uint8", "bfloat16"])
def test_psnr_and_ssim_equal_scikit_image(kind):
    from skimage import metrics

    made, reference = pictures()
    if kind == "uint8":
        made, reference = ((x * 255).round().to(torch.uint8) for x in (made, reference))
    elif kind == "bfloat16":
        made, reference = made.bfloat16(), reference.bfloat16()
    top = 255 if kind == "uint8" else 1.0
    found = psnr(made, reference), ssim(made, reference)
    for i in range(len(made)):
        one, two = (x[i].to(torch.float64).numpy() for x in (made, reference))
        signal = metrics.peak_signal_noise_ratio(two, one, data_range=top)
        alike = metrics.structural_similarity(
            two,
            one,
            data_range=top,
            channel_axis=0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        assert found[0][i].item() == pytest.approx(signal, abs=1e-4)
        assert found[1][i].item() == pytest.approx(alike, abs=1e-5)


def test_one_window_by_hand():
    made, reference = (x[:1, :1].double() for x in pictures((1, 1, 11, 11)))
    weights = np.exp(-((np.arange(11) - 5) ** 2) / 4.5)
    weights = np.outer(weights, weights) / weights.sum() ** 2
    x, y = made[0, 0].numpy(), reference[0, 0].numpy()
    mx, my = (weights * x).sum(), (weights * y).sum()
    vx, vy = (weights * (x - mx) ** 2).sum(), (weights * (y - my) ** 2).sum()
    cov = (weights * (x - mx) * (y - my)).sum()
    wanted = (2 * mx * my + 1e-4) * (2 * cov + 9e-4)
    wanted /= (mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4)
    assert ssim(made, reference).item() == pytest.approx(wanted, abs=1e-5)


def test_equal_pictures_and_other_ranges():
    made, reference = pictures()
    assert psnr(made, made).tolist() == [math.inf] * 3
    assert ssim(made, made).tolist() == pytest.approx([1.0] * 3)
    for metric in (psnr, ssim):
        scaled = metric(made * 7, reference * 7, max_value=7)
        torch.testing.assert_close(scaled, metric(made, reference), rtol=1e-4, atol=1e-4)


def test_frechet_distance_of_gaussians():
    draw = torch.Generator().manual_seed(1)
    one = torch.randn((500, 6), generator=draw) @ torch.randn((6, 6), generator=draw)
    two = torch.randn((400, 6), generator=draw) + 0.5
    c1, c2 = (np.cov(x.double().numpy().T) for x in (one, two))
    apart = one.double().mean(0) - two.double().mean(0)
    # the roots of the eigenvalues of the product, which is not symmetric, sum to the same trace
    shared = np.sqrt(np.linalg.eigvals(c1 @ c2).real).sum()
    wanted = float(apart @ apart) + np.trace(c1) + np.trace(c2) - 2 * shared
    assert frechet_distance(one, two) == pytest.approx(wanted, rel=1e-9)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-8)
    moved = frechet_distance(one[:, :1], one[:, :1] + 3)
    assert moved == pytest.approx(9, rel=1e-5)


def test_wrong_input_is_refused():
    made, reference = pictures()
    with pytest.raises(InputError, match="of one shape"):
        psnr(made, reference[:1])
    with pytest.raises(InputError, match="one dtype"):
        psnr(made, reference.bfloat16())
    with pytest.raises(InputError, match="at least 11 x 11"):
        ssim(made[..., :10], reference[..., :10])
    with pytest.raises(InputError, match="expected features"):
        frechet_distance(made, reference)
    with pytest.raises(InputError, match="at least two rows"):
        frechet_distance(torch.ones(1, 2), torch.ones(2, 2))
    with pytest.raises(InputError, match="unknown network"):
        lpips(made, reference, net="inception")
    with pytest.raises(InputError, match="uint8"):
        fid(made, reference)


def test_what_needs_weights_says_so(tmp_path, monkeypatch):
    made, reference = pictures()
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    for call in (
        lambda: lpips(made, reference),
        lambda: fid((made * 255).byte(), (reference * 255).byte()),
    ):
        with pytest.raises(InputError, match=r"needs (torchmetrics: pip install|the weights of)"):
            call()


def test_lpips_with_weights_on_the_disk(tmp_path, monkeypatch):
    pytest.importorskip("torchmetrics")
    from torchvision.models import squeezenet1_1

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub" / "checkpoints" / WEIGHTS["squeeze"]
    file.parent.mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(squeezenet1_1(weights=None).state_dict(), file)
    made, reference = pictures((2, 3, 64, 64))
    assert lpips(made, reference, net="squeeze") > lpips(made, made, net="squeeze") == 0
