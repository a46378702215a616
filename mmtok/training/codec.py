"""Train the embedded codec `tiny-codec`: a small WavTokenizer for spoken digits at 8 kHz.

    python -m mmtok.training.codec --data DIR --out runs/tiny-codec

DIR holds the recordings of the Free Spoken Digit Dataset. Runs on a CPU or a GPU, writes a
checkpoint every few minutes and continues from it when it is started again: what a step draws at
random depends on the seed and the step alone. The result lies in OUT/export.

The losses are distances of mel spectra and multi-resolution spectra plus the codebook's commitment;
unlike the published models this one has no discriminators. The first steps run without the
codebook, which then starts from k-means of what the encoder gives by that time.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmtok.errors import InputError
from mmtok.tokenizers.measures_audio import mel_distance, stft_distance
from mmtok.tokenizers.quantizers import VQ, usage
from mmtok.tokenizers.wavtokenizer_net import WavTokenizerConfig, WavTokenizerNetwork
from mmtok.training import checkpoint
from mmtok.training.digits import SAMPLE_RATE, Digits, load_digits
from mmtok.training.optim import schedule

CONFIG = WavTokenizerConfig(
    filters=16,
    ratios=(8, 4, 4),
    latent=8,
    entries=1024,
    width=128,
    hidden=384,
    layers=4,
    conditions=1,
    n_fft=512,
    sample_rate=SAMPLE_RATE,
)
"""62.5 tokens a second of 10 bits each."""
_REPORT, _SAVE = 50, 250


@dataclass(frozen=True, kw_only=True)
class CodecSettings:
    """How to train.

    Attributes:
        steps: optimiser steps.
        tokens: of a batch, about.
        shortest: tokens of the shortest crops.
        longest: tokens of the longest crops.
        lr: peak learning rate.
        continuous: steps before the codebook starts.
        start_tokens: vectors that k-means sees.
        seed: of weights, crops and revived entries.

    Raises:
        InputError: training would end before the codebook starts.
    """

    steps: int = 3200
    tokens: int = 512
    shortest: int = 16
    longest: int = 64
    lr: float = 1.5e-3
    continuous: int = 150
    start_tokens: int = 12_288
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps <= self.continuous:
            raise InputError(
                f"codec: {self.steps} steps end before the codebook starts, which is after "
                f"{self.continuous}"
            )


class CodecTrainer:
    """The network, its optimiser and how far it is; goes on from a checkpoint in `folder`.

    Args:
        digits: training recordings.
        settings: how to train.
        folder: for the checkpoint.
        config: of the network.
        device: torch device.

    Raises:
        InputError: the checkpoint there was made with other settings or other data.
    """

    def __init__(
        self,
        digits: Digits,
        settings: CodecSettings,
        folder: Path,
        config: WavTokenizerConfig = CONFIG,
        device: str = "cpu",
    ) -> None:
        self.settings, self.config, self.device = settings, config, torch.device(device)
        self.path, self.step, self.seconds = folder / "codec.pt", 0, 0.0
        self.tracks = digits.tracks()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(settings.seed)
            network: Any = WavTokenizerNetwork(config)
            # An entry that gets a twentieth of its fair share of the tokens starts anew.
            dead = 0.05 * settings.tokens / config.entries
            network.quantize = VQ(
                config.latent,
                config.entries,
                decay=0.97,
                commitment=1.0,
                kmeans=10,
                dead_below=dead,
            )
            equalise(network.encoder, self.batch(settings.tokens).cpu())
        self.network = network.to(self.device).train()
        self.optimiser = torch.optim.AdamW(
            self.network.parameters(), settings.lr, betas=(0.8, 0.98), weight_decay=0.01
        )
        # How many steps there are to be may change on the way; the learning rate follows.
        said = {name: value for name, value in asdict(settings).items() if name != "steps"}
        self._said: dict[str, Any] = {"config": asdict(config), "settings": said}
        self._said["data"] = checkpoint.digest(*(track for track, _ in self.tracks))
        with torch.random.fork_rng(devices=[]):  # a step's draws depend on nothing before it
            saved = checkpoint.load(self.path, self._said)
        if saved is not None:
            self.network.load_state_dict(saved["network"])
            self.optimiser.load_state_dict(saved["optimiser"])
            self.step, self.seconds = saved["step"], saved["seconds"]

    def train(self, report: Callable[[str], None]) -> nn.Module:
        """The steps that are left.

        Returns:
            the trained network.
        """
        while self.step < self.settings.steps:
            start = time.perf_counter()
            parts = self.train_step()
            self.seconds += time.perf_counter() - start
            if self.step % _REPORT == 0 or self.step <= 3:
                shown = " ".join(f"{name} {value:.3f}" for name, value in parts.items())
                report(f"step {self.step} {self.seconds:.0f} s {shown}")
            if self.step % _SAVE == 0 or self.step == self.settings.steps:
                self._save()
        made: nn.Module = self.network.eval()
        return made

    def train_step(self) -> dict[str, float]:
        """One step; the terms of the loss, and how much of the codebook the batch used."""
        settings = self.settings
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(settings.seed * 1_000_003 + self.step)
            if self.step == settings.continuous:
                self._start_codebook()
            loss, parts = self._loss(self.batch(settings.tokens))
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        for group in self.optimiser.param_groups:
            group["lr"] = settings.lr * schedule((self.step + 1) / settings.steps, decay=0.6)
        self.optimiser.step()
        self.step += 1
        return {name: float(value) for name, value in parts.items()}

    def batch(self, tokens: int) -> Tensor:
        """Crops (B, 1, S) of one random length with about `tokens` tokens; half of them begin where
        a recording does."""
        settings, hop = self.settings, self.config.hop
        length = int(torch.randint(settings.shortest, settings.longest + 1, ()))
        crops = []
        for _ in range(math.ceil(tokens / length)):
            track, starts = self.tracks[int(torch.randint(len(self.tracks), ()))]
            last = len(track) - length * hop
            begin = int(torch.randint(last + 1, ()))
            if float(torch.rand(())) < 0.5:
                begin = min(last, int(starts[int(torch.randint(len(starts), ()))]))
            crops.append(track[begin : begin + length * hop])
        return torch.stack(crops)[:, None].to(self.device)

    def _loss(self, sounds: Tensor) -> tuple[Tensor, dict[str, Tensor | float]]:
        latents = self.network.encoder(sounds).transpose(1, 2)
        extra, parts = latents.new_zeros(()), {}
        if self.step >= self.settings.continuous:
            quantized = self.network.quantize(latents)
            # Relative to the spread of the latents, whose scale is free.
            spread = latents.detach().var((0, 1)).mean()
            extra, vectors = quantized.loss / spread, quantized.vectors
            parts["left"] = quantized.parts["commitment"] / spread
            parts["used"] = usage(quantized.ids, self.network.quantize.codebook)["used"]
        else:
            vectors = latents
        made, want = self.network.decode(vectors), sounds[:, 0]
        rate = self.config.sample_rate
        mel = mel_distance(made, want, rate).mean()
        mel = mel + mel_distance(made, want, rate, n_fft=256, hop=64, mels=40).mean()
        stft = stft_distance(made, want).mean()
        return mel + stft + extra, {"mel": mel.detach() / 2, "stft": stft.detach(), **parts}

    @torch.no_grad()
    def _start_codebook(self) -> None:
        """k-means of the encoder's output, on many more crops than a batch has."""
        found: list[Tensor] = []
        while sum(len(part) for part in found) < self.settings.start_tokens:
            sounds = self.batch(self.settings.tokens)
            found.append(self.network.encoder(sounds).transpose(1, 2).flatten(0, 1))
        vectors = torch.cat(found)[None]
        self.network.quantize(vectors)
        # As if a batch had had these counts: otherwise entries are slow to move and slow to die.
        book = self.network.quantize.layers.layers[0]._codebook
        for sums in (book.cluster_size, book.embed_avg):
            sums.mul_(self.settings.tokens / vectors.shape[1])

    def _save(self) -> None:
        parts = {"network": self.network.state_dict(), "optimiser": self.optimiser.state_dict()}
        said = {"step": self.step, "seconds": self.seconds}
        checkpoint.save(self.path, {**parts, **said}, self._said)


