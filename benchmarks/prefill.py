"""Measured prefill speed-up against what the FLOP ratio predicts, on a real-size dummy model.

python benchmarks/prefill.py [--model llava-onevision-0.5b] [--keep 0.1] [--device cpu]
"""

from __future__ import annotations

import argparse

from card import card, save
from PIL import Image

import mmtok
from mmtok.profile import profile


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="llava-onevision-0.5b")
    parser.add_argument("--keep", type=float, default=0.1)
    parser.add_argument("--size", type=int, default=384)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    lvlm = mmtok.load(args.model, dummy=True, device=args.device)
    picture = Image.effect_noise((args.size, args.size), 60).convert("RGB")
    inputs = lvlm.inputs([picture], "What is in the picture?")
    result = profile(
        lvlm, f"todre(keep={args.keep})", inputs, repeats=args.repeats, warmup=1, new_tokens=4
    )
    stages = {row.stage: row.device_ms or 0.0 for row in result.reduced.stages}
    choosing = stages.get("reduce.score", 0.0) + stages["reduce.select"]
    share = result.ratio["prefill_ms"] / result.ratio["predicted"]
    text = card(f"Prefill of {args.model} (random weights), todre(keep={args.keep})")
    text += (
        f"- prefill speed-up, selection included: {result.ratio['prefill_ms']:.2f}x measured, "
        f"{result.ratio['predicted']:.2f}x predicted by FLOPs: **{share:.0%}** (target >= 85%)\n"
        f"- scoring and selection: **{choosing / sum(stages.values()):.2%}** of the reduced run "
        "(target <= 2%)\n\n"
        f"```\n{result.table()}```\n"
    )
    save(f"prefill_{args.device}.md", text)


if __name__ == "__main__":
    main()
