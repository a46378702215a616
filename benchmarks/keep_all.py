"""What `keep=1.0` costs in wall time over the stock `generate`, as a ratio in one run.

python benchmarks/keep_all.py [--repeats 30]
"""

from __future__ import annotations

import argparse

import torch
from card import card, markdown, save
from PIL import Image

import mmtok
from mmtok.accounting.timing import StageTimer, measure

MODELS = {"tiny": False, "llava_onevision": True, "qwen2_5_vl": True}
OPTIONS = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=30)
    repeats = parser.parse_args().repeats
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

        runs = measure({"stock": stock, "kept": kept}, repeats=repeats)
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
