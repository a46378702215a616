"""What tiny-flex's tokens are worth: PSNR by length, against a fixed-length twin, and halting.

    python benchmarks/flex.py --data test.tar --train train.tar --twin runs/twin/export

The twin is `python -m mmtok.training.flex --fixed`: same network and pictures, no nested dropout.
Of several, the best one at full length counts: runs of one recipe differ. A folder whose name ends
in `resumed` holds a finished run that went on to more steps.
Choices of the recipe were made looking at some of the held-out pictures; none of those counts here.
Needs the test extra (scikit-image, for photographs to show, and scipy).
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path

import numpy as np
import skimage.data
import torch
from card import ROOT, card, markdown, save
from PIL import Image
from scipy.stats import spearmanr
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from mmtok.io.sheet import arrange
from mmtok.models.zoo import located
from mmtok.tokenizers import FlexTok
from mmtok.tokenizers.resize import to_size
from mmtok.training.pictures import load_pictures

BATCH = 100
SHOWN = ("astronaut", "chelsea", "coffee", "rocket")
LOOKED_AT = (8, 10)
"""Every eighth and every tenth held-out picture had a say in the recipe."""
TARGET_DB = 5.0
"""Gain over the cut twin that was aimed at, at a quarter of the tokens or fewer."""


def psnr(made: Tensor, want: Tensor) -> Tensor:
    """dB of each picture, (B,)."""
    return -10 * (made.double() - want.double()).square().mean((1, 2, 3)).log10()


def lengths_psnr(tokenizer: FlexTok, pictures: Tensor) -> dict[int, Tensor]:
    """PSNR (B,) by number of tokens."""
    codes = tokenizer.encode(list(pictures), batch_size=BATCH)
    return {
        length: psnr(torch.stack(tokenizer.decode(codes.trim(length), batch_size=BATCH)), pictures)
        for length in tokenizer.lengths
    }


@torch.no_grad()
def filled_psnr(tokenizer: FlexTok, pictures: Tensor) -> dict[int, Tensor]:
    """As `lengths_psnr`, but a missing token is what that token is on average, over `pictures`."""
    network = tokenizer.network
    vectors = torch.cat(
        [
            network.quantize(network.encoder(tokenizer.latent(p))).vectors
            for p in pictures.split(100)
        ]
    )
    found = {}
    for length in tokenizer.lengths:
        parts = []
        for part in vectors.split(BATCH):
            mixed = vectors.mean(0).repeat(len(part), 1, 1)
            mixed[:, :length] = part[:, :length]
            given = network.decoder.condition(mixed, torch.full((len(part),), mixed.shape[1]))
            start = torch.zeros(len(part), 3, tokenizer.config.side, tokenizer.config.side)
            latent = network.decoder(start, torch.ones(len(part)), given)
            parts.append(((network.vae.vae.decode(latent) + 1) / 2).clamp(0, 1))
        found[length] = psnr(torch.cat(parts), pictures)
    return found


@torch.no_grad()
def ceiling_psnr(tokenizer: FlexTok, pictures: Tensor) -> Tensor:
    """PSNR (B,) of what the network reads of a picture, were all of it decoded."""
    made = tokenizer.network.vae.vae.decode(tokenizer.latent(pictures))
    return psnr(((made + 1) / 2).clamp(0, 1), pictures)


def linear_psnr(train: Tensor, pictures: Tensor, lengths: tuple[int, ...]) -> dict[int, Tensor]:
    """The best linear code: principal components of `train`, six to a token, not rounded."""
    flat = train.flatten(1).double()
    mean = flat.mean(0)
    _, axes = torch.linalg.eigh((flat - mean).T @ (flat - mean))
    axes = axes.flip(1)
    rest = pictures.flatten(1).double() - mean
    found = {}
    for length in lengths:
        kept = axes[:, : 6 * length]
        made = (rest @ kept @ kept.T + mean).clamp(0, 1)
        found[length] = psnr(made.view_as(pictures), pictures)
    return found


def jpeg_bytes(picture: Tensor) -> int:
    """Size of the picture as a JPEG of quality 75."""
    held = io.BytesIO()
    to_pil_image(picture).save(held, "jpeg", quality=75)
    return len(held.getvalue())


def by_length(
    options: argparse.Namespace, tokenizer: FlexTok, pictures: Tensor
) -> tuple[str, str, str]:
    """The table, what it says about the target, and the table of twins, the best one first."""
    ours, few = lengths_psnr(tokenizer, pictures), pictures[:: max(1, len(pictures) // 100)]
    twins = {folder: lengths_psnr(FlexTok(weights=folder), pictures) for folder in options.twin}
    whole = tokenizer.max_tokens
    twins = dict(sorted(twins.items(), key=lambda twin: -float(twin[1][whole].mean())))
    folder, cut = next(iter(twins.items()))
    filled = filled_psnr(FlexTok(weights=folder), pictures)
    flow = lengths_psnr(FlexTok(weights=options.weights, steps=20), few)
    train = load_pictures(options.train, 32).float() / 255
    linear = linear_psnr(train, pictures, (0, *tokenizer.lengths))
    head = ["tokens", "bits", "PSNR", "5th percentile", "20 flow steps"]
    rows = [[*head, "twin, cut", "gain", "twin, filled", "gain", "linear"]]
    for length, value in ours.items():
        best = float(value.mean())
        bits = length * tokenizer.codebook.bits
        row = [str(length), f"{bits:.0f}", f"**{best:.2f}**", f"{value.quantile(0.05):.2f}"]
        row.append(f"{flow[length].mean():.2f}")
        for other in (cut, filled):
            row += [f"{other[length].mean():.2f}", f"{best - float(other[length].mean()):+.2f}"]
        rows.append([*row, f"{linear[length].mean():.2f}"])
    return markdown(rows), verdict(tokenizer, ours, cut, linear), compared(ours, twins)


def compared(ours: dict[int, Tensor], twins: dict[str, dict[int, Tensor]]) -> str:
    """The table of twins: how each was trained, PSNR of all tokens, gain over it where cut."""
    *short, whole = ours
    rows = [["twin", "trained for", "PSNR, all tokens", *(f"gain at {k}" for k in short)]]
    for folder, cut in twins.items():
        name = Path(folder).name
        said = training(folder) + ", resumed" * name.endswith("resumed")
        gains = [f"{float((ours[k] - cut[k]).mean()):+.2f}" for k in short]
        rows.append([name, said, f"{cut[whole].mean():.2f}", *gains])
    return markdown(rows)


def verdict(
    tokenizer: FlexTok,
    ours: dict[int, Tensor],
    cut: dict[int, Tensor],
    linear: dict[int, Tensor],
) -> str:
    """Whether the gain over the cut twin is what was aimed at, and what stands in the way."""
    short = [k for k in tokenizer.lengths if 4 * k <= tokenizer.max_tokens]
    gains, most = ([float((x[k] - cut[k]).mean()) for k in short] for x in (ours, linear))
    met = [str(k) for k, gain in zip(short, gains, strict=True) if gain >= TARGET_DB]
    reach = [str(k) for k, gain in zip(short, most, strict=True) if gain >= TARGET_DB]
    nothing = float(linear[0].mean())
    near = [k for k in short if float(linear[k].mean()) < nothing + TARGET_DB]
    return (
        f"Aimed at were {TARGET_DB:.0f} dB over the cut twin at {short[-1]} tokens or fewer. "
        f"Reached at: {', '.join(met) or 'none of them'}; the gains are {min(gains):.2f} to "
        f"{max(gains):.2f} dB. Even *linear*, which rounds nothing, is {most[0]:.2f} dB above the "
        f"cut twin at {short[0]} token, and {TARGET_DB:.0f} dB or more at: "
        f"{', '.join(reach) or 'none of them'}. The mean picture of those trained on, which takes "
        f"no token, has {nothing:.2f} dB: *linear* is less than {TARGET_DB:.0f} dB above that at "
        f"{', '.join(map(str, near)) or 'none of them'}."
    )


def training(weights: str) -> str:
    """How weights were trained, by what stands beside them."""
    said = json.loads((located(weights) / "config.json").read_text())["trained"]
    return (
        f"{said['step']:,} steps of {said['batch']} out of {said['pictures']:,} pictures, seed "
        f"{said['seed']}, {said['seconds'] / 60:.0f} minutes of one core"
    )


def halting(options: argparse.Namespace, pictures: Tensor) -> str:
    sizes = np.array([jpeg_bytes(picture) for picture in pictures])
    rows = [["quality", "tokens", "fewest", "most", "reach it", "5th percentile", "correlation"]]
    for quality in (16, 18, 20, 22):
        tokenizer = FlexTok(weights=options.weights, quality=quality)
        codes = tokenizer.encode(list(pictures), batch_size=BATCH)
        made = psnr(torch.stack(tokenizer.decode(codes, batch_size=BATCH)), pictures)
        counts = np.array(codes.counts)
        row = [f"{quality} dB", f"{counts.mean():.1f}", str(counts.min()), str(counts.max())]
        row += [f"{(made >= quality).double().mean():.1%}", f"{made.quantile(0.05):.2f}"]
        rows.append([*row, f"{spearmanr(counts, sizes).statistic:.3f}"])
    return markdown(rows)


def sheet(tokenizer: FlexTok) -> Image.Image:
    """Photographs and what is left of them at some lengths, four times as large."""
    details = []
    for name in SHOWN:
        whole = torch.from_numpy(np.ascontiguousarray(getattr(skimage.data, name)()[..., :3]))
        side = min(whole.shape[:2])
        square = whole.permute(2, 0, 1)[None, :, :side, :side].float() / 255
        details.append(to_size(square, 32, 32)[0].clamp(0, 1))
    codes = tokenizer.encode(details)
    columns = [("picture", details)]
    for length in (1, 2, 4, 8, 16, 32):
        made = tokenizer.decode(codes.trim(length))
        columns.append((f"{length} token{'s' if length > 1 else ''}", made))
    panels = []
    for place, detail in enumerate(details):
        for title, column in columns:
            large = to_pil_image(column[place]).resize((128, 128), Image.Resampling.NEAREST)
            said = (
                ""
                if column is details
                else f"\n{psnr(column[place][None], detail[None])[0]:.1f} dB"
            )
            panels.append((title + said, large))
    return arrange(panels, columns=len(columns), font_size=14)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="held-out pictures")
    parser.add_argument("--train", type=Path, required=True, help="those trained on, for `linear`")
    parser.add_argument("--twin", nargs="+", required=True, help="exported folders of twins")
    parser.add_argument("--weights", default="tiny-flex")
    parser.add_argument("--pictures", type=int, default=1000, help="how many, evenly spread")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pictures = load_pictures(options.data, 32).float() / 255
    place = torch.arange(len(pictures))
    pictures = pictures[torch.stack([place % step != 0 for step in LOOKED_AT]).all(0)]
    pictures = pictures[torch.linspace(0, len(pictures) - 1, options.pictures).long()]
    tokenizer = FlexTok(weights=options.weights)
    facts = {
        "ours": training(options.weights),
        "ceiling": float(ceiling_psnr(tokenizer, pictures).mean()),
        "n": len(pictures),
        "looked_at": " and every ".join(f"{step}th" for step in LOOKED_AT),
    }
    tables = (*by_length(options, tokenizer, pictures), halting(options, pictures))
    sheet(tokenizer).save(ROOT / "docs" / "results" / "flex.png")
    text = card("tiny-flex: what the first tokens of a picture are worth")
    text += TEXT.format(*tables, **facts)
    save(f"{Path(__file__).stem}.md", text)


TEXT = """PSNR in dB, mean over {n:,} held-out pictures of 32 pixels a side, by number of tokens.
Every {looked_at} held-out picture was looked at while patch size and start were
chosen: none of those is among them. How much lies in which frequencies was looked at on all.

