"""What cannot be built is refused alike by a plan, from the config alone, and by a model."""

from __future__ import annotations

import pytest

from mmtok import InputError, plan, reduced
from tests.conftest import tiny_model

TOWER = "only one reducer of a pipeline can merge inside the vision tower"
CACHE = "only one reducer of a pipeline can evict"


@pytest.mark.parametrize(
    ("family", "spec", "why"),
    [
        ("qwen2_5_vl", "visionzip", "needs cls_attention, which qwen2_5_vl does not have"),
        ("llava_onevision", "damro", "needs cls_attention, which"),
        ("qwen3_vl", "fastv(layer=1)", "layers of qwen3_vl add visual features of their own"),
        ("qwen2_vl", "tome", "tome does not fit qwen2_vl"),
        ("llava", "fastv(layer=99)", "fastv: layer must be below 4"),
        ("llava", ["fastv(layer=1)", "dart(layer=1)"], "two stages drop tokens in front of"),
        ("llava", ["fastv(layer=2)", "corematching(layer=1)"], None),
        ("llava", ["corematching", "corematching(layer=2)"], "can choose the neurons"),
        ("llava", ["a2sf(keep=0.5)", "snapkv(keep=0.5)"], CACHE),
        ("llava", ["mustdrop(trim_early=True)", "a2sf(keep=0.5)"], CACHE),
        ("llava", ["dycoke(read=0.3)", "a2sf(keep=0.5)"], CACHE),
        ("llava", ["damro", "damro"], "can contrast logits"),
        ("llava", ["damro", "fastv(layer=1)"], "does not work beside dropping inside"),
        ("llava", ["damro", "a2sf(keep=0.5)"], "does not work beside dropping inside"),
        ("llava", ["tome", "mustdrop"], TOWER),
        ("llava", ["mustdrop", "tome"], TOWER),
        ("llava", ["tome(keep=1.0)", "mustdrop"], TOWER),
        ("llava", ["damro", "tome"], None),
    ],
)
def test_a_plan_refuses_what_a_model_refuses(
    family: str, spec: str | list[str], why: str | None
) -> None:
    model, _ = tiny_model(family)
    if why is None:
        plan(model.config, reduce=spec)
        with reduced(model, spec):
            return
    with pytest.raises(InputError, match=why) as planned:
        plan(model.config, reduce=spec)
    with pytest.raises(InputError) as built, reduced(model, spec):
        pass
    assert str(planned.value) == str(built.value)
