"""Train the classifier that judges generated garments (`mmtok.eval.judge`).

    python -m mmtok.training.judge --data DIR --out runs/garment-judge

A minute or two on one core; every epoch a checkpoint. The photographs are shifted by up to two
pixels. OUT/export then holds the weights and the features' moments on the test photographs.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmtok.eval.judge import Judge, JudgeNetwork, load_judge, saved_judge
from mmtok.training import checkpoint
from mmtok.training.garments import read_classes
from mmtok.training.optim import schedule
from mmtok.training.vq import as_pictures

_BATCH, _LR = 128, 2e-3


def train(images: Tensor, classes: Tensor, folder: Path, epochs: int, seed: int = 0) -> Any:
    """A network trained on photographs (M, 28, 28) of 0 .. 255 with class numbers (M,).

    Raises:
        InputError: the checkpoint in `folder` was made with other settings or other data.
    """
    torch.manual_seed(seed)
    network = JudgeNetwork().train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=_LR, weight_decay=0.02)
    per_epoch, step = len(images) // _BATCH, 0
    said = {"epochs": epochs, "seed": seed, "data": checkpoint.digest(images, classes)}
    saved = checkpoint.load(folder / "judge.pt", said)
    if saved is not None:
        network.load_state_dict(saved["network"])
        optimiser.load_state_dict(saved["optimiser"])
        step = saved["step"]
    while step < epochs * per_epoch:
        places = checkpoint.batch_at(step, _BATCH, len(images), seed)
        right, down = torch.randint(-2, 3, (2,)).tolist()
        pictures = as_pictures(images[places]).roll((down, right), (2, 3))
        loss = F.cross_entropy(network(pictures), classes[places], label_smoothing=0.05)
        torch.autograd.backward(loss)
        for group in optimiser.param_groups:
            group["lr"] = _LR * schedule(step / (epochs * per_epoch), decay=0.8)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        step += 1
        if step % per_epoch == 0:
            state = {"network": network.state_dict(), "optimiser": optimiser.state_dict()}
            checkpoint.save(folder / "judge.pt", {**state, "step": step}, said)
            print(f"judge epoch {step // per_epoch} loss {float(loss.detach()):.3f}", flush=True)
    return network.eval()


def measured(judge: Judge, photographs: Tensor, classes: Tensor) -> dict[str, float]:
    """Accuracy on photographs, and the Fréchet distance that 500 of them have to all."""
    found = {"accuracy": judge.figures(photographs, classes)["accuracy"]}
    order = torch.randperm(len(photographs), generator=torch.Generator().manual_seed(0))[:500]
    return {**found, "frechet_of_500": judge.figures(photographs[order], classes[order])["frechet"]}


def main() -> None:
    """Command line."""
    from safetensors.torch import save_file

    parser = argparse.ArgumentParser(description="train the judge of garments")
    parser.add_argument("--data", type=Path, required=True, help="folder with FashionMNIST/raw")
    parser.add_argument("--out", type=Path, default=Path("runs/garment-judge"))
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--threads", type=int, help="CPU threads, by default all")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    (images, classes), test = (read_classes(options.data, train=train) for train in (True, False))
    network = train(torch.tensor(images), torch.tensor(classes), options.out, options.epochs)
    folder = options.out / "export"
    folder.mkdir(parents=True, exist_ok=True)
    photographs = as_pictures(torch.tensor(test[0]))
    save_file(dict(saved_judge(network, photographs)), folder / "model.safetensors")
    figures = measured(load_judge(folder), photographs, torch.tensor(test[1]))
    (options.out / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
