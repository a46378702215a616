"""Train the embedded tokenizer `tiny-flex`: FlexTok (arXiv 2502.13967) for small pictures.

    python -m mmtok.training.flex --data pictures.tar --out runs/flex

Runs on a CPU or a GPU, writes a checkpoint every few minutes and continues from it, step for step,
when it is started again. Nested dropout hides from the decoder all but the first tokens, so many
as a length drawn anew for each picture, and so the first come to carry most; `--fixed` trains the
twin that always sees all.

FlexTok trains its decoder as a flow, on mixtures of picture and noise. A sample of a flow is sharp
and, where few tokens leave much open, wrong; at this size it also costs most of the network. So
the decoder predicts the picture, and most of the time (`one_step`) it does so from zeros at time
1, which makes it give the mean: the reconstruction with the least squared error. The rest of the
time it learns the flow, some of it without any token, for guidance. FlexTok's pull towards the
features of DINOv2 is left out, and its trained autoencoder is replaced by a fixed spectrum.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from mmtok.tokenizers.flextok_net import FlexTokConfig
from mmtok.tokenizers.methods.flextok import FlexTokNetwork
from mmtok.training import checkpoint
from mmtok.training.optim import Optimisers, schedule
from mmtok.training.pictures import load_pictures

TINY = FlexTokConfig(
    width=128,
    depth=4,
    decoder_width=128,
    decoder_depth=4,
    registers=32,
    side=12,
    patch=2,
    spectrum=(32,),
    direct=True,
    lengths=(1, 2, 3, 4, 6, 8, 12, 16, 24, 32),
)
"""The sizes of tiny-flex."""


@dataclass(frozen=True, kw_only=True)
class FlexSettings:
    """How long and how it trains.

    Attributes:
        steps: of the optimiser.
        batch: pictures in a step.
        lr: peak learning rate of the layers' matrices.
        others_lr: that of all other weights.
        decay: share of the steps at the end in which the learning rates fall.
        one_step: share of the pictures that are predicted from zeros at time 1.
        without: share of the others that are predicted without any token.
        nested: hide all but the first tokens; otherwise all are always seen.
        seed: of weights, lengths, noise and the order of the pictures.
    """

    steps: int = 6000
    batch: int = 64
    lr: float = 4e-3
    others_lr: float = 2e-3
    decay: float = 0.6
    one_step: float = 0.75
    without: float = 0.1
    nested: bool = True
    seed: int = 0


def draw_lengths(config: FlexTokConfig, count: int, draw: torch.Generator) -> Tensor:
    """How many tokens each of `count` pictures keeps (count,): every allowed length as often."""
    lengths = torch.tensor(config.lengths or range(1, config.registers + 1))
    return lengths[torch.randint(len(lengths), (count,), generator=draw)]


def reconstruction_loss(
    network: FlexTokNetwork,
    latent: Tensor,
    keep: Tensor,
    settings: FlexSettings,
    draw: torch.Generator,
) -> Tensor:
    """Mean squared error of the predicted pictures, in pixels of [-1, 1] up to a constant factor.

    Args:
        network: a `direct` one.
        latent: (B, C, side, side).
        keep: (B,) tokens that the decoder may see.
        settings: shares of the ways to predict.
        draw: where chances come from.
    """
    vectors = network.quantize(network.encoder(latent).float()).vectors
    size, device = len(latent), latent.device
    noise = torch.randn(latent.shape, generator=draw).to(device)
    t = torch.randn(size, generator=draw).sigmoid().to(device)
    one_step = (torch.rand(size, generator=draw) < settings.one_step).to(device)
    without = (torch.rand(size, generator=draw) < settings.without).to(device)
    keep = keep.to(device).masked_fill(without & ~one_step, 0)
    t = t.masked_fill(one_step, 1)
    mix = t[:, None, None, None]
    mixed = (mix * noise + (1 - mix) * latent).masked_fill(one_step[:, None, None, None], 0)
    made = network.decoder(mixed, t, network.decoder.condition(vectors, keep))
    error = made.float() - latent
    if network.vae is not None:
        error = error * network.vae.vae.deviation
    loss: Tensor = error.square().mean()
    return loss


def start_network(config: FlexTokConfig, pictures: Tensor, seed: int) -> FlexTokNetwork:
    """A random network whose spectrum fits uint8 pictures (M, 3, H, W).

    It starts unlike FlexTok in two ways, without which a small model takes long to find out that
    there are tokens, and that they differ. The decoder's gates are open. What tells registers apart
    is as large as what they read.
    """
    torch.manual_seed(seed)
    network = FlexTokNetwork(config)
    for block in network.decoder.module_dict["dec_transformer"].blocks:
        block.adaLN_modulation[1].bias.data.view(2, 6, -1)[:, :2] = 1
    network.decoder.module_dict["dec_to_patches"].proj.weight.data *= 0.1
    nn.init.normal_(network.encoder.module_dict["enc_register_module"].registers)
    nn.init.normal_(network.decoder.module_dict["dec_registers_posemb_module"].posembs)
    if network.vae is not None:
        network.vae.vae.fit(pictures[:: max(1, len(pictures) // 4000)].float() / 127.5 - 1)
    return network


class FlexTrainer:
    """Trains a network in place; resumes from `folder`.

    Args:
        config: of a `direct` network.
        pictures: (M, 3, H, W) uint8.
        settings: how to train.
        folder: for the checkpoint.
        device: torch device.

    Raises:
        InputError: the checkpoint there was made with other settings or other data.
    """

    def __init__(
        self,
        config: FlexTokConfig,
        pictures: Tensor,
        settings: FlexSettings,
        folder: Path,
        device: str = "cpu",
    ) -> None:
        self.config, self.pictures, self.settings = config, pictures, settings
        self.path = folder / "flex.pt"
        self.network = start_network(config, pictures, settings.seed).to(device)
        parts: list[nn.Module] = [self.network.encoder, self.network.decoder]
        self.optimisers = Optimisers(parts, settings.lr, settings.others_lr)
        self.state: dict[str, Any] = {"step": 0, "seconds": 0.0}
        self._said: dict[str, Any] = {"config": asdict(config), "settings": asdict(settings)}
        self._said["data"] = checkpoint.digest(pictures)
        saved = checkpoint.load(self.path, self._said)
        if saved is not None:
            self.network.load_state_dict(saved["network"])
            self.optimisers.load_state_dict(saved["optimisers"])
            self.state = saved["state"]

    def train(
        self, report: Callable[[str], None] = print, until: int | None = None
    ) -> dict[str, Any]:
        """Go on to the last step, or to `until`; a checkpoint there and every 250.

        Returns:
            steps done, CPU seconds used and the last loss.
        """
        state, losses = self.state, []
        last = self.settings.steps if until is None else min(until, self.settings.steps)
        while state["step"] < last:
            began = time.process_time()
            losses.append(self._step(state["step"]))
            state["step"] += 1
            state["seconds"] += time.process_time() - began
            if state["step"] % 50 == 0:
                state["loss"] = sum(losses) / len(losses)
                report(f"step {state['step']} {state['seconds'] / 60:.1f} min {state['loss']:.5f}")
                losses = []
            if state["step"] % 250 == 0 or state["step"] == last:
                self._save()
        return state

    def _step(self, step: int) -> float:
        """One step; its chances depend on the seed and its number alone."""
        settings = self.settings
        draw = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
        device = next(self.network.parameters()).device
        chosen = torch.randint(len(self.pictures), (settings.batch,), generator=draw)
        pictures = self.pictures[chosen].to(device).float() / 127.5 - 1
        turned = (torch.rand(settings.batch, generator=draw) < 0.5).to(device)
        pictures = torch.where(turned[:, None, None, None], pictures.flip(3), pictures)
        latent = pictures if self.network.vae is None else self.network.vae.vae.encode(pictures)
        keep = draw_lengths(self.config, settings.batch, draw)
        if not settings.nested:
            keep = torch.full_like(keep, self.config.registers)
        # On CPUs the backward pass of fused attention is slow in bfloat16.
        with sdpa_kernel(SDPBackend.MATH), torch.autocast(device.type, torch.bfloat16):
            loss = reconstruction_loss(self.network, latent, keep, settings, draw)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimisers.step(schedule((step + 1) / (settings.steps + 1), decay=settings.decay))
        return loss.item()

    def _save(self) -> None:
        parts = {"network": self.network.state_dict(), "state": self.state}
        optimisers = self.optimisers.state_dict()
        checkpoint.save(self.path, {**parts, "optimisers": optimisers}, self._said)


def export(
    network: FlexTokNetwork, config: FlexTokConfig, folder: Path, trained: Mapping[str, Any]
) -> None:
    """Write fp16 weights and configuration into a folder that `weights` can name.

    `trained` says there how: nothing reads it but people and benchmarks.
    """
    said = {"tokenizer": "flextok", "trained": dict(trained), "mmtok": asdict(config)}
    checkpoint.export(folder, network.state_dict(), said)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="train the embedded tokenizer tiny-flex")
    parser.add_argument("--data", type=Path, required=True, help="folder or .tar of pictures")
    parser.add_argument("--out", type=Path, help="default: runs/flex, --fixed: runs/flex-twin")
    parser.add_argument("--steps", type=int, default=FlexSettings.steps)
    parser.add_argument("--fixed", action="store_true", help="without nested dropout")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="CPU threads, by default all")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    settings = FlexSettings(steps=options.steps, nested=not options.fixed, seed=options.seed)
    out = options.out or Path("runs/flex-twin" if options.fixed else "runs/flex")
    pictures = load_pictures(options.data, TINY.spectrum[0])
    trainer = FlexTrainer(TINY, pictures, settings, out, options.device)
    figures = trainer.train(lambda line: print(line, flush=True))
    trained = {"pictures": len(pictures), **asdict(settings), **figures}
    export(trainer.network, TINY, out / "export", trained)
    print(json.dumps(trained))


if __name__ == "__main__":
    main()
