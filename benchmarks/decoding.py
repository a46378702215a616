"""Decoding with drafts against plain decoding: what is accepted, what it costs, what it changes.

    python benchmarks/decoding.py [--part text images] [--limit 2] [--pictures 4] [--quality 50]

`make text` installs the language model. A run of both parts on all prompts and the usual number of
pictures writes the page; others print. One thread, some twenty minutes.
"""

from __future__ import annotations

import argparse
from importlib import import_module

import smollm2
import torch
from card import card, save

from mmtok.cli.output import quiet
from mmtok.eval.judge import FEWEST

PARTS = {"text": "decoding_text", "images": "decoding_images"}
"""Part -> module beside this one, whose `section(args)` returns Markdown."""
SIZES = {"limit": None, "tokens": 20, "sampled_tokens": 12, "pictures": 20, "quality": 500}
TERMS = (
    "Every method runs on the same inputs in turn in one process, batch 1, float32. Plain "
    "decoding, and drafts without a verifier, are transformers' own `generate`.\n\n"
    "- *x ...*: how many times as fast as that; median over inputs of the ratio of times per "
    "token, prefill included.\n"
    "- *accepted per forward*: tokens per forward of the target less one, the forward that reads "
    "the prompt included; below 0 there are more forwards than tokens.\n"
    "- *exact*: by a rule that enumeration and chi-square show to be so "
    "([numbers](decoding_law.md)). *the same*: outputs equal to plain decoding, token by token.\n"
    "- *TV*, of lossy rules: total variation between the law of a token and the target's, given "
    "the tokens before it, at every place of a step where a draft was judged; given the drafts "
    "where they were chosen, over all draws where one was drawn. When greedy, the distance from "
    "the target's argmax; of chosen drafts, whether the token differs. Mean over n such tokens ± "
    "one standard error between inputs, in runs of their own. A token behind the last draft is "
    "the target's own and not in it.\n"
    "- *peak*: resident memory of one run above what the process held right before it, models "
    "loaded.\n\n"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=PARTS, nargs="+", default=list(PARTS))
    parser.add_argument("--limit", type=int, help="prompts of each kind")
    parser.add_argument("--tokens", type=int, help="new tokens per prompt, greedy")
    parser.add_argument("--sampled-tokens", type=int, help="the same, sampling")
    parser.add_argument("--pictures", type=int, help="pictures per way to decode, sampling")
    parser.add_argument("--quality", type=int, help="pictures per lossy rule to judge")
    parser.set_defaults(**SIZES)
    args = parser.parse_args()
    if "text" in args.part and (reason := smollm2.missing()):
        raise SystemExit(f"the text part needs SmolLM2: {reason}")
    if "images" in args.part and args.quality < FEWEST:
        raise SystemExit(f"--quality must be at least {FEWEST} pictures, got {args.quality}")
    torch.set_num_threads(1)
    quiet()
    sections = [import_module(PARTS[part]).section(args) for part in args.part]
    text = card("Decoding with drafts") + TERMS + "\n".join(sections)
    whole = all(getattr(args, name) == size for name, size in SIZES.items())
    if whole and set(args.part) == set(PARTS):
        save("decoding.md", text)
    else:
        print(text)


if __name__ == "__main__":
    main()
