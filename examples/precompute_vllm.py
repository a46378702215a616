"""Requests for vLLM with precomputed, pruned features in place of pictures.

    mmtok preprocess photos/ --out features/ --model llava-hf/llava-1.5-7b-hf \\
        --reduce "visionzip(keep=64)"
    mmtok export features/ --to vllm --out vllm/
    python examples/precompute_vllm.py vllm/ requests.jsonl --model llava-hf/llava-1.5-7b-hf
    vllm serve llava-hf/llava-1.5-7b-hf --enable-mm-embeds      # a trusted network only

Each line is the body of one POST to /v1/chat/completions. The uuid under which the server caches an
item is that of media and recipe, so pruned and whole copies of a picture never meet. vLLM reads
tensors sent to it with `torch.load`, hence `torch.save` here; mmtok itself keeps safetensors only.
The lines follow vLLM's documentation (0.27); no server has been asked with them here.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor


def encoded(tensor: Tensor) -> str:
    """A tensor as vLLM's endpoint takes it: base64 of what `torch.save` writes."""
    file = io.BytesIO()
    torch.save(tensor, file)
    return base64.b64encode(file.getvalue()).decode()


def request(model: str, line: Mapping[str, Any], tensors: Mapping[str, Tensor], text: str) -> Any:
    """The body of one chat request about one exported item."""
    if "image" in tensors:
        embeds: Any = encoded(tensors["image"][0])
    else:  # Qwen-VL: features and the grid they stand in
        embeds = {name: encoded(tensors[name]) for name in line["fields"]}
    part = {"type": "image_embeds", "image_embeds": embeds, "uuid": line["uuid"]}
    content = [part, {"type": "text", "text": text}]
    return {"model": model, "messages": [{"role": "user", "content": content}]}


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the requests; returns how many."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("exported", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", default="Describe the picture in one sentence.")
    args = parser.parse_args(arguments)
    lines = [json.loads(line) for line in (args.exported / "index.jsonl").read_text().splitlines()]
    with args.out.open("w") as out:
        for line in lines:
            tensors = load_file(args.exported / line["file"])
            out.write(json.dumps(request(args.model, line, tensors, args.text)) + "\n")
    return len(lines)


if __name__ == "__main__":
    print(main(), "requests")
