"""A small classifier of spoken digits: convolutions over log-mel spectra.

It judges codecs from outside, so it shares nothing with what they are trained on: other mel bands,
and levels taken out. Its training sees originals only.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.tokenizers.measures_audio import log_mel
from mmtok.training.digits import SAMPLE_RATE, Digits

_MELS, _N_FFT, _HOP = 40, 256, 80
_FRAMES = 100  # one second; what is longer is cut


def features(sound: Tensor) -> Tensor:
    """(mels, frames) of a recording (1, S), its mean taken out, at most a second."""
    mel = log_mel(sound, SAMPLE_RATE, n_fft=_N_FFT, hop=_HOP, mels=_MELS)[0, :, :_FRAMES]
    return mel - mel.mean()


def placed(mels: list[Tensor], generator: torch.Generator | None = None) -> Tensor:
    """(B, 1, mels, _FRAMES): each somewhere in a quiet second, or without generator mid-way."""
    rows = []
    for mel in mels:
        free = _FRAMES - mel.shape[1]
        left = free // 2
        if generator is not None:
            left = int(torch.randint(free + 1, (), generator=generator))
        rows.append(F.pad(mel, (left, free - left), value=float(mel.min())))
    return torch.stack(rows)[:, None]


def network() -> nn.Module:
    """Three strided convolutions, a mean over what they find, ten classes."""
    layers: list[nn.Module] = []
    for wide, narrow in ((1, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(wide, narrow, 3, stride=2, padding=1, bias=False)]
        layers += [nn.BatchNorm2d(narrow), nn.ReLU()]
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d((5, 4)), nn.Flatten(), nn.Dropout(0.3), nn.Linear(1280, 10)
    )


def train_classifier(digits: Digits, seed: int, epochs: int = 12, batch: int = 64) -> nn.Module:
    """Train on originals; 12 epochs are well under a minute of one core."""
    mels, labels = [features(sound) for sound in digits.sounds], torch.tensor(digits.digits)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = network()
        steps = epochs * -(-len(mels) // batch)
        optimiser = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=0.01)
        rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps)
        for _ in range(epochs):
            for part in torch.randperm(len(mels), generator=generator).split(batch):
                scores = model(placed([mels[i] for i in part.tolist()], generator))
                optimiser.zero_grad()
                F.cross_entropy(scores, labels[part]).backward()
                optimiser.step()
                rate.step()
    return model.eval()


@torch.no_grad()
def answers(model: nn.Module, sounds: list[Tensor]) -> Tensor:
    """The digit heard in each recording."""
    found: Tensor = model(placed([features(sound) for sound in sounds])).argmax(1)
    return found
