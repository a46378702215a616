"""Export: stored features in the form that an inference server or transformers takes.

One safetensors file per item and one line in `index.jsonl` that says how to send it. What a server
cannot take is refused with the reason. Servers lay out placeholders before they see features, and
number positions anew: a server that derives their count from the picture's grid cannot take fewer.

Written from the servers' documentation (vLLM 0.27, SGLang 0.5.17, LMDeploy 0.11); none of them has
been run against these files here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmtok.errors import InputError
from mmtok.io.files import reason
from mmtok.registry import unknown
from mmtok.serving.replay import StoredOutput, prompt_inputs
from mmtok.serving.rows import Row
from mmtok.serving.shards import make_folder, read_items, read_manifest, whole, write_rows
from mmtok.serving.verify import item_problems

if TYPE_CHECKING:
    from mmtok.models.lvlm import LVLM

Payload = tuple[dict[str, Tensor], dict[str, Any]]
"""Tensors of one item, and the plain values that go with them."""

# Families whose server code counts placeholders by the features it is given, not by the picture.
_COUNTS_FEATURES = frozenset({"llava", "paligemma", "gemma3"})
_GRID = frozenset({"qwen2_vl", "qwen2_5_vl", "qwen3_vl"})
# Families whose visual tokens attend to later ones, which the model tells by their ids.
_LOOKS_BACK = frozenset({"paligemma", "gemma3"})
SGLANG_RENAMED = (0, 5)
"""From this version on SGLang takes {"format": "precomputed_embedding", "feature": ...}."""


def export(
    out: Path, target: str, folder: Path, lvlm: LVLM, text: str = "", version: str | None = None
) -> list[str]:
    """Write every good item of a preprocessed folder for one server.

    Args:
        out: the folder that preprocess made.
        target: one of `TARGETS`.
        folder: where to write.
        lvlm: the model that the recipe names; its prompt and embeddings are needed.
        text: the question, where the form holds a whole prompt.
        version: of the server, where forms differ.

    Returns:
        The uuids written: key of the item, so that a pruned and a whole copy never collide.

    Raises:
        InputError: unknown target, a family or selection it cannot take, or damaged features.
    """
    if target not in TARGETS:
        raise InputError(unknown("export target", target, sorted(TARGETS)))
    rows = [row for row in read_manifest(out) if row["status"] == "ok"]
    width = lvlm.config.get_text_config().hidden_size
    for row in rows:
        check(target, lvlm.config.model_type, row)
    make_folder(folder)
    lines = {}
    for row, tensors in read_items(out, rows):
        if wrong := item_problems(row, tensors):
            raise InputError(f"{row['sources'][0]}: {wrong[0]}, expected what the row says")
        features = tensors["features"]
        if features.shape[-1] != width or not bool(features.isfinite().all()):
            raise InputError(
                f"{row['sources'][0]}: features {tuple(features.shape)}, expected finite ones "
                f"of width {width}"
            )
        made, facts = TARGETS[target](lvlm, row, tensors, text, version)
        name = _FILES.get(target, "{key:.32}.safetensors").format(key=row["key"])
        make_folder((folder / name).parent)
        with whole(folder / name) as file:
            save_file({n: x.contiguous() for n, x in made.items()}, file)
        lines[row["key"]] = {"uuid": row["key"], "sources": row["sources"], "file": name} | facts
    write_rows(folder / "index.jsonl", (lines[row["key"]] for row in rows))
    return [row["key"] for row in rows]


def check(target: str, family: str, row: Row) -> None:
    """Refuse what a server could not use rightly.

    Raises:
        InputError: with the reason.
    """
    fewer = row["tokens_in"] != row["tokens_out"]
    served = target.startswith("vllm") or target == "sglang"
    why = None
    if target == "vllm-prompt" and family in _GRID | _LOOKS_BACK:
        why = "a prompt of embeddings carries neither M-RoPE positions nor which tokens are visual"
    elif target == "vllm-cache" and fewer:
        why = "the server lays out placeholders from the picture before it looks into its cache"
    elif target in ("vllm", "sglang") and fewer and family in _GRID:
        why = (
            "the server derives token counts and M-RoPE positions from the picture's grid, so a "
            "subset does not fit"
        )
    elif target == "vllm" and fewer and family not in _COUNTS_FEATURES:
        why = "the server lays out this family's placeholders from the picture's size"
    elif target == "lmdeploy" and family in _GRID:
        why = "input_embeddings carry no M-RoPE positions"
    elif served and target != "vllm-prompt" and row["kind"] == "video":
        why = "precomputed features of videos are not taken"
    if why:
        raise InputError(
            f"{row['sources'][0]}: cannot be exported to {target} for {family}: {why}; "
            "expected --to hf, or features of all tokens"
        )


def _vllm(
    lvlm: LVLM, row: Row, tensors: Mapping[str, Tensor], text: str, version: str | None
) -> Payload:
    """multi_modal_data of LLM(..., enable_mm_embeds=True); `uuid` is the cache key."""
    embeds = _with_deepstack(tensors)
    if lvlm.config.model_type in _GRID:
        made = {"image_embeds": embeds, "image_grid_thw": _grid(lvlm, row)}
        return made, {"modality": "image", "fields": ["image_embeds", "image_grid_thw"]}
    return {"image": embeds[None]}, {"modality": "image", "fields": ["image"]}


def _with_deepstack(tensors: Mapping[str, Tensor]) -> Tensor:
    deep = [x for name, x in sorted(tensors.items()) if name.startswith("deepstack")]
    return torch.cat([tensors["features"], *deep], dim=-1)


def _vllm_prompt(
    lvlm: LVLM, row: Row, tensors: Mapping[str, Tensor], text: str, version: str | None
) -> Payload:
    """A whole prompt as embeddings (S, D), for --enable-prompt-embeds; positions count anew."""
    ids = prompt_inputs(lvlm, [(row, dict(tensors))], text)["input_ids"][0]
    visual = ids == getattr(lvlm.config, f"{row['kind']}_token_id")
    with torch.inference_mode():
        embeds = lvlm.model.get_input_embeddings()(ids.masked_fill(visual, 0))
        embeds[visual] = tensors["features"].to(embeds)
    return {"prompt_embeds": embeds.cpu()}, {"text": text}


def _vllm_cache(
    lvlm: LVLM, row: Row, tensors: Mapping[str, Tensor], text: str, version: str | None
) -> Payload:
    """A file of the example encoder-cache connector, in a folder named by the item's uuid."""
    return {"ec_cache": _with_deepstack(tensors)}, {"modality": "image"}


