"""Every reference vector of the pruning methods has its test, or a reason why not."""

from __future__ import annotations

from importlib import import_module

from tests.golden import GOLDEN, needs_golden

COVERED = {
    "a2sf": "test_cache_steps.test_a2sf",
    "cdpruner": "test_golden_image.test_cdpruner",
    "corematching": "test_decoder_golden.test_corematching",
    "coveragemax": "test_golden.test_coveragemax",
    "damro": "test_golden_tower.test_damro",
    "dart": "test_decoder_golden.test_dart",
    "divprune": "test_golden.test_divprune",
    "dycoke": "test_golden_video.test_dycoke",
    "evs": "test_golden.test_evs",
    "fastv": "test_decoder_golden.test_fastv",
    "framefusion": "test_decoder_golden.test_framefusion",
    "holov": "test_golden.test_holov",
    "kvpress_scores": "test_cache_steps.test_knorm_snapkv_expected_attention",
    "mrt5_compact": "test_golden.test_ragged_compaction",
    "mustdrop_dual": "test_golden_tower.test_mustdrop_dual",
    "mustdrop_merge": "test_golden_tower.test_mustdrop_merge",
    "prumerge": "test_golden_image.test_prumerge",
    "pyramiddrop": "test_decoder_golden.test_pyramiddrop",
    "quota_compress": "test_golden_image.test_quota_compress",
    "quota_scale": "test_golden_image.test_quota_scale",
    "quota_waterfill_formula": "test_golden_image.test_quota_waterfill",
    "sentencekv_means": "test_cache_steps.test_sentencekv_stores",
    "sentencekv_select": "test_cache_steps.test_sentencekv_reads",
    "sparsevlm": "test_decoder_golden.test_sparsevlm",
    "todre_formula": "test_golden.test_todre",
    "tome": "test_golden_tower.test_tome",
    "vidcom2": "test_golden.test_vidcom2",
    "visionzip": "test_golden.test_visionzip",
    "vispruner": "test_golden.test_vispruner",
    "vqtoken_kmeans": "test_golden_video.test_kmeans_and_codebook",
}

NOT_BUILT = {
    "focus_detr_maskpredictor": "a trained head of an object detector over four feature levels",
    "mrt5_gate": "a trained gate of a byte-level text model; its compaction is tested",
}

# Cases whose reference shows a defect that no Selection can hold, compat or not: indices are
# unique, of one item, and at least one. There the test asks for what is right instead.
DEFECTS = {
    "cdpruner": "extremes taken over the batch",
    "corematching": "no token is kept where all scores are equal",
    "coveragemax": "tokens chosen twice, or excluded ones",
    "divprune": "tokens chosen twice",
    "evs": "equal frames: rounding decides",
    "holov": "zero tokens where a stretch is too short for its quota",
    "mrt5_compact": "a row that loses everything keeps a slot",
    "prumerge": "quartiles taken over the batch",
    "quota_compress": "more tokens than the frame has",
}


def test_every_named_test_is_there() -> None:
    for where in COVERED.values():
        module, _, name = where.partition(".")
        assert callable(getattr(import_module(f"tests.{module}"), name))


@needs_golden
def test_every_file_has_its_test_or_a_reason() -> None:
    from safetensors import safe_open

    files = sorted((GOLDEN / "pruning").glob("*.safetensors"))
    assert {path.stem for path in files} == COVERED.keys() | NOT_BUILT.keys()
    for path in files:
        with safe_open(path, "pt") as file:
            meta = file.metadata()
        defects = [i for i in range(int(meta["cases"])) if meta[f"case{i}.compat_only"] == "true"]
        assert defects or path.stem not in DEFECTS
