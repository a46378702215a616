"""How good generated garments are: do they show their class, and are they distributed as real ones.

A small classifier of Fashion-MNIST ships with mmtok (`mmtok.training.judge` made it). Class
accuracy is the share of pictures it puts into the class they were asked for. The Fréchet distance
(Heusel et al., arXiv 1706.08500) is taken in its 32 features instead of Inception's 2,048, against
the held-out photographs: figures compare with each other, not with published FIDs. It falls with
the number of pictures, so that what photographs themselves reach with as many belongs beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.errors import InputError
from mmtok.eval.quality import frechet_of_moments, moments
from mmtok.models.zoo import DATA

if TYPE_CHECKING:
    from collections.abc import Mapping

FEATURES, CLASSES = 32, 10
FEWEST = 2  # pictures with a covariance
_MEAN, _COVARIANCE = "photographs.mean", "photographs.covariance"


class JudgeNetwork(nn.Module):
    """Three convolutions, 32 features, 10 classes; pictures (B, 3, 32, 32) in [0, 1]."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 32, 64, 128)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=2, padding=1, bias=False) for a, b in pairwise(widths)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths[1:])
        self.squeeze = nn.Linear(widths[-1] * 16, FEATURES)
        self.head = nn.Linear(FEATURES, CLASSES)

    def features(self, pictures: Tensor) -> Tensor:
        """(B, 32)."""
        x = pictures.mean(1, keepdim=True) * 2 - 1
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = F.relu(norm(convolution(x)))
        found: Tensor = F.relu(self.squeeze(x.flatten(1)))
        return found

    def forward(self, pictures: Tensor) -> Tensor:
        """Logits (B, 10)."""
        scores: Tensor = self.head(self.features(pictures))
        return scores


@dataclass(frozen=True)
class Judge:
    """A trained network and the features' moments on held-out photographs."""

    network: JudgeNetwork
    mean: Tensor
    covariance: Tensor

    @cached_property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    @torch.no_grad()
    def read(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, 32) and classes (B,) of pictures (B, 3, 32, 32) in [0, 1]."""
        features = [self.network.features(x.to(self.device)) for x in torch.split(pictures, 500)]
        found = torch.cat(features)
        return found.cpu(), self.network.head(found).argmax(-1).cpu()

    def figures(self, pictures: Tensor, classes: Tensor) -> dict[str, float]:
        """`accuracy`, and `frechet` to the held-out photographs.

        Args:
            pictures: (B, 3, 32, 32) in [0, 1], more than 32 of them to fill the 32 features.
            classes: (B,) what was asked for.

        Raises:
            InputError: fewer than two pictures, which have no covariance.
        """
        if len(pictures) < FEWEST:
            raise InputError(
                f"the Fréchet distance needs at least {FEWEST} pictures, got {len(pictures)}"
            )
        features, seen = self.read(pictures)
        distance = frechet_of_moments(moments(features), (self.mean, self.covariance))
        return {"accuracy": float((seen == classes).double().mean()), "frechet": distance}


def load_judge(folder: str | Path = DATA / "garment-judge") -> Judge:
    """The judge that ships, or that of a folder.

    Raises:
        InputError: there is none, or it does not fit.
    """
    from mmtok.tokenizers.network import fill, read_weights

    file = Path(folder) / "model.safetensors"
    state = {name: weight.float() for name, weight in read_weights(file).items()}
    if not {_MEAN, _COVARIANCE} <= state.keys():
        raise InputError(f"{file}: holds no judge, expected one from mmtok.training.judge")
    mean, covariance = state.pop(_MEAN), state.pop(_COVARIANCE)
    network = JudgeNetwork()
    fill(network, state, str(file))
    return Judge(network.eval().requires_grad_(False), mean.double(), covariance.double())


def saved_judge(network: JudgeNetwork, photographs: Tensor) -> Mapping[str, Any]:
    """The tensors of a judge file: weights in fp16 and moments on photographs (M, 3, 32, 32)."""
    network = network.half().float()  # the moments are those of the weights as they are stored
    with torch.no_grad():
        mean, covariance = moments(
            torch.cat([network.features(x) for x in torch.split(photographs, 500)])
        )
    state = {name: weight.half().contiguous() for name, weight in network.state_dict().items()}
    return {**state, _MEAN: mean.float(), _COVARIANCE: covariance.float().contiguous()}