@torch.no_grad()
def equalise(encoder: nn.Module, sounds: Tensor) -> None:
    """Scale and shift every convolution so that its channels have mean 0, and deviation 1 together.

    Layer by layer in the order of the data (arXiv 1511.06422). Speech is so quiet that otherwise
    biases drown it, and the decoder learns to do without the codes.
    """
    for layer in [part for part in encoder.modules() if isinstance(part, nn.Conv1d)]:
        seen: list[Tensor] = []
        handle = layer.register_forward_hook(lambda _, __, made, seen=seen: seen.append(made))
        try:
            encoder(sounds)
        finally:
            handle.remove()
        middle = seen[0].mean((0, 2), keepdim=True)
        spread = (seen[0] - middle).std()
        layer.weight /= spread
        if layer.bias is not None:
            layer.bias.copy_((layer.bias - middle.flatten()) / spread)


def export(network: nn.Module, config: WavTokenizerConfig, folder: Path) -> None:
    """Weights in fp16 and their configuration, as `weights=` of the tokenizer takes them."""
    said = {"tokenizer": "wavtokenizer", "mmtok": asdict(config)}
    checkpoint.export(folder, network.state_dict(), said)


def _say(line: str) -> None:
    """Print one line of progress at once."""
    print(line, flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="train the embedded codec tiny-codec")
    parser.add_argument("--data", type=Path, required=True, help="folder with the recordings")
    parser.add_argument("--out", type=Path, default=Path("runs/tiny-codec"))
    parser.add_argument("--steps", type=int, default=CodecSettings.steps)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="CPU threads, by default all")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    settings = CodecSettings(steps=options.steps, seed=options.seed)
    digits = load_digits(options.data, train=True)
    trainer = CodecTrainer(digits, settings, options.out, device=options.device)
    export(trainer.train(_say), trainer.config, options.out / "export")


if __name__ == "__main__":
    main()
