"""Caption what `mmtok preprocess` stored: the vision tower does not run again, prompts are short.

    mmtok preprocess photos/ --out features/ --model llava-hf/llava-1.5-7b-hf \\
        --reduce "visionzip(keep=64)"
    python examples/batch_captions.py features/ captions.jsonl

Captions are appended as they are made and found again by key: a stopped run goes on where it was,
and makes the line again that it had written half of.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from mmtok.serving.recipe import load_recipe, reload
from mmtok.serving.replay import prompt_inputs
from mmtok.serving.shards import read_item, read_manifest


def captioned(out: Path) -> set[str]:
    """Keys that have a caption; the start of a line that was never ended is cut off."""
    if not out.exists():
        return set()
    whole, ended, _ = out.read_bytes().rpartition(b"\n")
    os.truncate(out, len(whole + ended))
    return {json.loads(line)["key"] for line in whole.split(b"\n") if line}


def main(arguments: Sequence[str] | None = None) -> int:
    """Caption what has no caption yet; returns how many that were."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("features", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--text", default="Describe the picture in one sentence.")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--max-new-tokens", type=int, default=48)
    args = parser.parse_args(arguments)

    rows = [r for r in read_manifest(args.features) if r["status"] == "ok" and r["kind"] == "image"]
    ready = captioned(args.out)
    rows = [row for row in rows if row["key"] not in ready]
    lvlm = reload(load_recipe(args.features))
    with args.out.open("a") as out:
        for start in range(0, len(rows), args.batch):
            some = rows[start : start + args.batch]
            items = [(row, read_item(args.features, row)) for row in some]
            inputs = prompt_inputs(lvlm, items, args.text)
            with torch.inference_mode():
                made = lvlm.model.generate(
                    **inputs, max_new_tokens=args.max_new_tokens, do_sample=False
                )
            texts = lvlm.decode(made[:, inputs["input_ids"].shape[1] :])
            for row, text in zip(some, texts, strict=True):
                line = {"key": row["key"], "sources": row["sources"], "caption": text}
                out.write(json.dumps(line) + "\n")
            out.flush()
    return len(rows)


if __name__ == "__main__":
    print(main(), "captions")