- *PSNR*: of tiny-flex, trained for {ours}.
  The network reads the lower frequencies of a picture alone: those, unchanged, would be
  {ceiling:.2f} dB.
- *20 flow steps*: samples, from noise, instead of the mean in one step; of 100 of the pictures.
- *twin*: the same network trained without nested dropout. Runs differ, so of several twins the one
  that is best at full length counts, the first under *Twins*. *cut* decodes its first tokens as any
  FlexTok does; *filled* puts the average vector of each missing token, over these very pictures, in
  its place, which no decoder could know. *gain* is over the column before it.
- *linear*: principal components of the training pictures, six numbers to a token as here, but not
  rounded, so of many more bits.

{0}
{1}

## Twins

Gain of tiny-flex over the first tokens of each. *resumed*, if any: a finished run of fewer steps
went on to these, its learning rates rising again in between; the recipe refuses that, so its
command alone does not make such a twin.

{2}
## Halting

`flextok(weights="tiny-flex", quality=...)` gives each picture the fewest tokens that reach the
quality, or all. The correlation is Spearman's, of tokens with bytes as a JPEG of quality 75.

{3}
## Pictures

Photographs from scikit-image, that the model was not trained on.

![reconstructions](flex.png)
"""


if __name__ == "__main__":
    main()
