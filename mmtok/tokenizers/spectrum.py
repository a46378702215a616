"""A picture as its lowest frequencies: a fixed latent for small models, in place of a trained one.

Three orthonormal colour axes (grey, red to blue, green to purple), a type-2 cosine transform of
each, and of that the lowest frequencies, every one brought to mean 0 and deviation 1 over the
training pictures. The first patch holds nearly all that there is to see of a small picture from
afar, which is what the first tokens have to say. As the transform is orthonormal, the error of a
frequency times its deviation is its share in the error of the pixels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

_COLOURS = ((1.0, 1.0, 1.0), (1.0, 0.0, -1.0), (1.0, -2.0, 1.0))


class Spectrum(nn.Module):
    """Pictures (B, 3, pixels, pixels) to (B, 3, side, side) frequencies, and back.

    Args:
        pixels: side of the pictures.
        side: frequencies kept in each direction, the lowest.
    """

    waves: Tensor
    colours: Tensor

    def __init__(self, pixels: int, side: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(3, side, side), requires_grad=False)
        self.deviation = nn.Parameter(torch.ones(3, side, side), requires_grad=False)
        self.register_buffer("waves", cosines(pixels)[:side], persistent=False)
        colours = torch.nn.functional.normalize(torch.tensor(_COLOURS), dim=1)
        self.register_buffer("colours", colours, persistent=False)

    def encode(self, pictures: Tensor) -> Tensor:
        """Normalised frequencies."""
        return (self._frequencies(pictures) - self.mean) / self.deviation

    def decode(self, latent: Tensor) -> Tensor:
        """Pictures, without the frequencies that were cut off."""
        whole = latent * self.deviation + self.mean
        return torch.einsum("uc,fh,bufg,gw->bchw", self.colours, self.waves, whole, self.waves)

    def fit(self, pictures: Tensor) -> None:
        """Take mean and deviation from pictures (B, 3, pixels, pixels)."""
        found = self._frequencies(pictures)
        self.mean.copy_(found.mean(0))
        self.deviation.copy_(found.std(0).clamp(min=1e-4))

    def _frequencies(self, pictures: Tensor) -> Tensor:
        return torch.einsum("uc,fh,bchw,gw->bufg", self.colours, self.waves, pictures, self.waves)


def cosines(n: int) -> Tensor:
    """The orthonormal type-2 cosine transform, (n, n), lowest frequency first."""
    places, rates = torch.arange(n) + 0.5, torch.arange(n)[:, None]
    waves = torch.cos(math.pi * places * rates / n) * math.sqrt(2 / n)
    waves[0] /= math.sqrt(2)
    return waves
