"""How near a picture is to the one it was made from, and a set of pictures to another set.

PSNR, SSIM (Wang et al. 2004: Gaussian window of 11 pixels, sigma 1.5, K = 0.01 and 0.03) and the
Fréchet distance are computed here. LPIPS (arXiv 1801.03924) and FID (arXiv 1706.08500) need
trained networks: they go through torchmetrics, with weights that are already on the disk.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mmtok.errors import InputError

WINDOW, SIGMA, K1, K2 = 11, 1.5, 0.01, 0.03
WEIGHTS = {
    "alex": "alexnet-owt-7be5be79.pth",
    "vgg": "vgg16-397923af.pth",
    "squeeze": "squeezenet1_1-b8a52dc0.pth",
    "inception": "weights-inception-2015-12-05-6726825d.pth",
}
"""Files under which torch's hub keeps the networks of LPIPS and FID."""


def psnr(made: Tensor, reference: Tensor, *, max_value: float | None = None) -> Tensor:
    """Peak signal-to-noise ratio in dB of each picture, (B,); infinite where nothing differs.

    Args:
        made: (B, C, H, W) pictures.
        reference: (B, C, H, W) the ones they should equal.
        max_value: brightest possible value; default 255 for uint8 and 1 otherwise.

    Raises:
        InputError: the shapes differ, or are not (B, C, H, W).
    """
    one, two = _unit_range(made, reference, max_value)
    return -10 * torch.log10((one - two).square().mean(dim=(1, 2, 3)))


def ssim(made: Tensor, reference: Tensor, *, max_value: float | None = None) -> Tensor:
    """Structural similarity of each picture, (B,), averaged over channels and whole windows.

    Arguments as in `psnr`.

    Raises:
        InputError: as in `psnr`, or a side is shorter than the window.
    """
    one, two = _unit_range(made, reference, max_value)
    if min(one.shape[-2:]) < WINDOW:
        raise InputError(
            f"SSIM needs pictures of at least {WINDOW} x {WINDOW} pixels, got "
            f"{one.shape[-2]} x {one.shape[-1]}"
        )
    moments = _smooth(torch.cat([one, two, one * one, two * two, one * two]))
    mean_1, mean_2, square_1, square_2, product = moments.chunk(5)
    both = mean_1 * mean_2
    squares = mean_1.square() + mean_2.square()
    luminance = (2 * both + K1**2) / (squares + K1**2)
    structure = (2 * (product - both) + K2**2) / (square_1 + square_2 - squares + K2**2)
    return (luminance * structure).mean(dim=(1, 2, 3))


def frechet_distance(one: Tensor, two: Tensor) -> float:
    """Fréchet distance between the Gaussians of two sets of features, (N, D) and (M, D).

    Raises:
        InputError: other shapes, or fewer than two rows in a set.
    """
    if one.ndim != 2 or two.ndim != 2 or one.shape[1] != two.shape[1]:
        raise InputError(
            f"expected features (N, D) and (M, D), got {tuple(one.shape)} and {tuple(two.shape)}"
        )
    if min(len(one), len(two)) < 2:
        raise InputError(f"a set needs at least two rows, got {len(one)} and {len(two)}")
    return frechet_of_moments(moments(one), moments(two))


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and covariance (D, D) of features (N, D), float64."""
    exact = features.double()
    return exact.mean(0), torch.cov(exact.T).reshape(exact.shape[1], -1)


def frechet_of_moments(one: tuple[Tensor, Tensor], two: tuple[Tensor, Tensor]) -> float:
    """Fréchet distance between Gaussians given by mean (D,) and covariance (D, D)."""
    (mean_1, cov_1), (mean_2, cov_2) = one, two
    values, vectors = torch.linalg.eigh(cov_1)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    shared = torch.linalg.eigvalsh(root @ cov_2 @ root).clamp(min=0).sqrt().sum()
    apart = (mean_1 - mean_2).square().sum()
    return float(apart + cov_1.trace() + cov_2.trace() - 2 * shared)


def lpips(
    made: Tensor, reference: Tensor, *, net: str = "alex", max_value: float | None = None
) -> float:
    """Learned perceptual distance, averaged over the pictures; lower is nearer.

    Args:
        made: (B, 3, H, W).
        reference: (B, 3, H, W).
        net: "alex", "vgg" or "squeeze".
        max_value: as in `psnr`.

    Raises:
        InputError: as in `psnr`, or torchmetrics or the network's weights are missing.
    """
    if net not in WEIGHTS or net == "inception":
        raise InputError(f"unknown network {net!r} of LPIPS; known: alex, vgg, squeeze")
    one, two = _unit_range(made, reference, max_value)
    metric = _torchmetric("LearnedPerceptualImagePatchSimilarity", net, net_type=net)
    return float(metric.to(one.device)(one * 2 - 1, two * 2 - 1))


def fid(made: Tensor, reference: Tensor) -> float:
    """Fréchet distance between the Inception features of two sets of pictures, uint8 (B, 3, H, W).

    A few thousand pictures a side are the least that gives a steady figure.

    Raises:
        InputError: not such pictures, or torchmetrics or the network's weights are missing.
    """
    for pictures in (made, reference):
        if pictures.dtype != torch.uint8 or pictures.ndim != 4 or pictures.shape[1] != 3:
            raise InputError(
                f"FID takes uint8 pictures (B, 3, H, W), got {pictures.dtype} of shape "
                f"{tuple(pictures.shape)}"
            )
    metric = _torchmetric("FrechetInceptionDistance", "inception").to(made.device)
    metric.update(made, real=False)
    metric.update(reference, real=True)
    return float(metric.compute())


def _unit_range(made: Tensor, reference: Tensor, max_value: float | None) -> tuple[Tensor, Tensor]:
    if made.shape != reference.shape or made.ndim != 4:
        raise InputError(
            f"expected two tensors of one shape (B, C, H, W), got {tuple(made.shape)} and "
            f"{tuple(reference.shape)}"
        )
    if made.dtype != reference.dtype:
        raise InputError(f"expected one dtype, got {made.dtype} and {reference.dtype}")
    top = max_value or (255.0 if made.dtype == torch.uint8 else 1.0)
    return made.float() / top, reference.float() / top


def _smooth(x: Tensor) -> Tensor:
    """Weighted means over every whole window."""
    steps = torch.arange(WINDOW, device=x.device, dtype=x.dtype) - WINDOW // 2
    line = torch.exp(-(steps**2) / (2 * SIGMA**2))
    line = (line / line.sum()).expand(x.shape[1], 1, 1, WINDOW)
    x = functional.conv2d(x, line, groups=x.shape[1])
    return functional.conv2d(x, line.mT, groups=x.shape[1])


def _torchmetric(name: str, network: str, **options: Any) -> Any:
    """A metric of torchmetrics, only if nothing has to be downloaded for it."""
    try:
        from torchmetrics import image
    except ImportError:
        raise InputError(f"{name} needs torchmetrics: pip install 'mmtok[quality]'") from None
    file = Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS[network]
    if not file.is_file():
        raise InputError(f"{name} needs the weights of {network}: put them at {file}")
    try:
        return getattr(image, name)(**options)
    except (ModuleNotFoundError, AttributeError) as error:
        raise InputError(f"{name}: {error}: pip install 'mmtok[quality]'") from None
