"""Train the embedded visual autoregressive model `tiny-ar` over the codes of `tiny-vq`.

    python -m mmtok.training.ar --data DIR --out runs/tiny-ar

A stock Llama reads a class and writes 64 codes; one time in ten the class is hidden, so that the
same model also knows garments without a class and can be guided. Writes the codes of the
photographs once, checkpoints, and at last weights and figures in OUT/export. Its drafter is made
by `mmtok.training.draft`.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmtok.models.visual_ar import Vocabulary
from mmtok.training import checkpoint
from mmtok.training.garments import CLASSES, read_classes
from mmtok.training.optim import Optimisers, schedule
from mmtok.training.vq import SIZES, as_pictures

_CODES = SIZES["num_embeddings"]
VOCABULARY = Vocabulary(
    tokenizer="tiny-vq",
    shape=(3, 32, 32),
    codes=_CODES,
    first_code=0,
    classes=CLASSES,
    first_class=_CODES,
    unconditional=_CODES + len(CLASSES),
    draft="tiny-ar-draft",
)
TOKENS = SIZES["num_patches"] ** 2
GUIDANCE = 1.5
"""Guidance scale that the drafter is made for and that `generate` starts from."""


@dataclass(frozen=True, kw_only=True)
class ARSettings:
    """How long and how the model trains.

    Attributes:
        steps: optimiser steps.
        batch: pictures of a step.
        hide: share of the pictures whose class is hidden.
        lr: peak learning rate of the layers' matrices.
        others_lr: that of embeddings, head and norms.
        seed: of weights, order and hidden classes.
    """

    steps: int = 1200
    batch: int = 64
    hide: float = 0.1
    lr: float = 4e-3
    others_lr: float = 3e-3
    seed: int = 0


def build_model(width: int, layers: int, tied: bool, seed: int) -> Any:
    """A random Llama over codes, classes and no class."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY.unconditional + 1,
        hidden_size=width,
        intermediate_size=width * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        max_position_embeddings=TOKENS + 1,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=None,
        visual=asdict(VOCABULARY),
    )
    return LlamaForCausalLM(config)


def codes_of(images: Any, file: Path, device: str = "cpu", fast: bool = False) -> Tensor:
    """Codes (M, 64) of photographs, computed once and kept in `file`.

    `fast` encodes in bfloat16: ids whose two nearest entries are about as near may be the other.
    """
    from mmtok.tokenizers import build

    if not file.exists():
        tokenizer = build(VOCABULARY.tokenizer).to(device)
        made = []
        for part in torch.split(torch.tensor(images), 500):
            pictures = list(as_pictures(part).to(device))
            with torch.autocast(device, torch.bfloat16, enabled=fast):
                codes = tokenizer.encode(pictures, batch_size=100)
            made.append(torch.stack(codes.ids)[..., 0].cpu().short())
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(torch.cat(made), file.with_suffix(".new"))
        file.with_suffix(".new").replace(file)
    found: Tensor = torch.load(file, weights_only=True)
    return found.long()


def sequences(codes: Tensor, classes: Tensor) -> Tensor:
    """Token ids (B, 65) of codes (B, 64) and class numbers (B,)."""
    return torch.cat([classes[:, None] + VOCABULARY.first_class, codes], 1)


