"""Tiny random models of every family and the inputs that the tests feed them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmtok.cli.app import main
from mmtok.models.cache_name import CACHE_NAMES, cache_name
from mmtok.models.dummy import tiny_config
from mmtok.models.families import FAMILIES
from mmtok.models.processors import build_processor
from mmtok.training.garments import Garments

CASES = [(name, "image") for name in FAMILIES] + [
    (name, "video") for name, family in FAMILIES.items() if family.video is not None
]


def picture(seed: int, width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def pictures(made: Path, count: int, width: int = 60) -> Path:
    """A new folder of pictures, named by their numbers."""
    made.mkdir()
    for number in range(count):
        picture(number, width, 48).save(made / f"{number}.png")
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six pictures: two shards of three."""
    return pictures(tmp_path / "in", 6)


@cache
def tiny_model(family: str) -> tuple[Any, Any]:
    """(model, processor) with random weights, wide enough apart that greedy tokens differ."""
    from transformers import AutoModelForImageTextToText

    config = tiny_config(family)
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.mul_(4 if "embed" not in name else 1)
    model.requires_grad_(False)
    processor = build_processor(config)
    processor.tokenizer.padding_side = "left"
    return model, processor


def ask(processor: Any, kind: str, count: int, text: str) -> str:
    content = [{"type": kind}] * count + [{"type": "text", "text": text}]
    return processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )


@cache
def _inputs(family: str, kind: str, rows: tuple[int, ...]) -> dict[str, Any]:
    _, processor = tiny_model(family)
    if kind == "video":
        clips = [[picture(10 * c + f, 90, 70) for f in range(4)] for c in range(2)]
        texts = [ask(processor, "video", 1, t) for t in ("what moves here?", "go on")]
        made = processor(
            text=[texts[r] for r in rows],
            videos=[[clips[r]] for r in rows] if family == "smolvlm" else [clips[r] for r in rows],
            padding=True,
            return_tensors="pt",
        )
    else:
        images = [[picture(1, 150, 100)], [picture(2, 70, 90), picture(3, 112, 112)]]
        texts = [
            ask(processor, "image", 1, "what is in the picture?"),
            ask(processor, "image", 2, "compare"),
        ]
        made = processor(
            text=[texts[r] for r in rows],
            images=[images[r] for r in rows],
            padding=True,
            return_tensors="pt",
        )
    return dict(made)


def cache_arguments() -> tuple[str, ...]:
    """Names by which the installed `generate` takes a KV cache; `forward` takes the first two."""
    from transformers import LlavaForConditionalGeneration

    own = cache_name(LlavaForConditionalGeneration)
    return CACHE_NAMES if own == "cache" else (own,)


@pytest.fixture(params=CASES, ids=lambda case: "-".join(case))
def case(request: pytest.FixtureRequest) -> tuple[str, str]:
    return request.param


def batch(family: str, kind: str, rows: tuple[int, ...] = (0, 1)) -> dict[str, Any]:
    """Two prompts of different length; row 0 has one image, row 1 two (or one clip each)."""
    return {
        k: v.clone() if hasattr(v, "clone") else v for k, v in _inputs(family, kind, rows).items()
    }


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def garments() -> Garments:
    """Forty grey boxes that stand for photographs of garments."""
    rng = np.random.default_rng(0)
    images = np.zeros((40, 28, 28), np.uint8)
    for image in images:
        w, h = rng.integers(10, 25, 2)
        image[14 - h // 2 : 14 + h // 2, 14 - w // 2 : 14 + w // 2] = rng.integers(120, 255)
    return Garments.from_arrays(images, np.arange(40) % 10)


@pytest.fixture
def refused(tmp_path, capsys):
    """Runs a command that must be refused before any work; returns the line it prints."""

    def contents() -> dict[Path, bytes | None]:
        return {p: p.read_bytes() if p.is_file() else None for p in tmp_path.rglob("*")}

    def check(*arguments: object) -> str:
        before = contents()
        capsys.readouterr()
        assert main([str(x) for x in arguments]) == 2
        out, err = capsys.readouterr()
        lines = [x for x in err.splitlines() if not x.endswith(" ...")]  # progress
        assert out == ""
        assert len(lines) == 1
        assert lines[0].startswith("error: ")
        assert contents() == before
        return lines[0]

    return check
