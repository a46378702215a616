"""What `keep=1.0` costs in wall time over the stock `generate`, as a ratio in one run.

    python benchmarks/keep_all.py [--repeats 30] [--threads 1]

The cost is fixed, a fraction of a millisecond per prompt, so the embedded model is the hard case; a
real size runs a tenth as often.
"""

from __future__ import annotations

import argparse

import torch
from card import card, markdown, save
from PIL import Image

import mmtok
from mmtok.accounting.timing import StageTimer, measure

MODELS = {"tiny": False, "llava-onevision-0.5b": True}
OPTIONS = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--threads", type=int, help="CPU threads, by default all")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    rows = [["model", "stock ms", "keep=1.0 ms", "ratio of medians", "ratio p10", "ratio p90"]]
    for name, dummy in MODELS.items():
        lvlm = mmtok.load(name, dummy=dummy, device="cpu")
        model = lvlm.model
        inputs = lvlm.inputs([Image.effect_noise((448, 448), 60).convert("RGB")], "What is this?")

        @torch.inference_mode()
        def stock(timer: StageTimer) -> None:
            with timer.stage("generate"):
                model.generate(**inputs, **OPTIONS)  # noqa: B023 (called within the loop)

        @torch.inference_mode()
        def kept(timer: StageTimer) -> None:
            with timer.stage("generate"), mmtok.reduced(model, "todre(keep=1.0)"):  # noqa: B023
                model.generate(**inputs, **OPTIONS)  # noqa: B023

        repeats, warmup = (args.repeats // 10, 1) if dummy else (args.repeats, 3)
        runs = measure({"stock": stock, "kept": kept}, repeats=repeats, warmup=warmup)
        a, b = (runs[side]["generate"].host_ms for side in ("stock", "kept"))
        ratios = [b.median / a.median, b.p10 / a.p10, b.p90 / a.p90]
        rows.append([name, f"{a.median:.1f}", f"{b.median:.1f}", *(f"{r:.3f}" for r in ratios)])
    text = card("Cost of keep=1.0 over the stock generate")
    text += (
        "One image, 8 new tokens, greedy; median of alternating runs. Target: ratio <= 1.03.\n\n"
    )
    save("keep_all.md", text + markdown(rows))


if __name__ == "__main__":
    main()
