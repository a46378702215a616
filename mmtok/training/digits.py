"""Spoken digits in the layout of the Free Spoken Digit Dataset (CC BY-SA 4.0).

One file per recording, `{digit}_{speaker}_{take}.wav`, 8 kHz mono:
github.com/Jakobovski/free-spoken-digit-dataset. Takes 0 to 4 of every digit and speaker are the
test split, as there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mmtok.errors import InputError
from mmtok.io.audio import load_audio

SAMPLE_RATE = 8000
_NAME = re.compile(r"(\d)_(\w+)_(\d+)\.wav")
_TEST_TAKES = 5


@dataclass(frozen=True)
class Digits:
    """Recordings, in the order of their names.

    Attributes:
        sounds: (1, S) each, at 8 kHz.
        digits: what is said.
        speakers: who says it.
    """

    sounds: list[Tensor]
    digits: list[int]
    speakers: list[str]

    def tracks(self) -> list[tuple[Tensor, Tensor]]:
        """Per speaker all recordings end to end (S,), shuffled, and where each begins (N,)."""
        found = []
        for speaker in sorted(set(self.speakers)):
            own = [
                x[0] for x, who in zip(self.sounds, self.speakers, strict=True) if who == speaker
            ]
            order = torch.randperm(len(own), generator=torch.Generator().manual_seed(0)).tolist()
            lengths = torch.tensor([0] + [len(own[i]) for i in order[:-1]])
            found.append((torch.cat([own[i] for i in order]), lengths.cumsum(0)))
        return found


def load_digits(folder: Path, train: bool) -> Digits:
    """The training or the test split of a folder of recordings, looked for at any depth.

    Raises:
        InputError: there are none, or one of them cannot be read.
    """
    found = []
    for file in folder.rglob("*.wav"):
        if match := _NAME.fullmatch(file.name):
            digit, speaker, take = match.groups()
            if (int(take) >= _TEST_TAKES) == train:
                found.append((int(digit), speaker, int(take), file))
    if not found:
        raise InputError(
            f"{folder}: no {'training' if train else 'test'} recordings, expected files named "
            "digit_speaker_take.wav of the Free Spoken Digit Dataset"
        )
    found.sort()
    sounds = [load_audio(file, sample_rate=SAMPLE_RATE, channels=1)[0] for *_, file in found]
    return Digits(sounds, [row[0] for row in found], [row[1] for row in found])