class ARTrainer:
    """Trains a model on sequences (M, 65); resumes from `folder`.

    Raises:
        InputError: the checkpoint there was made with other settings or other data.
    """

    def __init__(
        self, model: Any, data: Tensor, settings: ARSettings, folder: Path, device: str = "cpu"
    ) -> None:
        self.model, self.data, self.settings = model.to(device).train(), data, settings
        self.path, self.device = folder / "ar.pt", device
        self.optimisers = Optimisers([model], settings.lr, settings.others_lr)
        self.step, self.loss = 0, 0.0
        self._said = {**asdict(settings), "data": checkpoint.digest(data)}
        saved = checkpoint.load(self.path, self._said)
        if saved is not None:
            self.model.load_state_dict(saved["model"])
            self.optimisers.load_state_dict(saved["optimisers"])
            self.step, self.loss = saved["step"], saved["loss"]

    def train(self, report: Callable[[str], None] = print, until: int | None = None) -> None:
        """Go on to the last step, or to `until`; a checkpoint there and every 100."""
        settings = self.settings
        last = settings.steps if until is None else min(until, settings.steps)
        while self.step < last:
            places = checkpoint.batch_at(self.step, settings.batch, len(self.data), settings.seed)
            ids = self.data[places]
            hidden = torch.rand(len(ids)) < settings.hide
            ids[hidden, 0] = VOCABULARY.unconditional
            loss = token_loss(self.model, ids.to(self.device))
            torch.autograd.backward(loss)
            self.optimisers.step(schedule(self.step / settings.steps, decay=0.7))
            self.step += 1
            share = max(0.02, 1 / self.step)
            self.loss += share * (float(loss.detach()) - self.loss)
            if self.step % 50 == 0:
                report(f"ar step {self.step} nats a token {self.loss:.3f}")
            if self.step % 100 == 0 or self.step == last:
                state = {"model": self.model.state_dict(), "step": self.step, "loss": self.loss}
                state["optimisers"] = self.optimisers.state_dict()
                checkpoint.save(self.path, state, self._said)


def token_loss(model: Any, ids: Tensor) -> Tensor:
    """Mean negative log-likelihood in nats of the codes of (B, 65) ids."""
    with torch.autocast(ids.device.type, torch.bfloat16):
        scores = model(input_ids=ids[:, :-1], use_cache=False).logits
    return F.cross_entropy(scores.float().flatten(0, 1), ids[:, 1:].flatten())


@torch.no_grad()
def held_out(model: Any, data: Tensor) -> dict[str, float]:
    """Nats a token on sequences of photographs that were not trained on, with and without class."""
    hidden = data.clone()
    hidden[:, 0] = VOCABULARY.unconditional
    model.eval()
    losses = []
    for ids in (data, hidden):
        parts = [float(token_loss(model, part)) * len(part) for part in torch.split(ids, 250)]
        losses.append(sum(parts) / len(ids))
    figures = {"nats": losses[0], "nats_without_class": losses[1]}
    return {**figures, "bits_a_picture": losses[0] * TOKENS / math.log(2)}


def export(model: Any, folder: Path) -> None:
    """Write fp16 safetensors, configuration and defaults of `generate`."""
    from transformers import GenerationConfig

    config = model.config.__class__.from_dict(model.config.to_dict())
    config.dtype = torch.float16
    half = model.__class__(config).half()
    half.load_state_dict(checkpoint.halved(model.state_dict()))
    half.tie_weights()
    first, last = VOCABULARY.first_class, VOCABULARY.unconditional
    half.generation_config = GenerationConfig(
        max_new_tokens=TOKENS,
        do_sample=True,
        top_k=0,
        top_p=1.0,
        suppress_tokens=list(range(first, last + 1)),
    )
    half.save_pretrained(folder)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="train the embedded model tiny-ar")
    parser.add_argument("--data", type=Path, required=True, help="folder with FashionMNIST/raw")
    parser.add_argument("--out", type=Path, default=Path("runs/tiny-ar"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="CPU threads, by default all")
    for field in fields(ARSettings):
        parser.add_argument(f"--{field.name}", type=type(field.default), default=field.default)
    options = vars(parser.parse_args())
    if options["threads"]:
        torch.set_num_threads(options["threads"])
    settings = ARSettings(**{field.name: options[field.name] for field in fields(ARSettings)})
    out, device, parts = options["out"], options["device"], []
    for split, count in (("train", 60_000), ("test", 2_000)):
        images, classes = (x[:count] for x in read_classes(options["data"], split == "train"))
        codes = codes_of(images, out / f"codes-{split}.pt", device, fast=split == "train")
        parts.append(sequences(codes, torch.tensor(classes)))
    model = build_model(width=128, layers=6, tied=False, seed=settings.seed)
    trainer = ARTrainer(model, parts[0], settings, out, device)
    trainer.train(lambda line: print(line, flush=True))
    export(trainer.model.cpu(), out / "export")
    figures = held_out(trainer.model, parts[1])
    (out / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
