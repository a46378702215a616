"""Reference vectors, where a folder of them is given by MMTOK_GOLDEN; skipped elsewhere."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from mmtok.models.families import cells
from mmtok.pruning import (
    EVS,
    CoverageMax,
    DivPrune,
    HoloV,
    VidCom2,
    VisionZip,
    VisPruner,
    VisualTokens,
)
from mmtok.pruning.coverage import greedy_coverage
from mmtok.pruning.greedy import greedy_diverse
from mmtok.pruning.methods.vidcom2 import likeness

GOLDEN = Path(os.environ.get("MMTOK_GOLDEN", "not-given"))
pytestmark = pytest.mark.skipif(
    not GOLDEN.is_dir(), reason="MMTOK_GOLDEN names no folder of reference vectors"
)
SCORES = ("output.video_score", "output.frame_score")


def cases(name: str) -> list[tuple[dict[str, Any], dict[str, torch.Tensor]]]:
    """(parameters, tensors by short name) of every case of one file."""
    from safetensors import safe_open

    with safe_open(GOLDEN / "pruning" / f"{name}.safetensors", "pt") as file:
        meta = file.metadata()
        return [
            (
                json.loads(meta[f"case{i}.params"]),
                {
                    key.split(".", 1)[1]: file.get_tensor(key)
                    for key in file.keys()  # noqa: SIM118 (safe_open is no mapping)
                    if key.startswith(f"case{i}.")
                },
            )
            for i in range(int(meta["cases"]))
        ]


def test_todre() -> None:
    for params, tensors in cases("todre_formula"):
        x, attention = tensors["input.features"], tensors["input.cls_attn"]
        for rule in ("kcenter", "maxsum"):
            got = greedy_diverse(x, params["k"], int(attention.argmax()), rule)
            assert torch.equal(got, tensors[f"output.{rule}"].long())


def known(tensors: dict[str, torch.Tensor], item: int = 0, **facts: torch.Tensor) -> VisualTokens:
    x = tensors["input.features"]
    return VisualTokens(features=x[item : item + 1] if x.ndim == 3 else x[None], **facts)


def test_divprune() -> None:
    for params, tensors in cases("divprune"):
        got = greedy_diverse(tensors["input.features"], params["k"], None)
        if params["ratio"] == 0.8:  # duplicates: the reference chooses some of them twice
            assert len(got.unique()) == params["k"]
            continue
        assert torch.equal(got, tensors["output.indices"])
        chosen = DivPrune(keep=params["k"]).select(known(tensors)).indices[0]
        assert torch.equal(chosen, tensors["output.indices_sorted"])


def test_evs() -> None:
    for params, tensors in cases("evs"):
        h, w = params["H"] // params["merge"], params["W"] // params["merge"]
        want = tensors["output.kept"]
        tokens = VisualTokens(
            features=tensors["input.embeds"][None], position=cells(params["T"], h, w)[None]
        )
        got = EVS(keep=len(want)).select(tokens).indices[0]
        if params["T"] == 5:  # equal frames: only rounding decides
            assert torch.equal(got[: h * w], want[: h * w])
            assert len(got) == len(want)
        else:
            assert torch.equal(got, want)


def test_vispruner() -> None:
    for params, tensors in cases("vispruner"):
        share = params["important"] / params["T"]
        for item, want in enumerate(tensors["output.kept"]):
            attention = tensors["input.cls_attn"][item].mean(0)[None]
            tokens = known(tensors, item, cls_attention=attention)
            got = VisPruner(keep=params["T"], important=share).select(tokens).indices[0]
            assert torch.equal(got, want)


def test_holov() -> None:
    for params, tensors in cases("holov"):
        for item, want in enumerate(tensors["output.source_index"]):
            attention = tensors["input.cls_attn"][item : item + 1]
            tokens = known(tensors, item, cls_attention=attention)
            reducer = HoloV(keep=params["K"], chunks=params["chunks"], alpha=params["alpha"])
            got = reducer.select(tokens).indices[0]
            if (want < 0).any():  # a quota above its stretch: the reference pads with zero tokens
                assert len(got) == params["K"]
                assert set(want[want >= 0].tolist()) <= set(got.tolist())
            else:
                assert torch.equal(got, want.sort().values)


def test_vidcom2() -> None:
    for params, tensors in cases("vidcom2"):
        t, p = params["frames"], params["tokens_per_frame"]
        x, want = tensors["input.features"], tensors["output.kept"]
        tokens = VisualTokens(features=x[None], position=cells(t, 1, p)[None])
        for got, name in zip(likeness(x, list(torch.arange(t * p).split(p))), SCORES, strict=True):
            torch.testing.assert_close(got.view(t, p), tensors[name], rtol=1e-4, atol=1e-6)
        assert torch.equal(VidCom2(keep=len(want)).select(tokens).indices[0], want)


def test_visionzip() -> None:
    for params, tensors in cases("visionzip"):
        dominant, contextual = params["dominant_patches"], params["contextual"]
        for item, hidden in enumerate(tensors["input.hidden"]):
            tokens = VisualTokens(  # CLS stands first, and the reference keeps it as well
                features=hidden[None, 1:],
                cls_attention=tensors["input.attn"][item].mean(0)[:, 1:],
                keys=tensors["input.metric"][item : item + 1, 1:],
            )
            reducer = VisionZip(keep=dominant + contextual, contextual=contextual, compat="repo")
            selection = reducer.select(tokens)
            first = tensors["output.kept_indices"][item, 1:].sort().values - 1
            is_first = torch.isin(selection.indices[0], first)
            got = selection.apply(tokens.features)[0]
            want = tensors["output.tokens"][item, 1:].to(got.dtype)
            assert int(is_first.sum()) == dominant
            ordered = torch.cat([got[is_first], got[~is_first]])
            torch.testing.assert_close(ordered, want, rtol=1e-5, atol=1e-6)


def test_coveragemax() -> None:
    for params, tensors in cases("coveragemax"):
        reducer = CoverageMax(
            alpha=params["alpha"],
            text_temperature=params["tv_temp"],
            image_temperature=params["vv_temp"],
        )
        names = ("text", "vision", "vision_encoder")
        cover = reducer.cover(*(tensors[f"input.{name}"] for name in names))
        open_to = torch.ones(len(cover), dtype=torch.bool)
        open_to[tensors["input.excluded"]] = False
        allowed = open_to.nonzero().squeeze(1)
        k = min(params["k"], len(allowed))
        got = allowed[greedy_coverage(cover[allowed], k)].sort().values
        if k < params["k"]:  # more than there are: the reference repeats some
            assert torch.equal(got, allowed)
        else:
            assert torch.equal(got, tensors["output.indices"])


def test_ragged_compaction() -> None:
    """MrT5's hard deletion: the survivors of rows of different length, in order, then padding."""
    for params, tensors in cases("mrt5_compact"):
        keep = tensors["input.gate"][..., 0] > params["threshold"]
        left = VisualTokens(features=tensors["input.hidden"]).gather(
            [row.nonzero().squeeze(1) for row in keep]
        )
        counts = keep.sum(1)
        want = tensors["output.mask"] == 0
        # the reference keeps one slot of a row that loses everything; here nothing is left of it
        want[counts == 0] = False
        assert torch.equal(left.mask, want)
        assert torch.equal(left.features[want], tensors["output.hidden"][want])
        assert torch.equal(left.position[want][:, 2], tensors["output.positions"][want].long())
