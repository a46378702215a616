"""What the embedded codec keeps of spoken digits it was not trained on.

    python benchmarks/codec.py --data DIR [--weights tiny-codec]

DIR holds the recordings of the Free Spoken Digit Dataset. Small classifiers of log-mel spectra are
trained on the original training recordings and asked what is said in the held-out ones, before and
after encoding and decoding. The row "untrained" is the same codec with random weights: what it
scores is what a broken codec would. DNSMOS needs `pip install "mmtok[speech]"`; without it the
column stays empty. One thread.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
import time
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import torch
from card import card, markdown, save
from digit_classifier import answers, train_classifier
from torch import Tensor

from mmtok.codes import Codes
from mmtok.io.audio import resample
from mmtok.tokenizers import WavTokenizer
from mmtok.tokenizers.measures_audio import mel_distance, stft_distance
from mmtok.tokenizers.quantizers import usage
from mmtok.tokenizers.wavtokenizer_net import WavTokenizerNetwork
from mmtok.training.codec import export
from mmtok.training.digits import SAMPLE_RATE, Digits, load_digits


def accuracies(models: list[Any], sounds: list[Tensor], digits: list[int]) -> Tensor:
    """(classifiers, recordings) whether each answers right."""
    right = torch.tensor(digits)
    return torch.stack([answers(model, sounds) == right for model in models])


def points_lost(before: Tensor, after: Tensor) -> str:
    """Percentage points between two (classifiers, recordings), with a 95% bootstrap interval."""
    lost = 100 * (before.double() - after.double()).mean(0).numpy()
    rng = np.random.default_rng(0)
    drawn = rng.choice(lost, (10_000, len(lost))).mean(1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return f"{lost.mean():.1f} [{low:.1f}, {high:.1f}]"


def dnsmos(sounds: list[Tensor], test: Digits) -> str:
    """Mean overall DNSMOS of 10 s of each speaker, end to end; "" where it is not installed."""
    needs = ("speechmos", "onnxruntime", "librosa", "requests")
    if any(importlib.util.find_spec(name) is None for name in needs):
        return ""
    from speechmos import dnsmos as model

    scores = []
    for speaker in sorted(set(test.speakers)):
        own = [x for x, who in zip(sounds, test.speakers, strict=True) if who == speaker]
        wide = resample(torch.cat(own, dim=1).numpy(), SAMPLE_RATE, 16_000)[0, :160_000]
        loud = wide / np.abs(wide).max()
        scores.append(float(model.run(loud, 16_000)["ovrl_mos"]))
    return f"{mean(scores):.2f}"


def quality(models: list[Any], test: Digits, systems: dict[str, list[Tensor]]) -> str:
    """Table of accuracy and distances; `systems` are recordings after each codec."""
    rows = [["", "accuracy %", "points lost [95%]", "mel distance", "STFT distance", "DNSMOS"]]
    before = accuracies(models, test.sounds, test.digits)
    for name, sounds in systems.items():
        after = accuracies(models, sounds, test.digits)
        pairs = list(zip(sounds, test.sounds, strict=True))
        mel = mean(float(mel_distance(a, b, SAMPLE_RATE)) for a, b in pairs)
        stft = mean(float(stft_distance(a, b)) for a, b in pairs)
        each = ", ".join(f"{100 * float(row.double().mean()):.1f}" for row in after)
        cells = [f"{mel:.3f}", f"{stft:.3f}", dnsmos(sounds, test)]
        rows.append([name, each, points_lost(before, after), *cells])
    return markdown(rows)


def rates(codes: Codes) -> str:
    """Table of what the codes cost and how the codebook is used."""
    ids = torch.cat(list(codes.ids))
    used, seconds = usage(ids, codes.codebook), sum(s for _, s in codes.shapes) / SAMPLE_RATE
    rows = [["", "tiny-codec"]]
    rows.append(["tokens a second", f"{len(ids) / seconds:.1f}"])
    rows.append(["bits a second", f"{codes.bits / seconds:.0f}"])
    rows.append(
        ["16-bit samples take times as much", f"{16 * SAMPLE_RATE * seconds / codes.bits:.0f}"]
    )
    rows.append(["tokens measured", f"{len(ids):,}"])
    rows.append(["entries", f"{codes.codebook.sizes[0]:,}"])
    rows.append(["entries used %", f"{100 * used['used']:.1f}"])
    rows.append(["entropy, bits a token", f"{used['bits']:.2f}"])
    rows.append(["perplexity", f"{used['perplexity']:.0f}"])
    return markdown(rows)


def speed(tokenizer: WavTokenizer, test: Digits) -> str:
    """Table of time against duration."""
    rows = [["seconds of speech", "tokens", "encode ms", "decode ms"]]
    track = test.tracks()[0][0]
    for seconds in (1, 10, 60):
        times = -(-seconds * SAMPLE_RATE // len(track))
        sound = track.repeat(times)[None, : seconds * SAMPLE_RATE]
        codes = tokenizer.encode([sound])
        spent: dict[str, list[float]] = {"encode": [], "decode": []}
        for _ in range(5):
            start = time.perf_counter()
            tokenizer.encode([sound])
            middle = time.perf_counter()
            tokenizer.decode(codes)
            spent["encode"].append(1000 * (middle - start))
            spent["decode"].append(1000 * (time.perf_counter() - middle))
        shown = [f"{median(part):.0f}" for part in spent.values()]
        rows.append([str(seconds), str(codes.counts[0]), *shown])
    return markdown(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", default="tiny-codec")
    parser.add_argument("--classifiers", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    train, test = (load_digits(options.data, train=part) for part in (True, False))
    start = time.process_time()
    models = [train_classifier(train, seed) for seed in range(options.classifiers)]
    took = time.process_time() - start
    tokenizer = WavTokenizer(weights=options.weights)
    codes = tokenizer.encode(test.sounds)
    systems = {"original": test.sounds, "tiny-codec": tokenizer.decode(codes)}
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        export(WavTokenizerNetwork(tokenizer.config), tokenizer.config, Path(folder))
        untrained = WavTokenizer(weights=folder)
        systems["untrained"] = untrained.decode(untrained.encode(test.sounds))
    text = card("tiny-codec: spoken digits before and after")
    speakers = len(set(test.speakers))
    text += (
        f"{len(test.sounds)} held-out recordings (takes 0 to 4 of {speakers} speakers); "
        f"{len(models)} classifiers trained on the originals of {len(train.sounds)} others in "
        f"{took:.0f} s of CPU time, one accuracy each. Points lost and their interval, over "
        "recordings, are of the mean of the classifiers. DNSMOS is that of 10 s of each speaker's "
        "recordings end to end.\n\n"
    )
    text += quality(models, test, systems) + "\n" + rates(codes) + "\n" + speed(tokenizer, test)
    save(f"{Path(__file__).stem}.md", text)


if __name__ == "__main__":
    main()