def _sglang(
    lvlm: LVLM, row: Row, tensors: Mapping[str, Tensor], text: str, version: str | None
) -> Payload:
    """One entry of `image_data`, sent with `input_ids` in place of the text."""
    inputs = prompt_inputs(lvlm, [(row, dict(tensors))], text)
    renamed = version is None or _version(version) >= SGLANG_RENAMED
    feature, grid = (
        ("feature", "image_grid_thw") if renamed else ("precomputed_features", "image_grid_thws")
    )
    made = {feature: tensors["features"], "input_ids": inputs["input_ids"]}
    if lvlm.config.model_type in _GRID:
        made[grid] = _grid(lvlm, row)
    facts = {"format": "precomputed_embedding"} if renamed else {"modality": "IMAGE"}
    return made, facts | {"text": text}


def _lmdeploy(
    lvlm: LVLM, row: Row, tensors: Mapping[str, Tensor], text: str, version: str | None
) -> Payload:
    """input_ids with input_embeddings and their (start, end) ranges; TurboMind, in process."""
    ids = prompt_inputs(lvlm, [(row, dict(tensors))], text)["input_ids"]
    places = ids[0] == getattr(lvlm.config, f"{row['kind']}_token_id")
    edges = torch.nn.functional.pad(places.int(), (1, 1)).diff()
    ranges = torch.stack([(edges > 0).nonzero()[:, 0], (edges < 0).nonzero()[:, 0]], dim=1)
    made = {"input_ids": ids, "input_embeddings": tensors["features"]}
    return made | {"input_embedding_ranges": ranges}, {"text": text}


def _hf(
    lvlm: LVLM, row: Row, tensors: Mapping[str, Tensor], text: str, version: str | None
) -> Payload:
    """Arguments of `generate`: tensors by name, features as mm_encoder_outputs[kind]."""
    inputs = prompt_inputs(lvlm, [(row, dict(tensors))], text)
    output = inputs.pop("mm_encoder_outputs")[row["kind"]].pooler_output
    made = {name: x for name, x in inputs.items() if isinstance(x, Tensor)}
    made["pooler_output"] = output if isinstance(output, Tensor) else torch.cat(output)
    deep = {name: x for name, x in tensors.items() if name.startswith("deepstack")}
    made |= {name: x.to(lvlm.dtype) for name, x in deep.items()}
    split = None if isinstance(output, Tensor) else row["kept_counts"]
    return made, {"kind": row["kind"], "split": split, "text": text}


def read_hf(folder: Path, line: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a stock model's `generate` from a line of an export to "hf".

    The same by hand: all tensors but `pooler_output` go in by their names, that one as
    `mm_encoder_outputs={kind: BaseModelOutputWithPooling(pooler_output=...)}`, cut into a list of
    `split` rows each where the line has that.

    Raises:
        InputError: the file is gone or damaged.
    """
    try:
        tensors = load_file(folder / line["file"])
    except (OSError, SafetensorError) as error:
        raise InputError(f"{folder / line['file']}: cannot be read ({reason(error)})") from None
    rows: list[int] | None = line["split"]
    features, output = tensors.pop("pooler_output"), StoredOutput()
    output.pooler_output = features if rows is None else list(torch.split(features, rows))
    layers = [tensors.pop(name) for name in sorted(tensors) if name.startswith("deepstack")]
    if layers and rows is not None:
        output.deepstack_features = [list(torch.split(layer, rows)) for layer in layers]
    found: dict[str, Any] = tensors | {"mm_encoder_outputs": {line["kind"]: output}}
    return found


def _grid(lvlm: LVLM, row: Row) -> Tensor:
    """image_grid_thw: patches before the spatial merge."""
    merge = lvlm.config.vision_config.spatial_merge_size
    return torch.tensor([[t, h * merge, w * merge] for t, h, w in row["grids"]])


def _version(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(".")[:2])
    except ValueError:
        raise InputError(f"--server-version must read like 0.5.17, got {text!r}") from None


TARGETS: dict[str, Callable[..., Payload]] = {
    "vllm": _vllm,
    "vllm-prompt": _vllm_prompt,
    "vllm-cache": _vllm_cache,
    "sglang": _sglang,
    "lmdeploy": _lmdeploy,
    "hf": _hf,
}
_FILES = {"vllm-cache": "{key}/encoder_cache.safetensors"}
"""Names of files, where a target has its own."""
