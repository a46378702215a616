"""Train the embedded tokenizer `tiny-vq`: garments as 8 x 8 ids of one codebook.

    python -m mmtok.training.vq --data DIR --out runs/tiny-vq

The network is Janus' picture tokenizer as transformers has it (`hf_vq`), in small. It first learns
as an autoencoder whose latents have length 1; then directions take the latents' place: k-means
finds the first ones, moving averages carry them on, dead ones are revived (`quantizers.VQ`). The
pictures are Fashion-MNIST's with two black pixels on every side. Runs on a CPU or a GPU, writes
checkpoints, continues from them, and ends with weights, figures and a model card in OUT/export.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from mmtok.errors import InputError
from mmtok.tokenizers.quantizers import VQ, usage
from mmtok.training import checkpoint
from mmtok.training.garments import read_classes
from mmtok.training.optim import schedule

BORDER = 2
SIZES: dict[str, Any] = {
    "base_channels": 32,
    "channel_multiplier": [1, 1, 2],
    "num_res_blocks": 1,
    "embed_dim": 8,
    "latent_channels": 64,
    "num_embeddings": 512,
    "num_patches": 8,
}


@dataclass(frozen=True, kw_only=True)
class VQSettings:
    """How long and how the tokenizer trains.

    Attributes:
        steps: optimiser steps.
        batch: pictures of a step.
        warm: share of the steps before there are codes.
        lr: peak learning rate.
        dead_below: entries with fewer vectors in an average batch are revived.
        seed: of weights and of the order of the pictures.

    Raises:
        InputError: no steps or pictures, or training would end before there are codes.
    """

    steps: int = 2000
    batch: int = 64
    warm: float = 0.08
    lr: float = 1.5e-3
    dead_below: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1:
            raise InputError(f"vq: {self.steps} steps of {self.batch}, expected at least 1 of 1")
        if not 0 <= self.warm < 1:
            raise InputError(
                f"vq: warm must be at least 0 and below 1, got {self.warm}: codes come after it"
            )


def as_pictures(images: NDArray[np.uint8] | Tensor) -> Tensor:
    """Photographs (B, 28, 28) of 0 .. 255 as (B, 3, 32, 32) in [0, 1]."""
    grey = torch.as_tensor(images)[:, None].float() / 255
    return F.pad(grey, (BORDER,) * 4).expand(-1, 3, -1, -1)


def build_network(seed: int = 0) -> nn.Module:
    """The stock network of `SIZES`, random."""
    from transformers.models.janus import JanusVQVAEConfig
    from transformers.models.janus.modeling_janus import JanusVQVAE

    torch.manual_seed(seed)
    made: nn.Module = JanusVQVAE(JanusVQVAEConfig(**SIZES))
    return made


class VQTrainer:
    """Trains a network and its codebook; resumes from `folder`.

    Args:
        images: (M, 28, 28) uint8.

    Raises:
        InputError: the checkpoint there was made with other settings or other data.
    """

    def __init__(
        self,
        images: NDArray[np.uint8],
        settings: VQSettings,
        folder: Path,
        device: str = "cpu",
    ) -> None:
        self.images, self.settings, self.device = torch.tensor(images), settings, device
        self.path = folder / "vq.pt"
        network = build_network(settings.seed).to(device).train()
        width, size = SIZES["embed_dim"], SIZES["num_embeddings"]
        book = VQ(width, size, cosine=True, dead_below=settings.dead_below).to(device).train()
        self.network: Any = network
        self.book, self.step = book, 0
        self.optimiser = torch.optim.AdamW(
            network.parameters(), lr=settings.lr, betas=(0.9, 0.98), weight_decay=0.0
        )
        self._said: dict[str, Any] = {"settings": asdict(settings), "sizes": SIZES}
        self._said["data"] = checkpoint.digest(self.images)
        saved = checkpoint.load(self.path, self._said)
        if saved is not None:
            self.network.load_state_dict(saved["network"])
            self.book.load_state_dict(saved["book"])
            self.optimiser.load_state_dict(saved["optimiser"])
            self.step = saved["step"]

    def train(self, report: Callable[[str], None] = print, until: int | None = None) -> None:
        """Go on to the last step, or to `until`; a checkpoint there and every 200."""
        settings = self.settings
        first = int(settings.warm * settings.steps)
        last = settings.steps if until is None else min(until, settings.steps)
        while self.step < last:
            if self.step == first:
                self._start_codebook()
            error, used = self._one(coded=self.step >= first)
            self.step += 1
            if self.step % 50 == 0:
                report(f"vq step {self.step} psnr {-10 * np.log10(error / 4):.2f} used {used:.2f}")
            if self.step % 200 == 0 or self.step == last:
                self._save()

    def _latents(self, pictures: Tensor) -> Tensor:
        with torch.autocast(pictures.device.type, torch.bfloat16):
            made: Tensor = self.network.quant_conv(self.network.encoder(pictures * 2 - 1))
        return made.float().flatten(2).transpose(1, 2)

    def _batch(self, step: int, batch: int) -> Tensor:
        places = checkpoint.batch_at(step, batch, len(self.images), self.settings.seed)
        return as_pictures(self.images[places]).to(self.device)

    @torch.no_grad()
    def _start_codebook(self) -> None:
        """k-means over the latents of eight batches."""
        batch = self.settings.batch
        size = min(8 * batch, len(self.images))
        self.book(self._latents(self._batch(0, size)))

    def _one(self, coded: bool) -> tuple[float, float]:
        """One optimiser step; mean squared error in [-1, 1] and share of entries in this batch."""
        pictures = self._batch(self.step, self.settings.batch)
        latents, used = self._latents(pictures), 0.0
        loss = latents.new_zeros(())
        if coded:
            found = self.book(latents)
            vectors, loss = found.vectors, found.loss
            used = usage(found.ids, self.book.codebook)["used"]
        else:
            vectors = F.normalize(latents, dim=-1)
        code = vectors.transpose(1, 2).unflatten(2, (SIZES["num_patches"],) * 2)
        with torch.autocast(pictures.device.type, torch.bfloat16):
            made = self.network.decoder(self.network.post_quant_conv(code))
        error = F.mse_loss(made.float(), pictures * 2 - 1)
        torch.autograd.backward(error + loss)
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        for group in self.optimiser.param_groups:
            group["lr"] = self.settings.lr * schedule(self.step / self.settings.steps, decay=0.6)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return float(error.detach()), used

    def _save(self) -> None:
        state = {"network": self.network.state_dict(), "book": self.book.state_dict()}
        state |= {"optimiser": self.optimiser.state_dict(), "step": self.step}
        checkpoint.save(self.path, state, self._said)

    def export(self, folder: Path) -> None:
        """Weights in fp16 and configuration, as `hf_vq` and plain transformers read them."""
        state = self.network.state_dict()
        entries = self.book.lookup(
            torch.arange(SIZES["num_embeddings"], device=self.device)[:, None]
        )
        state["quantize.embedding.weight"] = entries
        said = {"tokenizer": "hf_vq", "model_type": "janus_vqgan", **SIZES}
        checkpoint.export(folder, state, said)


@torch.no_grad()
def measure(folder: Path, images: NDArray[np.uint8]) -> dict[str, float]:
    """Figures of exported weights on photographs: PSNR in dB over the 28 x 28 pixels, usage.

    `psnr` is of the mean squared error over all pictures, `psnr_mean` the mean over pictures.
    """
    from mmtok.tokenizers import build

    tokenizer = build(f"hf_vq(weights={str(folder)!r})")
    errors, ids = [], []
    for part in torch.split(torch.tensor(images), 500):
        pictures = as_pictures(part)
        codes = tokenizer.encode(list(pictures), batch_size=100)
        made = torch.stack(tokenizer.decode(codes, batch_size=100))
        inside = (made - pictures)[..., BORDER:-BORDER, BORDER:-BORDER]
        errors.append(inside.square().mean((1, 2, 3)).double())
        ids.extend(codes.ids)
    each = torch.cat(errors)
    figures = {"psnr": -10 * each.mean().log10(), "psnr_mean": (-10 * each.log10()).mean()}
    used = usage(torch.cat(ids), codes.codebook)
    return {name: float(value) for name, value in figures.items()} | used


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="train the embedded tokenizer tiny-vq")
    parser.add_argument("--data", type=Path, required=True, help="folder with FashionMNIST/raw")
    parser.add_argument("--out", type=Path, default=Path("runs/tiny-vq"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="CPU threads, by default all")
    for field in fields(VQSettings):
        parser.add_argument(f"--{field.name}", type=type(field.default), default=field.default)
    options = vars(parser.parse_args())
    if options["threads"]:
        torch.set_num_threads(options["threads"])
    settings = VQSettings(**{field.name: options[field.name] for field in fields(VQSettings)})
    images, _ = read_classes(options["data"], train=True)
    trainer = VQTrainer(images, settings, options["out"], options["device"])
    trainer.train(lambda line: print(line, flush=True))
    trainer.export(options["out"] / "export")
    figures = measure(options["out"] / "export", read_classes(options["data"], train=False)[0])
    (options["out"] / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
