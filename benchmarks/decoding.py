"""Decoding with drafts against plain decoding: what is accepted, what it costs, what it changes.

    python benchmarks/decoding.py [--part text] [--limit 2] [--tokens 48]

`make text` installs the language model. Only a run of all parts and prompts writes the page;
others print.
"""

from __future__ import annotations

import argparse
from importlib import import_module

from card import card, save

PARTS = {"text": "decoding_text"}
"""Part -> module beside this one, whose `section(limit, tokens)` returns Markdown."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=PARTS, nargs="+", default=list(PARTS))
    parser.add_argument("--limit", type=int, help="prompts of each kind")
    parser.add_argument("--tokens", type=int, default=48, help="new tokens per prompt, at most")
    args = parser.parse_args()
    sections = [import_module(PARTS[part]).section(args.limit, args.tokens) for part in args.part]
    text = card("Decoding with drafts") + "\n".join(sections)
    if args.limit is None and set(args.part) == set(PARTS):
        save("decoding.md", text)
    else:
        print(text)


if __name__ == "__main__":
    main()
