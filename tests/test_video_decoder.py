"""Video methods in a model: HoliTom inside the decoder, VQToken with its trained layer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mmtok import Pipeline
from mmtok.accounting.flops import count_flops
from mmtok.accounting.rows import analytic_flops
from mmtok.models.lvlm import LVLM
from mmtok.pruning import HoliTom, VQToken
from mmtok.pruning.vqattention import VQAttention
from tests.conftest import batch, tiny_model
from tests.test_decoder_methods import SEEDS, START, best, prompt, row
from tests.test_methods import cosine


@pytest.mark.parametrize("seed", SEEDS)
def test_holitom(seed: int) -> None:
    size = torch.arange(40).remainder(3).add(1).float()
    seen = prompt(seed, size=size)
    (stage,) = HoliTom(later=0.3).in_decoder(28)
    assert stage.layer == 18
    chosen = stage.rule(seen)
    kept = best(row(seen, 59)[START : START + 40], 12)
    assert chosen.indices[0].tolist() == kept
    assert chosen.merge is not None
    x = seen.hidden[START : START + 40].double().tolist()
    into: dict[int, list[int]] = {i: [i] for i in kept}
    for i in set(range(40)) - set(kept):
        into[max(kept, key=lambda k: cosine(x[i], x[k]))].append(i)
    got: dict[int, dict[int, float]] = {i: {} for i in kept}
    for source, slot, weight in zip(*(part.tolist() for part in chosen.merge[0]), strict=True):
        got[kept[slot]][source] = weight
    for i, members in into.items():
        total = sum(float(size[j]) for j in members)
        assert got[i] == pytest.approx({j: float(size[j]) / total for j in members})


def test_holitom_plans_and_refuses() -> None:
    assert HoliTom().decoder_schedule(4, 9) == [9, 9, 5, 5]
    assert HoliTom(later=1).decoder_schedule(4, 9) == [9] * 4
    assert HoliTom(keep=1.0).in_decoder(28) == HoliTom(later=1).in_decoder(28) == []
    assert HoliTom().in_decoder(1) == []


def test_trained_vqtoken_in_a_pipeline(tmp_path: Path) -> None:
    """Frames of a family whose clips end in a newline token."""
    model, processor = tiny_model("llava_onevision")
    lvlm = LVLM(model=model, processor=processor, name="tiny", config=model.config)
    inputs = batch("llava_onevision", "video")
    with count_flops() as counted:
        whole = Pipeline(lvlm).one_pass(inputs, counted, max_new_tokens=1)
    tokens = whole.reduction.visual_tokens[0]
    _, rows, columns = tokens.grid[0].tolist()
    torch.manual_seed(0)
    module = VQAttention(rows * columns, tokens.features.shape[-1], hidden=32, heads=4)
    save_file(module.state_dict(), tmp_path / "vq.safetensors")
    reducer = VQToken(keep=5, mode="trained", weights=str(tmp_path / "vq.safetensors"), heads=4)
    with count_flops() as counted:
        done = Pipeline(lvlm, reducer).one_pass(inputs, counted, max_new_tokens=2)
    assert [k for _, _, k in done.reduction.tokens] == [5, 5]
    assert analytic_flops(lvlm, done)["reduce.select"] == counted.by_stage["reduce.select"]
    (made,) = done.reduction.visual_tokens
    chosen = reducer.select(replace(tokens, item_ids=made.item_ids))  # k-means draws by the name
    assert chosen.made is not None
    assert torch.equal(made.features, torch.stack(chosen.made))
